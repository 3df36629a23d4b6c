import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.config import VisionConfig
from vlm.inspect.attention import (
    attention_distance,
    attention_maps,
    attention_read,
    image_grid,
    reading_weights,
)
from vlm.inspect.parameters import patch_filters, position_similarity
from vlm.inspect.relevance import label_score, relevance, text_score, windows
from vlm.inspect.rollout import rollout, rollout_map
from vlm.models.clip import CLIP
from vlm.models.layers import Attention, AttentionPool, Block
from vlm.models.vision import VisionTransformer, ViTClassifier, resize_pos_embed

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


def random_images(count: int = 2, config: VisionConfig = TINY) -> Tensor:
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
    vision, images = vit(), random_images()
    maps = attention_maps(vision, images).numpy()
    z = vision.embed(images)
    for layer, block in enumerate(vision.blocks):
        assert isinstance(block, Block)
        normed = block.norm1(z)
        weight, bias = (parameter.detach().numpy() for parameter in (block.attn.qkv.weight, block.attn.qkv.bias))
        for b in range(2):
            q, k, _ = np.split(normed[b].detach().numpy() @ weight.T + bias, 3, axis=1)  # each (N, D)
            for head in range(2):
                part = slice(head * 6, head * 6 + 6)  # Dh = 12 / 2
                expected = softmax(q[:, part] @ k[:, part].T / math.sqrt(6))
                np.testing.assert_allclose(maps[layer, b, head], expected, atol=1e-5)
        z = block(z)


@pytest.mark.parametrize("config", POOLS.values(), ids=POOLS)
def test_every_row_of_every_map_sums_to_1(config: VisionConfig):
    vision, images = vit(config), random_images()
    maps = attention_maps(vision, images)
    assert maps.shape == (3, 2, 2, config.num_tokens, config.num_tokens)
    for rows in (maps, rollout(maps), reading_weights(vision, images)):
        assert rows.min() >= 0
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))


def test_rollout_is_abnar_and_zuidemas():
    maps = attention_maps(vit(), random_images()).double().numpy()
    for b in range(2):
        mixed = [0.5 * attention + 0.5 * np.eye(7) for attention in maps[:, b].mean(1)]
        one, two, three = (matrix / matrix.sum(-1, keepdims=True) for matrix in mixed)
        found = rollout(torch.from_numpy(maps))[b].numpy()
        np.testing.assert_allclose(found, three @ two @ one, atol=1e-12)


def test_rollout_of_heads_that_see_only_themselves_is_the_identity():
    maps = torch.eye(7).expand(3, 2, 2, 7, 7)
    torch.testing.assert_close(rollout(maps), torch.eye(7).expand(2, 7, 7))


def test_the_class_tokens_row_is_what_a_class_token_model_reads():
    vision, images = vit(), random_images()
    maps = attention_maps(vision, images)
    torch.testing.assert_close(attention_read(vision, images), maps[..., 0, 1:].unflatten(-1, (2, 3)))
    rows = rollout(maps)[:, 0, 1:].unflatten(-1, (2, 3))
    torch.testing.assert_close(rollout_map(vision, images), rows)


def test_mean_pooling_reads_all_patches_alike():
    vision, images = vit(POOLS["mean"]), random_images()
    maps = attention_maps(vision, images)
    torch.testing.assert_close(attention_read(vision, images), maps.mean(-2).unflatten(-1, (2, 3)))


def test_an_attention_pool_reads_with_its_own_weights():
    vision, images = vit(POOLS["attention"]), random_images()
    pool, seen = vision.pool, vision.features(images).patches.flatten(2).transpose(1, 2)  # (B, N, D), after the norm
    assert isinstance(pool, AttentionPool)
    values = pool.kv(seen)[..., 12:]  # (B, N, D)
    weights = pool.weights(seen)  # (B, h, N)
    joined = torch.cat([weights[:, head, None] @ values[..., head * 6 : head * 6 + 6] for head in range(2)], dim=-1)
    pooled = pool.proj(joined)
    torch.testing.assert_close((pooled + pool.mlp(pool.norm(pooled)))[:, 0], vision(images))
    torch.testing.assert_close(reading_weights(vision, images), weights.mean(1))


@pytest.mark.parametrize("config", POOLS.values(), ids=POOLS)
def test_looking_leaves_no_gradients(config: VisionConfig):
    vision, images = vit(config), random_images()
    found = [
        attention_maps(vision, images),
        attention_read(vision, images),
        reading_weights(vision, images),
        rollout_map(vision, images),
        position_similarity(vision),
        *patch_filters(vision),
        relevance(vision, images, lambda features: features[:, 0]),
    ]
    assert not any(tensor.requires_grad for tensor in found)


# ---- distance, positions, filters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("class_token", [False, True])
def test_uniform_attention_looks_as_far_as_the_mean_pair_of_patches(class_token: bool):
    config = dataclasses.replace(TINY, class_token=class_token, pool="mean")
    centres = [(4 + 8 * row, 4 + 8 * column) for row in range(2) for column in range(3)]
    mean = np.mean([math.dist(one, other) for one in centres for other in centres])
    maps = torch.full((3, 2, 2, config.num_tokens, config.num_tokens), 1 / config.num_tokens)
    expected = torch.full((3, 2), float(mean))
    torch.testing.assert_close(attention_distance(maps, config), expected)


def test_attention_to_itself_looks_no_distance_and_to_the_right_one_patch():
    itself = torch.eye(7).expand(1, 1, 1, 7, 7)
    assert attention_distance(itself, TINY).item() == 0
    right = torch.eye(7)
    for patch in (1, 2, 4, 5):  # token 0 is the class token; 3 and 6 end their rows and keep looking at themselves
        right[patch] = right[patch].roll(1)
    assert attention_distance(right[None, None, None], TINY).item() == pytest.approx(8 * 4 / 6)


def test_a_head_that_sees_only_the_class_token_has_a_finite_distance():
    maps = torch.zeros(1, 1, 1, 7, 7)
    maps[..., 0] = 1
    assert attention_distance(maps, TINY).item() == 0


def test_positions_made_of_a_row_and_a_column_are_half_alike_along_both():
    vision = vit()
    codes = [torch.cat([torch.eye(2)[row], torch.eye(3)[column]]) for row in range(2) for column in range(3)]
    positions = F.pad(torch.stack(codes), (0, 12 - 5))
    with torch.no_grad():
        vision.pos_embed[0, 1:] = positions * torch.rand(6, 1, generator=torch.Generator().manual_seed(0)).add(0.1)
    similarity = position_similarity(vision)
    for row in range(2):
        for column in range(3):
            for r in range(2):
                for c in range(3):
                    expected = 0.5 * (row == r) + 0.5 * (column == c)
                    assert similarity[row, column, r, c].item() == pytest.approx(expected, abs=1e-6)


def test_patch_filters_are_eigenvectors_of_the_filters_covariance():
    config = dataclasses.replace(TINY, patch_size=2, image_size=4, width=40)
    vision = vit(config)
    components, share = patch_filters(vision, 5)
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
    vision, images = vit(config), random_images()
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
    with pytest.raises(ValueError, match=r"\[3\].*3, numbered 0.*2"):
        vit().features(random_images(), blocks=(0, 3))


# ---- relevance -----------------------------------------------------------------------------------------------------


def test_relevance_is_the_mean_of_the_windows_with_the_patch_less_the_mean_of_all():
    """Second truth: every window cut out by hand, every patch asked by itself."""
    config = dataclasses.replace(TINY, image_size=(64, 40))  # a grid of 8 x 5: windows of 2 x 1 and of 4 x 2
    vision, images = vit(config), random_images(1, config)
    expected = np.zeros((8, 5))
    for (height, width), down, right in [((2, 1), range(7), range(5)), ((4, 2), range(0, 5, 2), range(4))]:
        scores: dict[tuple[int, int], float] = {}
        for top, left in itertools.product(down, right):
            seen = [y * 5 + x for y in range(top, top + height) for x in range(left, left + width)]
            with torch.no_grad():
                scores[top, left] = vision(images, torch.tensor([seen]))[0, 0].item()
        for y, x in itertools.product(range(8), range(5)):
            inside = [s for (top, left), s in scores.items() if 0 <= y - top < height and 0 <= x - left < width]
            expected[y, x] += (np.mean(inside) - np.mean(list(scores.values()))) / 2
    found = relevance(vision, images, lambda features: features[:, 0])
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    assert np.ptp(expected) > 0.1  # else the line above could hardly fail


@pytest.mark.parametrize("grid", [(8, 8), (7, 7), (14, 14), (16, 9), (2, 3), (1, 1)])
@pytest.mark.parametrize("parts", [4, 2])
def test_windows_are_all_of_one_size_and_reach_every_patch(grid: tuple[int, int], parts: int):
    found = windows(grid, parts)
    sides = [max(1, round(length / parts)) for length in grid]
    assert found.shape[1] == math.prod(sides)
    assert len(found.unique(dim=0)) == len(found)
    assert found.unique().tolist() == list(range(math.prod(grid)))
    down, right = found // grid[1], found % grid[1]
    assert (down.amax(1) - down.amin(1)).unique().tolist() == [sides[0] - 1]
    assert (right.amax(1) - right.amin(1)).unique().tolist() == [sides[1] - 1]


def hand_made_vit() -> VisionTransformer:
    """Feature 0 says red, feature 1 blue; blocks do nothing; the mean of what is seen is the answer."""
    config = dataclasses.replace(
        TINY, width=4, num_heads=1, depth=1, mlp_dim=4, patch_bias=False, class_token=False, pool="mean"
    )
    vision = VisionTransformer(config).eval()
    with torch.no_grad():
        for weight in vision.parameters():
            weight.zero_()
        vision.norm.get_parameter("weight").fill_(1)
        vision.patch_embed.proj.weight[0, 0] = vision.patch_embed.proj.weight[1, 2] = 1 / 64
    return vision


def test_relevance_is_highest_where_the_thing_is_and_zero_when_nothing_matters():
    image = torch.zeros(1, 3, 16, 24)
    image[:, 0, :8, 8:16] = 1  # red: patch (0, 1)
    image[:, 2, 8:, 16:] = 1  # blue: patch (1, 2)
    vision = hand_made_vit()
    red = relevance(vision, image, lambda features: features[:, 0])[0]
    blue = relevance(vision, image, lambda features: features[:, 1])[0]
    assert red.argmax() == 1
    assert red.argmin() == 5  # what is blue speaks against red
    assert blue.argmax() == 5
    assert blue.argmin() == 1
    empty = relevance(vision, torch.zeros_like(image), lambda features: features[:, 0])
    assert empty.abs().max() == 0


def test_relevance_is_of_the_models_precision():
    vision, images = vit(), random_images(1)
    single = relevance(vision, images, lambda features: features[:, 0])
    double = relevance(vision.double(), images.double(), lambda features: features[:, 0])
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)


def test_relevance_is_the_same_in_any_batch():
    vision, images = vit(POOLS["attention"]), random_images(2)
    both = relevance(vision, images, lambda features: features[:, 0])
    alone = relevance(vision, images[1:], lambda features: features[:, 0], batch_size=5)
    torch.testing.assert_close(both[1:], alone)


def test_a_texts_score_of_a_whole_image_is_its_cosine(tiny_clip: CLIP):
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    text = F.normalize(torch.randn(24, generator=torch.Generator().manual_seed(1)), dim=0)
    scores = text_score(tiny_clip.vision_proj, text)(tiny_clip.vision(images))
    torch.testing.assert_close(scores, tiny_clip.encode_image(images) @ text)


def test_a_labels_score_is_its_logit_and_an_unknown_label_is_an_error():
    classifier = ViTClassifier(TINY, 3, labels=["犬", "猫", "鳥"])
    torch.nn.init.normal_(classifier.head.weight)
    images = random_images()
    scores = label_score(classifier, "猫")(classifier.vision(images))
    torch.testing.assert_close(scores, classifier(images)[:, 1])
    with pytest.raises(ValueError, match=r"'魚'.*classifier's 3 labels"):
        label_score(classifier, "魚")


# ---- images of another size than the model's -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (8, 16)], ids=["larger", "smaller"])
@pytest.mark.parametrize("pool", POOLS)
def test_maps_of_images_of_another_size_are_those_of_a_model_made_for_that_size(pool: str, shape: tuple[int, int]):
    config = POOLS[pool]
    vision = vit(config)
    vision.any_size = True
    fitting = VisionTransformer(dataclasses.replace(config, image_size=shape)).eval()
    weights = vision.state_dict() | {"pos_embed": resize_pos_embed(vision.pos_embed, config, shape)}
    fitting.load_state_dict(weights)
    images = random_images(2, fitting.config)
    torch.testing.assert_close(reading_weights(vision, images), reading_weights(fitting, images))
    torch.testing.assert_close(attention_read(vision, images), attention_read(fitting, images))
    torch.testing.assert_close(rollout_map(vision, images), rollout_map(fitting, images))
    maps = attention_maps(vision, images)
    grid = image_grid(config, images)
    torch.testing.assert_close(attention_distance(maps, config, grid), attention_distance(maps, fitting.config))

    def score(features: Tensor) -> Tensor:
        return features.sin().sum(1)

    found = relevance(vision, images, score)
    assert found.shape == (2, shape[0] // 8, shape[1] // 8)
    torch.testing.assert_close(found, relevance(fitting, images, score))
