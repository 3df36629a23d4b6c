"""Retrieval: the images nearest to a text, an image, or a sum of both."""

from typing import Any, TypedDict

import gradio as gr

from vlm.demo.actions import PageActions
from vlm.demo.page.components import SharedParts, html_part, image_box, text
from vlm.demo.page.events import Upload, api_errors, bind, event_language, named_endpoint, upload_path
from vlm.demo.page.texts import PageError
from vlm.demo.search.folder import FolderCollection
from vlm.demo.search.retrieval import Filters, SearchResult
from vlm.demo.search.samples import EXAMPLES, styles
from vlm.demo.search.thumbnails import large_image, thumbnail
from vlm.demo.views import layout, retrieval


class FoundImage(TypedDict):
    thumbnail: str
    key: str
    score: float
    probability: float | None
    en: str
    ja: str
    author: str
    license: str


def tab(actions: PageActions, shared: SharedParts) -> None:
    folder = actions.folder
    html_part(layout.intro("search_intro" if folder is None else "search_intro_own"))
    if folder is not None:
        _progress(folder)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            query = gr.Textbox(
                value="",
                label=text("query"),
                info=text("query_hint"),
                placeholder=text("query_placeholder"),
                lines=1,
                max_lines=1,
                elem_id="query",
            )
            suggestions = html_part(retrieval.suggestions(EXAMPLES["search"]))
            button = gr.Button(text("search_button"), variant="primary", elem_id="search-button")
            image = image_box("query_image", "drop_similar", height=200)
            filters = _filters(folder is not None)
        with gr.Column(scale=8, min_width=300):
            opened = html_part("", "opened")
            found = html_part(layout.empty_state("found_empty"), "found")

    def search(typed: str, image: Upload | None, *chosen: Any) -> tuple[str, str]:
        path, filters = upload_path(image), read_filters(folder is not None, chosen)
        results = actions.search(typed, path, filters=filters)
        weak = actions.no_good_match(results)
        unknown = actions.unknown_terms(typed)
        return "", retrieval.results_part(results, text=typed.strip(), image=path, no_good_match=weak, unknown=unknown)

    def take_suggestion(event: gr.EventData, *chosen: Any) -> tuple[str, None, str, str]:
        typed = str(EXAMPLES["search"][int(event.number) % len(EXAMPLES["search"])][event_language(event)])
        return typed, None, *search(typed, None, *chosen)

    def similar(key: str, *chosen: Any) -> tuple[str, Any, str, str]:
        path = actions.collection.path(key)
        results = actions.similar(key, read_filters(folder is not None, chosen))
        known = {one.key: one.names for one in results}
        names = known.get(key, dict.fromkeys(("en", "ja"), path.name))
        found = retrieval.results_part(results, image=path, similar_to=names)
        return "", None, "", found

    def take_image(event: gr.EventData, *chosen: Any) -> tuple[Any, Any, str, Any]:
        """A click on a result: similar ones; of a folder, the image itself first."""
        key = str(event.file)
        if folder is None:
            return similar(key, *chosen)
        return (
            gr.skip(),
            gr.skip(),
            retrieval.opened_image(folder.result(key), large_image(folder.path(key))),
            gr.skip(),
        )

    def in_opened(event: gr.EventData, *chosen: Any) -> tuple[Any, Any, str, Any]:
        clicked: dict[str, Any] = event._data or {}  # data-* of the button
        if "similar" in clicked:
            return similar(str(clicked["similar"]), *chosen)
        return gr.skip(), gr.skip(), "", gr.skip()

    bind(button.click, search, [query, image, *filters], [opened, found])
    bind(query.submit, search, [query, image, *filters], [opened, found])
    bind(suggestions.click, take_suggestion, filters, [query, image, opened, found])
    bind(found.click, take_image, filters, [query, image, opened, found])
    bind(opened.click, in_opened, filters, [query, image, opened, found])


def endpoints(actions: PageActions) -> None:
    def search(
        text: str = "",
        image: Upload | None = None,
        styles: list[str] | None = None,
        name: str = "",
        since: str = "",
        until: str = "",
        min_side: int = 0,
    ) -> list[FoundImage]:
        """The 24 images nearest to a text, to an image, or to both.

        text: English or Japanese, or a sum: red + 0.5*car - wheel. image: an image file. Give one or both.
        styles filters the demo's drawings; name (part of the path), since, until (dates) and min_side (pixels, 0: any)
        filter a folder given with --folder.
        Returns the images, nearest first: thumbnail (a data: address), key (for /similar), cosine similarity,
        probability of a match (null where the model cannot say), names, author and licence.
        """
        with api_errors():
            chosen = ([] if styles is None else styles,) if actions.folder is None else (name, since, until, min_side)
            filters = read_filters(actions.folder is not None, chosen)
            return [_found(result) for result in actions.search(text, upload_path(image), filters=filters)]

    def similar(key: str) -> list[FoundImage]:
        """The 24 images most like one of an earlier answer, named by its key."""
        with api_errors():
            return [_found(result) for result in actions.similar(key)]

    named_endpoint(search, "search")
    named_endpoint(similar, "similar")


def read_filters(in_folder: bool, chosen: Any) -> Filters:
    """The values of the components made by `_filters` -> filters.

    Args:
        in_folder: whether a folder is searched, not the samples.
        chosen: the values, in their order.

    Raises:
        PageError: a value of another type.
    """
    if not in_folder:
        (wanted,) = chosen
        if wanted is not None and not (isinstance(wanted, list) and all(isinstance(one, str) for one in wanted)):
            raise PageError("not_text")
        return Filters(styles=tuple(wanted or ()))
    *words, side = chosen
    name, since, until = ("" if word is None else word for word in words)
    if not all(isinstance(word, str) for word in (name, since, until)):
        raise PageError("not_text")
    if not isinstance(side, (int, float, type(None))) or isinstance(side, bool):
        raise PageError("not_text")
    return Filters(name=name.strip(), since=since.strip(), until=until.strip(), min_side=int(side) if side else None)


def _filters(in_folder: bool) -> list[Any]:
    with gr.Accordion(text("filters"), open=False):
        if not in_folder:
            return [gr.CheckboxGroup(choices=list(styles()), label=text("styles"), elem_id="styles")]
        return [
            gr.Textbox(
                value="", label=text("name_filter"), placeholder="2024/*.jpg", max_lines=1, elem_id="name-filter"
            ),
            gr.Textbox(value="", label=text("since"), placeholder="2024-05-01", max_lines=1, elem_id="since"),
            gr.Textbox(value="", label=text("until"), placeholder="2024-05-31", max_lines=1, elem_id="until"),
            gr.Number(label=text("min_side"), minimum=0, precision=0, elem_id="min-side"),
        ]


def _progress(folder: FolderCollection) -> None:
    """The progress of the indexing, updated once a second until it ends."""
    status = html_part(retrieval.progress(folder.progress, folder.folder.name), "indexing")
    timer = gr.Timer(1.0)

    def current() -> tuple[str, gr.Timer]:
        return retrieval.progress(folder.progress, folder.folder.name), gr.Timer(active=not folder.progress.finished)

    timer.tick(current, [], [status, timer], queue=False, show_progress="hidden", api_visibility="private")


def _found(result: SearchResult) -> FoundImage:
    return FoundImage(
        thumbnail=thumbnail(result.path),
        key=result.key,
        score=result.score,
        probability=result.probability,
        en=result.names["en"],
        ja=result.names["ja"],
        author=result.author,
        license=result.license,
    )
