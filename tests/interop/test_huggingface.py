"""Hugging Face's CLIP, SigLIP and ViT give Hugging Face's outputs, and come back bit for bit."""

import copy
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.foreign_models import clip_config, pixels, randomise, rows, siglip_config
from vlm.config import CLIPConfig
from vlm.errors import CheckpointError
from vlm.interop.formats import huggingface
from vlm.interop.formats.foreign import Foreign, Hints
from vlm.interop.loading import load_foreign
from vlm.models.clip import CLIP

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

_SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION: dict[str, Any] = _SIZES | {"image_size": 48, "patch_size": 16, "num_hidden_layers": 3, "intermediate_size": 80}


def clip(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> transformers.CLIPModel:
    words = _SIZES | {"vocab_size": 120, "max_position_embeddings": 12, "bos_token_id": None, "eos_token_id": 119}
    config = transformers.CLIPConfig(
        text_config=words | (text or {}), vision_config=_VISION | (vision or {}), projection_dim=24
    )
    model = transformers.CLIPModel(config)
    randomise(model)
    return model


def siglip(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> transformers.SiglipModel:
    words = _SIZES | {"vocab_size": 120, "max_position_embeddings": 12, "bos_token_id": None, "eos_token_id": 1}
    model = transformers.SiglipModel(
        transformers.SiglipConfig(text_config=words | (text or {}), vision_config=_VISION | (vision or {}))
    )
    randomise(model)
    return model


def ours_of(foreign: Foreign) -> CLIP:
    model = CLIP(foreign.config)
    model.load_state_dict(foreign.state, strict=True)
    return model.eval()


def assert_equal_outputs(theirs: Any, ours: CLIP, images: torch.Tensor, ids: torch.Tensor) -> None:
    height, width = ours.config.vision.image_shape
    with torch.inference_mode():
        out = theirs(input_ids=ids, pixel_values=images)
        image, text = ours(images[:, :, :height, :width], ids)
        logits = ours.logits(image, text)
    assert torch.allclose(out.image_embeds, image, atol=1e-5, rtol=0)
    assert torch.allclose(out.text_embeds, text, atol=1e-5, rtol=0)
    assert torch.allclose(out.logits_per_image, logits, atol=1e-5 * float(ours.logit_scale.detach().exp()), rtol=0)


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({}, {}),
        ({"hidden_act": "gelu", "layer_norm_eps": 1e-6}, {"hidden_act": "gelu_pytorch_tanh"}),
        ({}, {"eos_token_id": 2}),  # before transformers 4.31: the highest id
        ({}, {"eos_token_id": 7}),
        ({"num_attention_heads": 2}, {"num_attention_heads": 8}),
    ],
)
def test_clip_weights_give_clip_outputs(tmp_path: Path, vision: dict[str, Any], text: dict[str, Any]) -> None:
    theirs: Any = clip(vision, text)
    theirs.save_pretrained(tmp_path)
    ours = ours_of(load_foreign(str(tmp_path)))
    assert_equal_outputs(theirs, ours, pixels(ours.config.vision), rows(ours.config.text))


def changed(folder: Path, **towers: dict[str, Any]) -> None:
    """config.json of a folder, changed on disk; a setting of None is taken out."""
    info = json.loads((folder / "config.json").read_text())
    for tower, changes in towers.items():
        both = {**info[tower], **changes}
        info[tower] = {name: value for name, value in both.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(info))


@pytest.mark.parametrize("library", [transformers.CLIPConfig, transformers.SiglipConfig])
def test_what_a_config_does_not_say_is_transformers_own_default(tmp_path: Path, library: Any) -> None:
    silent = ("hidden_act", "layer_norm_eps", "num_attention_heads")
    vision, text = (
        {name: getattr(tower, name) for name in silent} | {"hidden_size": 96}  # of 8 and of 12 heads
        for tower in (library().vision_config, library().text_config)
    )
    theirs: Any = (clip if library is transformers.CLIPConfig else siglip)(vision, text)
    theirs.save_pretrained(tmp_path)
    said = load_foreign(str(tmp_path)).config
    changed(tmp_path, vision_config=dict.fromkeys(silent), text_config=dict.fromkeys(silent))
    assert load_foreign(str(tmp_path)).config == said
    assert (said.vision.num_heads, said.text.num_heads) == (vision[silent[2]], text[silent[2]])
    assert (said.vision.norm_eps, said.text.norm_eps) == (vision[silent[1]], text[silent[1]])


def test_the_end_of_text_that_a_config_does_not_say_is_transformers_own(tmp_path: Path) -> None:
    default: Any = transformers.CLIPTextConfig().eos_token_id
    clip(text={"vocab_size": default + 3, "eos_token_id": default}).save_pretrained(tmp_path)
    changed(tmp_path, text_config={"eos_token_id": None})
    assert load_foreign(str(tmp_path)).config.text.eot_id == default


@pytest.mark.parametrize("eos", [120, -1, 49407, [119], "119"])
def test_an_end_of_text_outside_the_vocabulary_is_refused(tmp_path: Path, eos: Any) -> None:
    clip().save_pretrained(tmp_path)
    changed(tmp_path, text_config={"eos_token_id": eos})
    line = f"text_config.eos_token_id is {eos}, outside the vocabulary of 120 ids"
    with pytest.raises(CheckpointError, match=re.escape(line)):
        load_foreign(str(tmp_path))
    for inside in (0, 119):
        changed(tmp_path, text_config={"eos_token_id": inside})
        assert load_foreign(str(tmp_path)).config.text.eot_id == inside


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_hints_go_before_what_a_config_says(tmp_path: Path, kind: str) -> None:
    (clip() if kind == "clip" else siglip()).save_pretrained(tmp_path)
    plain = load_foreign(str(tmp_path)).config
    found = load_foreign(str(tmp_path), num_heads=2, activation="gelu", norm_eps=1e-3).config
    both = {"activation": "gelu", "norm_eps": 1e-3}
    assert found.vision == dataclasses.replace(plain.vision, num_heads=2, **both)
    assert found.text == dataclasses.replace(plain.text, **both)
    assert plain.vision.activation != "gelu"


def test_settings_of_before_2022_have_the_last_word_where_they_were_kept(tmp_path: Path) -> None:
    clip().save_pretrained(tmp_path)
    info = json.loads((tmp_path / "config.json").read_text())
    info |= {"vision_config_dict": {"num_attention_heads": 2}, "text_config_dict": {"num_attention_heads": 8}}
    (tmp_path / "config.json").write_text(json.dumps(info))
    found = load_foreign(str(tmp_path)).config
    assert (found.vision.num_heads, found.text.num_heads) == (2, 8)
    info |= {"vision_config": None, "text_config": None}
    info["text_config_dict"]["eos_token_id"] = 5
    (tmp_path / "config.json").write_text(json.dumps(info))
    assert load_foreign(str(tmp_path)).config.text.eot_id == 5


@pytest.mark.parametrize(
    ("vision", "text"),
    [({}, {}), ({"image_size": 52}, {}), ({"hidden_act": "gelu"}, {"hidden_size": 48, "projection_size": 32})],
)
def test_siglip_weights_give_siglip_outputs(tmp_path: Path, vision: dict[str, Any], text: dict[str, Any]) -> None:
    theirs: Any = siglip(vision, text)
    theirs.save_pretrained(tmp_path)
    ours = ours_of(load_foreign(str(tmp_path)))
    side = vision.get("image_size", 48)
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(3))
    assert_equal_outputs(theirs, ours, images, rows(ours.config.text))


def test_old_files_with_position_ids_and_pickles_of_tensors_load(tmp_path: Path) -> None:
    theirs: Any = clip()
    theirs.save_pretrained(tmp_path)
    state = dict(theirs.state_dict()) | {
        "text_model.embeddings.position_ids": torch.arange(12)[None],
        "vision_model.embeddings.position_ids": torch.arange(10)[None],
    }
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    ours = ours_of(load_foreign(str(tmp_path)))
    assert_equal_outputs(theirs, ours, pixels(ours.config.vision), rows(ours.config.text))


def test_sharded_weights_are_one_model(tmp_path: Path) -> None:
    theirs: Any = clip()
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    ours = ours_of(load_foreign(str(tmp_path)))
    assert_equal_outputs(theirs, ours, pixels(ours.config.vision), rows(ours.config.text))


def test_bare_clip_weights_need_their_activation_said(tmp_path: Path) -> None:
    theirs = clip({"hidden_act": "gelu"}, {"hidden_act": "gelu", "hidden_size": 128, "num_attention_heads": 2})
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"quick_gelu or gelu.*--activation"):
        load_foreign(str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match=r"number of heads.*--num-heads"):
        load_foreign(str(tmp_path / "w.safetensors"), activation="gelu")
    found = load_foreign(str(tmp_path / "w.safetensors"), activation="gelu", num_heads=4)
    theirs.save_pretrained(tmp_path / "whole")
    assert found.config == load_foreign(str(tmp_path / "whole")).config  # 64 wide heads of texts, the last id ends them
    assert (found.tokenizer, found.preprocess) == (None, None)


def test_bare_siglip_weights_are_told_by_their_pooling() -> None:
    theirs = siglip({"hidden_size": 192, "num_attention_heads": 3}, {"hidden_size": 192, "num_attention_heads": 3})
    found, _ = huggingface.read_clip(dict(theirs.state_dict()), None, Hints())
    assert found == huggingface.read_clip(dict(theirs.state_dict()), theirs.config.to_dict(), Hints())[0]


@pytest.mark.parametrize(("vocab_size", "pad_id"), [(256_000, 0), (32_000, 1), (250_000, 1)])
def test_siglips_texts_are_padded_as_their_vocabulary_s_tokenizer_pads(vocab_size: int, pad_id: int) -> None:
    """Gemma's with 0, T5's and mT5's with 1."""
    state = dict(siglip().state_dict())
    state["text_model.embeddings.token_embedding.weight"] = torch.zeros(vocab_size, 32, device="meta")
    text = huggingface.read_clip(state, siglip().config.to_dict(), Hints())[0].text
    assert (text.pad_id, text.eot_id, text.causal, text.pool, text.pad_to_context) == (pad_id, 1, False, "last", True)


def test_a_siglip_without_its_pooling_head_is_refused() -> None:
    info = siglip().config.to_dict()
    info["vision_config"]["vision_use_head"] = False
    with pytest.raises(ValueError, match=r"config.json: vision_use_head.*without"):
        huggingface.read_clip(dict(siglip().state_dict()), info, Hints())


@pytest.mark.parametrize(
    "config",
    [
        clip_config(),
        clip_config(vision={"activation": "quick_gelu"}, text={"activation": "gelu_tanh", "norm_eps": 1e-6}),
        siglip_config(),
    ],
)
def test_ours_to_hugging_face_and_back_is_bit_identical(config: CLIPConfig) -> None:
    ours = CLIP(config)
    randomise(ours)
    info, tensors = huggingface.write_clip(config, ours.state_dict(), config.vision.image_shape[0])
    back, state = huggingface.read_clip(tensors, json.loads(json.dumps(info)), Hints())
    assert back.vision == config.vision
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.state_dict().items())
    ids = {"eot_id": config.text.eot_id, "pad_id": config.text.pad_id}  # a tokenizer has the last word on padding
    assert back.text.to_dict() | ids == config.text.to_dict()


def test_end_of_text_2_changes_its_place_because_transformers_reads_2_as_the_highest_id() -> None:
    config = clip_config(text={"eot_id": 2, "pad_id": 0})
    ours = CLIP(config)
    randomise(ours)
    moved, state, order = huggingface.without_end_2(config, ours.state_dict())
    assert order is not None
    new_id = torch.tensor([order.index(old) for old in range(config.text.vocab_size)])
    theirs_ids, ids = new_id[rows(config.text)], rows(config.text)
    info, tensors = huggingface.write_clip(moved, state, 48)
    theirs: Any = transformers.CLIPModel(transformers.CLIPConfig(**info)).eval()
    theirs.load_state_dict(tensors)
    with torch.inference_mode():
        text = theirs(input_ids=theirs_ids, pixel_values=pixels(config.vision)).text_embeds
        assert torch.allclose(text, ours.encode_text(ids), atol=1e-5)


@pytest.mark.parametrize("config", [clip_config(vision={"in_channels": 1}, logit_scale=1.5), siglip_config()])
def test_transformers_opens_what_is_written(tmp_path: Path, config: CLIPConfig) -> None:
    ours = CLIP(config).eval()
    randomise(ours)
    info, tensors = huggingface.write_clip(config, ours.state_dict(), 50)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(info))
    theirs: Any = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert [type(theirs).__name__] == info["architectures"]
    theirs.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == tensors.keys()
    images = torch.randn(3, config.vision.in_channels, 50, 50, generator=torch.Generator().manual_seed(0))
    assert_equal_outputs(theirs, ours, images, rows(config.text))
    for tower in ("vision_config", "text_config"):
        read = getattr(theirs.config, tower).to_dict()
        assert {name: read[name] for name in info[tower]} == info[tower]  # nothing is renamed or passed over
    assert theirs.dtype == torch.float32
    text = theirs.config.text_config
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (None, config.text.eot_id, config.text.pad_id)
    if config.vision.pool == "class":
        assert theirs.config.logit_scale_init_value == 1.5
        assert theirs.config.projection_dim == text.projection_dim == config.embed_dim


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"vision": {"image_size": (32, 48)}}, "an image that is not square"),
        ({"vision": {"image_size": (48, 32)}}, "an image that is not square"),
        ({"vision": {"qkv_bias": False}}, "no q/k/v bias"),
        ({"vision": {"pool": "mean"}}, "image pool 'mean'"),
        ({"vision": {"pre_norm": False}}, "no norm before the blocks"),
        ({"vision": {"patch_bias": True}}, "a patch bias"),
        ({"vision_proj": "none", "embed_dim": 32}, "vision_proj 'none'"),
        ({"vision_proj": "linear_bias"}, "vision_proj 'linear_bias'"),
        ({"text_proj": "none", "embed_dim": 32}, "text_proj 'none'"),
        ({"text_proj": "linear_bias"}, "text_proj 'linear_bias'"),
        ({"text": {"causal": False}}, "a text tower without causal mask"),
        ({"text": {"pool": "last", "pad_to_context": True}}, "text pool 'last'"),
        ({"text": {"pool": "mean"}}, "text pool 'mean'"),
        ({"logit_bias": -1.0}, "a logit_bias"),
        ({"vision": {"patch_bias": True}, "logit_bias": -1.0}, "a patch bias; a logit_bias"),
    ],
)
def test_each_part_that_clip_lacks_is_named_and_nothing_else(changes: dict[str, Any], line: str) -> None:
    config = clip_config(**copy.deepcopy(changes))
    with pytest.raises(ValueError, match=f"^Hugging Face's CLIPModel cannot express this model: {line}\\.$"):
        huggingface.write_clip(config, CLIP(config).state_dict(), 48)


@pytest.mark.parametrize(
    ("vision", "text", "settings", "line"),
    [
        ({"image_size": (32, 48)}, {}, {}, "an image that is not square"),
        ({"qkv_bias": False}, {}, {}, "no q/k/v bias"),
        ({"class_token": True}, {}, {}, "a class token"),
        ({"pre_norm": True}, {}, {}, "a norm before the blocks"),
        ({"patch_bias": False}, {}, {}, "no patch bias"),
        ({}, {}, {"vision_proj": "linear"}, "vision_proj 'linear'"),
        ({}, {}, {"vision_proj": "linear_bias"}, "vision_proj 'linear_bias'"),
        ({}, {}, {"text_proj": "linear"}, "text_proj 'linear'"),
        ({}, {}, {"text_proj": "none"}, "text_proj 'none'"),
        ({}, {"causal": True}, {}, "a causal text tower"),
        ({}, {"pool": "eot"}, {}, "text pool 'eot'"),
        ({}, {"pool": "mean"}, {}, "text pool 'mean'"),
        ({}, {}, {"logit_bias": None}, "no logit_bias"),
    ],
)
def test_each_part_that_siglip_lacks_is_named_and_nothing_else(
    vision: dict[str, Any], text: dict[str, Any], settings: dict[str, Any], line: str
) -> None:
    config = siglip_config()
    towers: dict[str, Any] = {
        "vision": dataclasses.replace(config.vision, **vision),
        "text": dataclasses.replace(config.text, **text),
    }
    config = dataclasses.replace(config, **towers, **settings)
    with pytest.raises(ValueError, match=f"^Hugging Face's SiglipModel cannot express this model: {line}\\.$"):
        huggingface.write_clip(config, CLIP(config).state_dict(), 48)


@pytest.mark.parametrize("text", [{"eot_id": 3}, {"eot_id": 2, "pool": "mean"}])
def test_only_an_end_of_text_2_that_is_looked_for_changes_places(text: dict[str, Any]) -> None:
    config = clip_config(text=text)
    state = {"text.token_embed.weight": torch.zeros(120, 1)}
    assert huggingface.without_end_2(config, state) == (config, state, None)


def test_without_an_image_size_it_is_that_of_the_positions(tmp_path: Path) -> None:
    siglip({}).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written["vision_config"].pop("image_size", None)
    (tmp_path / "config.json").write_text(json.dumps(written))
    found = load_foreign(str(tmp_path))
    assert found.config.vision.image_shape == (48, 48)  # 9 positions, patches of 16
    assert (found.config.logit_scale, found.config.logit_bias) == (math.log(10), -10)  # Zhai et al. 2023, section 3.2
