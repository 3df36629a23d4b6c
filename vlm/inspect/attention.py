"""Attention maps of a ViT, as arrays.

L blocks · B images · h heads · N tokens, the class token first where there is one · Np patches on a grid (H/P, W/P).
The functions expect a model in `eval()` and compute no gradients.  *Vision Transformer 入門*, chapter 3.
"""

import torch
from torch import Tensor

from vlm.config import VisionConfig
from vlm.models.layers import Block
from vlm.models.vision import VisionTransformer


@torch.no_grad()
def attention_maps(vision: VisionTransformer, images: Tensor) -> Tensor:
    """A of every block and head, (L, B, h, N, N); each row sums to 1.  Book eq. (7)."""
    z = vision.embed(images)
    maps: list[Tensor] = []
    for block in vision.blocks:
        assert isinstance(block, Block)
        maps.append(block.attn.weights(block.norm1(z)))
        z = block(z)
    return torch.stack(maps)


def attention_read(vision: VisionTransformer, images: Tensor) -> Tensor:
    """The attention that the pooled image features pay to each patch, through each head: (L, B, h, H/P, W/P).

    Where the class token is pooled, this is its row of each map.
    """
    read = torch.einsum("bn,lbhnm->lbhm", reading_weights(vision, images), attention_maps(vision, images))
    return patch_grid(vision.config, read, image_grid(vision.config, images))


@torch.no_grad()
def reading_weights(vision: VisionTransformer, images: Tensor) -> Tensor:
    """The weight of each last token in the pooled image features, (B, N); rows sum to 1.

    The class token alone, all patches alike, or the attention of the pool's query (mean of its heads).
    """
    config = vision.config
    if vision.pool is not None:
        tokens = vision.features(images, blocks=(-1,)).blocks[0]
        return vision.pool.weights(vision.norm(tokens)).mean(1)
    rows, columns = image_grid(config, images)
    weights = images.new_zeros(images.shape[0], rows * columns + config.num_prefix_tokens)
    read = slice(0, 1) if config.pool == "class" else slice(config.num_prefix_tokens, None)
    weights[:, read] = 1 / weights[0, read].numel()
    return weights


def image_grid(config: VisionConfig, images: Tensor) -> tuple[int, int]:
    """Patches down and across of images (B, C, H, W); with `any_size` they may differ from the model's own grid."""
    return images.shape[2] // config.patch_size, images.shape[3] // config.patch_size


def patch_grid(config: VisionConfig, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """A number per token, (..., N), on the image, (..., H/P, W/P), without the class token.

    Args:
        config: of the model.
        tokens: (..., N).
        grid: (H/P, W/P) of the image; None is the model's own.
    """
    return torch.unflatten(tokens[..., config.num_prefix_tokens :], -1, grid or config.grid)


def attention_distance(maps: Tensor, config: VisionConfig, grid: tuple[int, int] | None = None) -> Tensor:
    """Mean attention distance of each head in pixels, (L, B, h, N, N) -> (L, h).  ViT paper, figure 7 right.

    The distance between the centres of two patches, weighted by attention, mean over all patches and images.  Patches
    only: the class token has no place, so each row is made to sum to 1 without it.  `grid`: (H/P, W/P) of the images;
    None is the model's own.
    """
    first = config.num_prefix_tokens
    between = maps[..., first:, first:]  # (L, B, h, Np, Np)
    between = between / between.sum(-1, keepdim=True).clamp_min(torch.finfo(between.dtype).tiny)
    return (between * patch_distances(config, grid).to(between)).sum(-1).mean((1, 3))


def patch_distances(config: VisionConfig, grid: tuple[int, int] | None = None) -> Tensor:
    """Pixels between the centres of any two patches, (Np, Np); `grid`: (H/P, W/P), None is the model's own."""
    rows, columns = grid or config.grid
    centres = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float() * config.patch_size  # (Np, 2)
    return (centres[:, None] - centres).square().sum(-1).sqrt()
