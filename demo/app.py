"""The page: which tabs it has, and how it is served.

`python -m demo` opens it.  As a Hugging Face Space: `app_file: demo/app.py`, the model named by VLM_DEMO_MODEL.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, as a Space does: the package stands in the folder above
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import gradio as gr
from starlette.middleware import Middleware

from vlm.demo import views
from vlm.demo.actions import Actions
from vlm.demo.door import Door
from vlm.demo.gallery import SAMPLES
from vlm.demo.tabs import classifier, classify, look, models, search
from vlm.demo.texts import TEXTS
from vlm.demo.theme import THEME
from vlm.demo.wiring import Page, html, text

HERE = Path(__file__).parent
TABS = {  # name in texts.json -> module
    "classify": classify,
    "search": search,
    "classifier": classifier,
    "look": look,
    "models": models,
}
UPLOADS_LIVE = (600, 3600)  # seconds: looked after every so many, deleted when that old
MAX_UPLOAD = "64mb"  # as much as vlm.open_image reads


def build(actions: Actions) -> gr.Blocks:
    """The whole page for one model.  Nothing is loaded before the first action."""
    with Page(title="vlm", analytics_enabled=False, delete_cache=UPLOADS_LIVE) as page:
        for module in TABS.values():
            module.endpoints(actions)  # first: they are to have the plain names
        html(views.masthead())
        html(views.model_note(actions.source))
        for name, module in TABS.items():
            with gr.Tab(text(name), id=name, elem_id=f"tab-{name}"):
                module.tab(actions)
    page.queue(default_concurrency_limit=1, max_size=512)
    return page


def launch(
    page: gr.Blocks,
    actions: Actions,
    *,
    language: str = "auto",
    host: str | None = None,
    port: int | None = None,
) -> str:
    """Serve the page in the background -> its address.  The gallery is embedded meanwhile.

    `language`: ja, en, or auto for the browser's.  `host` and `port`: None asks GRADIO_SERVER_NAME and
    GRADIO_SERVER_PORT, else 127.0.0.1 and the first free port from 7860 on.
    """
    settings = {
        "start": None if language == "auto" else language,
        "tabs": [TEXTS[name] for name in TABS],
        "parts": [said for key, said in TEXTS.items() if key.startswith("part_")],
    }
    script = (HERE / "page.js").read_text(encoding="utf-8")
    gr.set_static_paths([SAMPLES])
    threading.Thread(target=actions.warm_up, daemon=True).start()
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        theme=THEME,
        css_paths=[HERE / "style.css"],
        head=f'<script type="module">const page = {json.dumps(settings)};\n{script}</script>',
        i18n=text,
        footer_links=[],
        share=False,
        run_history=False,
        ssr_mode=False,
        max_file_size=MAX_UPLOAD,
        app_kwargs={"middleware": [Middleware(Door)]},
    )
    return address


def __getattr__(name: str) -> Any:
    """`demo`, which Spaces and the `gradio` command look for, is built when asked for."""
    if name != "demo":
        raise AttributeError(f"module 'vlm.demo.app' has no attribute '{name}'")
    return build(Actions(os.environ.get("VLM_DEMO_MODEL", "mini")))


if __name__ == "__main__":
    the_actions = Actions(os.environ.get("VLM_DEMO_MODEL", "mini"))
    the_page = build(the_actions)
    launch(the_page, the_actions)
    the_page.block_thread()
