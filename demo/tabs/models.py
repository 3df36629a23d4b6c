"""The models of the page: two side by side, model cards, downloads after consent."""

from collections.abc import Iterator
from typing import Any, TypedDict

import gradio as gr

from vlm.demo.actions import PageActions
from vlm.demo.inputs import read_image, read_labels
from vlm.demo.models import downloads
from vlm.demo.models.comparison import TimedRanking, compare
from vlm.demo.models.compute_lock import compute_lock
from vlm.demo.page.components import SharedParts, html_part, text
from vlm.demo.page.events import Upload, api_errors, bind, event_language, named_endpoint, upload_path
from vlm.demo.page.texts import PageError
from vlm.demo.search.retrieval import known_sample
from vlm.demo.search.samples import EXAMPLES
from vlm.demo.tabs.classify import RankedLabel
from vlm.demo.tabs.switching import switch_part
from vlm.demo.views import layout, models


class ListedModel(TypedDict):
    name: str
    kind: str
    bytes: int


class ComparedModel(TypedDict):
    model: str
    parameters: int
    milliseconds: float
    ranking: list[RankedLabel]


def tab(actions: PageActions, shared: SharedParts) -> None:
    registry = actions.registry
    names = [entry.name for entry in registry.entries("clip")]
    several = len(names) > 1
    switch_part(actions, shared)
    with gr.Column(visible=several) as comparison:
        html_part(layout.heading("compare_heading"))
        html_part(layout.intro("models_intro"))
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                image, examples = shared.box(240)
            with gr.Column(min_width=300):
                first, second = (
                    gr.Dropdown(
                        names,
                        value=value,
                        label=text(label),
                        info=text("model_hint" if registry.any_source else "listed_hint"),
                        allow_custom_value=registry.any_source,
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
        compared = html_part(layout.empty_state("compare_empty"), "compared")
    html_part(layout.heading("card_heading"))
    show = gr.Button(text("card_button"), elem_id="card-button", visible=several)
    shown = html_part(layout.empty_state("card_empty") if several else _card(actions, names[0]), "model-card")
    _downloads(actions, comparison, second)

    def rankings_html(path: str | None, typed: str, one: str | None, other: str | None) -> str:
        return models.side_by_side(_compare(actions, path, typed, one or "", other or ""), path)

    def compare_both(image: Upload | None, typed: str, one: str | None, other: str | None) -> str:
        return rankings_html(upload_path(image), typed, one, other)

    def take_example(one: str | None, other: str | None, event: gr.EventData) -> tuple[str, str, str]:
        path = str(known_sample(event.file).path)
        typed = "\n".join(EXAMPLES["classify"][event.file][event_language(event)])
        return path, typed, rankings_html(path, typed, one, other)

    bind(button.click, compare_both, [image, labels, first, second], [compared])
    bind(examples.click, take_example, [first, second], [image, labels, compared])
    bind(show.click, lambda name: models.card(registry.card(name or "", "clip")), [first], [shown])


def endpoints(actions: PageActions) -> None:
    def list_models() -> list[ListedModel]:
        """The models that this page lists, with the bytes of their weights.

        kind: "clip" for /compare, "vit_classifier" for /classifier. A page that serves its own machine takes paths too.
        """
        with api_errors():
            entries = [*actions.registry.entries("clip"), *actions.registry.entries("vit_classifier")]
            return [ListedModel(name=entry.name, kind=entry.kind, bytes=entry.size) for entry in entries]

    def compare_two(image: Upload, labels: str | list[str], first: str, second: str) -> list[ComparedModel]:
        """Two models on the same image and labels.

        image: an image file. labels: as for /classify. first, second: names that /models lists.
        Returns for each its ranking, most probable first, and the milliseconds it needs for one image.
        """
        with api_errors():
            return [_compared(one) for one in _compare(actions, upload_path(image), labels, first, second)]

    named_endpoint(list_models, "models")
    named_endpoint(compare_two, "compare")


def _card(actions: PageActions, name: str) -> str:
    """The card of the only model, or why there is none."""
    try:
        return models.card(actions.registry.card(name, "clip"))
    except PageError as error:
        return layout.notice(error)


def _downloads(actions: PageActions, comparison: gr.Column, second: gr.Dropdown) -> None:
    """Models on a hub: one consent for the size, another for the download."""
    html_part(layout.heading("remote_heading"))
    if not actions.registry.any_source:
        html_part(models.locked())
        return
    html_part(layout.intro("remote_note"))
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
    state = html_part("", "remote-state")

    def size(typed: str) -> str:
        return models.remote_size(typed.strip(), downloads.size(typed))

    def download(typed: str) -> Iterator[tuple[Any, Any, Any]]:
        """A downloaded model is the second one of the comparison, which is hidden while there is one model only."""
        try:
            for progress in downloads.download(typed):
                yield models.remote_progress(typed.strip(), progress.done, progress.total), gr.skip(), gr.skip()
            actions.registry.mark_downloaded(typed.strip())
            yield models.remote_done(typed.strip()), gr.update(visible=True), typed.strip()
        except PageError as error:
            yield layout.notice(error), gr.skip(), gr.skip()

    bind(ask.click, size, [name], [state])
    agree.click(  # in a queue of its own: computations do not wait for it
        download,
        [name],
        [state, comparison, second],
        preprocess=False,
        concurrency_id="download",
        api_visibility="private",
    )


def _compare(
    actions: PageActions, path: str | None, labels: str | list[str], first: str, second: str
) -> list[TimedRanking]:
    if path is None:
        raise PageError("no_image")
    names = read_labels(labels)
    with compute_lock:
        pair = [(name.strip(), actions.registry.embedder(name)) for name in (first, second)]
        return compare(pair, read_image(path), names)


def _compared(one: TimedRanking) -> ComparedModel:
    ranking = [RankedLabel(label=label, probability=probability, match=None) for label, probability in one.ranking]
    return ComparedModel(model=one.name, parameters=one.parameters, milliseconds=one.milliseconds, ranking=ranking)
