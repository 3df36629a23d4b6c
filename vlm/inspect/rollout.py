"""Attention rollout (Abnar and Zuidema 2020)."""

import torch
from torch import Tensor

from vlm.inspect.attention import attention_maps, image_grid, patch_grid, reading_weights
from vlm.models.vision import VisionTransformer


def rollout(maps: Tensor) -> Tensor:
    """Attention rollout through all blocks, (L, B, h, N, N) -> (B, N, N); each row sums to 1.

    The product of A/2 + I/2, A the mean of the heads, I the residual path.  Abnar and Zuidema 2020, section 4.
    """
    identity = torch.eye(maps.shape[-1], dtype=maps.dtype, device=maps.device)
    followed = identity.expand(maps.shape[1], -1, -1)
    for attention in maps.mean(2):  # (B, N, N), from the first block to the last
        followed = (attention / 2 + identity / 2) @ followed
    return followed


def rollout_map(vision: VisionTransformer, images: Tensor) -> Tensor:
    """The rollout from the pooled image features to each patch, (B, H/P, W/P)."""
    followed = rollout(attention_maps(vision, images))
    read = torch.einsum("bn,bnm->bm", reading_weights(vision, images), followed)
    return patch_grid(vision.config, read, image_grid(vision.config, images))
