"""OpenCLIP's own models at a size that a test can afford, with random weights, as OpenCLIP's repositories hold them."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import timm
from safetensors.torch import save_file
from torch import nn

from tests.support.foreign_models import randomise

_SHALLOW: tuple[dict[str, Any], ...] = ({"depth": 1}, {"depths": (1, 1, 1, 1)}, {"layers": (1, 1, 1, 1)}, {})
_FIVE_STAGES = ("fastvit_mci3", "fastvit_mci4")  # of MobileCLIP2-S3 and S4; four layers would leave one stage out


@contextmanager
def shallow_timm() -> Iterator[None]:
    """timm builds the towers of OpenCLIP with one block in each stage, whoever asks."""
    create = timm.create_model

    def shallow(name: str, **settings: Any) -> nn.Module:
        for cut in ({"layers": (1,) * 5},) if name in _FIVE_STAGES else _SHALLOW:
            try:
                arguments: dict[str, Any] = settings | {"pretrained": False} | cut
                return create(name, **arguments)
            except (TypeError, AssertionError, ValueError, IndexError):  # this architecture has other arguments
                continue
        raise AssertionError(name)

    with mock.patch("open_clip.timm_model.timm.create_model", shallow):
        yield


def shrunk(name: str) -> dict[str, Any]:
    """OpenCLIP's config of a model with the same flags: one layer, narrow texts."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    assert config is not None
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "hf_model_name" not in text:
        text |= {"layers": 1} if text.get("proj_type") == "none" else {"layers": 1, "width": 64, "heads": 4}
    if "timm_model_name" not in vision:
        if isinstance(vision["layers"], list):
            vision |= {"layers": [1, 1, 1, 1], "width": 16}
        else:
            vision |= {"layers": 1, "width": 64, "head_width": 16}
            vision["image_size"] = vision["patch_size"] * 3
            if vision.get("attentional_pool"):
                vision["attn_pooler_heads"] = 2
    if vision.get("timm_proj") != "none" and text.get("proj_type") != "none":
        config["embed_dim"] = 32
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"layers": 1, "width": 64, "heads": 4}
        config["embed_dim"] = 64
    return config


def write(config: dict[str, Any], folder: Path, preprocess: dict[str, Any] | None = None) -> Any:
    """Build with random weights, and write the repository's files; returns the model."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    model: Any = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    randomise(model)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors", {"format": "pt"})
    return model


def small_open_clip(name: str, folder: Path) -> tuple[Any, Any, Any]:
    """(model, preprocessing, tokenizer) of OpenCLIP, its files written to `folder`."""
    write(shrunk(name), folder)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")
