"""Which models there are, two of them side by side, their cards, and models from elsewhere after consent."""

from collections.abc import Iterator
from typing import TypedDict

import gradio as gr

from vlm.demo import inside_views, remote, views
from vlm.demo.actions import Actions, read_image, read_labels
from vlm.demo.gallery import EXAMPLES
from vlm.demo.models import Timed, compare
from vlm.demo.searching import computing, known_sample
from vlm.demo.tabs.classify import RankedLabel
from vlm.demo.texts import NoAnswer
from vlm.demo.wiring import Upload, endpoint, html, image_and_examples, language_of, on, path_of, plainly, text


class ListedModel(TypedDict):
    name: str
    kind: str
    bytes: int


class ComparedModel(TypedDict):
    model: str
    parameters: int
    milliseconds: float
    ranking: list[RankedLabel]


def tab(actions: Actions) -> None:
    shelf = actions.shelf
    names = [entry.name for entry in shelf.entries("clip")]
    html(views.intro("models_intro"))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            image, examples = image_and_examples(240)
        with gr.Column(min_width=300):
            first, second = (
                gr.Dropdown(
                    names,
                    value=value,
                    label=text(label),
                    info=text("model_hint" if shelf.anywhere else "listed_hint"),
                    allow_custom_value=shelf.anywhere,
                    elem_id=label.replace("_", "-"),
                )
                for label, value in (("first_model", names[0]), ("second_model", names[-1]))
            )
            labels = gr.Textbox(
                value="",
                label=text("labels"),
                placeholder=text("labels_placeholder"),
                lines=3,
                elem_id="compare-labels",
            )
            button = gr.Button(text("compare_button"), variant="primary", elem_id="compare-button")
    compared = html(views.nothing_yet("compare_empty"), "compared")
    html(views.heading("card_heading"))
    show = gr.Button(text("card_button"), elem_id="card-button")
    shown = html(views.nothing_yet("card_empty"), "model-card")
    _elsewhere(actions)

    def shown_together(path: str | None, typed: str, one: str | None, other: str | None) -> str:
        return inside_views.side_by_side(_compare(actions, path, typed, one or "", other or ""))

    def compare_both(image: Upload | None, typed: str, one: str | None, other: str | None) -> str:
        return shown_together(path_of(image), typed, one, other)

    def take_example(one: str | None, other: str | None, event: gr.EventData) -> tuple[str, str, str]:
        path = str(known_sample(event.file).path)
        typed = "\n".join(EXAMPLES["classify"][event.file][language_of(event)])
        return path, typed, shown_together(path, typed, one, other)

    def card(name: str | None) -> str:
        return inside_views.card(shelf.card(name or "", "clip"))

    on(button.click, compare_both, [image, labels, first, second], [compared])
    on(examples.click, take_example, [first, second], [image, labels, compared])
    on(show.click, card, [first], [shown])


def endpoints(actions: Actions) -> None:
    def models() -> list[ListedModel]:
        """The models that this page lists, with the bytes of their weights.

        kind: "clip" for /compare, "vit_classifier" for /classifier. A page that serves its own machine takes paths too.
        """
        with plainly():
            entries = [*actions.shelf.entries("clip"), *actions.shelf.entries("vit_classifier")]
            return [ListedModel(name=entry.name, kind=entry.kind, bytes=entry.size) for entry in entries]

    def compare(image: Upload, labels: str | list[str], first: str, second: str) -> list[ComparedModel]:
        """Two models on the same image and labels.

        image: an image file. labels: as for /classify. first, second: names that /models lists.
        Returns for each its ranking, most probable first, and the milliseconds it needs for one image.
        """
        with plainly():
            return [_compared(one) for one in _compare(actions, path_of(image), labels, first, second)]

    endpoint(models, "models")
    endpoint(compare, "compare")


def _elsewhere(actions: Actions) -> None:
    """Remote models: asking for the size is one consent, downloading another."""
    html(views.heading("remote_heading"))
    if not actions.shelf.anywhere:
        html(inside_views.locked())
        return
    html(views.intro("remote_note"))
    name = gr.Textbox(
        value="",
        label=text("remote_id"),
        placeholder="openclip:ViT-B-32/laion2b_s34b_b79k",
        max_lines=1,
        elem_id="remote-id",
    )
    with gr.Row():
        ask = gr.Button(text("remote_size_button"), elem_id="remote-size-button", min_width=240)
        agree = gr.Button(text("remote_button"), elem_id="remote-button", min_width=240)
    state = html("", "remote-state")

    def size(typed: str) -> str:
        return inside_views.remote_size(typed.strip(), remote.size(typed))

    def download(typed: str) -> Iterator[str]:
        try:
            for progress in remote.download(typed):
                yield inside_views.remote_progress(typed.strip(), progress.done, progress.total)
            actions.shelf.downloaded(typed.strip())
            yield inside_views.remote_done(typed.strip())
        except NoAnswer as no:
            yield views.notice(no)

    on(ask.click, size, [name], [state])
    agree.click(  # computes nothing, so nobody waits for it
        download, [name], [state], preprocess=False, concurrency_id="download", api_visibility="private"
    )


def _compare(actions: Actions, path: str | None, labels: str | list[str], first: str, second: str) -> list[Timed]:
    if path is None:
        raise NoAnswer("no_image")
    names = read_labels(labels)
    with computing:
        pair = [(name.strip(), actions.shelf.embedder(name)) for name in (first, second)]
        return compare(pair, read_image(path), names)


def _compared(one: Timed) -> ComparedModel:
    ranking = [RankedLabel(label=label, probability=probability, match=None) for label, probability in one.ranking]
    return ComparedModel(model=one.name, parameters=one.parameters, milliseconds=one.milliseconds, ranking=ranking)
