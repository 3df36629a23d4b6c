"""Everything a run needs to go on as if it had never stopped, written so that a crash at any moment loses nothing.

A checkpoint is a folder: tensors.safetensors, state.json, manifest.json with the sha256 of both.  It is written under a
temporary name, flushed to disk and renamed, so a folder called step-... is complete or, if the disk failed, detected.
"""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def save_state(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state` (nested dicts and lists of tensors and plain values) as folder/step-..., and keep the last `keep`."""
    final = folder / f"step-{step:08d}"
    temporary = folder / f".writing-{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    save_file(tensors, temporary / "tensors.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": step, "state": plain}), encoding="utf-8")
    sums = {name: _sha256(temporary / name) for name in ("tensors.safetensors", "state.json")}
    (temporary / "manifest.json").write_text(json.dumps(sums), encoding="utf-8")
    for path in (*temporary.iterdir(), temporary):
        _flush(path)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _flush(folder)
    for old in _saved(folder)[keep:]:
        shutil.rmtree(old)
    return final


def load_state(folder: Path, say=print) -> tuple[int, dict[str, Any]] | None:
    """(step, state) of the newest checkpoint that is whole, or None; a damaged one is named and the one before it used."""
    for saved in _saved(folder):
        try:
            sums = json.loads((saved / "manifest.json").read_text(encoding="utf-8"))
            for name in ("tensors.safetensors", "state.json"):
                if _sha256(saved / name) != sums[name]:
                    raise ValueError(f"{name} does not match its checksum")
            tensors = load_file(saved / "tensors.safetensors")
            written = json.loads((saved / "state.json").read_text(encoding="utf-8"))
            return written["step"], _join(written["state"], tensors)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            say(f"checkpoint {saved} is damaged ({error}); going back to the one before it.")
    return None


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators (every device)."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # type: ignore[misc]
    version, numbers, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(numbers), gauss_next],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, gauss_next = states["python"]
    random.setstate((version, tuple(numbers), gauss_next))


def _saved(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _split(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move tensors out of `tree`; what is left is JSON.  Dictionaries become lists of pairs: their keys may be numbers."""
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"pairs": [[key, _split(value, f"{name}/{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {"items": [_split(value, f"{name}/{i}", tensors) for i, value in enumerate(tree)]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"plain": tree}
    raise TypeError(f"{name} is a {type(tree).__name__}; a checkpoint holds tensors and plain values.")


def _join(tree: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "pairs":
        return {key: _join(item, tensors) for key, item in value}
    if kind == "items":
        return [_join(item, tensors) for item in value]
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
