"""Classifier answers, models side by side, model cards and downloads as HTML."""

import re
from collections.abc import Sequence
from pathlib import Path

from markdown_it import MarkdownIt

from vlm.demo.models.comparison import RUNS, TimedRanking, threads
from vlm.demo.models.inspection import ClassPrediction
from vlm.demo.page.texts import LANGUAGES, TEXTS, bilingual, both, escape, name_attributes
from vlm.demo.views.inspection import figure, image_tag
from vlm.demo.views.layout import answer, asked_image

TRAIN = "vlm train training/recipes/groups-from-mini.toml --out runs/groups"
MEGABYTE = 1e6


def classifier_note(name: str | None) -> str:
    """Describes the current classifier, or how to train one."""
    if name is None:
        return f'<section class="model-note"><p>{both("no_classifier_yet")} <code>{escape(TRAIN)}</code></p></section>'
    line = f'<span class="eyebrow">{both("classifier_answers")}</span> <strong>{escape(name)}</strong>'
    return f'<section class="model-note"><p>{line}</p></section>'


def classifier_answer(name: str, prediction: ClassPrediction, image: str | Path | None = None) -> str:
    """The most probable classes and the attention rollout."""
    note = both("top_note", count=f"{prediction.classes:,}", chance=f"{1 / prediction.classes:.1%}")
    rollout = figure("rollout", image_tag(prediction.rollout.figure), tab="classifier")
    content = (
        f'{classifier_note(name)}<h2 class="heading spaced">{both("top_classes")}</h2>{ranked_list(prediction.top)}'
        f'<p class="fine">{note}</p><div class="figures one">{rollout}</div>'
    )
    label, probability = prediction.top[0]
    summary = both("summary_classes", count=len(prediction.top), label=label, number=f"{probability:.0%}")
    return answer(content, again="classifier_button", summary=summary, asked=asked_image(image))


def side_by_side(rankings: Sequence[TimedRanking], image: str | Path | None = None) -> str:
    """Rankings of several models, with their times."""
    columns = "".join(
        f'<section><h2 class="heading">{escape(one.name)}</h2><p class="small-heading">'
        + both("per_image", milliseconds=f"{one.milliseconds:.1f}", parameters=f"{one.parameters / 1e6:.1f}")
        + f"</p>{ranked_list(one.ranking)}</section>"
        for one in rankings
    )
    note = both("compare_note", runs=RUNS, threads=threads())
    first = rankings[0]
    summary = both("summary_compared", model=first.name, label=first.ranking[0][0])
    content = f'<div class="side-by-side">{columns}</div><p class="fine">{note}</p>'
    return answer(content, again="compare_button", summary=summary, asked=asked_image(image))


def ranked_list(ranking: Sequence[tuple[str, float]]) -> str:
    """(label, probability) as bars without buttons."""
    rows = "".join(
        f'<li><span class="label">{escape(label)}</span> <span class="percent">{probability:.1%}</span>'
        f'<span class="track"><span style="width:{probability:.2%}"></span></span></li>'
        for label, probability in ranking
    )
    return f'<ol class="bars">{rows}</ol>'


def card(markdown: str) -> str:
    """A model card; HTML in it is shown as text, except <details>, and its images are not fetched."""
    page = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image").render(markdown)
    page = page.replace("<table>", '<table tabindex="0">')  # wide ones scroll, by the keyboard too
    page = _folded(page)
    article = (
        f'<article class="card" tabindex="0" {name_attributes("card_heading")}>{_without_placeholders(page)}</article>'
    )
    return answer(article, again="card_button")


_OPENS = re.compile(r"<p>&lt;details&gt;\s*&lt;summary&gt;(.*?)&lt;/summary&gt;</p>")
_CLOSES = "<p>&lt;/details&gt;</p>"


def _folded(page: str) -> str:
    """The rendered card with its <details> as such, where each one that opens closes."""
    if len(_OPENS.findall(page)) != page.count(_CLOSES):
        return page
    named = r'<details aria-label="\1"><summary>\1</summary>'  # a group of the accessibility tree
    return _OPENS.sub(named, page).replace(_CLOSES, "</details>")


def locked() -> str:
    """Why a public page takes listed models only."""
    return f'<p class="fine">{both("locked")}</p>'


def remote_size(name: str, size: int | None) -> str:
    """Download size of a model on a hub."""
    line = {
        language: TEXTS["remote_size"][language].format(name=name, size=_bytes(size)[language])
        for language in LANGUAGES
    }
    return f'<p class="intro" role="status">{bilingual(line)}</p>'


def remote_progress(name: str, done: int, total: int | None) -> str:
    """Progress of a download."""
    line = {
        language: TEXTS["remote_progress"][language].format(
            name=name, done=f"{done / MEGABYTE:,.0f}", total=_bytes(total)[language]
        )
        for language in LANGUAGES
    }
    share = f'value="{min(1, done / total):.3f}"' if total else ""
    return f'<p class="intro" role="status">{bilingual(line)}</p><progress class="fetched" {share} max="1"></progress>'


def remote_done(name: str) -> str:
    """The end of a download."""
    return f'<p class="intro" role="status">{both("remote_done", name=name)}</p>'


def _bytes(size: int | None) -> dict[str, str]:
    if size is None:
        return TEXTS["size_unknown"]
    megabytes = f"{size / MEGABYTE:,.0f}"
    return {language: TEXTS["size_known"][language].format(megabytes=megabytes) for language in LANGUAGES}


def _without_placeholders(page: str) -> str:
    """Escape the placeholders of Gradio's HTML templates."""
    return page.replace("$", "&#36;").replace("{", "&#123;").replace("`", "&#96;")
