"""Search results, example images and suggestions as HTML."""

from collections.abc import Sequence

from vlm.demo.page.texts import bilingual, both, escape
from vlm.demo.search.folder import IndexingProgress
from vlm.demo.search.retrieval import SearchResult
from vlm.demo.search.samples import Sample
from vlm.demo.search.thumbnails import thumbnail
from vlm.demo.views.layout import empty_state, heading


def cards(results: Sequence[SearchResult], *, no_good_match: bool = False) -> str:
    """The results as thumbnails; each is a button that searches for similar images."""
    if not results:
        return empty_state("nothing_found")
    rows = "".join(f"<li>{_result(result)}</li>" for result in results)
    weak = f'<p class="none-fits" role="status">{both("no_good_match")}</p>' if no_good_match else ""
    note = both("found_note" if results[0].license else "found_note_own")
    return f'{heading("found")}{weak}<ol class="cards">{rows}</ol><p class="fine">{note}</p>'


def progress(of: IndexingProgress, folder: str) -> str:
    """Progress of the indexing of a folder."""
    if of.error:
        return f'<div class="notice" role="alert"><p>{both("cannot_search", line=of.error)}</p></div>'
    key = "index_done" if of.finished else "indexing"
    line = both(key, folder=folder, done=f"{of.done:,}", total=f"{of.total:,}", broken=f"{of.broken:,}")
    bar = "" if of.finished else f'<progress max="{max(of.total, 1)}" value="{of.done}"></progress>'
    return f'<div class="indexing" role="status"><p>{line}</p>{bar}</div>'


def example_images(files: Sequence[Sample]) -> str:
    """Images to try, each a button."""
    rows = "".join(f"<li>{_example(one)}</li>" for one in files)
    return f'<p class="small-heading">{both("examples")}</p><ul class="examples">{rows}</ul>'


def suggestions(queries: Sequence[dict[str, str]]) -> str:
    """Queries to try; a click sends the text of the page's language."""
    rows = "".join(
        f'<li><button type="button" data-number="{number}">{bilingual(query)}</button></li>'
        for number, query in enumerate(queries)
    )
    return f'<p class="small-heading">{both("suggestions")}</p><ul class="suggestions">{rows}</ul>'


def _result(result: SearchResult) -> str:
    credit = ", ".join(part for part in (result.author, result.license) if part)
    probability = "" if result.probability is None else f" · {result.probability:.0%}"
    score = f"{result.score:.2f}{probability}"
    return _image_button(result.key, credit or result.names["en"], thumbnail(result.path), result.names, score)


def _example(one: Sample) -> str:
    names = {"en": one.en, "ja": one.ja}
    return _image_button(one.file_name, f"{one.author}, {one.license}", thumbnail(one.path), names)


def _image_button(key: str, title: str, source: str, names: dict[str, str], score: str = "") -> str:
    score = f'<span class="score">{score}</span>' if score else ""
    return (
        f'<button type="button" data-file="{escape(key)}" title="{escape(title)}">'
        f'<img src="{source}" alt="" width="96" height="96">'
        f'<span class="name">{bilingual(names)}</span>{score}</button>'
    )
