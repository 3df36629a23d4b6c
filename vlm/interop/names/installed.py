"""Curated models on this machine: whether they are here, their measured speed, their removal.

Nothing here imports huggingface_hub except `remove`, so that a list of models is printed at once.
"""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vlm.errors import InputError
from vlm.interop.names.catalog import CatalogEntry, catalog
from vlm.user_folders import cache_folder, expanded

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def is_here(entry: CatalogEntry) -> bool:
    """Return True if the weights of a curated model are on this machine."""
    return entry.repository is None or any(
        file.suffix in _WEIGHTS for file in _storage(entry.repository).glob("snapshots/*/**/*")
    )


class Measured(NamedTuple):
    """The speed of a curated model on this machine, and what computes it."""

    images_per_second: float
    backend: Literal["torch", "onnx"]


def read_speed(entry: CatalogEntry) -> Measured | None:
    """Return what `write_speed` recorded on this machine; None where nothing was measured."""
    match _speeds().get(entry.name):
        case {"images_per_second": int() | float() as speed, "backend": "torch" | "onnx" as backend}:
            return Measured(float(speed), backend)
        case int() | float() as speed:  # of earlier versions
            return Measured(float(speed), "torch")
        case _:
            return None


def usual_backend(name: str) -> Literal["torch", "onnx"]:
    """The back end that computes a model where nobody names one: the one that `vlm models get` found faster here.

    Args:
        name: a short name; any other model is computed by torch.
    """
    entry = catalog().get(name)
    measured = read_speed(entry) if entry is not None else None
    if measured is None or measured.backend == "torch" or find_spec("onnxruntime") is None:
        return "torch"
    import torch

    return "torch" if torch.cuda.is_available() else "onnx"


def write_speed(entry: CatalogEntry, measured: Measured) -> None:
    """Record the speed of a model on this machine, and its back end."""
    path = _speed_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(_speeds() | {entry.name: measured._asdict()}, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def remove(entry: CatalogEntry) -> int:
    """Delete the files of a curated model from the cache of the hub, which all libraries share.

    Args:
        entry: a model that can be downloaded again.

    Returns:
        The bytes that were freed.

    Raises:
        InputError: the model is bundled, or is not on this machine.
    """
    if entry.repository is None:
        raise InputError(f"{entry.name} is part of vlm and cannot be removed. Name a downloaded model (vlm models).")
    storage = _storage(entry.repository)
    if not storage.is_dir():
        raise InputError(f"{entry.name} is not on this machine: there is no {storage}. vlm models lists what is.")
    freed = sum(file.stat().st_size for file in storage.rglob("*") if file.is_file() and not file.is_symlink())
    shutil.rmtree(storage)
    return freed


def _storage(repository: str) -> Path:
    """The folder of a repository in the hub's cache, by huggingface_hub's rules (environment variables)."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub")
    return expanded(cache) / f"models--{repository.replace('/', '--')}"


def _speed_file() -> Path:
    return cache_folder() / "speeds.json"


def _speeds() -> dict[str, Any]:
    try:
        content: Any = json.loads(_speed_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # measured again by the next `vlm models get`
        return {}
    return content if isinstance(content, dict) else {}  # pyright: ignore[reportUnknownVariableType]
