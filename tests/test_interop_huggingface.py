"""Hugging Face's CLIP, SigLIP and ViT give Hugging Face's outputs, and come back bit for bit."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.foreign_models import clip_config, odd_pictures, pixels, randomise, rows, siglip_config
from vlm.clip import CLIP
from vlm.config import CLIPConfig, PreprocessConfig, VisionConfig
from vlm.interop import huggingface, huggingface_vit, load_foreign, load_foreign_classifier
from vlm.interop.foreign import Foreign, Hints
from vlm.interop.huggingface_processor import read_processor, write_processor
from vlm.preprocess import Preprocess
from vlm.vision import ViTClassifier

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


def siglip(vision: dict[str, Any] | None = None) -> transformers.SiglipModel:
    words = _SIZES | {"vocab_size": 120, "max_position_embeddings": 12, "bos_token_id": None, "eos_token_id": 1}
    model = transformers.SiglipModel(
        transformers.SiglipConfig(text_config=words, vision_config=_VISION | (vision or {}))
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


def test_what_a_config_does_not_say_is_transformers_own_default(tmp_path: Path) -> None:
    theirs: Any = clip(text={"num_attention_heads": transformers.CLIPTextConfig().num_attention_heads})
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    del written["text_config"]["num_attention_heads"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    ours = ours_of(load_foreign(str(tmp_path)))
    assert_equal_outputs(theirs, ours, pixels(ours.config.vision), rows(ours.config.text))


@pytest.mark.parametrize("vision", [{}, {"image_size": 52}, {"hidden_act": "gelu"}])
def test_siglip_weights_give_siglip_outputs(tmp_path: Path, vision: dict[str, Any]) -> None:
    theirs: Any = siglip(vision)
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
    save_file({name: tensor.contiguous() for name, tensor in clip().state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"quick_gelu or gelu.*--activation"):
        load_foreign(str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match=r"number of heads.*--num-heads"):
        load_foreign(str(tmp_path / "w.safetensors"), activation="gelu")


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


def test_what_clip_cannot_express_is_named_whole() -> None:
    config = clip_config(vision={"patch_bias": True, "image_size": (32, 48)}, logit_bias=-1.0)
    with pytest.raises(ValueError, match="not square; a patch bias; a logit_bias"):
        huggingface.write_clip(config, CLIP(config).state_dict(), 48)


# ---- ViT -----------------------------------------------------------------------------------------------------------


def vit(**changes: Any) -> transformers.ViTForImageClassification:
    labels = {0: "犬", 1: "猫", 2: "a bird"}
    settings = _VISION | {"id2label": labels, "label2id": {name: id for id, name in labels.items()}} | changes
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**settings))
    randomise(model)
    return model


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"hidden_act": "gelu_new"}, {"layer_norm_eps": 1e-6}])
def test_vit_weights_give_vit_outputs_and_keep_their_labels(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs: Any = vit(**changes)
    theirs.save_pretrained(tmp_path)
    if changes.get("hidden_act") == "gelu_new":
        with pytest.raises(
            ValueError, match="hidden_act is 'gelu_new'; known here: gelu, quick_gelu, gelu_pytorch_tanh"
        ):
            load_foreign_classifier(str(tmp_path))
        return
    foreign = load_foreign_classifier(str(tmp_path))
    assert foreign.labels == ("犬", "猫", "a bird")
    ours = ViTClassifier(foreign.config, foreign.num_classes).eval()
    ours.load_state_dict(foreign.state)
    with torch.inference_mode():
        assert torch.allclose(theirs(pixels(foreign.config)).logits, ours(pixels(foreign.config)), atol=1e-5)


def test_names_on_disk_and_in_memory_are_the_same_model(tmp_path: Path) -> None:
    theirs: Any = vit()
    theirs.save_pretrained(tmp_path)
    disk, memory = load_file(tmp_path / "model.safetensors"), dict(theirs.state_dict())
    assert disk.keys() != memory.keys()
    info = json.loads((tmp_path / "config.json").read_text())
    first, second = (huggingface_vit.read_classifier(state, info, Hints()) for state in (disk, memory))
    assert first.config == second.config
    assert all(torch.equal(tensor, second.state[name]) for name, tensor in first.state.items())


def test_a_vit_model_without_head_gives_its_class_token(tmp_path: Path) -> None:
    theirs: Any = transformers.ViTModel(transformers.ViTConfig(**_VISION))
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    foreign = load_foreign_classifier(str(tmp_path))
    assert (foreign.num_classes, foreign.labels) == (0, None)
    ours = ViTClassifier(foreign.config, 1).vision.eval()
    ours.load_state_dict({name.removeprefix("vision."): tensor for name, tensor in foreign.state.items()})
    with torch.inference_mode():
        expected = theirs(pixels(foreign.config)).last_hidden_state[:, 0]
        assert torch.allclose(expected, ours(pixels(foreign.config)), atol=1e-5)


def test_ours_to_hugging_face_vit_and_back_is_bit_identical() -> None:
    config = VisionConfig(image_size=48, patch_size=16, width=32, depth=2, num_heads=4, mlp_dim=80, norm_eps=1e-12)
    ours = ViTClassifier(config, 3)
    randomise(ours)
    info, tensors = huggingface_vit.write_classifier(config, ours.state_dict(), ("a", "b", "c"), 48)
    back = huggingface_vit.read_classifier(tensors, json.loads(json.dumps(info)), Hints())
    assert (back.config, back.labels) == (config, ("a", "b", "c"))
    assert all(torch.equal(back.state[name], tensor) for name, tensor in ours.state_dict().items())


# ---- pictures ------------------------------------------------------------------------------------------------------

_PROCESSORS = {
    "clip": transformers.CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}),
    "siglip": transformers.SiglipImageProcessorPil(size={"height": 40, "width": 40}),
    "vit": transformers.ViTImageProcessorPil(size={"height": 40, "width": 40}),
}


@pytest.mark.parametrize("kind", _PROCESSORS)
def test_pixels_equal_the_processors_of_hugging_face_to_a_255th(kind: str) -> None:
    theirs: Any = _PROCESSORS[kind]
    ours = Preprocess(read_processor(theirs.to_dict(), kind, 40))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (ours.config.mean, ours.config.std))
    for picture in odd_pictures():
        expected = theirs(picture, return_tensors="pt").pixel_values[0] * std + mean
        assert (expected - ours.pixels(picture) / 255).abs().max() < 1.01 / 255


@pytest.mark.parametrize("kind", _PROCESSORS)
def test_processors_come_back_as_they_went(kind: str) -> None:
    preprocess = read_processor(_PROCESSORS[kind].to_dict(), kind, 40)
    assert read_processor(write_processor(preprocess, kind), kind, 40) == preprocess


def test_pixels_that_patches_do_not_cover_are_cut_from_the_right_and_the_bottom() -> None:
    theirs: Any = transformers.SiglipImageProcessorPil(size={"height": 45, "width": 45})
    preprocess = read_processor(theirs.to_dict(), "siglip", 42)  # patches of 14
    for picture in odd_pictures(5):
        expected = theirs(picture, return_tensors="pt").pixel_values[0][:, :42, :42]
        assert (expected - Preprocess(preprocess)(picture)).abs().max() < 0.01
    assert write_processor(preprocess, "siglip")["size"] == {"height": 45, "width": 45}


def test_a_processor_that_makes_another_size_than_the_model_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="the model takes"):
        read_processor({"crop_size": 64, "size": 64}, "clip", 48)
    with pytest.raises(ValueError, match="do not pad"):
        write_processor(PreprocessConfig(resize="pad"), "clip")


def test_without_an_image_size_it_is_that_of_the_positions(tmp_path: Path) -> None:
    siglip({}).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written["vision_config"].pop("image_size", None)
    (tmp_path / "config.json").write_text(json.dumps(written))
    found = load_foreign(str(tmp_path))
    assert found.config.vision.image_shape == (48, 48)  # 9 positions, patches of 16
    assert (found.config.logit_scale, found.config.logit_bias) == (math.log(10), -10)  # Zhai et al. 2023, section 3.2
