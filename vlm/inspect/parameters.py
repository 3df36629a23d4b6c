"""Figures of the weights alone: position embeddings and patch filters."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.models.vision import VisionTransformer


@torch.no_grad()
def position_similarity(vision: VisionTransformer) -> Tensor:
    """Cosines between the position embeddings of all patches, (H/P, W/P, H/P, W/P).  ViT paper, figure 7 centre."""
    positions = vision.pos_embed[0, int(vision.config.class_token) :].float()  # (Np, D)
    unit = F.normalize(positions, dim=-1)
    return (unit @ unit.T).reshape(vision.config.grid * 2)


@torch.no_grad()
def patch_filters(vision: VisionTransformer, count: int = 28) -> tuple[Tensor, Tensor]:
    """Principal components of the patch projection's D filters (ViT paper, figure 7 left).

    Args:
        vision: the image encoder.
        count: K at most.

    Returns:
        Components (K, C, P, P), orthogonal unit vectors in the order of the variance they explain; and their shares of
        the variance (K,), which sum to 1 over all components.
    """
    filters = vision.patch_embed.proj.weight.float()  # (D, C, P, P); no singular values in 16 bits
    points = filters.flatten(1) - filters.flatten(1).mean(0)
    _, lengths, components = cast(tuple[Tensor, ...], torch.linalg.svd(points, full_matrices=False))
    components = components * components.gather(1, components.abs().argmax(1, keepdim=True)).sign()  # one sign of two
    share = lengths**2 / (lengths**2).sum()
    return torch.unflatten(components[:count], 1, filters.shape[1:]), share[:count]
