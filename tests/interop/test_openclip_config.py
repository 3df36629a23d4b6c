"""OpenCLIP's configs in our terms and ours in theirs: its own defaults, names and rules are the second truth."""

import dataclasses
import inspect
import re
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2

from tests.support.foreign_models import clip_config, siglip_config
from tests.support.odd_images import noise
from vlm.config import PreprocessConfig, VisionConfig
from vlm.images.preprocess import Preprocess
from vlm.interop.formats import openclip_writing
from vlm.interop.formats.huggingface_processor import whole_image
from vlm.interop.formats.openclip_config import ModelCfg, to_config, to_preprocess
from vlm.interop.formats.openclip_writing import from_config, write_preprocess
from vlm.interop.formats.timm import named

# pyright: reportPrivateUsage=false


def model(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **settings: Any) -> ModelCfg:
    towers = {"vision_cfg": vision or {}, "text_cfg": text or {}}
    return ModelCfg.from_dict({"embed_dim": 512} | towers | settings)


def test_what_a_model_does_not_say_is_what_openclip_builds() -> None:
    built = inspect.signature(open_clip.model.CLIP).parameters
    ours = {field.name: field.default for field in dataclasses.fields(ModelCfg) if field.name in built}
    settings = {name: value for name, value in ours.items() if value is not dataclasses.MISSING}
    assert {"quick_gelu", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"} <= settings.keys()
    assert settings == {name: built[name].default for name in settings}


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"multimodal_cfg": {"width": 512}}, "multimodal_cfg: a captioning decoder (CoCa)"),
        ({"vision": {"attentional_pool": "parallel"}}, "vision_cfg.attentional_pool is 'parallel'"),
        ({"vision": {"output_tokens": True}}, "vision_cfg.output_tokens is True"),
        ({"text": {"output_tokens": True}}, "text_cfg.output_tokens is True"),
        ({"vision": {"block_type": "custom"}}, "vision_cfg.block_type is 'custom'"),
        ({"text": {"embed_cls": True}}, "text_cfg.embed_cls is True"),
        ({"text": {"hf_model_name": "roberta-base"}}, "text_cfg.hf_model_name is 'roberta-base'"),
        ({"text": {"tokenizer_mode": "mlm"}}, "text_cfg.tokenizer_mode is 'mlm'"),
        *(
            ({tower: {name: True}}, f"{tower}_cfg.{name} is True")
            for tower in ("vision", "text")
            for name in ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
        ),
        ({"vision": {"layers": [3, 4, 6, 3], "patch_size": None}}, "vision_cfg.layers is a list: a ResNet"),
        ({"vision": {"pool_type": "none"}}, "vision_cfg.pool_type is 'none'"),
        ({"text": {"pool_type": "first"}}, "text_cfg.pool_type is 'first'"),
        (
            {"vision": {"timm_model_name": "vit_base_patch16_224", "timm_proj": "mlp"}},
            "vision_cfg.timm_proj is 'mlp'",
        ),
        (
            {"vision": {"timm_model_name": "convnext_base"}},
            "vision_cfg.timm_model_name: timm's 'convnext_base' is no plain ViT that is known here. "
            "Known: vit_base_patch16_224 and its like.",
        ),
    ],
)
def test_each_part_that_is_none_of_ours_is_named_and_nothing_else(config: dict[str, Any], line: str) -> None:
    found = model(**config)
    assert found.outside() == [line]
    with pytest.raises(ValueError, match=re.escape(f"has parts that this library does not: {line}.")):
        to_config(found, {})


@pytest.mark.parametrize("projection", [None, "none", "linear"])
def test_a_plain_tower_has_no_part_outside(projection: str | None) -> None:
    assert model().outside() == []
    assert model({"timm_model_name": "vit_base_patch16_224", "timm_proj": projection}).outside() == []
    assert model({"timm_proj": "mlp"}).outside() == []  # of a timm tower alone


@pytest.mark.parametrize(("quick", "approximate"), [(False, None), (False, "none"), (False, "tanh"), (True, None)])
def test_activations_and_norms_are_those_that_openclip_builds(quick: bool, approximate: str | None) -> None:
    act = {} if approximate is None else {"act_kwargs": {"approximate": approximate}}
    small = act | {"width": 64, "layers": 1, "norm_kwargs": {"eps": 1e-4}}
    config: dict[str, Any] = {"embed_dim": 8, "quick_gelu": quick, "vision_cfg": small | {"head_width": 32}}
    config["text_cfg"] = act | {"width": 64, "layers": 1, "heads": 2, "vocab_size": 9}
    theirs: Any = open_clip.model.CLIP(**config)
    ours = to_config(ModelCfg.from_dict(config), {})
    x = torch.linspace(-4, 4, 50)
    for tower, block in (("vision", theirs.visual.transformer.resblocks[0]), ("text", theirs.transformer.resblocks[0])):
        activation = getattr(ours, tower).activation
        expected = {
            "quick_gelu": x * torch.sigmoid(1.702 * x),
            "gelu": torch.nn.functional.gelu(x),
            "gelu_tanh": torch.nn.functional.gelu(x, approximate="tanh"),
        }[activation]
        torch.testing.assert_close(block.mlp.gelu(x), expected, atol=1e-6, rtol=0)
        assert getattr(ours, tower).norm_eps == block.ln_1.eps


@pytest.mark.parametrize(
    ("text", "pad_id"),
    [
        ({}, 0),
        ({"pad_id": 7}, 7),
        ({"hf_tokenizer_name": "bert-base-uncased"}, 0),
        ({"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}, 1),  # T5's end-of-text
        ({"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "pad_id": 7}, 7),
        ({"hf_tokenizer_name": "timm/ViT-SO400M-16-SigLIP2-256"}, 0),  # Gemma's padding
    ],
)
def test_texts_are_padded_as_the_named_tokenizer_pads(text: dict[str, Any], pad_id: int) -> None:
    assert to_config(model(text=text), {}).text.pad_id == pad_id


@pytest.mark.parametrize(
    ("text", "eot_id", "padded"),
    [
        ({"vocab_size": 120}, 119, False),
        ({"vocab_size": 120, "pool_type": "eos"}, 2, False),
        ({"vocab_size": 120, "pool_type": "eos", "eos_id": 7}, 7, False),
        ({"vocab_size": 120, "no_causal_mask": True}, 119, True),
        ({"vocab_size": 120, "pool_type": "last"}, 1, True),
    ],
)
def test_end_of_text_is_where_openclip_pools(text: dict[str, Any], eot_id: int, padded: bool) -> None:
    found = to_config(model(text=text), {}).text
    assert (found.eot_id, found.pad_to_context) == (eot_id, padded)
    assert found.causal == (not text.get("no_causal_mask"))


@pytest.mark.parametrize("bias", [None, -7.0])
def test_a_bias_of_the_logits_is_as_said_or_where_the_weights_hold_one(bias: float | None) -> None:
    said = model(init_logit_bias=bias, init_logit_scale=1.5)
    assert to_config(said, {}).logit_bias == bias
    assert to_config(said, {}).logit_scale == 1.5
    assert to_config(said, {"logit_bias": torch.zeros(1)}).logit_bias == (0.0 if bias is None else bias)


# ---- images ------------------------------------------------------------------------------------------------------


def test_what_a_preprocessing_does_not_say_is_openclips_default() -> None:
    said = dataclasses.asdict(PreprocessCfg())
    assert to_preprocess({}, 224) == to_preprocess(said, 224)
    assert to_preprocess({}, 224).fill == said["fill_color"]
    assert to_preprocess(dict.fromkeys(("interpolation", "resize_mode", "fill_color")), 224) == to_preprocess({}, 224)
    found = to_preprocess({"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3], "fill_color": 9, "resize_mode": "longest"}, 48)
    assert (found.mean, found.std, found.fill, found.resize, found.image_size) == (
        (0.1, 0.2, 0.3),
        (1, 2, 3),
        9,
        "pad",
        48,
    )
    assert to_preprocess({"interpolation": "random"}, 224).interpolation == "bicubic"  # as OpenCLIP's evaluation has it


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_preprocessing_comes_back_as_it_went(resize: Any, interpolation: Any) -> None:
    ours = PreprocessConfig(image_size=48, resize=resize, interpolation=interpolation, fill=7, mean=(0.1, 0.2, 0.3))
    assert to_preprocess(write_preprocess(ours), 48) == ours
    assert {field.name for field in dataclasses.fields(PreprocessCfg)} >= write_preprocess(ours).keys()


@pytest.mark.parametrize("size", [(96, 64), (64, 64), (50, 70)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_images_of_two_sides_are_resized_as_openclip_does(size: tuple[int, int], interpolation: Any) -> None:
    given = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": interpolation, "resize_mode": "shortest"}
    theirs: Any = image_transform_v2(PreprocessCfg(size=size, **given), is_train=False)
    image = noise(150, 90)
    torch.testing.assert_close(Preprocess(to_preprocess(given, size))(image), theirs(image))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(150, 90), (30, 71), (90, 88), (90, 86)])  # the last two: 44 and 43 rows of 45
def test_pixels_that_patches_leave_over_are_cut_from_openclips_image(mode: Any, size: tuple[int, int]) -> None:
    given = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": mode, "fill_color": 9}
    theirs: Any = image_transform_v2(PreprocessCfg(size=45, **given), is_train=False)
    ours = Preprocess(whole_image(to_preprocess(given, 45), 42))  # patches of 14
    torch.testing.assert_close(ours(noise(*size)), theirs(noise(*size))[:, :42, :42])


def test_a_preprocessing_of_unknown_parts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"OpenCLIP preprocess_cfg.*zoom, turn"):
        to_preprocess({"zoom": 1, "mean": [0, 0, 0], "turn": 2}, 224)
    with pytest.raises(ValueError, match=r"resize_mode.*'zoom'.*shortest, longest, squash"):
        to_preprocess({"resize_mode": "zoom"}, 224)
    with pytest.raises(ValueError, match=r"this model's preprocessing resizes to \(248, 248\)"):
        write_preprocess(PreprocessConfig(crop_pct=0.9))
    with pytest.raises(ValueError, match=r"bilinear; .*lanczos"):
        write_preprocess(PreprocessConfig(interpolation="lanczos"))


# ---- ours in theirs ------------------------------------------------------------------------------------------------


def test_a_siglip_tower_is_known_by_timms_name_where_timm_has_it() -> None:
    known = 0
    for size, big in (("base", 16), ("large", 16), ("so400m", 14), ("giantopt", 16)):
        side = {"so400m": 224}.get(size, 256)
        with torch.device("meta"):
            theirs: Any = timm.create_model(f"vit_{size}_patch{big}_siglip_{side}")
        width, depth, mlp_dim = theirs.embed_dim, len(theirs.blocks), theirs.blocks[0].mlp.fc1.out_features
        for patch in (14, 16, 32):
            for side in (224, 256, 378, 384, 512):
                if side % patch:
                    continue
                name = f"vit_{size}_patch{patch}_siglip_{side}"
                said = named(name)
                vision = VisionConfig(
                    image_size=side, patch_size=patch, width=width, depth=depth, mlp_dim=mlp_dim, pool="attention",
                    class_token=False, num_heads=said.num_heads, activation=said.activation, norm_eps=said.norm_eps,
                )  # fmt: skip
                assert openclip_writing._siglip_trunk(vision) == (name if timm.is_model(name) else None), name
                known += timm.is_model(name)
                for change in (
                    {"num_heads": 2},
                    {"norm_eps": 1e-5},
                    {"activation": "quick_gelu"},
                    {"depth": 5},
                    {"image_size": (side, 2 * side)},
                    {"image_size": (2 * side, side)},
                ):
                    assert openclip_writing._siglip_trunk(dataclasses.replace(vision, **change)) is None
    assert known > 10


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"text": {"pool": "mean"}}, "text pool 'mean'"),
        ({"text": {"causal": False}}, "a text tower without mask that does not read its padding"),
        ({"vision": {"patch_bias": True}}, "a patch bias"),
        ({"vision": {"qkv_bias": False}}, "no q/k/v bias"),
        ({"vision": {"class_token": False, "pool": "mean"}}, "no class token"),
        ({"vision": {"in_channels": 1}}, "1 channels"),
        ({"vision": {"in_channels": 4}}, "4 channels"),
        ({"vision_proj": "none", "embed_dim": 32}, "vision_proj 'none'"),
        ({"vision_proj": "linear_bias"}, "vision_proj 'linear_bias'"),
        ({"vision": {"activation": "quick_gelu"}}, "different activations, one of them quick_gelu"),
        ({"text": {"activation": "quick_gelu"}}, "different activations, one of them quick_gelu"),
    ],
)
def test_each_part_that_openclip_lacks_is_named_and_nothing_else(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=f"^OpenCLIP cannot express this model: {re.escape(line)}\\.$"):
        from_config(clip_config(**changes))


def test_attention_pooling_is_expressed_by_timms_towers_alone() -> None:
    line = "attention pooling in a tower that is none of timm's SigLIP ViTs"
    with pytest.raises(ValueError, match=f"^OpenCLIP cannot express this model: {line}\\.$"):
        from_config(siglip_config())


@pytest.mark.parametrize("projection", ["none", "linear", "linear_bias"])
def test_a_siglip_of_timm_comes_back_as_it_went(projection: Any) -> None:
    vision = {"width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072, "image_size": 224, "activation": "gelu"}
    small = siglip_config()
    config = dataclasses.replace(
        small, embed_dim=768, vision_proj=projection, vision=dataclasses.replace(small.vision, **vision)
    )
    plain = dataclasses.replace(config.vision, pool="class", class_token=True, pre_norm=True, patch_bias=False)
    assert "timm_model_name" not in from_config(clip_config(vision=plain.to_dict()))["vision_cfg"]
    written = from_config(config)
    assert written["custom_text"]
    back = ModelCfg.from_dict(written)
    assert back.outside() == []
    with torch.device("meta"):
        name, proj = "vit_base_patch16_siglip_224", back.vision_cfg.timm_proj or ""
        tower = TimmModel(name, 768, 224, "map", proj)
    state = {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}
    read = to_config(back, state)
    assert dataclasses.replace(read, vision_proj=projection) == config
    assert ("visual.head.proj.weight" in state, "visual.trunk.head.weight" in state) == (
        projection == "linear",
        projection == "linear_bias",
    )
    assert read.vision_proj == projection
