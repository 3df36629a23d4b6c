"""The figures of `vlm look`, one for each question; the arrays are those of the other modules of this folder."""

from collections.abc import Mapping

from PIL import Image, ImageDraw
from torch import Tensor

from vlm.inspect.attention import attention_distance, attention_maps, attention_read, image_grid, patch_distances
from vlm.inspect.drawing import GREY, HEAT, INK, LINE, SIGNED, Lettering, colours, enlarged, overlay, sheet, tint
from vlm.inspect.parameters import patch_filters, position_similarity
from vlm.inspect.relevance import Score, relevance
from vlm.inspect.rollout import rollout_map
from vlm.models.vision import VisionTransformer


def draw_all(
    vision: VisionTransformer, images: Tensor, image: Image.Image, scores: Mapping[str, Score], lettering: Lettering
) -> dict[str, Image.Image]:
    """Draw every figure.

    Args:
        vision: the image encoder.
        images: (1, C, H, W), the image normalised.
        image: the same image to draw over.
        scores: caption -> score, for the figure of relevance; without scores it is left out.
        lettering: words and font.

    Returns:
        {name: figure}.
    """
    figures = {
        "attention": draw_attention(vision, images, image, lettering),
        "rollout": draw_rollout(vision, images, image, lettering),
        "distance": draw_distance(vision, images, lettering),
        "positions": draw_positions(vision, lettering),
        "filters": draw_filters(vision, lettering),
    }
    if scores:
        maps = {caption: relevance(vision, images, score)[0] for caption, score in scores.items()}
        figures["relevance"] = draw_relevance(image, maps, lettering)
    return figures


def draw_attention(vision: VisionTransformer, images: Tensor, image: Image.Image, lettering: Lettering) -> Image.Image:
    """Rows are blocks, columns heads; both are counted from 1."""
    tiles = attention_tiles(vision, images, image)
    columns = [f"{lettering.words['head']} {head}" for head in range(1, len(tiles[0]) + 1)]
    rows = [f"{lettering.words['block']} {block}" for block in range(1, len(tiles) + 1)]
    return sheet("attention", lettering, tiles, columns, rows)


def draw_rollout(vision: VisionTransformer, images: Tensor, image: Image.Image, lettering: Lettering) -> Image.Image:
    """The rollout, drawn over the image."""
    grid = rollout_map(vision, images)[0]
    return sheet(
        "rollout", lettering, [[enlarged(image, 192), overlay(image, grid, 192)]], [lettering.words["image"], ""]
    )


def draw_relevance(image: Image.Image, maps: Mapping[str, Tensor], lettering: Lettering) -> Image.Image:
    """Signed maps, {caption: (H/P, W/P)}, on one scale."""
    top = max(float(grid.abs().max()) for grid in maps.values())
    tiles = [enlarged(image, 192), *(tint(image, grid / top if top else grid, 192) for grid in maps.values())]
    return sheet("relevance", lettering, [tiles], [lettering.words["image"], *maps])


def draw_positions(vision: VisionTransformer, lettering: Lettering) -> Image.Image:
    """One tile per patch: the similarity of its position embedding to all others."""
    return sheet("positions", lettering, position_tiles(vision))


def draw_filters(vision: VisionTransformer, lettering: Lettering) -> Image.Image:
    """The principal components of the patch projection, seven in a row."""
    tiles = filter_tiles(vision)
    return sheet("filters", lettering, [tiles[start : start + 7] for start in range(0, len(tiles), 7)])


def draw_distance(vision: VisionTransformer, images: Tensor, lettering: Lettering) -> Image.Image:
    """x: blocks, y: pixels."""
    grid = image_grid(vision.config, images)
    distances = attention_distance(attention_maps(vision, images), vision.config, grid)  # (L, h)
    width, height, left, bottom = 480, 300, 48, 40
    plot = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(plot), lettering.font(13)
    depth, top = distances.shape[0], float(patch_distances(vision.config, grid).max()) or 1.0  # one patch: no distance
    step = max(1, round(top / 5))

    def place(block: float, pixels: float) -> tuple[float, float]:
        return left + (block + 0.5) * (width - left) / depth, (height - bottom) * (1 - pixels / top)

    for pixels in range(0, int(top) + 1, step):
        y = place(0, pixels)[1]
        draw.line((left, y, width, y), fill=LINE)
        draw.text((left - 8, y), str(pixels), fill=GREY, font=font, anchor="rm" if y > 8 else "rt")
    for block, heads in enumerate(distances):
        draw.text((place(block, 0)[0], height - bottom + 6), str(block + 1), fill=GREY, font=font, anchor="mt")
        for pixels in map(float, heads):
            x, y = place(block, pixels)
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=HEAT[2])
    draw.text(((left + width) / 2, height - 2), lettering.words["block"], fill=INK, font=font, anchor="mb")
    return sheet("distance", lettering, [[plot]])


def attention_tiles(vision: VisionTransformer, images: Tensor, image: Image.Image) -> list[list[Image.Image]]:
    """The attention of the pooled features to the patches: a list of heads for each block."""
    maps = attention_read(vision, images)[:, 0]  # (L, h, H/P, W/P)
    side = 96 if maps.shape[1] <= 6 else 64
    return [[overlay(image, head, side) for head in block] for block in maps]


def position_tiles(vision: VisionTransformer) -> list[list[Image.Image]]:
    """A map for each patch, at its position: the cosine of its position embedding with all others."""
    similarity = position_similarity(vision)  # (H/P, W/P, H/P, W/P)
    side = max(28, 560 // similarity.shape[1])
    return [
        [colours(grid / 2 + 0.5, SIGNED).resize((side, side), Image.Resampling.NEAREST) for grid in row]
        for row in similarity
    ]


def filter_tiles(vision: VisionTransformer) -> list[Image.Image]:
    """The principal components of the patch projection, a tile for each."""
    filters, _ = patch_filters(vision)  # (K, C, P, P)
    if filters.shape[1] != 3:
        filters = filters.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    levels = (filters / filters.abs().amax((1, 2, 3), keepdim=True) / 2 + 0.5) * 255
    return [
        Image.fromarray(level.permute(1, 2, 0).round().byte().numpy()).resize((64, 64), Image.Resampling.NEAREST)
        for level in levels
    ]
