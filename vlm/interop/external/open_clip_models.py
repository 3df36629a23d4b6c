"""Models that open_clip computes: ResNet, ConvNeXt, EVA, ViTamin, MobileCLIP, PE-Core, CoCa, others' text encoders."""

import copy
import json
import os
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.errors import CheckpointError
from vlm.images.preprocess import Preprocess
from vlm.interop.external.external_clip import ExternalClip, ExternalTokenizer, files_identity, plain
from vlm.interop.formats.foreign import exact, one_line
from vlm.interop.formats.openclip_config import to_preprocess
from vlm.interop.hub.openclip_registry import import_open_clip
from vlm.interop.selection import TOKENIZER_FILES
from vlm.interop.sources import Files
from vlm.models.external import ExternalModel


def open_openclip(files: Files, source: str) -> ExternalClip:
    """Open a model as `open_clip.create_model` does, without the hub: from the files that are on this machine.

    Raises:
        CheckpointError: OpenCLIP refuses the files.
        MissingPackageError: OpenCLIP is not installed.
    """
    open_clip = import_open_clip()
    assert files.info is not None
    assert files.weights is not None
    model_cfg = copy.deepcopy(files.info["model_cfg"])
    text: dict[str, Any] = model_cfg["text_cfg"]
    if files.text_model is not None:
        text["hf_model_name"] = str(files.text_model)
    with _staged(model_cfg, files) as folder:
        try:
            model: Any = open_clip.create_model(f"local-dir:{folder}").eval()
            tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
        except Exception as error:  # on a damaged config OpenCLIP raises almost anything
            raise CheckpointError(
                f"{source}: open_clip cannot open this model ({one_line(error)}). Are its files whole, and is "
                "open_clip_torch new enough?"
            ) from error
    said: dict[str, Any] = files.info.get("preprocess_cfg") or {}
    given = {name: value for name, value in said.items() if name != "size"}
    preprocess = to_preprocess(given, _image_size(model))
    scale, bias = model.logit_scale, getattr(model, "logit_bias", None)
    external = ExternalModel(
        model,
        images=_images,
        texts=_texts,
        library="open_clip",
        name=source,
        identity={
            "library": "open_clip",
            "model_cfg": plain(files.info["model_cfg"]),
            "tokenizer": files_identity(files.tokenizer, TOKENIZER_FILES),
        },
        embed_dim=int(model_cfg["embed_dim"]),
        logit_scale=scale,
        logit_bias=bias,
    )
    return ExternalClip(external, _wrap(tokenizer, model), Preprocess(exact(preprocess)))


def _images(model: Any, pixels: Tensor) -> Tensor:
    return model.encode_image(pixels)


def _texts(model: Any, ids: Tensor) -> Tensor:
    return model.encode_text(ids)


def _image_size(model: Any) -> int | tuple[int, int]:
    size = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(height) if height == width else (int(height), int(width))


@contextmanager
def _staged(model_cfg: dict[str, Any], files: Files) -> Generator[Path]:
    """A folder as OpenCLIP's "local-dir:" wants it: the config, the weights, the tokenizer's files."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what OpenCLIP and timm say about arguments that the checkpoint decides
        folder = Path(place)
        settings = {"model_cfg": model_cfg, "preprocess_cfg": {}}
        (folder / "open_clip_config.json").write_text(json.dumps(settings), encoding="utf-8")
        assert files.weights is not None
        _link(files.weights, folder / f"open_clip_model{_suffix(files.weights)}")
        if files.tokenizer is not None and model_cfg["text_cfg"].get("hf_tokenizer_name"):
            for name in TOKENIZER_FILES - {"open_clip_config.json"}:
                if (files.tokenizer / name).is_file():
                    _link(files.tokenizer / name, folder / name)
        yield folder


def _suffix(weights: Path) -> str:
    return ".safetensors" if weights.suffix == ".safetensors" else ".bin"


def _link(source: Path, target: Path) -> None:
    target = target.with_name(target.name.replace("open_clip_model.bin", "open_clip_pytorch_model.bin"))
    os.symlink(source.resolve(), target)


def _wrap(tokenizer: Any, model: Any) -> ExternalTokenizer:
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # HFTokenizer keeps that of transformers
    eot = getattr(inner, "eos_token_id", None) or getattr(inner, "sep_token_id", None)
    eot = getattr(tokenizer, "eot_token_id", 0) if eot is None else eot
    pad = getattr(inner, "pad_token_id", None)
    vocab = int(getattr(model, "vocab_size", 0) or getattr(inner, "vocab_size", 0) or len(inner))

    def tokenize(texts: list[str]) -> Tensor:
        return torch.as_tensor(tokenizer(texts))

    return ExternalTokenizer(
        tokenize,
        context_length=int(tokenizer.context_length),
        vocab_size=max(vocab, int(eot) + 1),
        eot_id=int(eot),
        pad_id=int(pad or 0),
        decode=lambda ids: str(inner.decode(ids)),
    )
