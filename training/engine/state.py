"""Everything a run needs to go on as if it had never stopped, written so that a crash at any moment loses nothing.

A checkpoint is a folder: safetensors files, state.json, manifest.json with the sha256 of all.  It is written under a
temporary name, flushed to disk and renamed, so a folder called step-... is complete or, if the disk failed, detected.
Process 0 writes, but for weights that FSDP2 has cut (DTensor): those every process writes its part of, through
torch.distributed.checkpoint, whose safetensors any number of processes can read, cut otherwise or not at all.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.distributed.tensor import DTensor

from vlm import atomic
from vlm.training.engine.distributed import Processes


def save_state(folder: Path, step: int, state: dict[str, Any], keep: int, processes: Processes) -> Path:
    """Write `state`, nested dicts and lists of tensors and plain values, as folder/step-...; keep the last `keep`."""
    final, temporary = folder / f"step-{step:08d}", folder / f".writing-{step:08d}"
    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    if processes.rank == 0:
        clear(temporary)
        temporary.mkdir(parents=True)
    if _cut(tensors):
        dist.barrier()
        save_parts(tensors, storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True))
        dist.barrier()
    elif processes.rank == 0:
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary / "tensors.safetensors")
    if processes.rank == 0:
        (temporary / "state.json").write_text(json.dumps({"step": step, "state": plain}), encoding="utf-8")
        sums = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps(sums), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            atomic.sync(path)
        clear(final)
        temporary.rename(final)
        atomic.sync(folder)
        for old in saved(folder)[keep:]:
            clear(old)
    return final


def newest(folder: Path, processes: Processes, say: Callable[[str], object]) -> Path | None:
    """The last checkpoint that is whole, or None; a damaged one is named aloud and the one before it taken.

    Process 0 looks, and the others follow it.
    """
    step = -1
    if processes.rank == 0:
        for leftover in (*folder.glob(".writing-*"), *folder.glob(".deleting-*")):  # by a run that was killed
            shutil.rmtree(leftover)
        for path in saved(folder):
            if (problem := _problem(path)) is None:
                step = int(path.name.removeprefix("step-"))
                break
            say(f"checkpoint {path} is damaged ({problem}); going back to the one before it.")
    step = int(processes.all_gather(torch.tensor([step], device=processes.device))[0])
    return folder / f"step-{step:08d}" if step >= 0 else None


def load_state(path: Path, like: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """(step, state) of a checkpoint.  The tensors of `like`, which is of the same kind, receive the values.

    `ValueError` if the checkpoint's tensors have other names or shapes.
    """
    written = json.loads((path / "state.json").read_text(encoding="utf-8"))
    tensors: dict[str, Tensor] = {}
    _split(like, "", tensors)
    names = _tensor_names(written["state"])
    shapes = {name: list(t.shape) for name, t in tensors.items()}
    if names != shapes:
        wrong = sorted(name for name in names.keys() | shapes.keys() if names.get(name) != shapes.get(name))
        raise ValueError(
            f"{path} belongs to another model or recipe; {len(wrong)} tensors differ: {', '.join(wrong[:5])}."
        )
    alone = not dist.is_initialized()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is: that is what no_dist says
        load_parts(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=alone)
    return written["step"], _join(written["state"], tensors)


def recorded(path: Path, name: str) -> Any:
    """The plain value called `name` in the state of a checkpoint; tensors are not read."""
    written = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return _join(dict(written["state"]["pairs"])[name], {})


def saved(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def clear(path: Path) -> None:
    """Delete a folder; half of it is never to be seen under its name."""
    doomed = path.with_name(".deleting-" + path.name.removeprefix("."))
    shutil.rmtree(doomed, ignore_errors=True)
    if path.exists():
        path.rename(doomed)
        shutil.rmtree(doomed)


def _problem(path: Path) -> str | None:
    try:
        sums = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name in {"state.json", *sums}:
            if _sha256(path / name) != sums[name]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None


def _cut(tensors: dict[str, Tensor]) -> bool:
    return any(isinstance(t, DTensor) for t in tensors.values())


def _split(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move tensors out of `tree`; what is left is JSON.  Dictionaries become lists of pairs: keys may be numbers."""
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach()
        return {"tensor": name, "shape": list(tree.shape)}
    if isinstance(tree, dict):
        return {"pairs": [[key, _split(value, f"{name}/{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {"items": [_split(value, f"{name}/{i}", tensors) for i, value in enumerate(tree)]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"plain": tree}
    raise TypeError(f"{name} is a {type(tree).__name__}; a checkpoint holds tensors and plain values.")


def _join(tree: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    match tree:
        case {"tensor": name}:
            return tensors[name]
        case {"pairs": pairs}:
            return {key: _join(item, tensors) for key, item in pairs}
        case {"items": items}:
            return [_join(item, tensors) for item in items]
    return tree["plain"]


def _tensor_names(tree: dict[str, Any]) -> dict[str, list[int]]:
    match tree:
        case {"tensor": name, "shape": shape}:
            return {name: shape}
        case {"pairs": pairs}:
            return {name: shape for _, item in pairs for name, shape in _tensor_names(item).items()}
        case {"items": items}:
            return {name: shape for item in items for name, shape in _tensor_names(item).items()}
    return {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
