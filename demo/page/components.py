"""Components that the tabs share: HTML parts, image boxes and the page itself."""

import logging
from typing import Any

import gradio as gr

from vlm.demo.page.texts import TEXTS, english
from vlm.demo.search.samples import EXAMPLES, sample
from vlm.demo.views.retrieval import example_images

text = gr.I18n(**{language: {key: by_language[language] for key, by_language in TEXTS.items()}
                  for language in ("en", "ja")})  # fmt: skip

_log = logging.getLogger("vlm.demo")

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


def image_and_examples(height: int = 300) -> tuple[gr.Image, gr.HTML]:
    """An image box with clickable example images below it."""
    image = image_box("image_label", "drop_image", height)
    return image, html_part(example_images([sample(file) for file in EXAMPLES["classify"]]))
