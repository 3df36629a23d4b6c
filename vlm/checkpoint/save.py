"""Writes a model folder, the one format of this library: whole, checked and free of code.

config.json         kind, architecture, preprocessing, labels
model.safetensors   the weights; matrices may be float16, loaded as float32
(tokenizer files)   as `vlm/tokenizers/protocol.py` writes them
README.md           the model card
manifest.json       sha256 of every file above, and of itself
"""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from vlm.atomic import replacing, replacing_folder, restore
from vlm.calibration import Calibration
from vlm.checkpoint.card import short_card
from vlm.checkpoint.manifest import listed_files, manifest_text, sha256
from vlm.checkpoint.sources import FORMAT, read_config
from vlm.checkpoint.weights import stored
from vlm.embedder import Embedder
from vlm.errors import CheckpointError
from vlm.models.vision import CosineHead, ViTClassifier
from vlm.user_folders import expanded


def save(
    model: Embedder | ViTClassifier, folder: str | Path, card: str | None = None, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a model folder that `load` or `load_classifier` opens.  The write is atomic.

    Args:
        model: the model.
        folder: new or empty, or a model folder, which is replaced as a whole.
        card: the text of README.md; None writes a short one.
        dtype: format of the stored matrices; float16 halves the file.

    Raises:
        CheckpointError: the folder holds other files, or a weight is not finite.
        OSError: the folder cannot be written; an older model there is unchanged.
    """
    folder = expanded(folder).absolute()
    if isinstance(model, Embedder):
        weights, (tokenizer, preprocess) = model.model, model.parts()
        config: dict[str, Any] = {"format": FORMAT, "kind": "clip", "model": weights.config.to_dict()}
        config["calibration"] = model.calibration.to_dict() if model.calibration else None
    else:
        weights, tokenizer, preprocess = model, None, model.preprocess
        config = {"format": FORMAT, "kind": "vit_classifier", "model": model.vision.config.to_dict()}
        config["labels"] = list(model.labels)
        config["head"] = model.head.config.to_dict() if isinstance(model.head, CosineHead) else None
        if model.problem != "single_label":  # absent in folders of older versions
            config |= {"problem": model.problem, "thresholds": model.thresholds and list(model.thresholds)}
    config["preprocess"] = preprocess.config.to_dict() if preprocess else None
    config["tokenizer"] = tokenizer is not None
    tensors = {name: stored(name, weight, dtype) for name, weight in weights.state_dict().items()}
    restore(folder)
    _check_replaceable(folder)
    with replacing_folder(folder) as new:
        if tokenizer is not None:
            tokenizer.save(new)
        safetensors.torch.save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        _write_json(new / "config.json", config)
        (new / "README.md").write_text(card or short_card(folder.name, config, weights), encoding="utf-8")
        names = sorted(str(path.relative_to(new)) for path in new.rglob("*") if path.is_file())
        (new / "manifest.json").write_text(
            manifest_text({name: sha256(new / name) for name in names}), encoding="utf-8"
        )


def save_calibration(folder: str | Path, calibration: Calibration, card: str) -> None:
    """Add a calibration to a model folder; its weights are unchanged.

    Args:
        folder: a model folder.
        calibration: replaces the one there.
        card: the new text of README.md.
    """
    folder = expanded(folder).absolute()
    config = {**read_config(folder, "clip"), "calibration": calibration.to_dict()}
    with (  # all three are written before the first is renamed
        replacing(folder / "manifest.json") as new_manifest,
        replacing(folder / "README.md") as new_card,
        replacing(folder / "config.json") as new_config,
    ):
        _write_json(new_config, config)
        new_card.write_text(card, encoding="utf-8")
        sums = {"config.json": sha256(new_config), "README.md": sha256(new_card)}
        new_manifest.write_text(manifest_text({**listed_files(folder), **sums}), encoding="utf-8")


def _check_replaceable(folder: Path) -> None:
    """Raise `CheckpointError` where the folder holds anything but a model."""
    if not folder.exists():
        return
    ours = listed_files(folder) if (folder / "manifest.json").is_file() else ()
    foreign = sorted(
        {path.name for path in folder.iterdir()} - {Path(name).parts[0] for name in ours} - {"manifest.json"}
    )
    if foreign:
        raise CheckpointError(
            f"{folder} holds other files, which would be lost: {', '.join(foreign[:5])}. Name a new or empty folder."
        )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
