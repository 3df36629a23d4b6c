"""Figures of a model's inside as HTML, each with its equation in the book."""

from PIL import Image

from vlm.demo.models.inspection import PatchMap, PreparedImage
from vlm.demo.page.texts import LANGUAGES, TEXTS, bilingual, both, name_attributes
from vlm.demo.search.thumbnails import webp_address
from vlm.demo.views.layout import answer
from vlm.inspect import figures
from vlm.inspect.drawing import enlarged, mosaic


def attention(attention_map: PatchMap, block: int, head: int, patch: int) -> str:
    """The map of one head, large."""
    reader = TEXTS["reader_patch"] if patch else TEXTS["reader_image"]
    caption = {
        language: TEXTS["fig_attention"][language].format(
            block=block, head=head, reader=reader[language].format(patch=patch)
        )
        for language in LANGUAGES
    }
    content = figure("attention", image_tag(attention_map.figure), bilingual(caption))
    return answer(content, again="look_button", summary=bilingual(caption))


def all_figures(prepared: PreparedImage, rollout: PatchMap, relevance: tuple[str, PatchMap] | None = None) -> str:
    """All figures except the chosen head.

    Patches are buttons with data-patch; heads are buttons with data-block and data-head.

    Args:
        prepared: the image.
        rollout: its attention rollout.
        relevance: a text and its map, if a text was given.
    """
    shown = [
        figure(
            "patches",
            _patch_buttons(prepared),
            both("fig_patches", count=prepared.patches, side=prepared.vision.config.patch_size),
        ),
        figure("rollout", image_tag(rollout.figure)),
    ]
    if relevance is not None:
        text, relevance_map = relevance
        shown.append(figure("relevance", image_tag(relevance_map.figure), both("fig_relevance", text=text)))
    positions = mosaic(figures.position_tiles(prepared.vision), gap=2)
    filters = figures.filter_tiles(prepared.vision)
    rows = [filters[start : start + 7] for start in range(0, len(filters) - len(filters) % 7, 7)] or [filters]
    shown += [
        figure("positions", image_tag(positions)),
        figure("heads", _head_buttons(prepared)),
        figure("filters", image_tag(mosaic(rows, gap=6))),
    ]
    return answer(f'<div class="figures">{"".join(shown)}</div>', again="look_button")


def figure(name: str, content: str, caption: str | None = None, tab: str = "look") -> str:
    """A figure with its caption and its place in the book.

    Args:
        name: its key in texts.json, without fig_.
        content: HTML.
        caption: HTML; default: the text of the key.
        tab: makes the id of the caption unique.
    """
    text = caption if caption is not None else both(f"fig_{name}")
    reference = f'<span class="reference">{both(f"ref_{name}")}</span>'
    note = f"{tab}-{name}-note"  # the name of the figure for screen readers, in the page's language
    return (
        f'<figure class="figure-{name}" aria-labelledby="{note}">{content}'
        f'<figcaption id="{note}">{text} {reference}</figcaption></figure>'
    )


def image_tag(image: Image.Image) -> str:
    """An image inside the page."""
    return f'<img src="{webp_address(image)}" alt="" width="{image.width}" height="{image.height}">'


def _patch_buttons(prepared: PreparedImage) -> str:
    rows, columns = prepared.grid
    image = webp_address(enlarged(prepared.image, 384))
    places = [(row, column) for row in range(1, rows + 1) for column in range(1, columns + 1)]
    buttons = "".join(
        f'<button type="button" data-patch="{number}" title="{number}" '
        f"{name_attributes('patch_name', number=number, row=row, column=column)}></button>"
        for number, (row, column) in enumerate(places, 1)
    )
    grid = f'<div class="grid" style="--columns:{columns};--rows:{rows}">{buttons}</div>'
    return f'<div class="patches"><img src="{image}" alt="">{grid}</div>'


def _head_buttons(prepared: PreparedImage) -> str:
    tiles = figures.attention_tiles(prepared.vision, prepared.images, prepared.image)
    buttons = "".join(
        f'<button type="button" data-block="{block}" data-head="{head}" title="{block}-{head}" '
        f"{name_attributes('head_name', block=block, head=head)}>"
        f'<img src="{webp_address(tile)}" alt=""></button>'
        for block, row in enumerate(tiles, 1)
        for head, tile in enumerate(row, 1)
    )
    many = " many" if len(tiles[0]) > 4 else ""
    return f'<div class="heads{many}" style="--columns:{len(tiles[0])}">{buttons}</div>'
