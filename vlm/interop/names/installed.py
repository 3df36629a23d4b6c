"""Curated models on this machine: whether they are here, their measured speed, their removal.

Nothing here imports huggingface_hub except `remove`, so that a list of models is printed at once.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from vlm.errors import InputError
from vlm.interop.names.catalog import CatalogEntry
from vlm.user_folders import cache_folder

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def is_here(entry: CatalogEntry) -> bool:
    """Return True if the weights of a curated model are on this machine."""
    return entry.repository is None or any(
        file.suffix in _WEIGHTS for file in _storage(entry.repository).glob("snapshots/*/**/*")
    )


def read_speed(entry: CatalogEntry) -> float | None:
    """Return the images per second that `write_speed` recorded on this machine; None where nothing was measured."""
    value = _speeds().get(entry.name)
    return float(value) if isinstance(value, int | float) else None


def write_speed(entry: CatalogEntry, images_per_second: float) -> None:
    """Record the speed of a model on this machine."""
    path = _speed_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(_speeds() | {entry.name: images_per_second}, indent=1) + "\n", encoding="utf-8")
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
    return cache.expanduser() / f"models--{repository.replace('/', '--')}"


def _speed_file() -> Path:
    return cache_folder() / "speeds.json"


def _speeds() -> dict[str, Any]:
    try:
        content: Any = json.loads(_speed_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # measured again by the next `vlm models get`
        return {}
    return content if isinstance(content, dict) else {}  # pyright: ignore[reportUnknownVariableType]
