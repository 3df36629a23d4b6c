"""The contact sheet of a data set: samples drawn at random with their captions, then the suspicious ones."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vlm.images.open import open_image
from vlm.inspect.drawing import Language, Lettering, choose_lettering
from vlm.training.audit.numbers import LEVELS, Twins
from vlm.training.audit.scan import Seen

WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "random": "Drawn at random",
        "twins": "Pairs of duplicates",
        "tiny": "The smallest",
        "long": "The longest",
        "uniform": "The most uniform",
        **{level: level for level in LEVELS},
    },
    "ja": {
        "random": "無作為に選んだもの",
        "twins": "重複の組",
        "tiny": "最も小さいもの",
        "long": "最も細長いもの",
        "uniform": "最も単調なもの",
        "same file": "同じファイル",
        "same pixels": "同じピクセル",
        "nearly the same": "ほぼ同じ",
    },
}
_COLUMNS, _LINES, _HEADING = 8, 4, 46
_SIDE, _CELL = 150, (162, 230)  # pixels of an image; (width, height) of its cell
_GROUND, _INK, _GREY = "#f3f3f3", "#1a1a1a", "#6b6b6b"


class _Tile(NamedTuple):
    place: int  # of seen.facts
    note: str


def draw_sheet(seen: Seen, twins: Twins, path: Path, language: Language) -> None:
    """PNG: three rows at random, then a row for each kind of doubt.  Japanese headings where a font has them."""
    pen = choose_lettering(language)
    words = WORDS[language] if pen.japanese else WORDS["en"]
    total = len(seen.facts)
    shorter = np.minimum(seen.facts["width"], seen.facts["height"])
    longer = np.maximum(seen.facts["width"], seen.facts["height"])
    sections = {
        "random": [_Tile(place, "") for place in random.Random(0).sample(range(total), min(total, 3 * _COLUMNS))],
        "twins": _pairs(twins, words),
        "tiny": _first(shorter, [f"{side} px" for side in shorter]),
        "long": _first(-longer / shorter, [f"{times:.1f} : 1" for times in longer / shorter]),
        "uniform": _first(seen.facts["spread"], [f"± {spread:.1f}" for spread in seen.facts["spread"]]),
    }
    sections = {name: tiles for name, tiles in sections.items() if tiles}
    heights = [_HEADING + -(-len(tiles) // _COLUMNS) * _CELL[1] for tiles in sections.values()]
    sheet = Image.new("RGB", (_COLUMNS * _CELL[0], sum(heights)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for (name, tiles), height in zip(sections.items(), heights, strict=True):
        draw.text((6, top + 10), words[name], fill=_INK, font=pen.font(20))
        for number, tile in enumerate(tiles):
            row, column = divmod(number, _COLUMNS)
            corner = column * _CELL[0] + 6, top + _HEADING + row * _CELL[1]
            _paste(sheet, seen, tile, corner, pen)
        top += height
    sheet.save(path)


def _pairs(twins: Twins, words: Mapping[str, str]) -> list[_Tile]:
    """Two of a group, side by side; the least alike first, as they are the ones to judge."""
    tiles: list[_Tile] = []
    known = np.zeros(len(twins.labels[0]), bool)
    below = (np.arange(len(known)), *twins.labels)
    for level, finer, labels in reversed([*zip(LEVELS, below, twins.labels, strict=False)]):
        order = np.lexsort((finer, labels))
        same = (labels[order][1:] == labels[order][:-1]) & (finer[order][1:] != finer[order][:-1])
        for first, second in zip(order[:-1][same], order[1:][same], strict=True):
            if len(tiles) < _COLUMNS and not known[[first, second]].any():
                known[[first, second]] = True
                tiles += [_Tile(int(first), words[level]), _Tile(int(second), words[level])]
    return tiles


def _first(order: np.ndarray, notes: list[str]) -> list[_Tile]:
    """The samples that come first, a row of them; none where all are alike."""
    if not len(order) or order.min() == order.max():
        return []
    return [_Tile(int(place), notes[place]) for place in np.argsort(order, kind="stable")[:_COLUMNS]]


def _paste(sheet: Image.Image, seen: Seen, tile: _Tile, corner: tuple[int, int], pen: Lettering) -> None:
    """The image, and below it the size, the note and a caption of each language."""
    draw, index, fact = ImageDraw.Draw(sheet), int(seen.facts["index"][tile.place]), seen.facts[tile.place]
    image = open_image(seen.rows.image(index), to_srgb=True)
    scale = _SIDE / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    x, y = corner
    draw.rectangle((x, y, x + _SIDE - 1, y + _SIDE - 1), fill=_GROUND)
    sheet.paste(image, (x + (_SIDE - image.width) // 2, y + (_SIDE - image.height) // 2))
    split = seen.split_names[seen.splits[tile.place]]
    captions = [(names or keywords)[0] for names, keywords in seen.rows.captions(index).values()][:2]
    lines = [f"{split}  {fact['width']} x {fact['height']}", *([tile.note] if tile.note else []), *captions]
    for number, line in enumerate(lines[:_LINES]):
        font = pen.font(12)
        text = "".join(letter if letter.isprintable() else " " for letter in line[:80])
        while font.getlength(text) > _SIDE:
            text = text[:-2] + "…"
        draw.text((x, y + _SIDE + 2 + number * 16), text, fill=_INK if number else _GREY, font=font)
