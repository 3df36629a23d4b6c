"""Answers -> HTML, in both languages at once (see `texts.py`)."""

import base64
import csv
import io
from collections.abc import Sequence
from urllib.parse import quote

from PIL import Image

from vlm.demo.actions import Ranked, Row
from vlm.demo.gallery import Sample, samples
from vlm.demo.searching import Hit, Progress, thumbnail
from vlm.demo.texts import NoAnswer, bilingual, both, escape

REPOSITORY_MODEL = "openclip:ViT-B-32/laion2b_s34b_b79k"


def masthead() -> str:
    return f"""
<header class="masthead">
  <div class="brand"><h1>vlm</h1><p>{both("tagline")}</p></div>
  <div class="languages" role="group" aria-label="Language / 言語">
    <button type="button" lang="ja" data-language="ja">日本語</button>
    <button type="button" lang="en" data-language="en">English</button>
  </div>
</header>"""


def model_note(source: str) -> str:
    """Which model answers, what it knows, how to choose another one."""
    bundled = source == "mini"
    knows = both("knows_drawings") if bundled else ""
    other = both("bigger" if bundled else "other_model")
    command = f"python -m demo --model {REPOSITORY_MODEL}" if bundled else "python -m demo"
    return f"""
<section class="model-note">
  <p><span class="eyebrow">{both("answering")}</span> <strong>{escape(source)}</strong> {knows}</p>
  <p>{other} <code>{command}</code></p>
</section>"""


def intro(key: str) -> str:
    return f'<p class="intro">{both(key, count=f"{len(samples()):,}")}</p>'


def heading(key: str) -> str:
    return f'<h2 class="heading">{both(key)}</h2>'


def nothing_yet(key: str) -> str:
    return f'<div class="nothing-yet"><p>{both(key)}</p></div>'


def notice(no: NoAnswer) -> str:
    return f'<div class="notice" role="alert"><p>{both(no.key, **no.values)}</p></div>'


def bars(ranking: Sequence[Ranked], *, none_fits: bool = False, asked: Sequence[str] = ()) -> str:
    """The ranking as bars, most probable first; a click on a label asks where it is.  `asked`: of the first label."""
    rows = "".join(_bar(ranked) for ranked in ranking)
    notes = f'<p class="none-fits" role="status">{both("none_fits")}</p>' if none_fits else ""
    question = f'<p class="fine">{both("asked_as", sentences=" / ".join(asked))}</p>' if asked else ""
    can_match = all(ranked.match is not None for ranked in ranking)
    return (
        f'<section class="ranking">{heading("ranking")}{_scales(can_match)}{notes}<ol class="bars">{rows}</ol>'
        f'<p class="fine softmax">{both("ranking_note")}</p><p class="fine sigmoid">{both("match_note")}</p>{question}'
        f'<p class="fine">{both("where_hint")}</p></section>'
    )


def _scales(can_match: bool) -> str:
    """Softmax or sigmoid: style.css shows the chosen one, no server needed."""
    if not can_match:
        return f'<p class="fine">{both("only_compares")}</p>'
    return (
        '<fieldset class="scales"><legend class="for-readers">' + both("scales") + "</legend>"
        f'<label><input type="radio" name="scale" value="softmax" checked> {both("softmax")}</label>'
        f'<label><input type="radio" name="scale" value="sigmoid"> {both("sigmoid")}</label></fieldset>'
    )


def _bar(ranked: Ranked) -> str:
    numbers = {"softmax": ranked.probability} | ({} if ranked.match is None else {"sigmoid": ranked.match})
    shown = "".join(
        f'<span class="percent {scale}">{number:.1%}</span><span class="track {scale}">'
        f'<span style="width:{number:.2%}"></span></span>'
        for scale, number in numbers.items()
    )
    label = escape(ranked.label)
    return f'<li><button type="button" class="label" data-label="{label}">{label}</button> {shown}</li>'


def where(label: str, image: Image.Image) -> str:
    """The heat map of a label."""
    written = io.BytesIO()
    image.save(written, "WEBP", quality=85)
    data = base64.b64encode(written.getvalue()).decode()
    return (
        f'<figure class="where" aria-labelledby="where-note">{heading("where")}'
        f'<img src="data:image/webp;base64,{data}" alt="">'
        f'<figcaption class="fine" id="where-note">{both("where_note", label=label)}</figcaption></figure>'
    )


def table(rows: Sequence[Row]) -> str:
    """Several images, a row each, with the whole as CSV: a link that holds its file, so none lies on the server."""
    body = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th>'
        + (
            f'<td colspan="2">{both(row.no.key, **row.no.values)}</td>'
            if row.no is not None
            else f'<td colspan="2">{both("none_fits_short")}</td>'
            if row.none_fits  # a probability among labels of which none fits says nothing
            else f'<td>{escape(row.ranking[0].label)}</td><td class="number">{row.ranking[0].probability:.1%}</td>'
        )
        + "</tr>"
        for row in rows
    )
    head = "".join(f'<th scope="col">{both(key)}</th>' for key in ("image", "best_label", "probability"))
    file = f"data:text/csv;charset=utf-8,{quote(csv_of(rows))}"
    return (
        f'<div class="scrolling"><table class="table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p><a class="download" download="classification.csv" href="{file}">{both("download_csv")}</a></p>'
    )


def csv_of(rows: Sequence[Row]) -> str:
    """image, best, error, then each label's probability; begins with a byte order mark, for spreadsheets."""
    labels = sorted({ranked.label for row in rows for ranked in row.ranking})
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(["image", "best", "error", *labels])
    for row in rows:
        best = "" if row.no else "none of these" if row.none_fits else row.ranking[0].label
        numbers = {ranked.label: f"{ranked.probability:.6f}" for ranked in row.ranking}
        writer.writerow([row.name, best, str(row.no or ""), *(numbers.get(label, "") for label in labels)])
    return "\ufeff" + written.getvalue()


def cards(hits: Sequence[Hit], *, no_good_match: bool = False) -> str:
    """The hits as thumbnails; each is a button that finds similar ones."""
    if not hits:
        return nothing_yet("nothing_found")
    rows = "".join(f"<li>{_hit(hit)}</li>" for hit in hits)
    weak = f'<p class="none-fits" role="status">{both("no_good_match")}</p>' if no_good_match else ""
    note = both("found_note" if hits[0].license else "found_note_own")
    return f'{heading("found")}{weak}<ol class="cards">{rows}</ol><p class="fine">{note}</p>'


def progress(of: Progress, folder: str) -> str:
    """How far the indexing of a folder is."""
    if of.error:
        return f'<div class="notice" role="alert"><p>{both("cannot_search", line=of.error)}</p></div>'
    key = "index_done" if of.finished else "indexing"
    said = both(key, folder=folder, done=f"{of.done:,}", total=f"{of.total:,}", broken=f"{of.broken:,}")
    bar = "" if of.finished else f'<progress max="{max(of.total, 1)}" value="{of.done}"></progress>'
    return f'<div class="indexing" role="status"><p>{said}</p>{bar}</div>'


def _hit(hit: Hit) -> str:
    credit = ", ".join(part for part in (hit.author, hit.license) if part)
    probability = "" if hit.probability is None else f" · {hit.probability:.0%}"
    return _thumbnail(
        hit.key, credit or hit.names["en"], thumbnail(hit.path), hit.names, f"{hit.score:.2f}{probability}"
    )


def example_images(files: Sequence[Sample]) -> str:
    rows = "".join(f"<li>{_card(one)}</li>" for one in files)
    return f'<p class="small-heading">{both("examples")}</p><ul class="examples">{rows}</ul>'


def suggestions(queries: Sequence[dict[str, str]]) -> str:
    """Searches to try; a click sends the text of the page's language."""
    rows = "".join(
        f'<li><button type="button" data-number="{number}">{bilingual(query)}</button></li>'
        for number, query in enumerate(queries)
    )
    return f'<p class="small-heading">{both("suggestions")}</p><ul class="suggestions">{rows}</ul>'


def templates(choices: Sequence[str]) -> str:
    """Sentences to put the labels into; a click writes them into the box."""
    rows = "".join(
        f'<li><button type="button" data-template="{key}">{both(f"template_{key}")}</button></li>' for key in choices
    )
    return f'<p class="small-heading">{both("templates_hint")}</p><ul class="suggestions">{rows}</ul>'


def _card(one: Sample) -> str:
    return _thumbnail(one.file_name, f"{one.author}, {one.license}", thumbnail(one.path), {"en": one.en, "ja": one.ja})


def _thumbnail(key: str, title: str, source: str, names: dict[str, str], score: str = "") -> str:
    score = f'<span class="score">{score}</span>' if score else ""
    return (
        f'<button type="button" data-file="{escape(key)}" title="{escape(title)}">'
        f'<img src="{source}" alt="" width="96" height="96">'
        f'<span class="name">{bilingual(names)}</span>{score}</button>'
    )
