"""The insides of models -> HTML in both languages: figures with their equations, rankings side by side, model cards."""

import base64
import io
from collections.abc import Sequence

from markdown_it import MarkdownIt
from PIL import Image

from vlm.demo.inside import Answer, Look, Seen
from vlm.demo.models import RUNS, Timed, threads
from vlm.demo.texts import LANGUAGES, TEXTS, bilingual, both, escape
from vlm.inspect import figures
from vlm.inspect.drawing import enlarged, mosaic

TRAIN = "python -m training.train_vit training/recipes/groups-from-mini.toml --out runs/groups"
MEGABYTE = 1e6


def classifier_note(name: str | None) -> str:
    """Which classifier answers, or how to make one."""
    if name is None:
        return f'<section class="model-note"><p>{both("no_classifier_yet")} <code>{escape(TRAIN)}</code></p></section>'
    said = f'<span class="eyebrow">{both("classifier_answers")}</span> <strong>{escape(name)}</strong>'
    return f'<section class="model-note"><p>{said}</p></section>'


def classifier_answer(name: str, given: Answer) -> str:
    note = both("top_note", count=f"{given.classes:,}", chance=f"{1 / given.classes:.1%}")
    rollout = _figure("rollout", _image(given.rollout.figure), tab="classifier")
    return (
        f'{classifier_note(name)}<h2 class="heading spaced">{both("top_classes")}</h2>{ranked_list(given.top)}'
        f'<p class="fine">{note}</p><div class="figures one">{rollout}</div>'
    )


def attention(look: Look, block: int, head: int, patch: int) -> str:
    """The chosen head, large."""
    reader = TEXTS["reader_patch"] if patch else TEXTS["reader_image"]
    said = {
        language: TEXTS["fig_attention"][language].format(
            block=block, head=head, reader=reader[language].format(patch=patch)
        )
        for language in LANGUAGES
    }
    return _figure("attention", _image(look.figure), bilingual(said))


def all_figures(seen: Seen, rollout: Look, relevance: tuple[str, Look] | None = None) -> str:
    """Everything but the chosen head; patches and heads are buttons with data-patch, or data-block and data-head."""
    shown = [
        _figure(
            "patches",
            _patch_buttons(seen),
            both("fig_patches", count=seen.patches, side=seen.vision.config.patch_size),
        ),
        _figure("rollout", _image(rollout.figure)),
    ]
    if relevance is not None:
        text, look = relevance
        shown.append(_figure("relevance", _image(look.figure), both("fig_relevance", text=text)))
    positions = mosaic(figures.position_tiles(seen.vision), gap=2)
    filters = figures.filter_tiles(seen.vision)
    rows = [filters[start : start + 7] for start in range(0, len(filters) - len(filters) % 7, 7)] or [filters]
    shown += [
        _figure("positions", _image(positions)),
        _figure("heads", _head_buttons(seen)),
        _figure("filters", _image(mosaic(rows, gap=6))),
    ]
    return f'<div class="figures">{"".join(shown)}</div>'


def side_by_side(answers: Sequence[Timed]) -> str:
    columns = "".join(
        f'<section><h2 class="heading">{escape(one.name)}</h2><p class="small-heading">'
        + both("per_image", milliseconds=f"{one.milliseconds:.1f}", parameters=f"{one.parameters / 1e6:.1f}")
        + f"</p>{ranked_list(one.ranking)}</section>"
        for one in answers
    )
    note = both("compare_note", runs=RUNS, threads=threads())
    return f'<div class="side-by-side">{columns}</div><p class="fine">{note}</p>'


def card(markdown: str) -> str:
    """A model card, perhaps a stranger's: its HTML is shown as text and its images are not fetched."""
    page = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image").render(markdown)
    return f'<article class="card" tabindex="0" aria-label="{_label("card_heading")}">{_inert(page)}</article>'


def locked() -> str:
    return f'<p class="fine">{both("locked")}</p>'


def remote_size(name: str, size: int | None) -> str:
    said = {language: TEXTS["remote_size"][language].format(name=name, size=_bytes(size)[language])
            for language in LANGUAGES}  # fmt: skip
    return f'<p class="intro" role="status">{bilingual(said)}</p>'


def remote_progress(name: str, done: int, total: int | None) -> str:
    said = {
        language: TEXTS["remote_progress"][language].format(
            name=name, done=f"{done / MEGABYTE:,.0f}", total=_bytes(total)[language]
        )
        for language in LANGUAGES
    }
    share = f'value="{min(1, done / total):.3f}"' if total else ""
    return f'<p class="intro" role="status">{bilingual(said)}</p><progress class="fetched" {share} max="1"></progress>'


def remote_done(name: str) -> str:
    return f'<p class="intro" role="status">{both("remote_done", name=name)}</p>'


def _bytes(size: int | None) -> dict[str, str]:
    known = {language: TEXTS["size_known"][language] for language in LANGUAGES}
    if size is None:
        return TEXTS["size_unknown"]
    return {language: text.format(megabytes=f"{size / MEGABYTE:,.0f}") for language, text in known.items()}


def _figure(name: str, inside: str, caption: str | None = None, tab: str = "look") -> str:
    """Every figure says what it shows, and where the book has it."""
    said = caption if caption is not None else both(f"fig_{name}")
    reference = f'<span class="reference">{both(f"ref_{name}")}</span>'
    note = f"{tab}-{name}-note"  # names the figure for screen readers, in the page's language
    return (
        f'<figure class="figure-{name}" aria-labelledby="{note}">{inside}'
        f'<figcaption id="{note}">{said} {reference}</figcaption></figure>'
    )


def _patch_buttons(seen: Seen) -> str:
    rows, columns = seen.grid
    image = _data(enlarged(seen.image, 384))
    places = [(row, column) for row in range(1, rows + 1) for column in range(1, columns + 1)]
    labels = [
        _label("patch_name", number=number, row=row, column=column) for number, (row, column) in enumerate(places, 1)
    ]
    buttons = "".join(
        f'<button type="button" data-patch="{number}" title="{number}" aria-label="{label}"></button>'
        for number, label in enumerate(labels, 1)
    )
    grid = f'<div class="grid" style="--columns:{columns};--rows:{rows}">{buttons}</div>'
    return f'<div class="patches"><img src="{image}" alt="">{grid}</div>'


def _head_buttons(seen: Seen) -> str:
    tiles = figures.attention_tiles(seen.vision, seen.images, seen.image)
    buttons = "".join(
        f'<button type="button" data-block="{block}" data-head="{head}" title="{block}-{head}" '
        f'aria-label="{_label("head_name", block=block, head=head)}"><img src="{_data(tile)}" alt=""></button>'
        for block, row in enumerate(tiles, 1)
        for head, tile in enumerate(row, 1)
    )
    many = " many" if len(tiles[0]) > 4 else ""
    return f'<div class="heads{many}" style="--columns:{len(tiles[0])}">{buttons}</div>'


def _label(key: str, **values: object) -> str:
    """An attribute cannot hold two languages apart: both, one after the other."""
    return escape(" / ".join(TEXTS[key][language].format(**values) for language in LANGUAGES))


def ranked_list(ranking: Sequence[tuple[str, float]]) -> str:
    """(label, probability) as bars, to read only."""
    rows = "".join(
        f'<li><span class="label">{escape(label)}</span> <span class="percent">{probability:.1%}</span>'
        f'<span class="track"><span style="width:{probability:.2%}"></span></span></li>'
        for label, probability in ranking
    )
    return f'<ol class="bars">{rows}</ol>'


def _image(image: Image.Image) -> str:
    return f'<img src="{_data(image)}" alt="" width="{image.width}" height="{image.height}">'


def _data(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _inert(page: str) -> str:
    """No placeholder of Gradio's HTML templates."""
    return page.replace("$", "&#36;").replace("{", "&#123;").replace("`", "&#96;")
