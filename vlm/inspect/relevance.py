"""Relevance maps: how parts of an image raise or lower a score."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.errors import InputError
from vlm.inspect.attention import image_grid
from vlm.models.vision import VisionTransformer, ViTClassifier

Score = Callable[[Tensor], Tensor]  # features (B, D) -> one number per image (B,)


@torch.no_grad()
def relevance(vision: VisionTransformer, images: Tensor, score: Score, *, batch_size: int = 32) -> Tensor:
    """Computes how much each part of an image raises or lowers a score.

    The model sees one window at a time and no other patch, a quarter and a half of the image's sides long.  The value
    of a patch is the mean score of the windows that contain it minus the mean of all windows, averaged over both sizes.
    This is RISE (Petsiuk et al. 2018) with windows as masks, and tokens left out in place of grey: it fits any pooling
    and measures the model itself.

    Args:
        vision: the image encoder.
        images: (B, C, H, W).
        score: features (B, D) -> one number per image (B,).
        batch_size: windows computed at once.

    Returns:
        (B, H/P, W/P), signed, in units of the score.
    """
    grid = image_grid(vision.config, images)
    maps = images.new_zeros(images.shape[0], math.prod(grid))
    for parts in (4, 2):
        seen = windows(grid, parts).to(images.device)
        inside = images.new_zeros(len(seen), maps.shape[1]).scatter(1, seen, 1)  # 1 where the window has the patch
        for image, total in zip(images, maps, strict=True):
            batches = torch.split(seen, batch_size)
            scores = torch.cat([score(vision(image.expand(len(keep), -1, -1, -1), keep)) for keep in batches])
            total += (scores - scores.mean()) @ inside / inside.sum(0) / 2
    return torch.unflatten(maps, 1, grid)


def windows(grid: tuple[int, int], parts: int) -> Tensor:
    """The patches of all windows of one size, at steps of half a window.

    Args:
        grid: (H/P, W/P).
        parts: a window's sides are the grid's, divided by this.

    Returns:
        (windows, patches), numbers of patches.
    """
    sides = [max(1, round(length / parts)) for length in grid]
    numbers = torch.arange(math.prod(grid)).view(grid)
    down, right = (
        [*range(0, length - side, max(1, side // 2)), length - side] for length, side in zip(grid, sides, strict=True)
    )
    return torch.stack(
        [numbers[top : top + sides[0], left : left + sides[1]].flatten() for top in down for left in right]
    )


def text_score(vision_proj: nn.Module, text_embed: Tensor) -> Score:
    """A score for `relevance`: the cosine of an image with a text.

    Args:
        vision_proj: `CLIP.vision_proj`.
        text_embed: (E,), unit length.
    """
    return lambda features: F.normalize(vision_proj(features), dim=-1) @ text_embed.to(features)


def label_score(classifier: ViTClassifier, label: str) -> Score:
    """A score for `relevance`: the logit of one of the classifier's labels.

    Raises:
        InputError: the classifier has no such label.
    """
    if label not in classifier.labels:
        known = ", ".join(classifier.labels[:20]) + (", ..." if len(classifier.labels) > 20 else "")
        raise InputError(f"'{label}' is none of the classifier's {len(classifier.labels)} labels: {known}.")
    return lambda features: classifier.head(features)[:, classifier.labels.index(label)]
