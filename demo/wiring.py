"""What all tabs are wired with: parts of the page, events, uploads, one line for every mistake."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any, TypedDict

import gradio as gr
from gradio.events import api
from gradio_client.utils import is_file_obj_with_meta

from vlm.demo import views
from vlm.demo.gallery import EXAMPLES, sample
from vlm.demo.texts import TEXTS, NoAnswer, english

MODEL = "model"  # one computation at a time: all events share this queue

text = gr.I18n(**{language: {key: said[language] for key, said in TEXTS.items()} for language in ("en", "ja")})

CLICK = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("click", {...button.dataset, language: document.documentElement.lang});
});"""


class Upload(TypedDict):
    """An image as `gradio_client.handle_file` sends it."""

    path: str
    meta: dict[str, str]


class Page(gr.Blocks):
    """Gradio's page, except that an image which is an address is refused: Gradio would fetch it."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **named: Any) -> Any:
        if any(_addresses(value) for value in inputs):
            raise gr.Error(english("not an upload"), print_exception=False)
        return await super().preprocess_data(block_fn, inputs, *rest, **named)


def _addresses(value: Any) -> bool:
    """Whether a file that Gradio would download is anywhere in it."""
    remaining = [value]
    while remaining:
        one = remaining.pop()
        if isinstance(one, dict):
            path = one.get("path")
            if isinstance(path, str) and "://" in path:
                return True
            remaining += one.values()
        elif isinstance(one, list):
            remaining += one
    return False


def html(value: str, name: str | None = None) -> gr.HTML:
    """A part of the page as views.py makes it; a click on a button in it is an event with the button's data-*."""
    return gr.HTML(value, elem_id=name, apply_default_css=False, js_on_load=CLICK)


def image_box(label: str, placeholder: str, height: int) -> gr.Image:
    return gr.Image(
        type="filepath",
        label=text(label),
        placeholder=text(placeholder),  # pyright: ignore[reportArgumentType]
        height=height,
        sources=["upload", "clipboard", "webcam"],
        buttons=[],
        elem_classes="image",
    )


def image_and_examples(height: int = 300) -> tuple[gr.Image, gr.HTML]:
    """A place for the visitor's image, and ours below it to click on."""
    image = image_box("image", "drop_image", height)
    return image, html(views.example_images([sample(file) for file in EXAMPLES["classify"]]))


def on(trigger: Callable[..., Any], action: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
    """`action` gets images as Gradio's record of the upload: `vlm.open_image` alone decides what is an image.

    Text boxes start with value="": without, one that was never shown (a closed accordion) sends None.  What
    the visitor can put right becomes one line in the last of `outputs`.
    """

    @wraps(action)
    def answering(*values: Any) -> Any:
        try:
            return action(*values)
        except NoAnswer as no:
            skipped = [gr.skip() for _ in outputs[:-1]]
            return (*skipped, views.notice(no)) if skipped else views.notice(no)

    trigger(
        action if isgeneratorfunction(action) else answering,
        inputs,
        outputs,
        preprocess=False,
        concurrency_id=MODEL,
        api_visibility="private",
        show_progress="minimal",
    )


def endpoint(action: Callable[..., Any], name: str) -> None:
    """`action`, with its types and its docstring, as `/name` for programs."""
    api(action, api_name=name, concurrency_id=MODEL)


def path_of(image: Upload | None) -> str | None:
    """The uploaded file; Gradio has checked of such a record, and of no other value, that it names an upload."""
    if image is None:
        return None
    if not is_file_obj_with_meta(image):
        raise NoAnswer("not an upload")
    return image["path"]


def language_of(event: gr.EventData) -> str:
    return "ja" if str(event.language).startswith("ja") else "en"


def told(action: Callable[..., str]) -> Callable[..., str]:
    """What the visitor can put right becomes one line where the answer would stand."""

    @wraps(action)
    def telling(*inputs: Any) -> str:
        try:
            return action(*inputs)
        except NoAnswer as no:
            return views.notice(no)

    return telling


@contextmanager
def plainly() -> Iterator[None]:
    """What the caller can put right becomes one line, in English."""
    try:
        yield
    except NoAnswer as no:
        raise gr.Error(str(no), print_exception=False) from no
