"""Drawing with Pillow: words and fonts, colour maps, overlays, sheets.

Japanese needs a font that has it; where the machine has none, the words are English (`lettering`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont
from torch import Tensor

Language = Literal["ja", "en"]

FONTS = (  # with Japanese: Linux, macOS, Windows; Pillow looks in the system's font folders
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKjp-Regular.otf",
    "NotoSansJP-Regular.otf",
    "NotoSansJP-Regular.ttf",
    "ipaexg.ttf",
    "ipag.ttf",
    "TakaoGothic.ttf",
    "VL-Gothic-Regular.ttf",
    "ヒラギノ角ゴシック W3.ttc",
    "YuGothM.ttc",
    "meiryo.ttc",
    "msgothic.ttc",
)
WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "attention": "Where does each head look?",
        "attention note": "What the image's vector reads, block by block; each map up to its own maximum",
        "rollout": "Which patches reach the image's vector?",
        "rollout note": "Attention followed through all blocks (Abnar and Zuidema 2020)",
        "relevance": "Where is it in this image?",
        "relevance note": "Red: seeing this part speaks for it; blue: against it. One scale for all",
        "distance": "How far does each head look?",
        "distance note": "Mean attention distance in pixels, one dot per head, on this image",
        "positions": "What do the position embeddings know?",
        "positions note": "One small map per patch: its cosine with all others, blue -1, white 0, red 1",
        "filters": "What does the patch projection see first?",
        "filters note": "Principal components of its filters, each up to its own maximum",
        "image": "image",
        "block": "block",
        "head": "head",
    },
    "ja": {
        "attention": "各ヘッドはどこを見ているか",
        "attention note": "画像ベクトルが読む場所をブロックごとに表示。色は図ごとの最大値が基準",
        "rollout": "どのパッチが画像ベクトルに届くか",
        "rollout note": "全ブロックの注意を掛け合わせたもの（Abnar・Zuidema 2020）",
        "relevance": "画像のどこにあるか",
        "relevance note": "赤は「見えると支持が増える場所」、青はその逆。色の基準は全図共通",
        "distance": "各ヘッドはどれだけ遠くを見るか",
        "distance note": "平均注意距離（ピクセル）。点はヘッド、この画像での値",
        "positions": "位置埋め込みは何を知っているか",
        "positions note": "小さな図はパッチごとの、全パッチとのコサイン類似度。青 -1、白 0、赤 1",
        "filters": "パッチ射影は最初に何を見るか",
        "filters note": "フィルターの主成分。色は図ごとの最大値が基準",
        "image": "画像",
        "block": "ブロック",
        "head": "ヘッド",
    },
}
HEAT = ("#000004", "#51127c", "#b73779", "#fc8961", "#fcfdbf")  # magma: the eye reads its steps as equal
SIGNED = ("#2166ac", "#92c5de", "#f7f7f7", "#f4a582", "#b2182b")  # ColorBrewer RdBu, white at zero
INK, GREY, LINE = "#1a1a1a", "#6b6b6b", "#d8d8d8"
_GAP = 6

Font = Callable[[int], ImageFont.FreeTypeFont | ImageFont.ImageFont]


class Lettering(NamedTuple):
    """The words of one language, and a font that has its letters."""

    words: Mapping[str, str]
    font: Font
    japanese: bool  # the font can write it


def choose_lettering(language: Language) -> Lettering:
    """Japanese words where this machine has a Japanese font, else English in Pillow's own font."""
    for name in FONTS:
        try:
            ImageFont.truetype(name, 12)
        except OSError:
            continue
        return Lettering(WORDS[language], partial(ImageFont.truetype, name), True)
    return Lettering(WORDS["en"], ImageFont.load_default, False)


def overlay(image: Image.Image, grid: Tensor, side: int) -> Image.Image:
    """Draw a heat map over a grey image.

    Args:
        image: the image.
        grid: (H/P, W/P); colours run from 0 to its maximum.
        side: pixels of the longer side.
    """
    shown = enlarged(image, side)
    heat = colours(grid / grid.max().clamp_min(1e-12), HEAT).resize(shown.size, Image.Resampling.BILINEAR)
    return Image.blend(shown.convert("L").convert("RGB"), heat, 0.65)


def tint(image: Image.Image, grid: Tensor, side: int) -> Image.Image:
    """Draw a signed map in blue and red over a pale grey image.

    Args:
        image: the image.
        grid: (H/P, W/P), -1 to 1.
        side: pixels of the longer side.
    """
    shown = enlarged(image, side)
    pale = Image.blend(shown.convert("L").convert("RGB"), Image.new("RGB", shown.size, "white"), 0.5)
    return ImageChops.multiply(pale, colours(grid / 2 + 0.5, SIGNED).resize(shown.size, Image.Resampling.BILINEAR))


def colours(levels: Tensor, stops: Sequence[str]) -> Image.Image:
    """Colour a map.

    Args:
        levels: (H, W), 0..1.
        stops: colours such as "#b73779", equally spaced from 0 to 1.
    """
    rgb = np.array([[int(stop[place : place + 2], 16) for place in (1, 3, 5)] for stop in stops])
    where = np.linspace(0, 1, len(stops))
    channels = [np.interp(levels.float().numpy(force=True), where, rgb[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """The image, resized so that its longer side has `side` pixels."""
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def sheet(
    name: str,
    lettering: Lettering,
    tiles: Sequence[Sequence[Image.Image]],
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> Image.Image:
    """A page with a title, a line that explains it, and tiles of one size in a grid.

    Args:
        name: of the figure; the title and the line are its words in `lettering`.
        lettering: words and font.
        tiles: rows of tiles.
        columns: labels above the columns.
        rows: labels left of the rows.
    """
    title, note, label = lettering.font(20), lettering.font(13), lettering.font(12)
    width, height = tiles[0][0].size
    left = 16 + (max(int(label.getlength(row)) for row in rows) + 10 if rows else 0)
    top = 76 + (20 if columns else 0)
    right = max(
        left + len(tiles[0]) * (width + _GAP) - _GAP,
        16 + int(title.getlength(lettering.words[name])),
        16 + int(note.getlength(lettering.words[f"{name} note"])),
    )
    page = Image.new("RGB", (right + 16, top + len(tiles) * (height + _GAP) + 10), "white")
    draw = ImageDraw.Draw(page)
    draw.text((16, 14), lettering.words[name], fill=INK, font=title)
    draw.text((16, 46), lettering.words[f"{name} note"], fill=GREY, font=note)
    for column, text in enumerate(columns):
        text = text[:width]  # the loop measures the whole text each time
        while text and label.getlength(text) > width:
            text = text[:-2] + "…" if len(text) > 2 else ""  # nothing where even one letter is too wide
        draw.text((left + column * (width + _GAP) + width / 2, top - 9), text, fill=INK, font=label, anchor="ms")
    for row, text in enumerate(rows):
        y = top + row * (height + _GAP) + height / 2
        draw.text((left - 10, y), text, fill=INK, font=label, anchor="rm")
    page.paste(mosaic(tiles), (left, top))
    return page


def mosaic(tiles: Sequence[Sequence[Image.Image]], gap: int = _GAP) -> Image.Image:
    """Tiles of one size in rows and columns.

    Args:
        tiles: rows of tiles.
        gap: white pixels between them.
    """
    (width, height), columns = tiles[0][0].size, max(len(line) for line in tiles)
    page = Image.new("RGB", (columns * (width + gap) - gap, len(tiles) * (height + gap) - gap), "white")
    for row, line in enumerate(tiles):
        for column, tile in enumerate(line):
            page.paste(tile, (column * (width + gap), row * (height + gap)))
    return page


def image_seen(pixels: Tensor) -> Image.Image:
    """The image as the model sees it, RGB: the first three of many channels, one channel as grey.

    Args:
        pixels: as `Preprocess.pixels` makes them, uint8 or floats from 0 to 1, (C, H, W).
    """
    shown = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    levels = shown if shown.dtype == torch.uint8 else (shown * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
