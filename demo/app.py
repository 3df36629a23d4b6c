"""The page: which part stands where, and which action each part calls.

`python -m demo` opens it.  As a Hugging Face Space: `app_file: demo/app.py`, the model named by VLM_DEMO_MODEL.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypedDict

if not __package__:  # run as a file, as a Space does: the package stands in the folder above
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import gradio as gr
from gradio.events import api
from gradio_client.utils import is_file_obj_with_meta

from demo import views
from demo.actions import Actions, Hit, NoAnswer
from demo.gallery import SAMPLES, sample
from demo.texts import TEXTS
from demo.theme import THEME

HERE = Path(__file__).parent
EXAMPLES: dict[str, Any] = json.loads((HERE / "examples.json").read_text(encoding="utf-8"))
MODEL = "model"  # one computation at a time: all events share this queue
MAX_UPLOAD = "64mb"  # as much as vlm.open_image reads

text = gr.I18n(**{language: {key: said[language] for key, said in TEXTS.items()} for language in ("en", "ja")})

CLICK = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("click", {...button.dataset, language: document.documentElement.lang});
});"""


class Upload(TypedDict):
    """A picture as `gradio_client.handle_file` sends it."""

    path: str
    meta: dict[str, str]


class RankedLabel(TypedDict):
    label: str
    probability: float


class FoundPicture(TypedDict):
    picture: Upload
    score: float
    en: str
    ja: str
    author: str
    license: str


def build(actions: Actions) -> gr.Blocks:
    """The whole page for one model.  Nothing is loaded before the first action."""
    with gr.Blocks(title="vlm", analytics_enabled=False) as page:
        _endpoints(actions)  # first: they are to have the plain names
        _html(views.masthead())
        _html(views.model_note(actions.source))
        with gr.Tab(text("classify"), id="classify"):
            _classify_tab(actions)
        with gr.Tab(text("search"), id="search"):
            _search_tab(actions)
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
    settings = {"start": None if language == "auto" else language, "tabs": [TEXTS["classify"], TEXTS["search"]]}
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
    )
    return address


def _classify_tab(actions: Actions) -> None:
    _html(views.intro("classify_intro"))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            picture = _picture_box("picture", "drop_picture", height=300)
            examples = _html(views.example_pictures([sample(file) for file in EXAMPLES["classify"]]))
        with gr.Column(min_width=300):
            labels = gr.Textbox(
                label=text("labels"),
                info=text("labels_hint"),
                placeholder=text("labels_placeholder"),
                lines=4,
                max_lines=10,
                elem_id="labels",
            )
            button = gr.Button(text("classify_button"), variant="primary", elem_id="classify-button")
            ranking = _html(views.nothing_yet("ranking_empty"), "ranking")

    @_told
    def classify(image: Upload | None, typed: str) -> str:
        return views.bars(actions.classify(_path(image), typed))

    def take_example(event: gr.EventData) -> tuple[str, str, str]:
        path, names = sample(event.file).path, EXAMPLES["classify"][event.file][_language(event)]
        return str(path), "\n".join(names), views.bars(actions.classify(path, names))

    _on(button.click, classify, [picture, labels], [ranking])
    _on(examples.click, take_example, [], [picture, labels, ranking])


def _search_tab(actions: Actions) -> None:
    _html(views.intro("search_intro"))
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            query = gr.Textbox(
                label=text("query"), placeholder=text("query_placeholder"), lines=1, max_lines=1, elem_id="query"
            )
            suggestions = _html(views.suggestions(EXAMPLES["search"]))
            picture = _picture_box("query_picture", "drop_similar", height=200)
            button = gr.Button(text("search_button"), variant="primary", elem_id="search-button")
        with gr.Column(scale=8, min_width=300):
            found = _html(views.nothing_yet("found_empty"), "found")

    @_told
    def search(typed: str, image: Upload | None) -> str:
        return views.cards(actions.search(typed, _path(image)))

    def take_suggestion(event: gr.EventData) -> tuple[str, None, str]:
        typed = EXAMPLES["search"][int(event.number)][_language(event)]
        return typed, None, views.cards(actions.search(typed))

    def take_picture(event: gr.EventData) -> tuple[str, str, str]:
        path = sample(event.file).path
        return "", str(path), views.cards(actions.search(picture=path))

    _on(button.click, search, [query, picture], [found])
    _on(query.submit, search, [query, picture], [found])
    _on(suggestions.click, take_suggestion, [], [query, picture, found])
    _on(found.click, take_picture, [], [query, picture, found])


def _endpoints(actions: Actions) -> None:
    """The same for programs: typed, documented, plain JSON."""

    def classify(image: Upload, labels: str | list[str]) -> list[RankedLabel]:
        """Which of the labels fits the picture best: zero-shot classification.

        image: a picture file. labels: one per line or separated by commas, or a list; English, Japanese or mixed.
        Returns the labels, most probable first; the probabilities add up to 1.
        """
        with _plainly():
            return [RankedLabel(**ranked._asdict()) for ranked in actions.classify(_path(image), labels)]

    def search(text: str = "", image: Upload | None = None) -> list[FoundPicture]:
        """The 24 pictures of the gallery nearest to a text, to a picture, or to both.

        text: English or Japanese. image: a picture file. Give one or both.
        Returns the pictures, nearest first, each with its cosine similarity, names, author and licence.
        """
        with _plainly():
            return [_found(hit) for hit in actions.search(text, _path(image))]

    api(classify, api_name="classify", concurrency_id=MODEL)
    api(search, api_name="search", concurrency_id=MODEL)


def _found(hit: Hit) -> FoundPicture:
    one = hit.sample
    picture = Upload(path=str(one.path), meta={"_type": "gradio.FileData"})
    return FoundPicture(picture=picture, score=hit.score, en=one.en, ja=one.ja, author=one.author, license=one.license)


def _html(value: str, name: str | None = None) -> gr.HTML:
    """A part of the page as views.py makes it; a click on a button in it is an event with the button's data-*."""
    return gr.HTML(value, elem_id=name, apply_default_css=False, js_on_load=CLICK)


def _picture_box(label: str, placeholder: str, height: int) -> gr.Image:
    return gr.Image(
        type="filepath",
        label=text(label),
        placeholder=text(placeholder),  # pyright: ignore[reportArgumentType]
        height=height,
        sources=["upload", "clipboard", "webcam"],
        buttons=[],
        elem_classes="picture",
    )


def _on(trigger: Callable[..., Any], action: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
    """`action` gets pictures as Gradio's record of the upload: `vlm.open_image` alone decides what is a picture."""
    trigger(
        action,
        inputs,
        outputs,
        preprocess=False,
        concurrency_id=MODEL,
        api_visibility="private",
        show_progress="minimal",
    )


def _path(image: Upload | None) -> str | None:
    """The uploaded file; Gradio has checked of such a record, and of no other value, that it names an upload."""
    if image is None:
        return None
    if not is_file_obj_with_meta(image):
        raise NoAnswer("not an upload")
    return image["path"]


def _language(event: gr.EventData) -> str:
    return "ja" if str(event.language).startswith("ja") else "en"


def _told(action: Callable[..., str]) -> Callable[..., str]:
    """What the visitor can put right becomes one line where the answer would stand."""

    @wraps(action)
    def told(*inputs: Any) -> str:
        try:
            return action(*inputs)
        except NoAnswer as no:
            return views.notice(no)

    return told


@contextmanager
def _plainly() -> Iterator[None]:
    """What the caller can put right becomes one line, in English."""
    try:
        yield
    except NoAnswer as no:
        raise gr.Error(str(no), print_exception=False) from no


def __getattr__(name: str) -> Any:
    """`demo`, which Spaces and the `gradio` command look for, is built when asked for."""
    if name != "demo":
        raise AttributeError(f"module 'demo.app' has no attribute '{name}'")
    return build(Actions(os.environ.get("VLM_DEMO_MODEL", "mini")))


if __name__ == "__main__":
    the_actions = Actions(os.environ.get("VLM_DEMO_MODEL", "mini"))
    the_page = build(the_actions)
    launch(the_page, the_actions)
    the_page.block_thread()
