"""Parts that every tab has: the head of the page, headings, notices."""

from vlm.demo.page.texts import PageError, both, escape
from vlm.demo.search.samples import samples

PHOTO_MODEL = "openclip:ViT-B-32/laion2b_s34b_b79k"


def masthead() -> str:
    """Title and language switch."""
    return f"""
<header class="masthead">
  <div class="brand"><h1>vlm</h1><p>{both("tagline")}</p></div>
  <div class="languages" role="group" aria-label="Language / 言語">
    <button type="button" lang="ja" data-language="ja">日本語</button>
    <button type="button" lang="en" data-language="en">English</button>
  </div>
</header>"""


def model_note(source: str) -> str:
    """Which model answers, what it was trained on, how to choose another one."""
    bundled = source == "mini"
    knows = both("knows_drawings") if bundled else ""
    other = both("bigger" if bundled else "other_model")
    command = f"python -m demo --model {PHOTO_MODEL}" if bundled else "python -m demo"
    return f"""
<section class="model-note">
  <p><span class="eyebrow">{both("answering")}</span> <strong>{escape(source)}</strong> {knows}</p>
  <p>{other} <code>{command}</code></p>
</section>"""


def intro(key: str) -> str:
    """The first paragraph of a tab."""
    return f'<p class="intro">{both(key, count=f"{len(samples()):,}")}</p>'


def heading(key: str) -> str:
    """A heading within a tab."""
    return f'<h2 class="heading">{both(key)}</h2>'


def empty_state(key: str) -> str:
    """What will appear in the place of an answer."""
    return f'<div class="nothing-yet"><p>{both(key)}</p></div>'


def notice(error: PageError) -> str:
    """An error in one line."""
    return f'<div class="notice" role="alert"><p>{both(error.key, **error.values)}</p></div>'
