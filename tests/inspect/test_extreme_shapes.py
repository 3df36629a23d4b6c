"""Figures of images that are much longer than wide, or a single patch."""

import pytest
import torch

from vlm.config import VisionConfig
from vlm.inspect import figures
from vlm.inspect.drawing import choose_lettering, image_seen
from vlm.models.vision import VisionTransformer


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("image_size", "num_heads"), [((128, 16), 12), ((16, 128), 12), ((8, 8), 1)], ids=["tall", "wide", "one patch"]
)
def test_every_figure_of_an_image_of_extreme_shape_is_drawn(image_size: tuple[int, int], num_heads: int):
    """Columns narrower than a letter looped for ever; with one patch no distance can be divided by the largest."""
    config = VisionConfig(image_size=image_size, patch_size=8, width=24, depth=2, num_heads=num_heads, mlp_dim=16)
    vision = VisionTransformer(config).eval()
    pixels = torch.randint(0, 256, (3, *image_size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scores = {"a long caption": lambda features: features.sum(1)}
    with torch.no_grad():
        found = figures.draw_all(vision, pixels[None] / 255, image_seen(pixels), scores, choose_lettering("en"))
    assert found.keys() == {"attention", "rollout", "distance", "positions", "filters", "relevance"}
    assert all(min(figure.size) > 50 for figure in found.values())
