import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vlm import visualize
from vlm.clip import CLIP
from vlm.config import VisionConfig
from vlm.layers import Attention, AttentionPool
from vlm.vision import VisionTransformer, ViTClassifier

TINY = VisionConfig(image_size=(16, 24), patch_size=8, width=12, depth=3, num_heads=2, mlp_dim=16)  # a grid of 2 x 3
POOLS = {
    "class": TINY,
    "mean": dataclasses.replace(TINY, pool="mean", class_token=False),
    "mean of patches beside a class token": dataclasses.replace(TINY, pool="mean"),
    "attention": dataclasses.replace(TINY, pool="attention", class_token=False),
}


def vit(config: VisionConfig = TINY) -> VisionTransformer:
    """Random weights, large enough that no attention is flat."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = VisionTransformer(config).eval()
        for weight in vision.parameters():
            torch.nn.init.normal_(weight, std=0.5)
    return vision


def pictures(count: int = 2, config: VisionConfig = TINY) -> Tensor:
    return torch.randn(count, config.in_channels, *config.image_shape, generator=torch.Generator().manual_seed(1))


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


# ---- attention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_weights_times_values_through_the_projection_is_attention(causal: bool):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention, z = Attention(12, 3, causal=causal), torch.randn(2, 5, 12)
    heads = attention.weights(z) @ attention.values(z)  # (B, h, N, Dh)
    joined = torch.cat(list(heads.unbind(1)), dim=-1)  # head after head, (B, N, D)
    torch.testing.assert_close(attention.proj(joined), attention(z))


def test_attention_maps_are_the_papers_softmax_of_each_block_and_head():
    vision, images = vit(), pictures()
    maps = visualize.attention_maps(vision, images).numpy()
    z = vision.embed(images)
    for layer, block in enumerate(vision.blocks):
        normed = block.norm1(z)
        weight, bias = block.attn.qkv.weight.detach().numpy(), block.attn.qkv.bias.detach().numpy()
        for b in range(2):
            q, k, _ = np.split(normed[b].detach().numpy() @ weight.T + bias, 3, axis=1)  # each (N, D)
            for head in range(2):
                part = slice(head * 6, head * 6 + 6)  # Dh = 12 / 2
                expected = softmax(q[:, part] @ k[:, part].T / math.sqrt(6))
                np.testing.assert_allclose(maps[layer, b, head], expected, atol=1e-5)
        z = block(z)


@pytest.mark.parametrize("config", POOLS.values(), ids=POOLS)
def test_every_row_of_every_map_sums_to_1(config: VisionConfig):
    vision, images = vit(config), pictures()
    maps = visualize.attention_maps(vision, images)
    assert maps.shape == (3, 2, 2, config.num_tokens, config.num_tokens)
    for rows in (maps, visualize.rollout(maps), visualize.reading_weights(vision, images)):
        assert rows.min() >= 0
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))


def test_rollout_is_abnar_and_zuidemas():
    maps = visualize.attention_maps(vit(), pictures()).double().numpy()
    for b in range(2):
        followed = None
        for attention in maps[:, b].mean(1):
            mixed = 0.5 * attention + 0.5 * np.eye(len(attention))
            mixed /= mixed.sum(-1, keepdims=True)
            followed = mixed if followed is None else mixed @ followed
        np.testing.assert_allclose(visualize.rollout(torch.from_numpy(maps))[b].numpy(), followed, atol=1e-12)


def test_rollout_of_heads_that_see_only_themselves_is_the_identity():
    maps = torch.eye(7).expand(3, 2, 2, 7, 7)
    torch.testing.assert_close(visualize.rollout(maps), torch.eye(7).expand(2, 7, 7))


def test_the_class_tokens_row_is_what_a_class_token_model_reads():
    vision, images = vit(), pictures()
    maps = visualize.attention_maps(vision, images)
    torch.testing.assert_close(visualize.attention_read(vision, images), maps[..., 0, 1:].unflatten(-1, (2, 3)))
    rows = visualize.rollout(maps)[:, 0, 1:].unflatten(-1, (2, 3))
    torch.testing.assert_close(visualize.rollout_map(vision, images), rows)


def test_mean_pooling_reads_all_patches_alike():
    vision, images = vit(POOLS["mean"]), pictures()
    maps = visualize.attention_maps(vision, images)
    torch.testing.assert_close(visualize.attention_read(vision, images), maps.mean(-2).unflatten(-1, (2, 3)))


def test_an_attention_pool_reads_with_its_own_weights():
    vision, images = vit(POOLS["attention"]), pictures()
    pool, seen = vision.pool, vision.features(images).patches.flatten(2).transpose(1, 2)  # (B, N, D), after the norm
    assert isinstance(pool, AttentionPool)
    values = pool.kv(seen)[..., 12:]  # (B, N, D)
    weights = visualize.pool_weights(pool, seen)  # (B, h, N)
    joined = torch.cat([weights[:, head, None] @ values[..., head * 6 : head * 6 + 6] for head in range(2)], dim=-1)
    pooled = pool.proj(joined)
    torch.testing.assert_close((pooled + pool.mlp(pool.norm(pooled)))[:, 0], vision(images))
    torch.testing.assert_close(visualize.reading_weights(vision, images), weights.mean(1))


# ---- distance, positions, filters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("class_token", [False, True])
def test_uniform_attention_looks_as_far_as_the_mean_pair_of_patches(class_token: bool):
    config = dataclasses.replace(TINY, class_token=class_token, pool="mean")
    centres = [(4 + 8 * row, 4 + 8 * column) for row in range(2) for column in range(3)]
    mean = np.mean([math.dist(one, other) for one in centres for other in centres])
    maps = torch.full((3, 2, 2, config.num_tokens, config.num_tokens), 1 / config.num_tokens)
    expected = torch.full((3, 2), float(mean))
    torch.testing.assert_close(visualize.attention_distance(maps, config), expected)


def test_attention_to_itself_looks_no_distance_and_to_the_right_one_patch():
    itself = torch.eye(7).expand(1, 1, 1, 7, 7)
    assert visualize.attention_distance(itself, TINY).item() == 0
    right = torch.eye(7)
    for patch in (1, 2, 4, 5):  # token 0 is the class token; 3 and 6 end their rows and keep looking at themselves
        right[patch] = right[patch].roll(1)
    assert visualize.attention_distance(right[None, None, None], TINY).item() == pytest.approx(8 * 4 / 6)


def test_a_head_that_sees_only_the_class_token_has_a_finite_distance():
    maps = torch.zeros(1, 1, 1, 7, 7)
    maps[..., 0] = 1
    assert visualize.attention_distance(maps, TINY).item() == 0


def test_positions_made_of_a_row_and_a_column_are_half_alike_along_both():
    vision = vit()
    codes = [torch.cat([torch.eye(2)[row], torch.eye(3)[column]]) for row in range(2) for column in range(3)]
    positions = torch.nn.functional.pad(torch.stack(codes), (0, 12 - 5))
    with torch.no_grad():
        vision.pos_embed[0, 1:] = positions * torch.rand(6, 1, generator=torch.Generator().manual_seed(0)).add(0.1)
    similarity = visualize.position_similarity(vision)
    for row in range(2):
        for column in range(3):
            for r in range(2):
                for c in range(3):
                    expected = 0.5 * (row == r) + 0.5 * (column == c)
                    assert similarity[row, column, r, c].item() == pytest.approx(expected, abs=1e-6)


def test_patch_filters_are_eigenvectors_of_the_filters_covariance():
    config = dataclasses.replace(TINY, patch_size=2, image_size=4, width=40)
    vision = vit(config)
    components, share = visualize.patch_filters(vision, 5)
    assert components.shape == (5, 3, 2, 2)
    covariance = np.cov(vision.patch_embed.proj.weight.detach().flatten(1).numpy().T)
    values = np.linalg.eigvalsh(covariance)[::-1]
    flat = components.flatten(1).numpy()
    np.testing.assert_allclose(flat @ flat.T, np.eye(5), atol=1e-5)
    np.testing.assert_allclose(covariance @ flat.T, flat.T * values[:5], atol=1e-4)
    np.testing.assert_allclose(share.numpy(), values[:5] / values.sum(), atol=1e-5)


# ---- features ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", POOLS.values(), ids=POOLS)
def test_features_hold_the_vector_the_tokens_and_every_block(config: VisionConfig):
    vision, images = vit(config), pictures()
    found = vision.features(images, blocks=(0, 2, -2))
    z, after = vision.embed(images), []
    for block in vision.blocks:
        z = block(z)
        after.append(z)
    torch.testing.assert_close(found.pooled, vision(images))
    for tokens, expected in zip(found.blocks, (after[0], after[2], after[1]), strict=True):
        torch.testing.assert_close(tokens, expected)
    last, first = vision.norm(after[-1]), int(config.class_token)
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(found.patches[:, :, row, column], last[:, first + 3 * row + column])
    assert (found.class_token is None) == (not config.class_token)
    if found.class_token is not None:
        torch.testing.assert_close(found.class_token, last[:, 0])


def test_a_block_that_is_not_there_is_an_error_that_says_which_are():
    with pytest.raises(ValueError, match=r"no blocks \[3\]: this model has 3, numbered 0 to 2"):
        vit().features(pictures(), blocks=(0, 3))


_ = CLIP, ViTClassifier
