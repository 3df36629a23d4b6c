"""Components that the tabs share: HTML parts, image boxes and the page itself."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from vlm.demo.page.texts import TEXTS, both, english
from vlm.demo.search.retrieval import known_sample
from vlm.demo.search.samples import EXAMPLES, sample
from vlm.demo.search.thumbnails import thumbnail
from vlm.demo.views.retrieval import example_images

text = gr.I18n(**{language: {key: by_language[language] for key, by_language in TEXTS.items()}
                  for language in ("en", "ja")})  # fmt: skip

_log = logging.getLogger("vlm.demo")

_NOT_SHOWN = {".tif", ".tiff"}
CLICK = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("click", {...button.dataset, language: document.documentElement.lang});
});"""


class DemoPage(gr.Blocks):
    """Gradio's page, except that inputs it cannot read are one line and no traceback."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **named: Any) -> Any:
        try:
            return await super().preprocess_data(block_fn, inputs, *rest, **named)
        except gr.Error:
            raise
        except (ValueError, TypeError, OSError) as error:  # a file that is no upload, too few values
            _log.warning("event refused: %s", " ".join(str(error).split())[:200])
            raise gr.Error(english("not an upload"), print_exception=False) from error


def html_part(value: str, name: str | None = None) -> gr.HTML:
    """HTML made by `vlm.demo.views`; a click on a button in it is an event that carries the button's data-*."""
    return gr.HTML(value, elem_id=name, apply_default_css=False, js_on_load=CLICK)


def image_box(label: str, placeholder: str, height: int) -> gr.Image:
    """A box for one image: upload, paste, camera.

    Args:
        label: key of its title in texts.json.
        placeholder: key of its empty text.
        height: pixels.
    """
    return gr.Image(
        type="filepath",
        label=text(label),
        placeholder=text(placeholder),  # pyright: ignore[reportArgumentType]
        height=height,
        sources=["upload", "clipboard", "webcam"],
        buttons=[],
        elem_classes="image",
    )


class SharedParts:
    """Components that the tabs share: the note of the model, and the image, of which each tab has a box.

    Args:
        model_note: names the model; rewritten when the page is switched to another one.
    """

    def __init__(self, model_note: gr.HTML) -> None:
        self.model_note = model_note
        self._boxes: list[tuple[gr.Image, gr.HTML]] = []

    def box(self, height: int = 300) -> tuple[gr.Image, gr.HTML]:
        """A box for the image, and below it example images to click and a place for a preview."""
        image = image_box("image_label", "drop_image", height)
        preview = gr.HTML("", elem_classes="preview-part", apply_default_css=False)
        for event in (image.upload, image.clear):
            event(_preview, [image], [preview], preprocess=False, queue=False, api_visibility="private",
                  show_progress="hidden")  # fmt: skip
        examples = html_part(example_images([sample(file) for file in EXAMPLES["classify"]]))
        self._boxes.append((image, examples))
        return image, examples

    def connect(self) -> None:
        """Once all boxes are made: what the visitor does with one box happens in all."""
        for box, examples in self._boxes:
            others = [other for other, _ in self._boxes if other is not box]
            for event in (box.upload, box.clear):
                event(None, [box], others, js=_copies(len(others)), api_visibility="private")
            examples.click(
                _example_for(len(others)), [], others, queue=False, api_visibility="private", show_progress="hidden"
            )


def _example_for(count: int) -> Callable[[gr.EventData], Any]:
    """The path of the clicked example, for several boxes."""

    def take_example(event: gr.EventData) -> Any:
        path = str(known_sample(event.file).path)
        return [path] * count if count != 1 else path

    return take_example


def _copies(count: int) -> str:
    """JavaScript that hands one value to several boxes, in the browser."""
    return f"(image) => Array({count}).fill(image)" if count != 1 else "(image) => image"


def _preview(image: Any) -> str:
    """A preview of an image that browsers cannot show (TIFF); empty for any other."""
    path = Path(image["path"]) if isinstance(image, dict) and isinstance(image.get("path"), str) else None
    if path is None or path.suffix.lower() not in _NOT_SHOWN:
        return ""
    source = thumbnail(path)
    return f'<p class="preview"><img src="{source}" alt="">{both("preview")}</p>' if source else ""
