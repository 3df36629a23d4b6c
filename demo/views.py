"""Answers -> HTML, in both languages at once (see `texts.py`)."""

import base64
from collections.abc import Sequence

from demo.actions import Hit, NoAnswer, Ranked
from demo.gallery import Sample, samples
from demo.texts import bilingual, both, escape

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


def bars(ranking: Sequence[Ranked]) -> str:
    """The ranking as bars, most probable first."""
    rows = "".join(
        f'<li><span class="label">{escape(label)}</span> <span class="percent">{probability:.1%}</span>'
        f'<span class="track"><span style="width:{probability:.2%}"></span></span></li>'
        for label, probability in ranking
    )
    return f'{heading("ranking")}<ol class="bars">{rows}</ol><p class="fine">{both("ranking_note")}</p>'


def cards(hits: Sequence[Hit]) -> str:
    """The hits as thumbnails; each is a button."""
    rows = "".join(f"<li>{_card(hit.sample, f'{hit.score:.2f}')}</li>" for hit in hits)
    return f'{heading("found")}<ol class="cards">{rows}</ol><p class="fine">{both("found_note")}</p>'


def example_pictures(files: Sequence[Sample]) -> str:
    rows = "".join(f"<li>{_card(one)}</li>" for one in files)
    return f'<p class="small-heading">{both("examples")}</p><ul class="examples">{rows}</ul>'


def suggestions(queries: Sequence[dict[str, str]]) -> str:
    """Searches to try; a click sends the text of the page's language."""
    rows = "".join(
        f'<li><button type="button" data-number="{number}">{bilingual(query)}</button></li>'
        for number, query in enumerate(queries)
    )
    return f'<p class="small-heading">{both("suggestions")}</p><ul class="suggestions">{rows}</ul>'


def _card(one: Sample, score: str = "") -> str:
    data = base64.b64encode(one.path.read_bytes()).decode()
    score = f'<span class="score">{score}</span>' if score else ""
    return (
        f'<button type="button" data-file="{escape(one.file_name)}" title="{escape(f"{one.author}, {one.license}")}">'
        f'<img src="data:image/webp;base64,{data}" alt="" width="96" height="96">'
        f'<span class="name">{bilingual({"en": one.en, "ja": one.ja})}</span>{score}</button>'
    )
