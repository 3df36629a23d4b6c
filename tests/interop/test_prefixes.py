"""Names behind what wrappers put before them: the same model as without, in every layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers

from tests.interop.test_huggingface import clip, siglip
from tests.support.foreign_models import randomise
from tests.support.open_clip_models import shrunk, write
from vlm.interop.loading import load_foreign, load_foreign_classifier

_VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 16, "num_labels": 3,
}  # fmt: skip


def _saved(model: Any, folder: Path) -> Any:
    randomise(model)
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    return model


def _openclip(folder: Path) -> Any:
    model = write(shrunk("ViT-B-32"), folder)
    (folder / "open_clip_model.safetensors").unlink()
    return model


def _timm(folder: Path) -> Any:
    return randomise(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3))


LAYOUTS: dict[str, tuple[Callable[[Path], Any], str, Any]] = {  # layout -> (writes the config, weight file, opens)
    "OpenCLIP": (_openclip, "open_clip_pytorch_model.bin", load_foreign),
    "Hugging Face CLIP": (lambda folder: _saved(clip(), folder), "pytorch_model.bin", load_foreign),
    "Hugging Face SigLIP": (lambda folder: _saved(siglip(), folder), "pytorch_model.bin", load_foreign),
    "Hugging Face ViT": (
        lambda folder: _saved(transformers.ViTForImageClassification(transformers.ViTConfig(**_VIT)), folder),
        "pytorch_model.bin", load_foreign_classifier,
    ),
    "Hugging Face DINOv2": (
        lambda folder: _saved(
            transformers.Dinov2Model(transformers.Dinov2Config(
                **{k: v for k, v in _VIT.items() if k != "intermediate_size"})), folder),
        "pytorch_model.bin", load_foreign_classifier,
    ),
    "timm": (_timm, "model.pth", load_foreign_classifier),
    "torchvision": (
        lambda folder: randomise(torchvision.models.VisionTransformer(
            image_size=32, patch_size=16, num_layers=1, num_heads=3, hidden_dim=192, mlp_dim=64, num_classes=3)),
        "model.pth", load_foreign_classifier,
    ),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "student.backbone."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_behind_a_wrappers_prefix_are_the_same_model(tmp_path: Path, layout: str, prefix: str) -> None:
    make, file, open_model = LAYOUTS[layout]
    state = {name: tensor.clone() for name, tensor in make(tmp_path).state_dict().items()}
    torch.save(state, tmp_path / file)
    plain = open_model(str(tmp_path))
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in state.items()}, "epoch": 3}, tmp_path / file)
    found = open_model(str(tmp_path))
    assert found.config == plain.config
    assert found.state.keys() == plain.state.keys()
    assert all(torch.equal(found.state[name], plain.state[name]) for name in plain.state)
