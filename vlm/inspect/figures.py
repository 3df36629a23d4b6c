"""The arrays of `vlm/inspect/maps.py` as images, one per question, drawn with Pillow alone.

Japanese needs a font that has it; where the machine has none, the words are English (`pen`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont
from torch import Tensor

from vlm.inspect import maps as visualize
from vlm.models.vision import VisionTransformer

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
        "filters note": "フィルタの主成分。色は図ごとの最大値が基準",
        "image": "画像",
        "block": "ブロック",
        "head": "ヘッド",
    },
}
_HEAT = ("#000004", "#51127c", "#b73779", "#fc8961", "#fcfdbf")  # magma: the eye reads its steps as equal
_SIGNED = ("#2166ac", "#92c5de", "#f7f7f7", "#f4a582", "#b2182b")  # ColorBrewer RdBu, white at zero
_INK, _GREY, _LINE = "#1a1a1a", "#6b6b6b", "#d8d8d8"
_GAP = 6

Font = Callable[[int], ImageFont.FreeTypeFont | ImageFont.ImageFont]


class Pen(NamedTuple):
    """Words and letters of one language."""

    words: Mapping[str, str]
    font: Font
    japanese: bool  # the font can write it


def pen(language: Language) -> Pen:
    """Japanese words only with a font that has them, else English in Pillow's own."""
    for name in FONTS:
        try:
            ImageFont.truetype(name, 12)
        except OSError:
            continue
        return Pen(WORDS[language], partial(ImageFont.truetype, name), True)
    return Pen(WORDS["en"], ImageFont.load_default, False)


def draw_all(
    vision: VisionTransformer, images: Tensor, image: Image.Image, scores: Mapping[str, visualize.Score], pen: Pen
) -> dict[str, Image.Image]:
    """Every figure by name.  `images` (1, C, H, W) is `image` normalised; `scores`: caption -> what to look for."""
    figures = {
        "attention": draw_attention(vision, images, image, pen),
        "rollout": draw_rollout(vision, images, image, pen),
        "distance": draw_distance(vision, images, pen),
        "positions": draw_positions(vision, pen),
        "filters": draw_filters(vision, pen),
    }
    if scores:
        maps = {caption: visualize.relevance(vision, images, score)[0] for caption, score in scores.items()}
        figures["relevance"] = draw_relevance(image, maps, pen)
    return figures


def draw_attention(vision: VisionTransformer, images: Tensor, image: Image.Image, pen: Pen) -> Image.Image:
    """Rows are blocks, columns heads."""
    tiles = attention_tiles(vision, images, image)
    columns = [f"{pen.words['head']} {head}" for head in range(len(tiles[0]))]
    return _sheet("attention", pen, tiles, columns, [f"{pen.words['block']} {block}" for block in range(len(tiles))])


def draw_rollout(vision: VisionTransformer, images: Tensor, image: Image.Image, pen: Pen) -> Image.Image:
    """Attention rollout over the image."""
    grid = visualize.rollout_map(vision, images)[0]
    return _sheet("rollout", pen, [[enlarged(image, 192), overlay(image, grid, 192)]], [pen.words["image"], ""])


def draw_relevance(image: Image.Image, maps: Mapping[str, Tensor], pen: Pen) -> Image.Image:
    """`maps`: caption -> (H/P, W/P), signed; all on one scale, so that they compare."""
    top = max(float(grid.abs().max()) for grid in maps.values())
    tiles = [enlarged(image, 192), *(tint(image, grid / top if top else grid, 192) for grid in maps.values())]
    return _sheet("relevance", pen, [tiles], [pen.words["image"], *maps])


def draw_positions(vision: VisionTransformer, pen: Pen) -> Image.Image:
    """One tile per patch: how similar its position is to all others."""
    return _sheet("positions", pen, position_tiles(vision))


def draw_filters(vision: VisionTransformer, pen: Pen) -> Image.Image:
    """The main components of the patch projection, seven a row."""
    tiles = filter_tiles(vision)
    return _sheet("filters", pen, [tiles[start : start + 7] for start in range(0, len(tiles), 7)])


def draw_distance(vision: VisionTransformer, images: Tensor, pen: Pen) -> Image.Image:
    """x: blocks, y: pixels."""
    distances = visualize.attention_distance(visualize.attention_maps(vision, images), vision.config)  # (L, h)
    width, height, left, bottom = 480, 300, 48, 40
    plot = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(plot), pen.font(13)
    depth, top = distances.shape[0], float(visualize.patch_distances(vision.config).max())
    step = max(1, round(top / 5))

    def place(block: float, pixels: float) -> tuple[float, float]:
        return left + (block + 0.5) * (width - left) / depth, (height - bottom) * (1 - pixels / top)

    for pixels in range(0, int(top) + 1, step):
        y = place(0, pixels)[1]
        draw.line((left, y, width, y), fill=_LINE)
        draw.text((left - 8, y), str(pixels), fill=_GREY, font=font, anchor="rm" if y > 8 else "rt")
    for block, heads in enumerate(distances):
        draw.text((place(block, 0)[0], height - bottom + 6), str(block), fill=_GREY, font=font, anchor="mt")
        for pixels in map(float, heads):
            x, y = place(block, pixels)
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=_HEAT[2])
    draw.text(((left + width) / 2, height - 2), pen.words["block"], fill=_INK, font=font, anchor="mb")
    return _sheet("distance", pen, [[plot]])


def attention_tiles(vision: VisionTransformer, images: Tensor, image: Image.Image) -> list[list[Image.Image]]:
    """What the image's vector reads: a list of heads for each block."""
    maps = visualize.attention_read(vision, images)[:, 0]  # (L, h, H/P, W/P)
    side = 96 if maps.shape[1] <= 6 else 64
    return [[overlay(image, head, side) for head in block] for block in maps]


def position_tiles(vision: VisionTransformer) -> list[list[Image.Image]]:
    """A map for each patch, at its place: the cosine of its position with all others."""
    similarity = visualize.position_similarity(vision)  # (H/P, W/P, H/P, W/P)
    side = max(28, 560 // similarity.shape[1])
    return [
        [colours(grid / 2 + 0.5, _SIGNED).resize((side, side), Image.Resampling.NEAREST) for grid in row]
        for row in similarity
    ]


def filter_tiles(vision: VisionTransformer) -> list[Image.Image]:
    """Principal components of the patch projection, a tile each."""
    filters, _ = visualize.patch_filters(vision)  # (K, C, P, P)
    if filters.shape[1] != 3:
        filters = filters.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    levels = (filters / filters.abs().amax((1, 2, 3), keepdim=True) / 2 + 0.5) * 255
    return [
        Image.fromarray(level.permute(1, 2, 0).round().byte().numpy()).resize((64, 64), Image.Resampling.NEAREST)
        for level in levels
    ]


def overlay(image: Image.Image, grid: Tensor, side: int) -> Image.Image:
    """A map (H/P, W/P) from 0 up to its own maximum, glowing over the image's grey; longer side `side` pixels."""
    shown = enlarged(image, side)
    heat = colours(grid / grid.max().clamp_min(1e-12), _HEAT).resize(shown.size, Image.Resampling.BILINEAR)
    return Image.blend(shown.convert("L").convert("RGB"), heat, 0.65)


def tint(image: Image.Image, grid: Tensor, side: int) -> Image.Image:
    """A signed map (H/P, W/P) of -1..1, as blue and red paint on the image's pale grey."""
    shown = enlarged(image, side)
    pale = Image.blend(shown.convert("L").convert("RGB"), Image.new("RGB", shown.size, "white"), 0.5)
    return ImageChops.multiply(pale, colours(grid / 2 + 0.5, _SIGNED).resize(shown.size, Image.Resampling.BILINEAR))


def colours(levels: Tensor, stops: Sequence[str]) -> Image.Image:
    """(H, W) of 0..1 -> RGB, between equally spaced colours."""
    rgb = np.array([[int(stop[place : place + 2], 16) for place in (1, 3, 5)] for stop in stops])
    where = np.linspace(0, 1, len(stops))
    channels = [np.interp(levels.numpy(force=True), where, rgb[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """Longer side `side` pixels."""
    scale = side / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _sheet(
    name: str, pen: Pen, tiles: Sequence[Sequence[Image.Image]], columns: Sequence[str] = (), rows: Sequence[str] = ()
) -> Image.Image:
    """Title, one line that explains, tiles of one size in a grid with labels."""
    title, note, label = pen.font(20), pen.font(13), pen.font(12)
    width, height = tiles[0][0].size
    left = 16 + (max(int(label.getlength(row)) for row in rows) + 10 if rows else 0)
    top = 76 + (20 if columns else 0)
    right = max(
        left + len(tiles[0]) * (width + _GAP) - _GAP,
        16 + int(title.getlength(pen.words[name])),
        16 + int(note.getlength(pen.words[f"{name} note"])),
    )
    sheet = Image.new("RGB", (right + 16, top + len(tiles) * (height + _GAP) + 10), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((16, 14), pen.words[name], fill=_INK, font=title)
    draw.text((16, 46), pen.words[f"{name} note"], fill=_GREY, font=note)
    for column, text in enumerate(columns):
        while label.getlength(text) > width:
            text = text[:-2] + "…"
        draw.text((left + column * (width + _GAP) + width / 2, top - 9), text, fill=_INK, font=label, anchor="ms")
    for row, text in enumerate(rows):
        y = top + row * (height + _GAP) + height / 2
        draw.text((left - 10, y), text, fill=_INK, font=label, anchor="rm")
    sheet.paste(mosaic(tiles), (left, top))
    return sheet


def mosaic(tiles: Sequence[Sequence[Image.Image]], gap: int = _GAP) -> Image.Image:
    """Tiles of one size in rows and columns, white between them."""
    (width, height), columns = tiles[0][0].size, max(len(line) for line in tiles)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, len(tiles) * (height + gap) - gap), "white")
    for row, line in enumerate(tiles):
        for column, tile in enumerate(line):
            sheet.paste(tile, (column * (width + gap), row * (height + gap)))
    return sheet


def image_seen(pixels: Tensor) -> Image.Image:
    """uint8 (3, H, W), as `Preprocess.pixels` makes it -> the image as the model sees it."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
