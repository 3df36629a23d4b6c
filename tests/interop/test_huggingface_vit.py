"""Hugging Face's ViT gives Hugging Face's outputs, and comes back bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.foreign_models import pixels, randomise
from vlm.config import VisionConfig
from vlm.interop.formats import huggingface_vit
from vlm.interop.formats.foreign import Hints
from vlm.interop.loading import load_foreign_classifier
from vlm.models.vision import ViTClassifier

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

_SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
_VISION: dict[str, Any] = _SIZES | {"image_size": 48, "patch_size": 16}


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
        with pytest.raises(ValueError, match=r"hidden_act.*'gelu_new'; known.*gelu, quick_gelu, gelu_pytorch_tanh"):
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


def written(folder: Path, **changes: Any) -> dict[str, Any]:
    """config.json of a folder, changed on disk; a setting of None is taken out."""
    info = {**json.loads((folder / "config.json").read_text()), **changes}
    info = {name: value for name, value in info.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(info))
    return info


def test_what_a_config_does_not_say_is_transformers_own_default(tmp_path: Path) -> None:
    silent = ("hidden_act", "layer_norm_eps", "num_attention_heads", "image_size")
    default = {name: getattr(transformers.ViTConfig(), name) for name in silent}
    assert None not in default.values()
    theirs: Any = vit(**default, hidden_size=48, patch_size=32, num_hidden_layers=1)
    theirs.save_pretrained(tmp_path)
    said = load_foreign_classifier(str(tmp_path)).config
    written(tmp_path, **dict.fromkeys(silent))
    assert load_foreign_classifier(str(tmp_path)).config == said
    assert {"hidden_act": said.activation, "layer_norm_eps": said.norm_eps} == {
        name: default[name] for name in silent[:2]
    }
    assert {"num_attention_heads": said.num_heads, "image_size": said.image_size} == {n: default[n] for n in silent[2:]}


def test_hints_go_before_what_a_config_says(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path)
    found = load_foreign_classifier(str(tmp_path), num_heads=2, activation="quick_gelu", norm_eps=1e-3).config
    assert (found.num_heads, found.activation, found.norm_eps) == (2, "quick_gelu", 1e-3)
    assert load_foreign_classifier(str(tmp_path)).config.num_heads == _VISION["num_attention_heads"]


def test_bare_weights_have_the_heads_of_their_width_and_the_defaults_of_published_models(tmp_path: Path) -> None:
    theirs: Any = vit(hidden_size=192, num_attention_heads=3, num_hidden_layers=1)  # ViT-Tiny's
    for state in (theirs.state_dict(), load_file(saved(theirs, tmp_path))):
        found = huggingface_vit.read_classifier(state, None, Hints())
        assert found.config == load_foreign_classifier(str(tmp_path)).config
        assert found.config.num_heads == 3
        assert (found.num_classes, found.labels) == (3, None)
    with pytest.raises(ValueError, match=r"Hugging.*without config.json"):
        huggingface_vit.read_classifier(vit().state_dict(), None, Hints())
    state = theirs.state_dict()
    state["vit.embeddings.position_embeddings"] = torch.zeros(1, 7, 192)
    with pytest.raises(ValueError, match=r"position_embeddings.*6.*positions"):
        huggingface_vit.read_classifier(state, None, Hints())


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ({"0": "a", "2": "c", "1": "b"}, ("a", "b", "c")),
        ({"0": "a", "1": "b"}, None),
        ({"0": "a", "1": "b", "3": "c"}, None),
        ({"0": "a", "1": "b", "2": "c", "3": "d"}, None),
        (["a", "b", "c"], None),
        ({"2": 7, "0": True, "1": "b"}, ("True", "b", "7")),
    ],
)
def test_labels_are_taken_where_each_class_has_one(tmp_path: Path, names: Any, labels: tuple[str, ...] | None) -> None:
    vit().save_pretrained(tmp_path)
    written(tmp_path, id2label=names)
    assert load_foreign_classifier(str(tmp_path)).labels == labels


def test_an_unused_pooler_and_the_mask_of_pretraining_are_passed_over() -> None:
    theirs: Any = vit()
    extra = {"vit.pooler.dense.weight": torch.zeros(32, 32), "vit.pooler.dense.bias": torch.zeros(32)}
    extra["vit.embeddings.mask_token"] = torch.zeros(1, 1, 32)
    plain, more = (
        huggingface_vit.read_classifier(state, theirs.config.to_dict(), Hints())
        for state in (theirs.state_dict(), theirs.state_dict() | extra)
    )
    assert plain.state.keys() == more.state.keys()


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_transformers_opens_what_is_written(tmp_path: Path, qkv_bias: bool) -> None:
    config = VisionConfig(
        image_size=40, patch_size=8, in_channels=1, width=32, depth=2, num_heads=4, mlp_dim=80, norm_eps=1e-3,
        activation="gelu_tanh", qkv_bias=qkv_bias,
    )  # fmt: skip
    ours = ViTClassifier(config, 3)
    randomise(ours)
    info, tensors = huggingface_vit.write_classifier(config, ours.state_dict(), ("a", "b", "c"), 42)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(info))
    theirs: Any = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == info["architectures"][0]
    theirs.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == tensors.keys()
    assert theirs.config.id2label == dict(enumerate("abc"))
    assert theirs.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert (theirs.config.image_size, theirs.dtype) == (42, torch.float32)
    images = torch.randn(3, 1, 42, 42, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(theirs(images).logits, ours(images[..., :40, :40]), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"pool": "mean"}, "pool 'mean'"),
        ({"pool": "attention"}, "pool 'attention'"),
        ({"pre_norm": True}, "a norm before the blocks"),
        ({"patch_bias": False}, "no patch bias"),
        ({"image_size": (32, 48)}, "an image that is not square"),
        ({"image_size": (48, 32), "pool": "mean"}, "pool 'mean'; an image that is not square"),
    ],
)
def test_each_part_that_vit_lacks_is_named_and_nothing_else(changes: dict[str, Any], line: str) -> None:
    small = {"image_size": 48, "width": 32, "depth": 1, "num_heads": 4, "mlp_dim": 80}
    config = VisionConfig.from_dict(small | changes)
    with pytest.raises(ValueError, match=f"Hugging Face's.*{line}"):
        huggingface_vit.write_classifier(config, ViTClassifier(config, 2).state_dict(), ("a", "b"), 48)
