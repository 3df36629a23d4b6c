"""Parts that every tab has: the head of the page, headings, notices."""

from pathlib import Path

from vlm.demo.page.texts import PageError, both, escape, with_texts
from vlm.demo.search.samples import samples
from vlm.demo.search.thumbnails import thumbnail

PHOTO_MODEL = "photos"  # a short name


def masthead() -> str:
    """Title and language switch."""
    return f"""
<header class="masthead">
  <div class="brand"><h1>vlm</h1><p>{both("tagline")}</p></div>
  <div class="languages" role="group" aria-label="Language / 言語">
    <button type="button" lang="ja" data-language="ja">日本語</button>
    <button type="button" lang="en" data-language="en">English</button>
  </div>
</header>
<div id="announcer" class="for-readers" role="status"></div>"""


def model_note(source: str) -> str:
    """Describes the current model, its training data, and how to choose another one."""
    bundled = source == "mini"
    knows = both("knows_drawings") if bundled else ""
    other = both("bigger" if bundled else "other_model")
    button = f'<button type="button" class="plain" data-open-tab="models">{both("change_model")}</button>'
    line = f"vlm demo --model {PHOTO_MODEL}" if bundled else "vlm demo"
    return f"""
<section class="model-note">
  <p><span class="eyebrow">{both("answering")}</span> <strong>{escape(source)}</strong> {knows}</p>
  <p>{button} {other} {command(line)}</p>
</section>"""


def drawings_only(source: str, *, may_switch: bool) -> str:
    """Note that the bundled model was trained on drawings, with a model for photographs; empty for any other model.

    Args:
        source: the model of the page.
        may_switch: whether the page may download a model for photographs; else the command is shown.
    """
    if source != "mini":
        return ""
    button = f'<button type="button" class="plain" data-open-tab="models">{both("photo_model")}</button>'
    line = f"{both('photo_command')} {command(f'vlm demo --model {PHOTO_MODEL}')}"
    return f"<p>{both('drawings_only')}</p><p>{button if may_switch else line}</p>"


def command(line: str) -> str:
    """A command with a button that copies it."""
    escaped = escape(line)
    return f'<code>{escaped}</code> <button type="button" class="plain" data-copy="{escaped}">{both("copy")}</button>'


def intro(key: str) -> str:
    """The first paragraph of a tab."""
    return f'<p class="intro">{both(key, count=f"{len(samples()):,}")}</p>'


def heading(key: str) -> str:
    """A heading within a tab."""
    return f'<h2 class="heading">{both(key)}</h2>'


def empty_state(key: str) -> str:
    """Placeholder of an empty answer."""
    return f'<div class="nothing-yet"><p>{both(key)}</p></div>'


def answer(content: str, *, again: str, summary: str = "", asked: str = "") -> str:
    """An answer, with what was asked above it.

    Args:
        content: HTML.
        again: key of the button that asks anew; named when the question has changed (answers.js).
        summary: HTML of one line for screen readers.
        asked: HTML of the question.
    """
    return (
        f'<div class="answer"><p class="stale-note">{with_texts("stale", {"button": again})}</p>'
        f'<p class="summary" hidden>{summary}</p>{asked}{content}</div>'
    )


def asked_image(path: str | Path | None, *, key: str = "asked_image", **values: object) -> str:
    """The image that was asked about, as a thumbnail with one line.

    Args:
        path: the image; None: no thumbnail.
        key: the line, in texts.json.
        values: fill its placeholders.
    """
    source = thumbnail(Path(path)) if path is not None else ""
    image = f'<img src="{source}" alt="">' if source else ""
    return f'<p class="asked">{image}<span>{both(key, **values)}</span></p>'


def notice(error: PageError) -> str:
    """An error in one line."""
    return f'<div class="notice" role="alert"><p>{both(error.key, **error.values)}</p></div>'
