"""The page: its tabs, and how it is served.

`vlm demo` serves it.  As a Hugging Face Space: `app_file: vlm/demo/app.py`, the model named by VLM_DEMO_MODEL.
"""

import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, as a Space does: `vlm` is in the folder above vlm/demo/, or beside demo/
    above = Path(__file__).resolve().parents[1]
    sys.path[0] = str(above.parent if above.name == "vlm" else above)

import gradio as gr

from vlm.demo.actions import PageActions
from vlm.demo.page.components import DemoPage, SharedParts, html_part, text
from vlm.demo.page.texts import TEXTS
from vlm.demo.page.theme import THEME
from vlm.demo.search.samples import SAMPLES
from vlm.demo.server.running import RunningPage, serve_page
from vlm.demo.tabs import classifier, classify, look, models, search
from vlm.demo.views import layout

ASSETS = Path(__file__).parent / "page"
TABS = {  # name in texts.json -> module
    "classify": classify,
    "search": search,
    "classifier": classifier,
    "look": look,
    "models": models,
}
SCRIPTS = ("language", "answers", "tabs", "images")
NOTES = (
    "paste_no_image",
    "paste_refused",
    "part_paste",
    "part_camera",
    "copied",
)  # texts that scripts show or look for
# before Gradio applies style.css: the page keeps its width while it is built
FIRST_STYLE = (
    "html { scrollbar-gutter: stable; } "
    ".gradio-container { width: 100% !important; max-width: 1120px !important; margin: 0 auto !important; }"
)
UPLOAD_AGE = (600, 3600)  # seconds: checked every 600, deleted after 3600
MAX_QUEUE = 512  # calls of all clients
MAX_UPLOAD = "64mb"  # the limit of vlm.open_image


def build(actions: PageActions) -> gr.Blocks:
    """The whole page.  The model is loaded by the first action."""

    def note() -> str:
        """A page that is opened later names the model of now."""
        return layout.model_note(actions.source)

    with DemoPage(title="vlm", analytics_enabled=False, delete_cache=UPLOAD_AGE) as page:
        for module in TABS.values():
            module.endpoints(actions)  # before the tabs: the first function of a name gets it without a suffix
        html_part(layout.masthead())
        shared = SharedParts(html_part(note(), "model-note"))
        page.load(note, [], [shared.model_note], queue=False, api_visibility="private", show_progress="hidden")
        for name in shown_tabs(actions):
            with gr.Tab(text(name), id=name, elem_id=f"tab-{name}"):
                TABS[name].tab(actions, shared)
        shared.connect()
    page.queue(default_concurrency_limit=1, max_size=MAX_QUEUE, api_open=False)
    return page


def shown_tabs(actions: PageActions) -> list[str]:
    """Names of the tabs; Classifier only if there is a trained classifier."""
    return [name for name in TABS if name != "classifier" or actions.registry.entries("vit_classifier")]


def launch(
    page: gr.Blocks,
    actions: PageActions,
    *,
    language: str = "auto",
    host: str | None = None,
    port: int | None = None,
    hosts: Sequence[str] = (),
    proxies: Sequence[str] = (),
) -> RunningPage:
    """Serve the page in the background, and embed the images to be searched meanwhile.

    Args:
        page: made by `build`.
        actions: the same as the page's.
        language: "ja", "en", or "auto" for the browser's language.
        host: address to bind to; default: GRADIO_SERVER_NAME, else 127.0.0.1.
        port: default: GRADIO_SERVER_PORT, else the first free port from 7860 on.
        hosts: names by which the page may be called, besides those of this machine.
        proxies: addresses of proxies whose X-Forwarded-For is believed.

    Returns:
        The page, with its address.
    """
    shown = shown_tabs(actions)
    settings = {
        "start": None if language == "auto" else language,
        "first": shown[0],
        "tabs": {name: TEXTS[name] for name in shown},
        "parts": [names for key, names in TEXTS.items() if key.startswith("part_")],
        "notes": {key: TEXTS[key] for key in NOTES},
        "words": json.loads((ASSETS / "gradio_words.json").read_text(encoding="utf-8")),
    }
    script = f"const page = {json.dumps(settings)};\n" + "\n".join(
        (ASSETS / "scripts" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS
    )
    by_medium = (ASSETS / "media.css").read_text(encoding="utf-8")
    gr.set_static_paths([SAMPLES])
    threading.Thread(target=actions.warm_up, daemon=True).start()
    return serve_page(
        page,
        host=host,
        port=port,
        hosts=hosts,
        proxies=proxies,
        theme=THEME,
        css_paths=[ASSETS / "style.css"],
        head=f'<style>{FIRST_STYLE}{by_medium}</style><script type="module">{script}</script>',
        i18n=text,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        max_file_size=MAX_UPLOAD,
    )


def __getattr__(name: str) -> Any:
    """Build `demo`, which Spaces and the `gradio` command look for, when it is asked for."""
    if name != "demo":
        raise AttributeError(f"module 'vlm.demo.app' has no attribute '{name}'")
    return build(PageActions(os.environ.get("VLM_DEMO_MODEL", "mini")))


if __name__ == "__main__":
    the_actions = PageActions(os.environ.get("VLM_DEMO_MODEL", "mini"))
    the_page = build(the_actions)
    launch(the_page, the_actions).wait()
