"""Configs: strict, frozen, round trips; the named sizes against OpenCLIP's own models."""

import dataclasses
import json
import tomllib
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from vlm.clip import CLIP
from vlm.config import SIZES, CLIPConfig, PreprocessConfig, StrictConfig, TextConfig, VisionConfig, named_size
from vlm.layers import Attention

UNUSUAL = [
    VisionConfig(image_size=(64, 96), patch_size=32, pool="mean", class_token=False, norm_after_pool=True),
    TextConfig(causal=False, pool="last", pad_to_context=True, activation="gelu_tanh", dropout=0.25),
    CLIPConfig(embed_dim=768, text=TextConfig(width=256, num_heads=4), vision_proj="none", logit_bias=-10.0),
    PreprocessConfig(image_size=(32, 48), resize="pad", crop_pct=0.875, mean=(0.5, 0.4, 0.3), fill=0),
]
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
        (PreprocessConfig, {"mean": [0.5, 0.5]}, ["PreprocessConfig.mean is [0.5, 0.5]; wanted tuple"]),
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
        ((64, 70), 32, "image_size 70 is not a multiple of patch_size 32: 6 pixels would be left over on each side. "
                       "Nearest: 64 and 96."),
        (10, 16, "image_size 10 is not a multiple of patch_size 16: 10 pixels would be left over on each side. "
                 "Nearest: 16."),
        (0, 16, "image_size must be positive, got 0."),
        (-16, 16, "image_size must be positive, got -16."),
    ],
)  # fmt: skip
def test_a_picture_that_patches_cannot_fill_is_refused(side: int | tuple[int, int], patch: int, sentence: str) -> None:
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
        (TextConfig, {"pad_id": -1}, "pad_id -1 is outside the vocabulary"),
        (TextConfig, {"pool": "last"}, "set pad_to_context = true"),
        (CLIPConfig, {"vision_proj": "none"}, "vision_proj 'none' needs width 768 to equal embed_dim 512"),
        (CLIPConfig, {"text_proj": "mlp"}, "text_proj is 'mlp'; it must be one of linear, linear_bias, none"),
        (CLIPConfig, {"embed_dim": 0}, "embed_dim must be positive, got 0"),
        (PreprocessConfig, {"image_size": 0}, "image_size must be positive, got 0"),
        (PreprocessConfig, {"std": (0.5, 0.0, 0.5)}, "std must be positive"),
        (PreprocessConfig, {"crop_pct": 1.5}, r"crop_pct must be in \(0, 1\], got 1.5"),
        (PreprocessConfig, {"fill": 256}, "fill is a grey level 0..255, got 256"),
    ],
)
def test_numbers_that_make_no_model_are_refused_at_construction(
    kind: type[StrictConfig], values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(**values)


def test_the_grid_counts_whole_patches_down_and_across() -> None:
    config = VisionConfig(image_size=(64, 96), patch_size=16)
    patches = torch.zeros(config.image_shape).unfold(0, 16, 16).unfold(1, 16, 16)
    assert config.grid == tuple(patches.shape[:2])
    assert config.num_tokens == patches[..., 0, 0].numel() + 1
    assert dataclasses.replace(config, class_token=False, pool="mean").num_tokens == patches[..., 0, 0].numel()


@pytest.mark.parametrize("name", [name for name in SIZES if name != "mini"])
def test_named_sizes_are_openclips_models_parameter_by_parameter(name: str) -> None:
    import open_clip

    settings = open_clip.get_model_config("ViT-" + name.replace("/", "-"))
    assert settings is not None
    with torch.device("meta"):
        ours, theirs = CLIP(named_size(name)), open_clip.CLIP(**settings)
    assert Counter(p.numel() for p in ours.parameters()) == Counter(p.numel() for p in theirs.parameters())
    heads = [layer.num_heads for layer in theirs.modules() if isinstance(layer, nn.MultiheadAttention)]
    assert [layer.num_heads for layer in ours.modules() if isinstance(layer, Attention)] == heads
    assert ours.config.vision.grid == theirs.visual.grid_size


def test_the_default_config_is_vit_base_16_with_clips_text_tower() -> None:
    """86 M parameters (ViT paper, table 1) and 63 M (Radford et al. 2021, section 2.4)."""
    with torch.device("meta"):
        model = CLIP(CLIPConfig())
    assert round(sum(p.numel() for p in model.vision.parameters()) / 1e6) == 86
    assert round(sum(p.numel() for p in model.text.parameters()) / 1e6) == 63


def test_an_unknown_size_lists_the_sizes() -> None:
    with pytest.raises(
        ValueError, match=r"There is no size 'mimi'\. Did you mean 'mini'\? Sizes: mini, S/32, .*H/14\."
    ):
        named_size("mimi")
