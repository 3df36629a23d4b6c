"""Search results, example images and suggestions as HTML."""

from collections.abc import Sequence
from pathlib import Path

from vlm.demo.page.texts import LANGUAGES, TEXTS, bilingual, both, escape
from vlm.demo.search.folder import IndexingProgress
from vlm.demo.search.retrieval import SearchResult
from vlm.demo.search.samples import Sample
from vlm.demo.search.thumbnails import thumbnail
from vlm.demo.views.layout import answer, asked_image, empty_state, heading

MAX_NAMED = 50  # unreadable files


def results_part(
    results: Sequence[SearchResult],
    *,
    text: str = "",
    image: str | Path | None = None,
    similar_to: dict[str, str] | None = None,
    no_good_match: bool = False,
    unknown: Sequence[str] = (),
) -> str:
    """The results as thumbnails, each a button, with the query above them.

    Args:
        results: best first.
        text: the query.
        image: the image of the query.
        similar_to: names of the image if the search is for images like one of the results before.
        no_good_match: whether even the best result is a weak match.
        unknown: the query, if the model has seen no word of it.
    """
    asked = _asked(text, image, similar_to)
    if not results:
        return answer(empty_state("nothing_found"), again="search_button", summary=both("nothing_found"), asked=asked)
    rows = "".join(f"<li>{_result(result, explain=place == 0)}</li>" for place, result in enumerate(results))
    weak = f'<div class="none-fits"><p>{both("no_good_match")}</p></div>' if no_good_match else ""
    if unknown:
        weak += f'<div class="none-fits"><p>{both("unknown_words", texts=" · ".join(unknown))}</p></div>'
    note = both("found_note" if results[0].license else "found_note_own")
    first = {language: results[0].names[language] for language in LANGUAGES}
    summary = bilingual(
        {
            language: TEXTS["summary_found"][language].format(count=len(results), first=first[language])
            for language in LANGUAGES
        }
    )
    content = f'{heading("found")}{weak}<ol class="cards">{rows}</ol><p class="fine">{note}</p>'
    return answer(content, again="search_button", summary=summary, asked=asked)


def opened_image(result: SearchResult, image: str) -> str:
    """One result of a folder, large, with its path and a button that searches for similar images.

    Args:
        result: which one.
        image: data: address.
    """
    shown = f'<img src="{image}" alt="">' if image else f"<p>{both('unreadable')}</p>"
    return (
        f'<figure class="opened" aria-labelledby="opened-path">{shown}<figcaption>'
        f'<code id="opened-path">{escape(str(result.path))}</code>'
        f'<button type="button" class="plain" data-similar="{escape(result.key)}">{both("find_similar")}</button>'
        f'<button type="button" class="plain" data-close="1">{both("close")}</button></figcaption></figure>'
    )


def progress(of: IndexingProgress, folder: str) -> str:
    """Progress of the indexing of a folder, and the unreadable files."""
    if of.error:
        return f'<div class="notice" role="alert"><p>{both("cannot_search", line=of.error)}</p></div>'
    key = "index_done" if of.finished else "indexing"
    line = both(key, folder=folder, done=f"{of.done:,}", total=f"{of.total:,}", broken=f"{len(of.unreadable):,}")
    bar = "" if of.finished else f'<progress max="{max(of.total, 1)}" value="{of.done}"></progress>'
    files = "".join(f"<li>{escape(name)}</li>" for name in of.unreadable[:MAX_NAMED])
    more = len(of.unreadable) - MAX_NAMED
    files += f"<li>{both('more_files', count=f'{more:,}')}</li>" if more > 0 else ""
    named = f"<details><summary>{both('unreadable_files')}</summary><ul>{files}</ul></details>" if files else ""
    return f'<div class="indexing"><p role="status">{line}</p>{bar}{named}</div>'


def _asked(text: str, image: str | Path | None, similar_to: dict[str, str] | None) -> str:
    if similar_to is not None:
        line = {language: TEXTS["asked_similar"][language].format(name=similar_to[language]) for language in LANGUAGES}
        source = thumbnail(Path(image)) if image is not None else ""
        shown = f'<img src="{source}" alt="">' if source else ""
        return f'<p class="asked">{shown}<span>{bilingual(line)}</span></p>'
    if image is None:
        return asked_image(None, key="asked_text", text=text)
    return asked_image(image, key="asked_both" if text else "asked_image", **({"text": text} if text else {}))


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


def _result(result: SearchResult, *, explain: bool) -> str:
    """A card; the first one explains its numbers."""
    credit = ", ".join(part for part in (result.author, result.license) if part)
    if not explain:
        score = f"{result.score:.2f}" + ("" if result.probability is None else f" · {result.probability:.0%}")
    elif result.probability is None:
        score = both("score", score=f"{result.score:.2f}")
    else:
        score = both("score_and_match", score=f"{result.score:.2f}", match=f"{result.probability:.0%}")
    return _image_button(result.key, credit or str(result.path), thumbnail(result.path), result.names, score)


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
