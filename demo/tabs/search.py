"""Retrieval: words, an image or both, and what is nearest to them."""

from typing import Any, TypedDict

import gradio as gr

from vlm.demo import views
from vlm.demo.actions import Actions
from vlm.demo.gallery import EXAMPLES
from vlm.demo.searching import Filters, Hit, OwnFolder, known_sample, styles, thumbnail
from vlm.demo.texts import NoAnswer
from vlm.demo.wiring import Upload, endpoint, html, image_box, language_of, on, path_of, plainly, text


class FoundImage(TypedDict):
    thumbnail: str
    key: str
    score: float
    probability: float | None
    en: str
    ja: str
    author: str
    license: str


def tab(actions: Actions) -> None:
    own = actions.own
    html(views.intro("search_intro" if own is None else "search_intro_own"))
    if own is not None:
        _progress(own)
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
            suggestions = html(views.suggestions(EXAMPLES["search"]))
            button = gr.Button(text("search_button"), variant="primary", elem_id="search-button")
            image = image_box("query_image", "drop_similar", height=200)
            filters = _filters(own is not None)
        with gr.Column(scale=8, min_width=300):
            found = html(views.nothing_yet("found_empty"), "found")

    def shown(hits: list[Hit]) -> str:
        return views.cards(hits, no_good_match=actions.no_good_match(hits))

    def search(typed: str, image: Upload | None, *chosen: Any) -> str:
        return shown(actions.search(typed, path_of(image), filters=read_filters(own is not None, chosen)))

    def take_suggestion(event: gr.EventData) -> tuple[str, None, str]:
        typed = str(EXAMPLES["search"][int(event.number) % len(EXAMPLES["search"])][language_of(event)])
        return typed, None, shown(actions.search(typed))

    def take_image(event: gr.EventData) -> tuple[str, str | None, str]:
        key = str(event.file)
        path = None if own is not None else str(known_sample(key).path)  # nothing of a folder goes to Gradio's cache
        return "", path, shown(actions.similar(key))

    on(button.click, search, [query, image, *filters], [found])
    on(query.submit, search, [query, image, *filters], [found])
    on(suggestions.click, take_suggestion, [], [query, image, found])
    on(found.click, take_image, [], [query, image, found])


def endpoints(actions: Actions) -> None:
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
        with plainly():
            chosen = ([] if styles is None else styles,) if actions.own is None else (name, since, until, min_side)
            filters = read_filters(actions.own is not None, chosen)
            return [_found(hit) for hit in actions.search(text, path_of(image), filters=filters)]

    def similar(key: str) -> list[FoundImage]:
        """The 24 images most like one of an earlier answer, named by its key."""
        with plainly():
            return [_found(hit) for hit in actions.similar(key)]

    endpoint(search, "search")
    endpoint(similar, "similar")


def read_filters(own: bool, chosen: Any) -> Filters:
    """Of the parts of the page that `_filters` made, or `NoAnswer`."""
    if not own:
        (wanted,) = chosen
        if wanted is not None and not (isinstance(wanted, list) and all(isinstance(one, str) for one in wanted)):
            raise NoAnswer("not_text")
        return Filters(styles=tuple(wanted or ()))
    *words, side = chosen
    name, since, until = ("" if word is None else word for word in words)
    if not all(isinstance(word, str) for word in (name, since, until)):
        raise NoAnswer("not_text")
    if not isinstance(side, (int, float, type(None))) or isinstance(side, bool):
        raise NoAnswer("not_text")
    return Filters(name=name.strip(), since=since.strip(), until=until.strip(), min_side=int(side) if side else None)


def _filters(own: bool) -> list[Any]:
    with gr.Accordion(text("filters"), open=False):
        if not own:
            return [gr.CheckboxGroup(choices=styles(), label=text("styles"), elem_id="styles")]
        return [
            gr.Textbox(
                value="", label=text("name_filter"), placeholder="2024/*.jpg", max_lines=1, elem_id="name-filter"
            ),
            gr.Textbox(value="", label=text("since"), placeholder="2024-05-01", max_lines=1, elem_id="since"),
            gr.Textbox(value="", label=text("until"), placeholder="2024-05-31", max_lines=1, elem_id="until"),
            gr.Number(label=text("min_side"), minimum=0, precision=0, elem_id="min-side"),
        ]


def _progress(own: OwnFolder) -> None:
    """Looked at once a second until all is indexed."""
    status = html(views.progress(own.progress, own.folder.name), "indexing")
    timer = gr.Timer(1.0)

    def look() -> tuple[str, gr.Timer]:
        return views.progress(own.progress, own.folder.name), gr.Timer(active=not own.progress.finished)

    timer.tick(look, [], [status, timer], queue=False, show_progress="hidden", api_visibility="private")


def _found(hit: Hit) -> FoundImage:
    return FoundImage(
        thumbnail=thumbnail(hit.path),
        key=hit.key,
        score=hit.score,
        probability=hit.probability,
        en=hit.names["en"],
        ja=hit.names["ja"],
        author=hit.author,
        license=hit.license,
    )
