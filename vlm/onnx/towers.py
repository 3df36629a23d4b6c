"""Exports the encoders of a model as ONNX files, for any batch size and text length."""

import json
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.config import TextConfig, VisionConfig
from vlm.errors import InputError
from vlm.models.clip import CLIP
from vlm.models.vision import ViTClassifier

ONE_FILE = 1_500_000_000  # bytes of weights; above, they lie in a second file: a protobuf ends at 2 GiB


def write_images(model: CLIP, path: Path) -> None:
    """Write the image encoder: pixels (B, C, H, W) -> embeds (B, E), unit vectors."""
    _write(path, _ImageTower(model), _images(model.config.vision), ("pixels", "embeds"), ("batch",))


def write_texts(model: CLIP, path: Path) -> None:
    """Write the text encoder: ids (B, T) -> embeds (B, E), unit vectors.  Raises `InputError` as `check_texts` does."""
    config = model.config.text
    check_texts(config)
    ids = torch.full((2, max(2, config.context_length - 1)), config.eot_id)
    _write(path, _TextTower(model), ids, ("ids", "embeds"), ("batch", "length"))


def write_classifier(model: ViTClassifier, path: Path) -> None:
    """Write a classifier: pixels (B, C, H, W) -> logits (B, M), for any B.

    The file's metadata says what a program without this library needs: labels, image_size, mean, std, resize and more.
    """
    _write(path, _Classifier(model), _images(model.vision.config), ("pixels", "logits"), ("batch",))
    import onnx

    written = onnx.load(path, load_external_data=False)
    known = {entry.key: entry.value for entry in written.metadata_props}
    onnx.helper.set_model_props(written, known | _metadata(model))
    onnx.save(written, path)


def _metadata(model: ViTClassifier) -> dict[str, str]:
    """Values as JSON."""
    values: dict[str, object] = {"labels": list(model.labels), "problem": model.problem}
    if model.thresholds is not None:
        values["thresholds"] = list(model.thresholds)
    if model.preprocess is not None:
        config = model.preprocess.config
        values |= {
            "image_size": list(config.image_shape),
            "resize_size": list(config.resize_shape),
            "resize": config.resize,
            "interpolation": config.interpolation,
            "mean": list(config.mean),
            "std": list(config.std),
            "fill": config.fill,
        }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def check_texts(config: TextConfig) -> None:
    """Raise `InputError` for a text encoder that `_TextTower` does not express."""
    if not config.causal and not config.pad_to_context:
        raise InputError(
            "ONNX export does not support a bidirectional text encoder that ignores its padding. Export a model with a "
            "causal mask, or one trained on padded rows."
        )
    if config.pool == "mean":
        raise InputError("ONNX export does not support text pool 'mean'. Export a model with pool 'eot' or 'last'.")


# The modules below compute all tokens: packing and single tokens have no static graph.


class _ImageTower(nn.Module):
    def __init__(self, model: CLIP):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.model.vision_proj(self.model.vision.features(pixels).pooled), dim=-1)


class _TextTower(nn.Module):
    def __init__(self, model: CLIP):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        text, config = self.model.text, self.model.config.text
        if config.pad_to_context:
            ids = F.pad(ids, (0, config.context_length - ids.shape[1]), value=config.pad_id)
        z = text.token_embed(ids) + text.pos_embed[: ids.shape[1]]  # (B, T, D)
        for block in text.blocks:
            z = block(z)
        ends = (ids == config.eot_id).int().argmax(1) if config.pool == "eot" else torch.full_like(ids[:, 0], -1)
        features = text.norm(z[torch.arange(z.shape[0]), ends])  # (B, D)
        return F.normalize(self.model.text_proj(features), dim=-1)


class _Classifier(nn.Module):
    def __init__(self, model: ViTClassifier):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.head(self.model.vision.features(pixels).pooled)


def _images(config: VisionConfig) -> Tensor:
    return torch.zeros(2, config.in_channels, *config.image_shape)


def _write(path: Path, tower: nn.Module, example: Tensor, names: tuple[str, str], free: tuple[str, ...]) -> None:
    """`free`: names of the leading axes that may have any length."""
    size = sum(weight.numel() * weight.element_size() for weight in tower.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            tower.eval(),
            (example,),
            path,
            input_names=names[:1],
            output_names=names[1:],
            dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in enumerate(free)},),
            dynamo=True,
            external_data=size > ONE_FILE,
            verbose=False,
        )
    assert program is not None
    shape = program.model.graph.inputs[0].shape
    if shape is None or any(isinstance(shape[axis], int) for axis in range(len(free))):  # it falls back without a word
        raise RuntimeError(f"The ONNX exporter fixed {names[0]} at {shape}, although {', '.join(free)} must be free.")
