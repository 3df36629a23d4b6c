"""The ViT against timm's ViT, conv2d, OpenCLIP's resizing and the definitions of its parts."""

import dataclasses
import functools
import math
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.operations import count
from vlm.config import CosineHeadConfig, VisionConfig
from vlm.models.vision import CosineHead, PatchEmbed, VisionTransformer, ViTClassifier, resize_pos_embed, take_tokens

SMALL = VisionConfig(image_size=(24, 32), patch_size=8, width=24, depth=3, num_heads=3, mlp_dim=48)  # 3 x 4 patches
POOLS = {
    "class": SMALL,
    "class, ln_pre": dataclasses.replace(SMALL, pre_norm=True, patch_bias=False, activation="quick_gelu"),
    "mean": dataclasses.replace(SMALL, pool="mean", class_token=False),
    "mean beside a class token": dataclasses.replace(SMALL, pool="mean", qkv_bias=False),
    "mean, then norm": dataclasses.replace(SMALL, pool="mean", norm_after_pool=True),
    "attention": dataclasses.replace(SMALL, pool="attention", class_token=False, activation="gelu_tanh"),
}
TIMM_POOLS: dict[str, Literal["token", "avg", "map"]] = {"class": "token", "mean": "avg", "attention": "map"}
each_pool = pytest.mark.parametrize("config", POOLS.values(), ids=POOLS.keys())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def model_of(config: VisionConfig) -> VisionTransformer:
    """As after training: norms and biases are no longer ones and zeros."""
    model = VisionTransformer(config).double().eval()
    for p in model.parameters():
        if p.ndim == 1:
            nn.init.normal_(p)
    return model


def random_images(config: VisionConfig, count: int = 2) -> Tensor:
    return torch.randn(count, config.in_channels, *config.image_shape, dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
def test_patch_embedding_is_a_strided_convolution(bias: bool) -> None:
    embed = PatchEmbed(dataclasses.replace(SMALL, patch_bias=bias)).double()
    images = random_images(SMALL)
    convolved = F.conv2d(images, embed.proj.weight, embed.proj.bias, stride=8)
    torch.testing.assert_close(embed(images), convolved.flatten(2).transpose(1, 2))


def test_patches_are_cut_row_by_row_from_the_top_left() -> None:
    images = random_images(SMALL)
    patches = PatchEmbed(SMALL).cut(images)
    torch.testing.assert_close(patches.transpose(1, 2), F.unfold(images, 8, stride=8))


@each_pool
def test_the_vit_is_timms_with_the_same_weights(config: VisionConfig) -> None:
    from timm.models.vision_transformer import VisionTransformer as TimmViT

    model = model_of(config)
    theirs = TimmViT(
        img_size=config.image_shape,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_dim / config.width,
        num_classes=0,
        global_pool=TIMM_POOLS[config.pool],
        class_token=config.class_token,
        qkv_bias=config.qkv_bias,
        pre_norm=config.pre_norm,
        fc_norm=config.norm_after_pool,
        act_layer=config.activation,
        norm_layer=functools.partial(nn.LayerNorm, eps=config.norm_eps),
    ).double()
    state = {name.replace("pool.", "attn_pool."): tensor for name, tensor in model.state_dict().items()}
    if config.norm_after_pool:
        state = {
            name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t for name, t in state.items()
        }
    theirs.load_state_dict(state)
    images = random_images(config)
    torch.testing.assert_close(model(images), theirs.eval()(images))


@each_pool
def test_features_agree_with_forward_and_with_blocks_run_by_hand(config: VisionConfig) -> None:
    model, images = model_of(config), random_images(config)
    after = [z := model.embed(images)]
    for block in model.blocks:
        after.append(z := block(z))
    seen = model.features(images, blocks=(0, -1, 1))
    torch.testing.assert_close(seen.pooled, model(images))
    torch.testing.assert_close(seen.blocks, [after[1], after[-1], after[2]])
    tokens = z if config.norm_after_pool else model.norm(z)
    first = int(config.class_token)
    for row in range(3):
        for column in range(4):
            torch.testing.assert_close(seen.patches[:, :, row, column], tokens[:, first + 4 * row + column])
    if seen.class_token is None:
        assert not config.class_token
    else:
        torch.testing.assert_close(seen.class_token, tokens[:, 0])


@pytest.mark.parametrize("index", [3, -4])
def test_a_block_that_does_not_exist_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=rf"\[{index}\].*3, numbered 0.*2"):
        model_of(SMALL).features(random_images(SMALL), blocks=(0, index))


@each_pool
def test_each_pool_reads_the_tokens_its_name_says(config: VisionConfig) -> None:
    model, images = model_of(config), random_images(config)
    z = model.embed(images)
    for block in model.blocks:
        z = block(z)
    patches = z[:, int(config.class_token) :]
    if config.pool == "class":
        wanted = model.norm(z)[:, 0]
    elif config.pool == "attention":
        assert model.pool is not None
        wanted = model.pool(model.norm(z))
    elif config.norm_after_pool:
        wanted = model.norm(patches.sum(1) / config.num_patches)
    else:
        wanted = model.norm(patches).sum(1) / config.num_patches
    torch.testing.assert_close(model(images), wanted)


@each_pool
def test_keeping_every_patch_is_keeping_none_out(config: VisionConfig) -> None:
    model, images = model_of(config), random_images(config)
    everything = torch.arange(config.num_patches).expand(2, -1)
    torch.testing.assert_close(model(images, everything), model(images))


@each_pool
def test_the_order_of_kept_patches_does_not_matter(config: VisionConfig) -> None:
    """Positions travel with their patches."""
    model, images = model_of(config), random_images(config)
    shuffled = torch.stack([torch.randperm(config.num_patches) for _ in range(2)])
    torch.testing.assert_close(model(images, shuffled), model(images))


@each_pool
def test_keep_computes_with_these_tokens_only(config: VisionConfig) -> None:
    model, images = model_of(config), random_images(config)
    keep = torch.tensor([[0, 5, 11], [7, 2, 3]])
    first = int(config.class_token)
    rows = []
    for image, kept in zip(model.embed(images), keep, strict=True):
        rows.append(torch.cat([image[:first], image[first:][kept]]))
    torch.testing.assert_close(model.embed(images, keep), torch.stack(rows))

    hidden = images.clone()  # paint over every other patch: nobody looks there
    for row, kept in enumerate(keep.tolist()):
        for patch in set(range(12)) - set(kept):
            y, x = divmod(patch, 4)
            hidden[row, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 99
    torch.testing.assert_close(model(hidden, keep), model(images, keep))


def test_take_tokens_is_indexing_row_by_row() -> None:
    tokens, keep = torch.randn(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    torch.testing.assert_close(take_tokens(tokens, keep), torch.stack([tokens[0, [4, 0]], tokens[1, [1, 1]]]))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images are \(2, 3, 32, 24\); this model takes \(B, 3, 24, 32\)\."):
        VisionTransformer(SMALL)(torch.zeros(2, 3, 32, 24))


def test_any_size_is_the_model_of_that_size_with_resized_positions() -> None:
    model, images = VisionTransformer(SMALL), torch.randn(2, 3, 32, 24)
    other = VisionTransformer(dataclasses.replace(SMALL, image_size=(32, 24)))
    other.load_state_dict(model.state_dict() | {"pos_embed": resize_pos_embed(model.pos_embed, SMALL, (32, 24))})
    model.any_size = True
    keep = torch.tensor([[0, 5, 7], [1, 2, 11]])
    torch.testing.assert_close(model(images), other(images))
    torch.testing.assert_close(model(images, keep), other(images, keep))
    torch.testing.assert_close(model.features(images).patches, other.features(images).patches)
    model(images)[:, 0].sum().backward()  # not of all: a LayerNorm's outputs have a sum that nothing changes
    assert model.pos_embed.grad is not None and model.pos_embed.grad.abs().sum() > 1e-3
    with pytest.raises(ValueError, match=r"image_size 30.*multiple.*patch_size 8"):
        model(torch.zeros(2, 3, 30, 24))
    with pytest.raises(ValueError, match=r"images are \(2, 1, 32, 24\)"):
        model(torch.zeros(2, 1, 32, 24))


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_drop_path_rises_linearly_to_its_rate(depth: int) -> None:
    model = VisionTransformer(dataclasses.replace(SMALL, depth=depth, drop_path=0.4))
    rates = [block.drop_path.rate for block in model.blocks]  # type: ignore[union-attr]
    assert rates == pytest.approx(torch.linspace(0, 0.4, depth).tolist())


def test_tokens_start_as_clips_do() -> None:
    """D^-1/2 for positions, class token and query (openai/CLIP model.py), within five standard errors."""
    config = VisionConfig(image_size=128, patch_size=4, width=64, depth=1, num_heads=2, mlp_dim=64)
    model, std = VisionTransformer(config), 64**-0.5
    reading = VisionTransformer(dataclasses.replace(config, pool="attention", class_token=False)).pool
    assert model.cls_token is not None and reading is not None
    for p in (model.pos_embed.detach(), model.cls_token.detach(), reading.latent.detach()):
        assert abs(float(p.std()) - std) < 5 * std / math.sqrt(2 * p.numel())
        assert abs(float(p.mean())) < 5 * std / math.sqrt(p.numel())
    assert model.patch_embed.proj.bias is not None
    assert not bool(model.patch_embed.proj.bias.any())


@each_pool
def test_position_embeddings_stay_untouched_when_the_size_stays(config: VisionConfig) -> None:
    model = model_of(config)
    assert resize_pos_embed(model.pos_embed, config, config.image_size) is model.pos_embed


@pytest.mark.parametrize("side", [64, 16])
def test_resized_position_embeddings_are_openclips(side: int) -> None:
    from open_clip.model import resize_pos_embed as openclip_resize

    config = dataclasses.replace(SMALL, image_size=32)
    pos_embed = torch.randn(1, config.num_tokens, config.width)
    grid = (side // 8, side // 8)
    state = {"visual.positional_embedding": pos_embed[0].clone()}
    openclip_resize(state, SimpleNamespace(visual=SimpleNamespace(grid_size=grid)))
    torch.testing.assert_close(resize_pos_embed(pos_embed, config, side)[0], state["visual.positional_embedding"])


def test_positions_are_resized_bilinearly_only_where_that_is_asked_for() -> None:
    """As an image of the patches: PyTorch's own, with antialiasing; bfloat16 stays bfloat16."""
    pos_embed = torch.randn(1, SMALL.num_tokens, SMALL.width)
    grid = pos_embed[:, 1:].transpose(1, 2).view(1, SMALL.width, 3, 4)
    for bicubic, mode in ((True, "bicubic"), (False, "bilinear")):
        wanted = F.interpolate(grid, (6, 2), mode=mode, antialias=True).flatten(2).transpose(1, 2)
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 0.05)):
            resized = resize_pos_embed(pos_embed.to(dtype), SMALL, (48, 16), bicubic=bicubic)
            assert resized.dtype == dtype
            torch.testing.assert_close(resized[:, 1:].float(), wanted, rtol=0, atol=tolerance)
            assert torch.equal(resized[:, :1], pos_embed[:, :1].to(dtype))


@pytest.mark.parametrize("bicubic", [True, False])
@pytest.mark.parametrize("size", [(48, 64), (48, 32), (8, 48)])
def test_resizing_keeps_what_is_the_same_everywhere(size: tuple[int, int], bicubic: bool) -> None:
    """Interpolation weights sum to one; the class token has no place on the grid."""
    constant = torch.randn(1, 1, SMALL.width).expand(1, SMALL.num_patches, -1)
    token = torch.randn(1, 1, SMALL.width)
    resized = resize_pos_embed(torch.cat([token, constant], 1), SMALL, size, bicubic=bicubic)
    patches = dataclasses.replace(SMALL, image_size=size).num_patches
    torch.testing.assert_close(resized, torch.cat([token, constant[:, :1].expand(1, patches, -1)], 1))


def test_a_resized_model_accepts_the_new_size() -> None:
    model, larger = model_of(SMALL), dataclasses.replace(SMALL, image_size=(48, 64))
    state = model.state_dict() | {"pos_embed": resize_pos_embed(model.pos_embed.detach(), SMALL, (48, 64))}
    other = VisionTransformer(larger).double()
    other.load_state_dict(state)
    assert bool(other(random_images(larger)).isfinite().all())


def test_a_classifier_is_a_linear_head_on_the_features() -> None:
    classifier, images = ViTClassifier(SMALL, 5).double().eval(), random_images(SMALL)
    nn.init.normal_(classifier.head.weight)
    nn.init.normal_(classifier.head.bias)
    by_hand = torch.einsum("bd,md->bm", classifier.vision(images), classifier.head.weight) + classifier.head.bias
    torch.testing.assert_close(classifier(images), by_hand)
    keep = torch.tensor([[0, 5, 11], [7, 2, 3]])
    torch.testing.assert_close(classifier(images, keep), classifier.head(classifier.vision(images, keep)))
    assert not torch.equal(classifier(images, keep), by_hand)


def test_a_new_classifier_holds_every_class_equally_likely() -> None:
    classifier = ViTClassifier(SMALL, 5).double()
    torch.testing.assert_close(
        classifier(random_images(SMALL)).softmax(-1), torch.full((2, 5), 0.2, dtype=torch.float64)
    )


def test_labels_are_numbers_unless_given_and_there_is_one_per_class() -> None:
    assert ViTClassifier(SMALL, 3).labels == ("0", "1", "2")
    assert ViTClassifier(SMALL, 2, labels=["犬", "猫"]).labels == ("犬", "猫")
    assert ViTClassifier(SMALL, 1).labels == ("0",)
    for labels in (["犬", "猫"], ["犬", "猫", "鳥", "魚"]):
        with pytest.raises(ValueError, match=f"{len(labels)} labels for 3 classes"):
            ViTClassifier(SMALL, 3, labels=labels)
    with pytest.raises(ValueError, match=r"num_classes.*positive.*0"):
        ViTClassifier(SMALL, 0)


def test_a_new_cosine_head_holds_every_class_equally_likely() -> None:
    head = CosineHead(CosineHeadConfig(embed_dim=7), SMALL.width, 3)
    assert torch.equal(head(torch.randn(2, SMALL.width)), torch.zeros(2, 3))
    assert isinstance(CosineHead(CosineHeadConfig(embed_dim=8, proj="none"), 8, 3).proj, nn.Identity)


def test_a_cosine_head_compares_the_projected_unit_vector_with_each_class() -> None:
    head = CosineHead(CosineHeadConfig(embed_dim=7, proj="linear_bias"), SMALL.width, 3)
    classifier = ViTClassifier(SMALL, 3, head=head).double().eval()
    nn.init.normal_(head.weight)
    nn.init.normal_(head.bias)
    images = random_images(SMALL)
    embeds = classifier.vision(images) @ head.proj.weight.T + head.proj.bias  # type: ignore[operator, union-attr]
    by_hand = (embeds / embeds.norm(dim=1, keepdim=True)) @ head.weight.T + head.bias
    torch.testing.assert_close(classifier(images), by_hand)
    assert classifier.head is head


def test_a_head_for_another_width_or_other_classes_is_refused() -> None:
    for width, classes in ((SMALL.width, 4), (SMALL.width + 1, 3)):
        wanted = f"^head takes width {width} to {classes} classes; this ViT has width {SMALL.width} and 3 classes"
        with pytest.raises(ValueError, match=wanted):
            ViTClassifier(SMALL, 3, head=CosineHead(CosineHeadConfig(embed_dim=5), width, classes))
    with pytest.raises(ValueError, match=r"needs.*8.*embed_dim 5"):
        CosineHead(CosineHeadConfig(embed_dim=5, proj="none"), 8, 3)


@each_pool
def test_the_encoder_compiles_in_one_graph_and_waits_for_nothing(config: VisionConfig) -> None:
    torch.compiler.reset()  # the limit of recompilations counts over all tests
    model, images = model_of(config), random_images(config)
    keep = torch.tensor([[0, 3, 5], [1, 2, 11]])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))
    torch.testing.assert_close(compiled(images, keep), model(images, keep))
    compiled(images).sum().backward()
    assert model.patch_embed.proj.weight.grad is not None
    assert not count(lambda: model(images, keep).sum().backward()).synchronisations
    assert VisionTransformer(config).to("meta")(images.float().to("meta")).shape == (2, config.width)
