"""Tiny ViTs without a head, written to disk by the libraries that publish such models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._hub import save_for_hf
from torch import Tensor, nn
from transformers import (
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
    "size": {"height": 32, "width": 32}, "resample": 2, "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
Features = Callable[[Tensor], Tensor]  # images (B, 3, 32, 32) -> tokens after the last norm (B, N, D)


def _random(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.1, generator=generator)
    return model.eval()


def _hugging_face(model: nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))


def vit_model(folder: Path) -> Features:
    """transformers' ViTModel, as the in21k checkpoints are."""
    model = _random(ViTModel(ViTConfig(**SIZES)))
    _hugging_face(model, folder)
    return lambda images: model(images).last_hidden_state


def mae(folder: Path) -> Features:
    """transformers' ViTMAEModel; its mask is switched off, the order of the patches kept."""
    model = _random(ViTMAEModel(ViTMAEConfig(**SIZES, mask_ratio=0.0)))
    _hugging_face(model, folder)
    return lambda images: model(images, noise=torch.arange(16.0).expand(len(images), -1)).last_hidden_state


def dinov2(folder: Path) -> Features:
    """transformers' Dinov2Model, with its LayerScale."""
    sizes = {name: value for name, value in SIZES.items() if name != "intermediate_size"}
    model = _random(Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2)))
    _hugging_face(model, folder)
    return lambda images: model(images).last_hidden_state


def deit(folder: Path) -> Features:
    """transformers' DeiTModel, with its distillation token."""
    model = _random(DeiTModel(DeiTConfig(**SIZES)))
    _hugging_face(model, folder)
    return lambda images: model(images).last_hidden_state


def timm_vit(folder: Path, name: str = "vit_base_patch16_224") -> Features:
    """timm with num_classes = 0."""
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = _random(timm.create_model(name, num_classes=0, **sizes))
    save_for_hf(model, str(folder))
    return model.forward_features  # type: ignore[return-value]


def timm_deit(folder: Path) -> Features:
    """timm's DeiT with num_classes = 0."""
    return timm_vit(folder, "deit_base_patch16_224")


KINDS = {
    "ViTModel": vit_model, "ViTMAEModel": mae, "Dinov2Model": dinov2, "DeiTModel": deit, "timm ViT": timm_vit,
    "timm DeiT": timm_deit,
}  # fmt: skip
