"""Figures of the weights alone: position embeddings and patch filters."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.models.vision import VisionTransformer


@torch.no_grad()
def position_similarity(vision: VisionTransformer) -> Tensor:
    """Cosine of every two patches' position embeddings, (H/P, W/P, H/P, W/P).  ViT paper, figure 7 centre."""
    positions = vision.pos_embed[0, int(vision.config.class_token) :]  # (Np, D)
    unit = F.normalize(positions, dim=-1)
    return (unit @ unit.T).reshape(vision.config.grid * 2)


@torch.no_grad()
def patch_filters(vision: VisionTransformer, count: int = 28) -> tuple[Tensor, Tensor]:
    """Principal components of the patch projection, (K, C, P, P), and the variance each explains, (K,) of 1.

    The D filters are D points in pixel space; their components are unit vectors at right angles, the most telling
    first.  ViT paper, figure 7 left.
    """
    filters = vision.patch_embed.proj.weight  # (D, C, P, P)
    points = filters.flatten(1) - filters.flatten(1).mean(0)
    _, lengths, components = cast(tuple[Tensor, ...], torch.linalg.svd(points, full_matrices=False))
    components = components * components.gather(1, components.abs().argmax(1, keepdim=True)).sign()  # one sign of two
    share = lengths**2 / (lengths**2).sum()
    return torch.unflatten(components[:count], 1, filters.shape[1:]), share[:count]
