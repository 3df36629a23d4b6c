"""Rankings, heat maps and tables of classification as HTML."""

import csv
import io
from collections.abc import Sequence
from urllib.parse import quote

from PIL import Image

from vlm.demo.actions import ImageRanking, ScoredLabel
from vlm.demo.page.texts import both, escape
from vlm.demo.search.thumbnails import webp_address
from vlm.demo.views.layout import heading


def bars(ranking: Sequence[ScoredLabel], *, none_fits: bool = False, prompts: Sequence[str] = ()) -> str:
    """A ranking as bars, most probable first; a click on a label asks where it is.

    Args:
        ranking: sorted.
        none_fits: whether even the best label is a weak match.
        prompts: the sentences that represented the first label.
    """
    rows = "".join(_bar(scored) for scored in ranking)
    notes = f'<p class="none-fits" role="status">{both("none_fits")}</p>' if none_fits else ""
    question = f'<p class="fine">{both("asked_as", sentences=" / ".join(prompts))}</p>' if prompts else ""
    can_match = all(scored.match is not None for scored in ranking)
    return (
        f'<section class="ranking">{heading("ranking")}{_scales(can_match)}{notes}<ol class="bars">{rows}</ol>'
        f'<p class="fine softmax">{both("ranking_note")}</p><p class="fine sigmoid">{both("match_note")}</p>{question}'
        f'<p class="fine">{both("where_hint")}</p></section>'
    )


def _scales(can_match: bool) -> str:
    """The choice between softmax and sigmoid; style.css shows the chosen one without the server."""
    if not can_match:
        return f'<p class="fine">{both("only_compares")}</p>'
    return (
        '<fieldset class="scales"><legend class="for-readers">' + both("scales") + "</legend>"
        f'<label><input type="radio" name="scale" value="softmax" checked> {both("softmax")}</label>'
        f'<label><input type="radio" name="scale" value="sigmoid"> {both("sigmoid")}</label></fieldset>'
    )


def _bar(scored: ScoredLabel) -> str:
    numbers = {"softmax": scored.probability} | ({} if scored.match is None else {"sigmoid": scored.match})
    shown = "".join(
        f'<span class="percent {scale}">{number:.1%}</span><span class="track {scale}">'
        f'<span style="width:{number:.2%}"></span></span>'
        for scale, number in numbers.items()
    )
    label = escape(scored.label)
    return f'<li><button type="button" class="label" data-label="{label}">{label}</button> {shown}</li>'


def heat_map(label: str, image: Image.Image) -> str:
    """Where a label is in the image."""
    return (
        f'<figure class="where" aria-labelledby="where-note">{heading("where")}'
        f'<img src="{webp_address(image)}" alt="">'
        f'<figcaption class="fine" id="where-note">{both("where_note", label=label)}</figcaption></figure>'
    )


def table(rows: Sequence[ImageRanking]) -> str:
    """A row per image, and a link that contains all of it as CSV; no file is written on the server."""
    body = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th>'
        + (
            f'<td colspan="2">{both(row.error.key, **row.error.values)}</td>'
            if row.error is not None
            else f'<td colspan="2">{both("none_fits_short")}</td>'
            if row.none_fits  # probabilities among labels of which none fits are not informative
            else f'<td>{escape(row.ranking[0].label)}</td><td class="number">{row.ranking[0].probability:.1%}</td>'
        )
        + "</tr>"
        for row in rows
    )
    head = "".join(f'<th scope="col">{both(key)}</th>' for key in ("image_label", "best_label", "probability"))
    file = f"data:text/csv;charset=utf-8,{quote(csv_of(rows))}"
    return (
        f'<div class="scrolling"><table class="table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p><a class="download" download="classification.csv" href="{file}">{both("download_csv")}</a></p>'
    )


def csv_of(rows: Sequence[ImageRanking]) -> str:
    """Columns image, best, error, then each label's probability; begins with a byte order mark, for spreadsheets."""
    labels = sorted({scored.label for row in rows for scored in row.ranking})
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(["image", "best", "error", *labels])
    for row in rows:
        best = "" if row.error else "none of these" if row.none_fits else row.ranking[0].label
        numbers = {scored.label: f"{scored.probability:.6f}" for scored in row.ranking}
        writer.writerow([row.name, best, str(row.error or ""), *(numbers.get(label, "") for label in labels)])
    return "\ufeff" + written.getvalue()


def template_buttons(choices: Sequence[str]) -> str:
    """Sets of templates; a click writes one into the box."""
    rows = "".join(
        f'<li><button type="button" data-template="{key}">{both(f"template_{key}")}</button></li>' for key in choices
    )
    return f'<p class="small-heading">{both("templates_hint")}</p><ul class="suggestions">{rows}</ul>'
