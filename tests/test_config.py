"""Configs: strict, frozen, round trips; the named sizes against OpenCLIP's own models."""

import dataclasses
import json
import math
import tomllib
from collections import Counter
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from vlm.bundled import BUNDLED
from vlm.config import (
    SIZES,
    CLIPConfig,
    CosineHeadConfig,
    PreprocessConfig,
    StrictConfig,
    TextConfig,
    VisionConfig,
    check_fraction,
    check_not_negative,
    check_positive,
    check_share,
    named_size,
)
from vlm.models.clip import CLIP
from vlm.models.layers import Attention
from vlm.tokenizers.clip_bpe import CLIPTokenizer

UNUSUAL = [
    VisionConfig(image_size=(64, 96), patch_size=32, pool="mean", class_token=False, norm_after_pool=True),
    TextConfig(causal=False, pool="last", pad_to_context=True, activation="gelu_tanh", dropout=0.25),
    CLIPConfig(embed_dim=768, text=TextConfig(width=256, num_heads=4), vision_proj="none", logit_bias=-10.0),
    PreprocessConfig(image_size=(32, 48), resize="pad", crop_pct=0.875, mean=(0.5, 0.4, 0.3), fill=0),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kinds(StrictConfig):
    """Those that no model's config has; training's have them."""

    names: tuple[str, ...] = ()
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    inner: CosineHeadConfig | None = None
    anything: Any = None


each_config = pytest.mark.parametrize("config", UNUSUAL, ids=lambda config: type(config).__name__)


@each_config
def test_from_dict_undoes_to_dict(config: StrictConfig) -> None:
    assert type(config).from_dict(config.to_dict()) == config


@each_config
def test_json_brings_back_the_same_config(config: StrictConfig) -> None:
    """JSON turns tuples into lists."""
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@each_config
def test_configs_are_frozen(config: StrictConfig) -> None:
    field = dataclasses.fields(config)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, 1)


def test_toml_tables_become_nested_configs() -> None:
    text = "embed_dim = 64\n[vision]\nwidth = 96\nnum_heads = 3\nimage_size = [32, 48]\n[text]\nnorm_eps = 1\n"
    config = CLIPConfig.from_dict(tomllib.loads(text))
    vision = VisionConfig(width=96, num_heads=3, image_size=(32, 48))
    assert config == CLIPConfig(embed_dim=64, vision=vision, text=TextConfig(norm_eps=1.0))
    assert isinstance(config.text.norm_eps, float)


def test_lists_of_any_length_tables_and_configs_keep_what_they_hold() -> None:
    values = {"names": ["a", "b", "c"], "weights": {"x": 1, "y": 0.5}, "inner": {"embed_dim": 3}, "anything": [{}]}
    built = Kinds.from_dict(values)
    inner = CosineHeadConfig(embed_dim=3)
    assert built == Kinds(names=("a", "b", "c"), weights={"x": 1.0, "y": 0.5}, inner=inner, anything=[{}])
    assert isinstance(built.weights["x"], float)
    assert Kinds.from_dict({"inner": inner, "names": ()}) == Kinds(inner=inner)
    assert Kinds.from_dict({"inner": None, "names": ["a"]}) == Kinds(inner=None, names=("a",))


@pytest.mark.parametrize(
    ("kind", "values", "sentences"),
    [
        (VisionConfig, {"patchsize": 16}, ["VisionConfig has no setting 'patchsize'. Did you mean 'patch_size'?"]),
        (TextConfig, {"zzz": 1}, ["TextConfig has no setting 'zzz'. It has: vocab_size,", "norm_after_pool, dropout."]),
        (VisionConfig, {"widht": 1, "dept": 2}, ["Did you mean 'width'?", "Did you mean 'depth'?"]),
        (CLIPConfig, {"vision": {"headz": 2}}, ["VisionConfig has no setting 'headz'."]),
        (VisionConfig, {"width": "768"}, ["VisionConfig.width is '768'; wanted int."]),
        (VisionConfig, {"width": 768.0}, ["VisionConfig.width is 768.0; wanted int."]),
        (VisionConfig, {"width": True}, ["VisionConfig.width is True; wanted int."]),
        (VisionConfig, {"class_token": 1}, ["VisionConfig.class_token is 1; wanted bool."]),
        (VisionConfig, {"norm_eps": "1e-5"}, ["VisionConfig.norm_eps is '1e-5'; wanted float."]),
        (VisionConfig, {"norm_eps": True}, ["VisionConfig.norm_eps is True; wanted float."]),
        (VisionConfig, {"image_size": [32, 32, 32]}, ["VisionConfig.image_size is [32, 32, 32]; wanted int | tuple"]),
        (CLIPConfig, {"vision": 3}, ["CLIPConfig.vision is 3; wanted VisionConfig."]),
        (CLIPConfig, {"logit_bias": "low"}, ["CLIPConfig.logit_bias is 'low'; wanted float | None."]),
        (Kinds, {"names": ["a", 2, "c"]}, ["Kinds.names is 2; wanted str."]),
        (Kinds, {"names": "abc"}, ["Kinds.names is 'abc'; wanted tuple[str, ...]."]),
        (Kinds, {"weights": {"x": 1, "y": "2", "z": 3}}, ["Kinds.weights.y is '2'; wanted float."]),
        (Kinds, {"weights": [1]}, ["Kinds.weights is [1]; wanted dict[str, float]."]),
        (Kinds, {"inner": VisionConfig()}, ["Kinds.inner is VisionConfig(", "; wanted vlm.config.CosineHeadConfig |"]),
        (PreprocessConfig, {"mean": [0.5, 0.5]}, ["mean has 2 values and std 3"]),
        (PreprocessConfig, {"mean": [0.5] * 4}, ["mean has 4 values and std 3"]),
        (PreprocessConfig, {"mean": [0.5, 0.5, "x"]}, ["PreprocessConfig.mean is 'x'; wanted float."]),
        (
            VisionConfig,
            {"pool": "clas"},
            ["pool is 'clas'; it must be one of class, mean, attention.", "mean 'class'?"],
        ),
        (TextConfig, {"activation": []}, ["activation is []; it must be one of gelu, gelu_tanh, quick_gelu."]),
    ],
)
def test_wrong_names_and_types_are_named(
    kind: type[StrictConfig], values: dict[str, Any], sentences: list[str]
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 the sentences below are the match
        kind.from_dict(values)
    assert "\n" not in str(error.value)
    for sentence in sentences:
        assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("side", "patch", "sentence"),
    [
        (225, 16, "image_size 225 is not a multiple of patch_size 16: 1 pixel would be left over on each side. "
                  "Nearest: 224 and 240."),
        (226, 16, "image_size 226 is not a multiple of patch_size 16: 2 pixels would be left over on each side. "
                  "Nearest: 224 and 240."),
        ((64, 70), 32, "image_size 70 is not a multiple of patch_size 32: 6 pixels would be left over on each side. "
                       "Nearest: 64 and 96."),
        (10, 16, "image_size 10 is not a multiple of patch_size 16: 10 pixels would be left over on each side. "
                 "Nearest: 16."),
        (0, 16, "image_size must be positive, got 0."),
        (-16, 16, "image_size must be positive, got -16."),
    ],
)  # fmt: skip
def test_a_image_that_patches_cannot_fill_is_refused(side: int | tuple[int, int], patch: int, sentence: str) -> None:
    with pytest.raises(ValueError, match="image_size") as error:
        VisionConfig(image_size=side, patch_size=patch)
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (VisionConfig, {"width": 100, "num_heads": 3}, "width 100 is not a multiple of num_heads 3"),
        (TextConfig, {"width": 100, "num_heads": 3}, "width 100 is not a multiple of num_heads 3"),
        (VisionConfig, {"depth": 0}, "depth must be positive, got 0"),
        (VisionConfig, {"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        (TextConfig, {"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        (VisionConfig, {"class_token": False}, "pool 'class' reads the class token"),
        (VisionConfig, {"norm_after_pool": True}, "norm_after_pool goes with pool 'mean' only"),
        (TextConfig, {"vocab_size": 100}, "eot_id 49407 is outside the vocabulary of 100 ids"),
        (TextConfig, {"vocab_size": 9, "eot_id": 9}, "eot_id 9 is outside the vocabulary of 9 ids"),
        (TextConfig, {"pad_id": -1}, "pad_id -1 is outside the vocabulary"),
        (TextConfig, {"pool": "last"}, "set pad_to_context = true"),
        (CLIPConfig, {"vision_proj": "none"}, "vision_proj 'none' needs width 768 to equal embed_dim 512"),
        (
            CLIPConfig,
            {"text_proj": "none", "embed_dim": 768},
            "text_proj 'none' needs width 512 to equal embed_dim 768. Use 'linear'.",
        ),
        (CLIPConfig, {"text_proj": "mlp"}, "text_proj is 'mlp'; it must be one of linear, linear_bias, none"),
        (CLIPConfig, {"embed_dim": 0}, "embed_dim must be positive, got 0"),
        (PreprocessConfig, {"image_size": 0}, "image_size must be positive, got 0"),
        (PreprocessConfig, {"image_size": (32, 0)}, r"image_size must be positive, got \(32, 0\)"),
        (PreprocessConfig, {"std": (0.5, 0.0, 0.5)}, "std must be positive"),
        (PreprocessConfig, {"crop_pct": 1.5}, r"crop_pct must be in \(0, 1\], got 1.5"),
        (PreprocessConfig, {"crop_pct": 0.0}, r"crop_pct must be in \(0, 1\], got 0.0"),
        (PreprocessConfig, {"resize_side": 223}, "resize_side 223 is smaller than image_size 224"),
        (PreprocessConfig, {"resize_side": 256, "crop_pct": 0.875}, "Give resize_side alone"),
        (PreprocessConfig, {"mean": (0.5,)}, "mean has 1 values and std 3"),
        (PreprocessConfig, {"mean": (), "std": ()}, "Give one per channel"),
        (PreprocessConfig, {"fill": 256}, "fill is a grey level 0..255, got 256"),
        (PreprocessConfig, {"fill": -1}, "fill is a grey level 0..255, got -1"),
        (CosineHeadConfig, {"embed_dim": 0}, "embed_dim must be positive, got 0"),
        (CosineHeadConfig, {"proj": "liner"}, "proj is 'liner'; .* Did you mean 'linear'"),
    ],
)
def test_numbers_that_make_no_model_are_refused_at_construction(
    kind: type[StrictConfig], values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(**values)


@pytest.mark.parametrize(
    ("check", "right", "wrong", "sentence"),
    [
        (check_positive, (0.01, 1, 7), (0, -1), "must be positive"),
        (check_not_negative, (0, 0.01, 7), (-0.01, -1), "must be 0 or more"),
        (check_fraction, (0, 0.5, 0.99), (-0.01, 1, 2), r"must be in \[0, 1\)"),
        (check_share, (0, 0.5, 1), (-0.01, 1.01, 2), r"must be in \[0, 1\]"),
    ],
)
def test_a_range_takes_its_ends_or_not_as_it_says(
    check: Any, right: tuple[float, ...], wrong: tuple[float, ...], sentence: str
) -> None:
    for value in right:
        check(SimpleNamespace(size=value, rate=value), "size", "rate")
    for value in wrong:
        with pytest.raises(ValueError, match=rf"^rate {sentence}, got {value}\.$"):
            check(SimpleNamespace(size=0.5, rate=value, share=0.5), "size", "rate", "share")


def test_each_pool_needs_only_what_it_reads() -> None:
    for pool in ("mean", "attention"):
        assert not VisionConfig.from_dict({"pool": pool, "class_token": False}).class_token
    for pool, full in (("eot", False), ("mean", False), ("eot", True), ("mean", True), ("last", True)):
        assert TextConfig.from_dict({"pool": pool, "pad_to_context": full}).pad_to_context is full
    for pool in ("class", "attention"):
        with pytest.raises(ValueError, match=f"norm_after_pool goes.*'mean'.*'{pool}'"):
            VisionConfig.from_dict({"pool": pool, "norm_after_pool": True})


def test_the_smallest_model_has_one_of_everything() -> None:
    one = {"width": 1, "depth": 1, "num_heads": 1, "mlp_dim": 1}
    vision = VisionConfig.from_dict(one | {"image_size": 1, "patch_size": 1, "in_channels": 1})
    text = TextConfig.from_dict(one | {"vocab_size": 1, "context_length": 1, "eot_id": 0})
    assert CLIPConfig(embed_dim=1, vision=vision, text=text).vision.num_tokens == 2
    assert PreprocessConfig(image_size=1).image_shape == (1, 1)


def test_the_grid_counts_whole_patches_down_and_across() -> None:
    config = VisionConfig(image_size=(64, 96), patch_size=16)
    patches = torch.zeros(config.image_shape).unfold(0, 16, 16).unfold(1, 16, 16)
    assert config.grid == tuple(patches.shape[:2])
    assert config.num_tokens == patches[..., 0, 0].numel() + 1
    assert dataclasses.replace(config, class_token=False, pool="mean").num_tokens == patches[..., 0, 0].numel()


@pytest.mark.parametrize("name", [name for name in SIZES if name != "mini"])
def test_named_sizes_are_openclips_models_parameter_by_parameter(name: str) -> None:
    settings = open_clip.get_model_config("ViT-" + name.replace("/", "-"))
    assert settings is not None
    with torch.device("meta"):
        ours, theirs = CLIP(named_size(name)), open_clip.CLIP(**settings)
    assert Counter(p.numel() for p in ours.parameters()) == Counter(p.numel() for p in theirs.parameters())
    heads = [layer.num_heads for layer in theirs.modules() if isinstance(layer, nn.MultiheadAttention)]
    assert [layer.num_heads for layer in ours.modules() if isinstance(layer, Attention)] == heads
    assert ours.config.vision.grid == theirs.visual.grid_size
    assert layer_norm_eps(ours) == layer_norm_eps(theirs) == {1e-5}


def layer_norm_eps(model: nn.Module) -> set[float]:
    return {layer.eps for layer in model.modules() if isinstance(layer, nn.LayerNorm)}


def test_the_size_mini_is_the_released_models_but_for_its_words() -> None:
    """Which come from the tokenizer that was trained for it."""
    saved = CLIPConfig.from_dict(json.loads((BUNDLED["mini"] / "config.json").read_text())["model"])
    mini = named_size("mini")
    assert (mini.vision, mini.embed_dim, mini.logit_scale) == (saved.vision, saved.embed_dim, saved.logit_scale)
    assert dataclasses.replace(mini.text, vocab_size=saved.text.vocab_size) == saved.text


def test_the_default_image_tower_is_timms_vit_base_16() -> None:
    import timm

    with torch.device("meta"):
        ours, theirs = CLIP(CLIPConfig()).vision, timm.create_model("vit_base_patch16_224", num_classes=0)
    assert {name: p.shape for name, p in ours.named_parameters()} == {
        name: p.shape for name, p in theirs.named_parameters()
    }
    assert layer_norm_eps(ours) == layer_norm_eps(theirs)
    heads = [module.num_heads for module in theirs.modules() if hasattr(module, "num_heads") and hasattr(module, "qkv")]
    assert [layer.num_heads for layer in ours.modules() if isinstance(layer, Attention)] == heads


def test_the_other_defaults_are_clips() -> None:
    """Radford et al. 2021: section 2.4, figure 3; the tokenizer's ids, OpenCLIP's constants."""
    config, tokenizer = CLIPConfig(), CLIPTokenizer().config
    assert config.text == named_size("B/16").text  # which is OpenCLIP's
    assert config.embed_dim == CosineHeadConfig().embed_dim == named_size("B/16").embed_dim
    for name in ("vocab_size", "context_length", "eot_id", "pad_id", "pad_to_context"):
        assert getattr(config.text, name) == getattr(tokenizer, name)
    assert config.text.causal
    assert (config.logit_scale, config.logit_bias) == (pytest.approx(math.log(1 / 0.07), abs=1e-12), None)
    pixels, shape = PreprocessConfig(), config.vision.image_shape
    assert (pixels.mean, pixels.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert (pixels.image_shape, pixels.crop_pct) == (shape, 1)


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        ({"resize_side": 256}, {"crop_pct": 224 / 256}),
        ({"resize_side": 248, "crop_rounding": "down"}, {"crop_pct": 224 / 248, "crop_rounding": "down"}),
        (
            {"image_size": 378, "resize_side": 384, "crop_rounding": "first"},
            {"image_size": 378, "crop_rounding": "first"},
        ),
        ({"resize_side": (256, 240)}, None),  # a pair had no spelling
        ({"resize_side": 400}, None),  # the fraction gave 399
        ({"to_srgb": True}, None),
        ({"exact": True}, {"crop_pct": 1.0}),
    ],
)
def test_settings_that_give_the_pixels_of_an_older_spelling_have_its_identity(
    newer: dict[str, Any], older: dict[str, Any] | None
) -> None:
    config = PreprocessConfig.from_dict({"resize": "squash"} | newer)
    if older is None:
        assert config.identity() == config.to_dict()
        assert config.identity().keys() - PreprocessConfig().identity().keys() == newer.keys()
        return
    if "crop_pct" not in older:  # as versions before 2027 computed it for a patch convolution's crop
        fraction = older["image_size"] / newer["resize_side"]
        whole = math.floor(older["image_size"] / fraction) == newer["resize_side"]
        older["crop_pct"] = fraction if whole else math.nextafter(fraction, 0)
    assert config.identity() == PreprocessConfig.from_dict({"resize": "squash"} | older).to_dict()


def test_an_unknown_size_lists_the_sizes() -> None:
    with pytest.raises(ValueError, match=r"'mimi'.*'mini'\? Sizes: mini, S/32, .*H/14"):
        named_size("mimi")
