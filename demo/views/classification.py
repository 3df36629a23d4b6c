"""Rankings, heat maps and tables of classification as HTML."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from vlm.demo.actions import ImageRanking, ScoredLabel
from vlm.demo.page.texts import LANGUAGES, TEXTS, both, escape, name_attributes
from vlm.demo.search.thumbnails import webp_address
from vlm.demo.views.layout import answer, asked_image, heading


def ranking_part(
    ranking: Sequence[ScoredLabel],
    *,
    none_fits: bool = False,
    prompts: Sequence[str] = (),
    image: str | Path | None = None,
    advice: str = "",
    unknown: Sequence[str] = (),
) -> str:
    """A ranking as bars, most probable first; a click on a label asks where it is.

    Args:
        ranking: sorted.
        none_fits: whether even the best label is a weak match: it is then said above, and the bars are grey.
        prompts: the sentences that represented the first label.
        image: what was classified.
        advice: HTML below the warning.
        unknown: labels of which the model has seen no word.
    """
    best, alone = ranking[0], len(ranking) == 1
    count = f"{len(ranking):,}"
    key, number = ("summary_one", _alone(best)) if alone else ("summary_ranking", f"{best.probability:.0%}")
    summary = both(key, count=count, label=best.label, number=number)
    weak = f'<div class="none-fits"><p>{both("none_fits")}</p>{advice}</div>' if none_fits else ""
    if unknown:
        weak += f'<div class="none-fits"><p>{both("unknown_words", texts=" · ".join(unknown))}</p></div>'
    rows = "".join(_bar(scored, alone=alone) for scored in ranking)
    names = " · ".join(scored.label for scored in sorted(ranking, key=lambda scored: scored.place))
    question = f'<p class="fine">{both("asked_as", sentences=" / ".join(prompts))}</p>' if prompts else ""
    can_match = all(scored.match is not None for scored in ranking)
    notes = (
        f'<p class="fine">{both("one_note" if can_match else "one_note_similarity")}</p>'
        if alone
        else f'<p class="fine softmax">{both("ranking_note")}</p><p class="fine sigmoid">{both("match_note")}</p>'
    )
    content = (
        f'<section class="ranking{" weak" if none_fits else ""}">{heading("ranking")}{weak}'
        f'{"" if alone else _scales(can_match)}<ol class="bars">{rows}</ol>'
        f'{notes}{question}<p class="fine">{both("where_hint")}</p></section>'
    )
    read = "labels_read_one" if alone else "labels_read"
    asked = asked_image(image, key=read, count=count, labels=names)
    return answer(content, again="classify_button", summary=summary, asked=asked)


def _alone(scored: ScoredLabel) -> str:
    """The score of a label that is compared with no other."""
    return f"{scored.similarity:.2f}" if scored.match is None else f"{scored.match:.0%}"


def _scales(can_match: bool) -> str:
    """The choice between softmax and sigmoid; style.css shows the chosen one without the server."""
    if not can_match:
        return f'<p class="fine">{both("only_compares")}</p>'
    return (
        '<fieldset class="scales"><legend class="for-readers">' + both("scales") + "</legend>"
        f'<label><input type="radio" name="scale" value="softmax" checked> {both("softmax")}</label>'
        f'<label><input type="radio" name="scale" value="sigmoid"> {both("sigmoid")}</label></fieldset>'
    )


def _bar(scored: ScoredLabel, *, alone: bool = False) -> str:
    if alone:  # softmax of one label is 1, whatever the image
        width = scored.match if scored.match is not None else max(0.0, scored.similarity)
        shown = f'<span class="percent">{_alone(scored)}</span>{_track("", width)}'
    else:
        numbers = {"softmax": scored.probability} | ({} if scored.match is None else {"sigmoid": scored.match})
        shown = "".join(
            f'<span class="percent {scale}">{number:.1%}</span>{_track(scale, number)}'
            for scale, number in numbers.items()
        )
    label = escape(scored.label)
    return f'<li><button type="button" class="label" data-label="{label}">{label}</button> {shown}</li>'


def _track(scale: str, share: float) -> str:
    return f'<span class="track {scale}"><span style="width:{share:.2%}"></span></span>'


def heat_map(label: str, image: Image.Image) -> str:
    """Draws the relevance map of a label."""
    return answer(
        f'<figure class="where" aria-labelledby="where-note">{heading("where")}'
        f'<img src="{webp_address(image)}" alt="">'
        f'<figcaption class="fine" id="where-note">{both("where_note", label=label)}</figcaption></figure>',
        again="classify_button",
        summary=both("where_summary", label=label),
    )


def table(rows: Sequence[ImageRanking]) -> str:
    """A row per image, and a link that contains all of it as CSV; no file is written on the server."""
    body = "".join(
        f'<tr><th scope="row" title="{escape(row.name)}"><span class="file-name">{escape(row.name)}</span></th>'
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
    links = "".join(_csv_link(rows, language) for language in LANGUAGES)
    return answer(
        f'<div class="scrolling" tabindex="0" {name_attributes("table_name")}><table class="table">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div><p>{links}</p>",
        again="classify_all_button",
        summary=both("table_summary", count=f"{len(rows):,}"),
    )


def _csv_link(rows: Sequence[ImageRanking], language: str) -> str:
    address = f"data:text/csv;charset=utf-8,{quote(csv_of(rows, language))}"
    name, title = TEXTS["csv_name"][language], escape(TEXTS["download_csv"][language])
    return f'<a class="download said" lang="{language}" download="{name}" href="{address}">{title}</a>'


def csv_of(rows: Sequence[ImageRanking], language: str) -> str:
    """The table with each label's probability; begins with a byte order mark, for spreadsheets.

    Args:
        rows: of `PageActions.classify_all`.
        language: of the column names, of "none of these" and of the errors.
    """
    labels = sorted({scored.label for row in rows for scored in row.ranking})
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow([*(TEXTS[key][language] for key in ("csv_image", "csv_best", "csv_error")), *labels])
    for row in rows:
        best = "" if row.error else TEXTS["none_fits_short"][language] if row.none_fits else row.ranking[0].label
        error = TEXTS[row.error.key][language].format(**row.error.values) if row.error else ""
        numbers = {scored.label: f"{scored.probability:.6f}" for scored in row.ranking}
        writer.writerow([row.name, best, error, *(numbers.get(label, "") for label in labels)])
    return "\ufeff" + written.getvalue()


def template_buttons(choices: Sequence[str]) -> str:
    """Sets of templates; a click writes one into the box."""
    rows = "".join(
        f'<li><button type="button" data-template="{key}">{both(f"template_{key}")}</button></li>' for key in choices
    )
    return f'<p class="small-heading">{both("templates_hint")}</p><ul class="suggestions">{rows}</ul>'
