"""Inside the model that answers the page: patches, attention of every head, positions, filters, where a text is."""

from typing import Any, TypedDict

import gradio as gr

from vlm.demo import inside, inside_views, views
from vlm.demo.actions import Actions, read_image, read_text
from vlm.demo.searching import computing, known_sample
from vlm.demo.texts import NoAnswer
from vlm.demo.wiring import Upload, endpoint, html, image_and_examples, on, path_of, plainly, text


class Inside(TypedDict):
    blocks: int
    heads: int
    patch_size: int
    attention: list[list[float]]
    rollout: list[list[float]]
    relevance: list[list[float]] | None


def tab(actions: Actions) -> None:
    html(views.intro("look_intro"))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            image, examples = image_and_examples()
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
            ]  # mini's; the first look sets those of any other model
            close = html(views.nothing_yet("look_empty"), "look-attention")
    rest = html("", "look-figures")

    def look(image: Upload | None, words: str, block: int, head: int, patch: int) -> list[Any]:
        return _look(actions, path_of(image), words, block, head, patch)

    def turn(image: Upload | None, block: int, head: int, patch: int) -> Any:
        with computing:
            return gr.skip() if image is None else _close(_see(actions, path_of(image)), block, head, patch)

    def take_example(words: str, block: int, head: int, patch: int, event: gr.EventData) -> list[Any]:
        path = str(known_sample(event.file).path)
        return [path, *_look(actions, path, words, block, head, patch)]

    def choose(event: gr.EventData) -> list[Any]:
        """A patch, or a head of a block, from the figures; the sliders then draw it."""
        clicked: dict[str, Any] = event._data or {}  # the button's data-*
        return [int(clicked[name]) if name in clicked else gr.skip() for name in ("block", "head", "patch")]

    on(button.click, look, [image, typed, *sliders], [*sliders, rest, close])
    on(typed.submit, look, [image, typed, *sliders], [*sliders, rest, close])
    on(examples.click, take_example, [typed, *sliders], [image, *sliders, rest, close])
    on(rest.click, choose, [], sliders)
    for slider in sliders:
        on(slider.change, turn, [image, *sliders], [close])


def endpoints(actions: Actions) -> None:
    def look(image: Upload, text: str = "", block: int = 0, head: int = 1, patch: int = 0) -> Inside:
        """What the page's model does with an image, as numbers for each patch, row by row.

        image: an image file. text: what to look for, or empty. block: from 1, 0 for the last one. head: from 1.
        patch: from 1, counted from the top left; 0 is the vector that stands for the whole image.
        Returns what that patch reads in that head (book equation (7), chapter 2), the attention rollout, and, for a
        text, which patches make the image more like it (in units of the cosine; negative: less).
        """
        with plainly(), computing:
            seen = _see(actions, path_of(image))
            words = read_text(text)
            return Inside(
                blocks=seen.blocks,
                heads=seen.heads,
                patch_size=seen.vision.config.patch_size,
                attention=inside.attention(seen, block or seen.blocks, head, patch).grid.tolist(),
                rollout=inside.rollout(seen).grid.tolist(),
                relevance=inside.relevance(seen, actions.embedder, words).grid.tolist() if words else None,
            )

    endpoint(look, "look")


def _see(actions: Actions, path: str | None) -> inside.Seen:
    if path is None:
        raise NoAnswer("no_image")
    return inside.see(actions.embedder.model.vision, actions.embedder.preprocess, read_image(path))


def _close(seen: inside.Seen, block: int, head: int, patch: int) -> str:
    return inside_views.attention(inside.attention(seen, block, head, patch), block, head, patch)


def _look(actions: Actions, path: str | None, words: str, block: int, head: int, patch: int) -> list[Any]:
    """The sliders as long as this model is deep, all figures, and the chosen head."""
    words = read_text(words)
    with computing:
        seen = _see(actions, path)
        block, head, patch = min(block, seen.blocks), min(head, seen.heads), min(patch, seen.patches)
        found = (words, inside.relevance(seen, actions.embedder, words)) if words else None
        return [
            gr.update(maximum=seen.blocks, value=block),
            gr.update(maximum=seen.heads, value=head),
            gr.update(maximum=seen.patches, value=patch),
            inside_views.all_figures(seen, inside.rollout(seen), found),
            _close(seen, block, head, patch),
        ]
