"""timm's config.json, names and folders: what they say, what they leave to timm's defaults, what is none of ours."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data.config import resolve_data_config
from timm.data.constants import DEFAULT_CROP_PCT
from torch import nn

from tests.support.foreign_models import pixels, randomise
from vlm.config import PreprocessConfig, VisionConfig
from vlm.interop.formats.foreign import Hints, exact
from vlm.interop.formats.timm import encoder_config, named, read_classifier, write_vision
from vlm.interop.loading import load_foreign_classifier
from vlm.models.vision import ViTClassifier


def test_timm_architecture_names_are_read_as_timm_builds_them() -> None:
    known = 0
    acts = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
    for name in (
        timm.list_models("vit_*siglip*")
        + timm.list_models("vit_*clip*")
        + timm.list_models("*it_*patch16_224")
        + timm.list_models("vit_*gap*")
    ):
        try:
            said = named(name)
        except ValueError:
            continue
        with torch.device("meta"):
            model: Any = timm.create_model(name, depth=1)
        block = model.blocks[0]
        built = block.attn.num_heads, acts[type(block.mlp.act).__name__], block.norm1.eps, model.global_pool
        assert (said.num_heads, said.activation, said.norm_eps, said.global_pool) == built, name
        known += 1
    assert known > 50


TINY: dict[str, Any] = {"img_size": 32, "depth": 1, "embed_dim": 48, "num_classes": 3}


def tiny(name: str = "vit_tiny_patch16_224", **changes: Any) -> dict[str, Any]:
    """The weights of a small model."""
    return dict(timm.create_model(name, **(TINY | changes)).state_dict())


def info(*, name: str = "vit_tiny_patch16_224", args: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Its config.json."""
    return {"architecture": name, "model_args": {"img_size": 32} if args is None else args} | more


def test_what_the_weights_do_not_say_is_said_by_the_name_the_arguments_or_the_caller() -> None:
    plain = read_classifier(tiny(), info(), Hints()).config
    assert (plain.num_heads, plain.activation, plain.norm_eps, plain.pool) == (3, "gelu", 1e-6, "class")
    args = {"img_size": 32, "num_heads": 4, "act_layer": "quick_gelu", "global_pool": "avg"}
    said = read_classifier(tiny(), info(args=args), Hints()).config
    assert (said.num_heads, said.activation, said.pool) == (4, "quick_gelu", "mean")
    root = read_classifier(tiny(), info(args=args, global_pool="token"), Hints()).config
    assert root.pool == "class"  # the root has the last word
    hints = Hints(num_heads=6, activation="gelu_tanh", norm_eps=1e-3)
    told = read_classifier(tiny(), info(args=args), hints).config
    assert (told.num_heads, told.activation, told.norm_eps) == (6, "gelu_tanh", 1e-3)


@pytest.mark.parametrize(
    ("name", "built", "told"),
    [
        ("vit_tiny_patch16_224", {}, {}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, {}),  # with fc_norm
        ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False, "fc_norm": False}, {}),
        ("vit_base_patch32_clip_224", {"img_size": 64}, {"activation": "quick_gelu"}),
        ("vit_base_patch16_siglip_224", {}, {"activation": "gelu_tanh"}),
    ],
)
def test_bare_weights_are_read_as_with_the_config_that_timm_gives_them(
    name: str, built: dict[str, Any], told: dict[str, Any]
) -> None:
    """Their heads are those of the width."""
    state = tiny(name, **built, embed_dim=192, num_heads=3)
    args = TINY | built | {"embed_dim": 192, "num_heads": 3}
    bare = read_classifier(state, None, Hints(**told))
    whole = read_classifier(state, info(name=name, args=args), Hints(**told))
    assert bare.config == whole.config
    assert (bare.labels, bare.preprocess, bare.num_classes) == (None, None, 3)


@pytest.mark.parametrize(("name", "choice"), [("clip", "gelu or quick_gelu"), ("siglip", "gelu or gelu_tanh")])
def test_bare_weights_that_may_have_two_activations_are_refused(name: str, choice: str) -> None:
    state = tiny(f"vit_base_patch16_{name}_224", embed_dim=192, num_heads=3)
    with pytest.raises(ValueError, match=f"activation.*weights.*{choice}"):
        read_classifier(state, None, Hints())
    with pytest.raises(ValueError, match=r"number.*heads.*weights"):
        read_classifier(tiny(), None, Hints())


@pytest.mark.parametrize(
    ("args", "pretrained", "size"),
    [
        ({"img_size": 64}, {"input_size": [3, 32, 32]}, 64),
        ({"img_size": [64, 32]}, {}, (64, 32)),
        ({"img_size": [64, 64]}, {}, 64),
        ({}, {"input_size": [3, 32, 64]}, (32, 64)),
        ({}, {"input_size": [1, 48, 48]}, 48),
        ({}, {}, 32),  # as many positions as there are
        ({"img_size": 40}, {}, 32),  # whole patches
    ],
)
def test_the_images_size_is_that_of_the_arguments_then_of_the_pretraining_then_of_the_positions(
    args: dict[str, Any], pretrained: dict[str, Any], size: Any
) -> None:
    said = info(args=args, pretrained_cfg=pretrained or None)
    assert read_classifier(tiny(img_size=size), said, Hints()).config.image_size == size


DATA = {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


def test_a_preprocessing_is_read_with_timms_defaults_where_all_that_matters_is_said() -> None:
    found = read_classifier(tiny(), info(pretrained_cfg=DATA), Hints()).preprocess
    expected = PreprocessConfig(
        image_size=32, resize="crop", interpolation="bicubic", crop_pct=DEFAULT_CROP_PCT, mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
    )  # fmt: skip
    assert found == expected
    empty = dict.fromkeys(("crop_pct", "crop_mode", "interpolation"))
    assert read_classifier(tiny(), info(pretrained_cfg=DATA | empty), Hints()).preprocess == expected
    for name in DATA:
        less = {other: value for other, value in DATA.items() if other != name}
        assert read_classifier(tiny(), info(pretrained_cfg=less), Hints()).preprocess is None


@pytest.mark.parametrize(
    ("pretrained", "root", "labels"),
    [
        (["a", "b", 3], None, ("a", "b", "3")),
        (None, ["a", "b", "c"], ("a", "b", "c")),
        (["d", "e", "f"], ["a", "b", "c"], ("d", "e", "f")),
        (["a", "b"], None, None),
        (["a", "b", "c", "d"], None, None),
        ("abc", None, None),
        ([], None, None),
    ],
)
def test_labels_are_taken_where_there_is_one_for_each_class(pretrained: Any, root: Any, labels: Any) -> None:
    said = info(pretrained_cfg={"label_names": pretrained}, label_names=root)
    assert read_classifier(tiny(), said, Hints()).labels == labels


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (info(args={"rope": 1, "img_size": 32, "swin": 2}), "timm model_args not known here: rope, swin."),
        (
            info(args={"act_layer": "relu"}),
            "timm act_layer is 'relu'; known here: gelu, quick_gelu, quickgelu, gelu_tanh.",
        ),
        (info(global_pool="max"), "global_pool is 'max'; only token, avg, map are known here."),
        (
            info(pretrained_cfg=DATA | {"crop_mode": "border"}),
            "timm crop_mode is 'border'; known here: center, squash.",
        ),
        (
            {"architecture": "swin_tiny"},
            "timm's 'swin_tiny' is no plain ViT that is known here. Known: vit_base_patch16_224 and its like.",
        ),
    ],
)
def test_what_is_none_of_ours_is_named(said: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        read_classifier(tiny(), said, Hints())


@pytest.mark.parametrize(("height", "width"), [(16, 8), (8, 16)])
def test_patches_that_are_not_square_are_refused(height: int, width: int) -> None:
    state = tiny() | {"patch_embed.proj.weight": torch.zeros(48, 3, height, width)}
    with pytest.raises(ValueError, match=rf"patches.*{height}.*{width}"):
        encoder_config(state, named("vit_tiny_patch16_224"))


def vit(**changes: Any) -> tuple[VisionConfig, ViTClassifier]:
    small = {"image_size": 48, "width": 32, "depth": 2, "num_heads": 4, "mlp_dim": 80, "norm_eps": 1e-6}
    config = VisionConfig.from_dict(small | changes)
    ours = ViTClassifier(config, 3)
    randomise(ours)
    return config, ours.eval()


@pytest.mark.parametrize(
    "preprocess",
    [
        None,
        PreprocessConfig(image_size=48, resize="crop", crop_pct=0.9, interpolation="bilinear", mean=(0.1, 0.2, 0.3)),
        PreprocessConfig(image_size=48, resize="squash", std=(0.1, 0.2, 0.3)),
    ],
)
def test_a_tower_without_head_goes_to_timm_with_its_preprocessing(
    tmp_path: Path, preprocess: PreprocessConfig | None
) -> None:
    config, ours = vit(in_channels=3)
    state = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("head.")}
    write_vision(tmp_path, config, state, None, preprocess)
    theirs: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert (theirs.num_classes, theirs.pretrained_cfg["num_classes"]) == (0, 0)
    with torch.inference_mode():
        assert torch.allclose(theirs(pixels(config)), ours.vision(pixels(config)), atol=1e-4)
    back = load_foreign_classifier(str(tmp_path))
    assert (back.config, back.num_classes, back.labels, back.preprocess) == (config, 0, None, exact(preprocess))
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["num_features"] == theirs.num_features
    assert "label_names" not in said
    if preprocess is not None:
        data: Any = resolve_data_config(model=theirs)
        found = (data["crop_pct"], data["interpolation"], tuple(data["mean"]), tuple(data["std"]), data["input_size"])
        assert found == (
            preprocess.crop_pct, preprocess.interpolation, preprocess.mean, preprocess.std, (3, 48, 48)
        )  # fmt: skip
        assert data["crop_mode"] == {"crop": "center", "squash": "squash"}[preprocess.resize]


@pytest.mark.parametrize("channels", [1, 4])
def test_a_patch_bias_that_timm_cannot_leave_out_is_zero(tmp_path: Path, channels: int) -> None:
    config, ours = vit(patch_bias=False, in_channels=channels)
    write_vision(tmp_path, config, ours.state_dict(), ("a", "b", "c"), None)
    theirs: nn.Module = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.allclose(theirs(pixels(config)), ours(pixels(config)), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "preprocess", "line"),
    [
        ({"norm_eps": 1e-12}, None, "timm keeps norm_eps 1e-5 or 1e-6; this model has 1e-12."),
        (
            {"pre_norm": True},
            None,
            "timm's ViT has no patch bias where it has a norm before the blocks; this model has both.",
        ),
        (
            {},
            PreprocessConfig(image_size=48, resize="pad"),
            "timm pads with the mean colour, this model's preprocessing with grey. Use resize 'crop' or 'squash'.",
        ),
    ],
)
def test_what_timm_cannot_express_is_said(
    tmp_path: Path, changes: dict[str, Any], preprocess: PreprocessConfig | None, line: str
) -> None:
    config, ours = vit(**changes)
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        write_vision(tmp_path, config, ours.state_dict(), None, preprocess)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_scale_is_folded_into_the_weights(tmp_path: Path) -> None:
    theirs: Any = timm.create_model("vit_tiny_patch16_224", **(TINY | {"init_values": 0.1, "depth": 3}))
    randomise(theirs)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(info(args={"img_size": 32, "init_values": 0.1})))
    found = load_foreign_classifier(str(tmp_path))
    ours = ViTClassifier(found.config, 3).eval()
    ours.load_state_dict(found.state)
    with torch.inference_mode():
        assert torch.allclose(theirs(pixels(found.config)), ours(pixels(found.config)), atol=1e-4)
