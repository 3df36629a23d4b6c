"""Which parts of an image raise or lower a score."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.models.vision import VisionTransformer, ViTClassifier

Score = Callable[[Tensor], Tensor]  # features (B, D) -> one number per image (B,)


@torch.no_grad()
def relevance(vision: VisionTransformer, images: Tensor, score: Score, *, batch_size: int = 32) -> Tensor:
    """Where in the image is what `score` asks for, (B, H/P, W/P): signed, in units of the score.

    The model is shown one window at a time and nothing else, a quarter and a half of the image's sides long.  A
    patch's number is the mean score of the windows with it less the mean of all windows, mean of both sizes.  RISE
    (Petsiuk et al. 2018) with windows for masks, and tokens left out for grey: any pooling, and what is measured is
    what the model does.
    """
    maps = images.new_zeros(images.shape[0], vision.config.num_patches)
    for parts in (4, 2):
        seen = windows(vision.config.grid, parts).to(images.device)
        inside = images.new_zeros(len(seen), maps.shape[1]).scatter(1, seen, 1)  # 1 where the window has the patch
        for image, grid in zip(images, maps, strict=True):
            batches = torch.split(seen, batch_size)
            scores = torch.cat([score(vision(image.expand(len(keep), -1, -1, -1), keep)) for keep in batches])
            grid += (scores - scores.mean()) @ inside / inside.sum(0) / 2
    return torch.unflatten(maps, 1, vision.config.grid)


def windows(grid: tuple[int, int], parts: int) -> Tensor:
    """The patches of every window one of `parts` of each side long, half a window from the next: (windows, patches)."""
    sides = [max(1, round(length / parts)) for length in grid]
    numbers = torch.arange(math.prod(grid)).view(grid)
    down, right = (
        [*range(0, length - side, max(1, side // 2)), length - side] for length, side in zip(grid, sides, strict=True)
    )
    return torch.stack(
        [numbers[top : top + sides[0], left : left + sides[1]].flatten() for top in down for left in right]
    )


def text_score(vision_proj: nn.Module, text_embed: Tensor) -> Score:
    """How well a text fits: the cosine of `text_embed` (E,), unit length, and features after `CLIP.vision_proj`."""
    return lambda features: F.normalize(vision_proj(features), dim=-1) @ text_embed.to(features)


def label_score(classifier: ViTClassifier, label: str) -> Score:
    """The logit of one of the classifier's labels."""
    if label not in classifier.labels:
        known = ", ".join(classifier.labels[:20]) + (", ..." if len(classifier.labels) > 20 else "")
        raise ValueError(f"'{label}' is none of the classifier's {len(classifier.labels)} labels: {known}.")
    return lambda features: classifier.head(features)[:, classifier.labels.index(label)]
