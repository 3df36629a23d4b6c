"""Inspection of the page's model: patches, attention of every head, positions, filters, relevance."""

from typing import Any, TypedDict

import gradio as gr

from vlm.demo.actions import PageActions
from vlm.demo.inputs import read_image, read_text
from vlm.demo.models import inspection
from vlm.demo.models.compute_lock import compute_lock
from vlm.demo.page.components import SharedParts, html_part, text
from vlm.demo.page.events import Upload, api_errors, bind, named_endpoint, upload_path
from vlm.demo.page.texts import PageError
from vlm.demo.search.retrieval import known_sample
from vlm.demo.views import inspection as views
from vlm.demo.views import layout


class InspectedImage(TypedDict):
    blocks: int
    heads: int
    patch_size: int
    attention: list[list[float]]
    rollout: list[list[float]]
    relevance: list[list[float]] | None


def tab(actions: PageActions, shared: SharedParts) -> None:
    html_part(layout.intro("look_intro"))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            image, examples = shared.box()
            typed = gr.Textbox(
                value="",
                label=text("look_text"),
                placeholder=text("look_text_placeholder"),
                max_lines=1,
                elem_id="look-text",
            )
            button = gr.Button(text("look_button"), variant="primary", elem_id="look-button")
        with gr.Column(min_width=300):
            sliders = [
                gr.Slider(first, last, value=value, step=1, label=text(name), elem_id=f"look-{name}", buttons=[])
                for name, first, last, value in (("block", 1, 6, 6), ("head", 1, 3, 1), ("patch", 0, 64, 0))
            ]  # of mini; the first image sets those of another model
            attention_part = html_part(layout.empty_state("look_empty"), "look-attention")
    rest = html_part("", "look-figures")

    def look(image: Upload | None, typed_text: str, block: int, head: int, patch: int) -> list[Any]:
        return _look(actions, upload_path(image), typed_text, block, head, patch)

    def redraw(image: Upload | None, block: int, head: int, patch: int) -> Any:
        with compute_lock:
            return gr.skip() if image is None else _attention(_prepare(actions, upload_path(image)), block, head, patch)

    def take_example(typed_text: str, block: int, head: int, patch: int, event: gr.EventData) -> list[Any]:
        path = str(known_sample(event.file).path)
        return [path, *_look(actions, path, typed_text, block, head, patch)]

    def choose(event: gr.EventData) -> list[Any]:
        """Set the sliders to the clicked patch or head; the sliders then draw the map."""
        clicked: dict[str, Any] = event._data or {}  # data-* of the button
        if "head" in clicked:  # the thumbnails show the vector of the whole image, patch 0
            return [int(clicked["block"]), int(clicked["head"]), 0]
        return [gr.skip(), gr.skip(), int(clicked["patch"]) if "patch" in clicked else gr.skip()]

    bind(button.click, look, [image, typed, *sliders], [*sliders, rest, attention_part])
    bind(typed.submit, look, [image, typed, *sliders], [*sliders, rest, attention_part])
    bind(examples.click, take_example, [typed, *sliders], [image, *sliders, rest, attention_part])
    bind(rest.click, choose, [], sliders)
    for slider in sliders:
        bind(slider.change, redraw, [image, *sliders], [attention_part])


def endpoints(actions: PageActions) -> None:
    def look(image: Upload, text: str = "", block: int = 0, head: int = 1, patch: int = 0) -> InspectedImage:
        """Computation of the page's model for an image: numbers for each patch, row by row.

        image: an image file. text: what to look for, or empty. block: from 1, 0 for the last one. head: from 1.
        patch: from 1, counted from the top left; 0 is the vector of the whole image.
        Returns the attention weights of that patch in that head (book equation (7), chapter 2), the attention rollout,
        and, for a text, how much each patch raises the cosine similarity with it (negative: lowers).
        """
        with api_errors(), compute_lock:
            prepared = _prepare(actions, upload_path(image))
            typed_text = read_text(text)
            return InspectedImage(
                blocks=prepared.blocks,
                heads=prepared.heads,
                patch_size=prepared.vision.config.patch_size,
                attention=inspection.attention(prepared, block or prepared.blocks, head, patch).grid.tolist(),
                rollout=inspection.rollout(prepared).grid.tolist(),
                relevance=inspection.relevance(prepared, actions.embedder, typed_text).grid.tolist()
                if typed_text
                else None,
            )

    named_endpoint(look, "look")


def _prepare(actions: PageActions, path: str | None) -> inspection.PreparedImage:
    if path is None:
        raise PageError("no_image")
    return inspection.prepare_for(actions.embedder, read_image(path))


def _attention(prepared: inspection.PreparedImage, block: int, head: int, patch: int) -> str:
    return views.attention(inspection.attention(prepared, block, head, patch), block, head, patch)


def _look(actions: PageActions, path: str | None, typed_text: str, block: int, head: int, patch: int) -> list[Any]:
    """The sliders with the limits of this model, all figures, and the map of the chosen head."""
    typed_text = read_text(typed_text)
    with compute_lock:
        prepared = _prepare(actions, path)
        block, head, patch = min(block, prepared.blocks), min(head, prepared.heads), min(patch, prepared.patches)
        found = (typed_text, inspection.relevance(prepared, actions.embedder, typed_text)) if typed_text else None
        return [
            gr.update(maximum=prepared.blocks, value=block),
            gr.update(maximum=prepared.heads, value=head),
            gr.update(maximum=prepared.patches, value=patch),
            views.all_figures(prepared, inspection.rollout(prepared), found),
            _attention(prepared, block, head, patch),
        ]
