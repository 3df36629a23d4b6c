"""What other libraries make of image files and texts with their own processors, tokenizers and models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor

from tests.support.open_clip_models import shallow_timm


@dataclass(frozen=True)
class Peer:
    """What the library itself makes of files and texts; no texts for a classifier or backbone."""

    images: Callable[[Sequence[Path]], Tensor]
    texts: Callable[[Sequence[str]], Tensor] | None = None


def opened(paths: Sequence[Path]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths]


def transformers_peer(model: Any, processor: Any, tokenizer: Any, *, padding: str = "max_length") -> Peer:
    """A dual encoder of transformers with its own processor (Pillow's filters) and tokenizer."""
    model = model.eval()

    def images(paths: Sequence[Path]) -> Tensor:
        with torch.inference_mode():
            return _vector(model.get_image_features(**processor(opened(paths), return_tensors="pt")))

    def texts(lines: Sequence[str]) -> Tensor:
        given = tokenizer(list(lines), padding=padding, truncation=True, max_length=16, return_tensors="pt")
        names = ("input_ids", "attention_mask") if padding == "longest" else ("input_ids",)
        with torch.inference_mode():
            return _vector(model.get_text_features(**{name: given[name] for name in names if name in given}))

    return Peer(images, texts)


def _vector(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output


def openclip_peer(folder: Path) -> Peer:
    """A model that OpenCLIP opens from a folder, with its own preprocessing and tokenizer."""
    with shallow_timm():
        model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    network: Any = model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    call: Any = prepare

    def images(paths: Sequence[Path]) -> Tensor:
        with torch.inference_mode():
            return network.encode_image(torch.stack([call(image) for image in opened(paths)]))

    def texts(lines: Sequence[str]) -> Tensor:
        with torch.inference_mode():
            return network.encode_text(tokenizer(list(lines)))

    return Peer(images, texts)


def timm_peer(model: Any, config: dict[str, Any]) -> Peer:
    """A classifier of timm with the transform that timm makes of a config."""
    prepare: Any = create_transform(**resolve_data_config({}, pretrained_cfg=config), is_training=False)

    def images(paths: Sequence[Path]) -> Tensor:
        with torch.inference_mode():
            return model.eval()(torch.stack([prepare(image) for image in opened(paths)]))

    return Peer(images)
