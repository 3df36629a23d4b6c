"""The part of the Models tab that switches the whole page to another model."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vlm.demo.actions import PageActions
from vlm.demo.models import downloads
from vlm.demo.models.switching import OfferedModel, offered_model, offered_models
from vlm.demo.page.components import SharedParts, html_part
from vlm.demo.page.texts import PageError
from vlm.demo.views import layout, switching
from vlm.interop.names.catalog import source_of

Outputs = tuple[Any, Any, Any]  # the list of models, the state below it, the note above the tabs


def switch_part(actions: PageActions, shared: SharedParts) -> None:
    """A list of models; a click asks for consent if something would be downloaded, then switches with progress."""
    html_part(layout.heading("switch_heading"))
    html_part(layout.intro("switch_intro" if actions.registry.any_source else "switch_intro_here"))
    offered = html_part(_offered(actions), "offered")
    state = html_part("", "switch-state")

    def choose(event: gr.EventData) -> Iterator[Outputs]:
        yield from _with_notice(_chosen(actions, str(event.model)))

    def reply(event: gr.EventData) -> Iterator[Outputs]:
        clicked: dict[str, Any] = event._data or {}  # data-* of the button
        if "agree" in clicked:
            yield from _with_notice(_downloaded(actions, str(clicked["agree"])))
        elif "cancel" in clicked:
            yield gr.skip(), "", gr.skip()

    for trigger, action in ((offered.click, choose), (state.click, reply)):
        trigger(
            action,
            [],
            [offered, state, shared.model_note],
            concurrency_id="switch",  # a queue of its own: computations do not wait for it
            api_visibility="private",
            show_progress="hidden",
        )


def _offered(actions: PageActions) -> str:
    return switching.offered(offered_models(actions.registry), actions.source)


def _chosen(actions: PageActions, name: str) -> Iterator[Outputs]:
    model = offered_model(offered_models(actions.registry), name)
    if model.here:
        yield from _switched(actions, model)
    else:
        yield gr.skip(), switching.step("asking_size", name), gr.skip()
        yield gr.skip(), switching.consent(model, downloads.size(source_of(model.source))), gr.skip()


def _downloaded(actions: PageActions, name: str) -> Iterator[Outputs]:
    model = offered_model(offered_models(actions.registry), name)
    for done, total in downloads.download(source_of(model.source)):
        megabytes = None if total is None else round(total / switching.MEGABYTE)
        yield gr.skip(), switching.step("switch_download", name, round(done / switching.MEGABYTE), megabytes), gr.skip()
    yield from _switched(actions, model)


def _switched(actions: PageActions, model: OfferedModel) -> Iterator[Outputs]:
    yield gr.skip(), switching.step("switch_load", model.name), gr.skip()
    for done, total in actions.switch(model.source):
        yield gr.skip(), switching.step("switch_embed", model.name, done, total), gr.skip()
    yield _offered(actions), switching.switched(model.name), layout.model_note(actions.source)


def _with_notice(steps: Iterator[Outputs]) -> Iterator[Outputs]:
    """Show a `PageError` below the list."""
    try:
        yield from steps
    except PageError as error:
        yield gr.skip(), layout.notice(error), gr.skip()
