"""Looking inside a ViT: arrays for programs (`vlm/inspect/figures.py` draws them).

L blocks · B images · h heads · N tokens, the class token first where there is one · Np patches on a grid (H/P, W/P).
Everything here reads a model in `eval()` and leaves no gradients; *Vision Transformer 入門*, chapter 3.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.config import VisionConfig
from vlm.models.layers import AttentionPool, Block
from vlm.models.vision import VisionTransformer, ViTClassifier

Score = Callable[[Tensor], Tensor]  # features (B, D) -> one number per image (B,)


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
    """What the image's vector reads through each head, on the patches: (L, B, h, H/P, W/P).

    With a class token as the vector, its row of each map.
    """
    read = torch.einsum("bn,lbhnm->lbhm", reading_weights(vision, images), attention_maps(vision, images))
    return patch_grid(vision.config, read)


@torch.no_grad()
def reading_weights(vision: VisionTransformer, images: Tensor) -> Tensor:
    """How much of each last token the image's vector reads, (B, N), rows sum to 1.

    The class token alone, all patches alike, or what the attention pool's query sees (mean of its heads).
    """
    config = vision.config
    if vision.pool is not None:
        tokens = vision.features(images, blocks=(-1,)).blocks[0]
        return pool_weights(vision.pool, vision.norm(tokens)).mean(1)
    weights = images.new_zeros(images.shape[0], config.num_tokens)
    read = slice(0, 1) if config.pool == "class" else slice(int(config.class_token), None)
    weights[:, read] = 1 / weights[0, read].numel()
    return weights


def rollout(maps: Tensor) -> Tensor:
    """Attention followed through all blocks, (L, B, h, N, N) -> (B, N, N); each row sums to 1.

    The product of A/2 + I/2, A the mean of the heads, I the residual path.  Abnar and Zuidema 2020, section 4.
    """
    identity = torch.eye(maps.shape[-1], dtype=maps.dtype, device=maps.device)
    followed = identity.expand(maps.shape[1], -1, -1)
    for attention in maps.mean(2):  # (B, N, N), from the first block to the last
        followed = (attention / 2 + identity / 2) @ followed
    return followed


def rollout_map(vision: VisionTransformer, images: Tensor) -> Tensor:
    """How much of each patch reaches the image's vector, (B, H/P, W/P)."""
    followed = rollout(attention_maps(vision, images))
    return patch_grid(vision.config, torch.einsum("bn,bnm->bm", reading_weights(vision, images), followed))


def patch_grid(config: VisionConfig, tokens: Tensor) -> Tensor:
    """(..., N) -> (..., H/P, W/P): a number per token on the image, the class token left out."""
    return torch.unflatten(tokens[..., int(config.class_token) :], -1, config.grid)


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


def attention_distance(maps: Tensor, config: VisionConfig) -> Tensor:
    """How far each head looks, in pixels, (L, B, h, N, N) -> (L, h).  ViT paper, figure 7 right.

    The distance between the centres of two patches, weighted by attention, mean over all patches and images.  Patches
    only: the class token is nowhere, so each row is made to sum to 1 without it.
    """
    first = int(config.class_token)
    between = maps[..., first:, first:]  # (L, B, h, Np, Np)
    between = between / between.sum(-1, keepdim=True).clamp_min(torch.finfo(between.dtype).tiny)
    return (between * patch_distances(config).to(between)).sum(-1).mean((1, 3))


def patch_distances(config: VisionConfig) -> Tensor:
    """Pixels between the centres of any two patches, (Np, Np)."""
    rows, columns = config.grid
    centres = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float() * config.patch_size  # (Np, 2)
    return (centres[:, None] - centres).square().sum(-1).sqrt()


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


def pool_weights(pool: AttentionPool, z: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) of the pool's one query, (B, N, D) -> (B, h, N)."""
    q = pool.q(pool.latent).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)  # (1, h, 1, Dh)
    k = pool.kv(z).chunk(2, dim=-1)[0].unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)  # (B, h, N, Dh)
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)[:, :, 0]
