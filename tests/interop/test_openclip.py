"""OpenCLIP's checkpoints give OpenCLIP's outputs, and come back bit for bit."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.interop_table import build, compare, inputs, shrunk
from tests.support.foreign_models import clip_config, pixels, randomise, rows
from vlm.interop.formats import openclip
from vlm.interop.formats.foreign import Hints
from vlm.interop.formats.openclip_config import ModelCfg, TextCfg, VisionCfg
from vlm.interop.loading import load_foreign
from vlm.models.clip import CLIP

# One of each kind; `python -m benchmarks.interop_table` tries all of OpenCLIP's.
_KINDS = (
    "ViT-B-32",
    "ViT-B-16-quickgelu",
    "ViT-g-14",
    "ViT-M-16-alt",
    "ViT-L-14-CLIPA",
    "ViT-H-14-worldwide",
    "ViT-B-16-SigLIP",
    "ViT-SO400M-16-SigLIP2-256",
    "ViT-SO400M-14-SigLIP-384",
    "ViT-SO400M-16-SigLIP-i18n-256",
    "MobileCLIP2-L-14",
    "vit_medium_patch16_gap_256",
)


def config_of(name: str) -> dict[str, Any]:
    config = open_clip.get_model_config(name)
    assert config is not None
    return shrunk(config)


@pytest.mark.parametrize("name", _KINDS)
def test_openclip_weights_give_openclip_outputs(name: str) -> None:
    assert compare(config_of(name)).worst < 1e-5


@pytest.mark.parametrize(
    ("name", "vision", "text"),
    [
        ("vit_medium_patch16_gap_256", {"timm_proj": None, "timm_pool": "avg"}, {}),
        ("vit_medium_patch16_gap_256", {"timm_proj_bias": True}, {"proj_bias": True}),
        ("ViT-B-32", {"ls_init_value": 0.1}, {"ls_init_value": 0.1}),
        ("ViT-B-32", {"final_ln_after_pool": True, "norm_kwargs": {"eps": 1e-3}}, {"norm_kwargs": {"eps": 1e-2}}),
        ("ViT-B-32", {"final_ln_after_pool": True, "pool_type": "avg", "mlp_ratio": 2.5}, {"mlp_ratio": 1.5}),
    ],
)
def test_rarer_parts_give_openclip_outputs_too(name: str, vision: dict[str, Any], text: dict[str, Any]) -> None:
    config = config_of(name)
    config["vision_cfg"] |= vision
    config["text_cfg"] |= text
    assert compare(config).worst < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_openclip_model_is_converted_or_its_foreign_part_is_named(name: str) -> None:
    config = open_clip.get_model_config(name)
    assert config is not None
    if ModelCfg.from_dict(config).outside():
        with pytest.raises(ValueError, match=r"parts.*library"):
            openclip.read_model({}, ModelCfg.from_dict(config))
    else:
        assert compare(shrunk(config)).worst < 1e-5


def test_a_wrong_activation_would_show() -> None:
    config = config_of("ViT-B-32")
    theirs: Any = build(config)
    model = ModelCfg.from_dict(config | {"quick_gelu": True})
    ours_config, state = openclip.read_model(theirs.state_dict(), model)
    ours = CLIP(ours_config).eval()
    ours.load_state_dict(state)
    images, _ = inputs(model)
    with torch.inference_mode():
        assert (theirs.encode_image(images, normalize=True) - ours.encode_image(images)).abs().max() > 1e-4


def saved(
    folder: Path, config: dict[str, Any], model: torch.nn.Module, preprocess: dict[str, Any] | None = None
) -> str:
    folder.mkdir()
    settings = {"model_cfg": config} | ({"preprocess_cfg": preprocess} if preprocess else {})
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return str(folder)


def test_a_folder_of_openclip_loads_with_its_preprocessing(tmp_path: Path) -> None:
    config = config_of("ViT-B-32-quickgelu")
    theirs: Any = build(config)
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}
    foreign = load_foreign(saved(tmp_path / "model", config, theirs, given))
    assert foreign.preprocess is not None
    assert (foreign.preprocess.resize, foreign.preprocess.interpolation) == ("squash", "bilinear")
    assert foreign.preprocess.mean == (0.1, 0.2, 0.3)
    assert foreign.config.vision.activation == foreign.config.text.activation == "quick_gelu"
    assert torch.equal(foreign.state["vision_proj.weight"], theirs.state_dict()["visual.proj"].T)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapped_and_nested_checkpoints_are_the_same_model(tmp_path: Path, prefix: str) -> None:
    config = config_of("ViT-B-32")
    theirs: Any = build(config)
    plain = load_foreign(saved(tmp_path / "plain", config, theirs))
    wrapped = tmp_path / "wrapped"
    wrapped.mkdir()
    (wrapped / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    state = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    state[prefix + "logit_scale"] = state[prefix + "logit_scale"].reshape(1)
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, wrapped / "epoch_3.pt")
    again = load_foreign(str(wrapped))
    assert plain.config == again.config
    assert all(torch.equal(tensor, again.state[name]) for name, tensor in plain.state.items())


def test_bare_weights_that_fit_two_models_are_refused_and_both_are_named(tmp_path: Path) -> None:
    with torch.device("meta"):
        meta = open_clip.model.CLIP(**(open_clip.get_model_config("ViT-S-32-alt") or {}))
    tensors = {name: torch.full(tensor.shape, 0.01, dtype=torch.float16) for name, tensor in meta.state_dict().items()}
    tensors["visual.proj"][0] = 0.02
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    assert load_foreign(str(path)).config.vision.num_heads == 6  # ViT-S-32-alt has no twin
    models = [(n, ModelCfg.from_dict(config_of(n))) for n in ("ViT-B-32", "ViT-B-32-quickgelu")]
    state = build(config_of("ViT-B-32")).state_dict()
    with pytest.raises(ValueError, match=r"ViT-B-32 \(gelu\), ViT-B-32-quickgelu \(quick_gelu\).*--activation"):
        openclip.guess(state, models, Hints())
    assert openclip.guess(state, models, Hints(activation="quick_gelu")).quick_gelu


def test_unknown_sizes_need_heads_and_activation_said(tmp_path: Path) -> None:
    config = config_of("ViT-B-32")
    theirs: Any = build(config)
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, path)
    with pytest.raises(ValueError, match=r"gelu or quick_gelu.*--activation"):
        load_foreign(str(path))
    with pytest.raises(ValueError, match=r"number of heads.*--num-heads"):
        load_foreign(str(path), activation="gelu")
    assert load_foreign(str(path), activation="gelu", num_heads=4).config.vision.num_heads == 4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"text": {"eot_id": 119, "norm_eps": 1e-3}},
        {"logit_bias": -4.0},
        {"vision": {"activation": "quick_gelu"}, "text": {"activation": "quick_gelu", "norm_eps": 1e-6}},
        {"vision": {"pre_norm": False, "pool": "mean", "norm_after_pool": True, "image_size": (32, 64)}},
        {"vision": {"pool": "mean", "activation": "gelu_tanh", "norm_eps": 1e-7}},
        {"text": {"causal": False, "pool": "last", "pad_to_context": True, "eot_id": 1}},
        {"text": {"causal": False, "pad_to_context": True, "eot_id": 119}},
        {"text_proj": "linear_bias"},
        {"text_proj": "none", "embed_dim": 32},
    ],
)
def test_ours_to_openclip_and_back_is_bit_identical_and_openclip_gives_our_outputs(changes: dict[str, Any]) -> None:
    config = clip_config(**copy.deepcopy(changes))
    ours = CLIP(config)
    randomise(ours)
    model_cfg, tensors = openclip.write_model(config, ours.state_dict())
    text, newest = model_cfg["text_cfg"], config.text.eot_id == config.text.vocab_size - 1
    assert text["pool_type"] == ("last" if config.text.pool == "last" else "argmax" if newest else "eos")
    theirs: Any = open_clip.model.CLIP(**{name: value for name, value in model_cfg.items() if name != "custom_text"})
    theirs.load_state_dict(tensors, strict=True)
    theirs.eval()
    images, ids = pixels(config.vision), rows(config.text)
    with torch.inference_mode():
        assert torch.allclose(theirs.encode_image(images, normalize=True), ours.encode_image(images), atol=1e-5)
        assert torch.allclose(theirs.encode_text(ids, normalize=True), ours.encode_text(ids), atol=1e-5)
    back, state = openclip.read_model(tensors, ModelCfg.from_dict(model_cfg))
    assert back == config
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.state_dict().items())


def test_what_openclip_cannot_express_is_named_whole() -> None:
    config = clip_config(vision={"patch_bias": True, "qkv_bias": False}, text={"pool": "mean"})
    with pytest.raises(ValueError, match=r"'mean'.*patch.*q/k/v"):
        openclip.write_model(config, CLIP(config).state_dict())


@pytest.mark.parametrize("size", [64, (32, 96)])
def test_other_image_sizes_resize_positions_as_openclip_does(tmp_path: Path, size: int | tuple[int, int]) -> None:
    config = config_of("ViT-B-16")
    theirs: Any = build(config)
    foreign = load_foreign(saved(tmp_path / "model", config, theirs), image_size=size)
    larger = open_clip.model.CLIP(**(config | {"vision_cfg": config["vision_cfg"] | {"image_size": size}}))
    state = copy.deepcopy(theirs.state_dict())
    open_clip.model.resize_pos_embed(state, larger)
    assert torch.equal(foreign.state["vision.pos_embed"][0], state["visual.positional_embedding"])
    assert foreign.preprocess is not None
    assert foreign.preprocess.image_size == size


def test_the_same_image_size_changes_nothing(tmp_path: Path) -> None:
    config = config_of("ViT-B-16")
    folder = saved(tmp_path / "model", config, build(config))
    same = load_foreign(folder, image_size=config["vision_cfg"]["image_size"])
    assert torch.equal(same.state["vision.pos_embed"], load_foreign(folder).state["vision.pos_embed"])


@pytest.mark.parametrize(("ours", "theirs"), [(VisionCfg, open_clip.CLIPVisionCfg), (TextCfg, open_clip.CLIPTextCfg)])
def test_what_a_config_leaves_out_is_what_openclip_takes(ours: type[Any], theirs: type[Any]) -> None:
    known = {field.name: field.default for field in dataclasses.fields(theirs)}
    taken = {field.name: field.default for field in dataclasses.fields(ours)}
    assert {"layers", "width"} <= set(taken)
    assert taken == {name: known[name] for name in taken}


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "gelu_tanh"])
@pytest.mark.parametrize("eps", [None, 1e-3])
def test_of_weights_of_no_known_size_the_hints_say_what_weights_cannot(activation: Any, eps: float | None) -> None:
    more: dict[str, Any] = {"act_kwargs": {"approximate": "tanh"}} if activation == "gelu_tanh" else {}
    more |= {"norm_kwargs": {"eps": eps}} if eps else {}
    vision = {"width": 48, "head_width": 16, "layers": 2, "image_size": 40, "patch_size": 8, "mlp_ratio": 3.0}
    text = {"width": 128, "heads": 2, "layers": 3, "vocab_size": 90, "context_length": 11, "mlp_ratio": 2.0}
    config: dict[str, Any] = {"embed_dim": 24, "vision_cfg": vision | more, "text_cfg": text | more}
    config |= {"quick_gelu": activation == "quick_gelu"}
    state = build(config).state_dict()
    found = openclip.guess(state, [], Hints(activation=activation, num_heads=3, norm_eps=eps))
    expected, _ = openclip.read_model(state, ModelCfg.from_dict(config))
    assert openclip.read_model(state, found)[0] == expected
    assert expected.vision.activation == expected.text.activation == activation


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "ViT-L-14-CLIPA"])
def test_weights_whose_pooling_is_not_in_them_are_not_guessed(name: str) -> None:
    state = build(config_of(name)).state_dict()
    with pytest.raises(ValueError, match=r"OpenCLIP weights.*pooling"):
        openclip.guess(state, [], Hints(activation="gelu", num_heads=2))


@pytest.mark.parametrize(
    ("name", "tower", "said", "prefix"),
    [
        ("ViT-B-32", "vision_cfg", "the config says 5 layers, the file holds 2", "visual.transformer.resblocks"),
        ("ViT-B-32", "text_cfg", "the config says 5 layers, the file holds 2", "text.transformer.resblocks"),
        ("ViT-B-16-SigLIP", "text_cfg", "the config says 5 layers, the file holds 2", "text.transformer.resblocks"),
    ],
)
def test_a_config_of_another_depth_is_refused_before_a_model_is_built(
    name: str, tower: str, said: str, prefix: str
) -> None:
    config = config_of(name)
    state = build(config).state_dict()
    config[tower]["layers"] = 5
    line = f"{said} ({prefix}). They do not belong together."
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        openclip.read_model(state, ModelCfg.from_dict(config))


@pytest.mark.parametrize(("name", "known"), [("ViT-B-32", True), ("ViT-L-14-CLIPA", False), ("ViT-B-16-SigLIP", False)])
def test_openclips_own_preprocessing_is_taken_only_for_a_plain_clip(tmp_path: Path, name: str, known: bool) -> None:
    """CLIPA and SigLIP were trained with others."""
    config = config_of(name)
    foreign = load_foreign(saved(tmp_path / "model", config, build(config)))
    assert (foreign.preprocess is not None) == known
    if foreign.preprocess is not None:
        theirs = open_clip.transform.PreprocessCfg(size=config["vision_cfg"]["image_size"])
        assert (foreign.preprocess.image_size, foreign.preprocess.mean) == (theirs.size, theirs.mean)
