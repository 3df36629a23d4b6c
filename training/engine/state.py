"""Checkpoints of a run: everything the next step depends on.  Writes are atomic: a partial checkpoint is never visible.

A checkpoint is a folder: safetensors files, state.json, manifest.json with the sha256 of all.  `Saver.save` copies the
tensors to the CPU; writing, hashing, flushing and renaming happen in a thread while training goes on.  Process 0
writes, except for weights that FSDP2 has sharded (DTensor): every process writes its part of those through
torch.distributed.checkpoint, whose safetensors any number of processes can read, sharded differently or not at all.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

from vlm import atomic
from vlm.errors import CheckpointError
from vlm.training.engine.distributed import Processes


class Saver:
    """Writes checkpoints of a run one after the other, in the background.

    Args:
        folder: receives step-... folders.
        keep: how many of them stay.
        processes: all must call the methods.
    """

    def __init__(self, folder: Path, keep: int, processes: Processes):
        self.folder, self.keep, self.processes = folder, keep, processes
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None
        self.group: Any = None  # gloo, for the threads alone: collectives of two threads must not mix

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Begin to write folder/step-...; the state may change as soon as this returns.

        Args:
            step: number of steps done.
            state: nested dicts and lists of tensors and plain values.

        Returns:
            The folder, complete once `wait` has returned.
        """
        self.wait()
        final, temporary = self.folder / f"step-{step:08d}", self.folder / f".writing-{step:08d}"
        tensors: dict[str, Tensor] = {}
        plain = json.dumps({"step": step, "state": _split(state, "", tensors)})
        if self.processes.rank == 0:
            clear(temporary)
            temporary.mkdir(parents=True)
        sharded = any(isinstance(t, DTensor) for t in tensors.values())
        if sharded:
            self.processes.barrier()
            self.group = self.group or (dist.new_group(backend="gloo") if dist.is_initialized() else None)
            storage = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
            parts: Any = async_save(tensors, storage_writer=storage, process_group=self.group)
            write = parts.result
        else:
            copies = {name: _copy(t) for name, t in tensors.items()} if self.processes.rank == 0 else {}

            def write() -> None:
                if self.processes.rank == 0:
                    save_file(copies, temporary / "tensors.safetensors")

        self.pending = self.thread.submit(self._finish, write, temporary, final, plain)
        return final

    def _finish(self, write: Callable[[], object], temporary: Path, final: Path, plain: str) -> None:
        """Runs in the thread: the manifest, the flush and the rename; then old checkpoints are deleted."""
        write()
        if self.processes.rank != 0:
            return
        (temporary / "state.json").write_text(plain, encoding="utf-8")
        sums = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps(sums), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            atomic.sync(path)
        clear(final)
        temporary.rename(final)
        atomic.sync(self.folder)
        for old in saved(self.folder)[self.keep :]:
            clear(old)

    def wait(self) -> None:
        """Until the checkpoint under way is on the disk; raises what went wrong with it."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def close(self) -> None:
        """Wait and end the thread."""
        try:
            self.wait()
        finally:
            self.thread.shutdown()


def save_state(folder: Path, step: int, state: dict[str, Any], keep: int, processes: Processes) -> Path:
    """Write one checkpoint and wait for it.

    Args:
        folder: receives step-...
        step: number of steps done.
        state: nested dicts and lists of tensors and plain values.
        keep: how many checkpoints stay.
        processes: all must call this.
    """
    saver = Saver(folder, keep, processes)
    path = saver.save(step, state)
    saver.close()
    return path


def newest(folder: Path, processes: Processes, say: Callable[[str], object]) -> Path | None:
    """The last complete checkpoint, or None.  Process 0 looks, and the others follow it.

    Args:
        folder: the run's checkpoints.
        processes: all must call this.
        say: told of each damaged checkpoint; the one before it is taken.
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
    step = processes.gather_objects(step)[0]
    return folder / f"step-{step:08d}" if step >= 0 else None


def load_state(path: Path, like: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Read a checkpoint into existing tensors.

    Args:
        path: a step-... folder.
        like: a state of the same kind; its tensors receive the values.

    Returns:
        (step, state).

    Raises:
        CheckpointError: the checkpoint's tensors have other names or shapes.
    """
    written = json.loads((path / "state.json").read_text(encoding="utf-8"))
    tensors: dict[str, Tensor] = {}
    _split(like, "", tensors)
    names = _tensor_names(written["state"])
    shapes = {name: list(t.shape) for name, t in tensors.items()}
    if names != shapes:
        wrong = sorted(name for name in names.keys() | shapes.keys() if names.get(name) != shapes.get(name))
        raise CheckpointError(
            f"{path} belongs to another model or recipe; {len(wrong)} tensors differ: {', '.join(wrong[:5])}. Resume "
            "with the recipe that began the run, or name another --out."
        )
    single = not dist.is_initialized()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is: no_dist says so
        load_parts(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=single)
    return written["step"], _join(written["state"], tensors)


def recorded(path: Path, name: str) -> Any:
    """The plain value called `name` in the state of a checkpoint; tensors are not read."""
    written = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return _join(dict(written["state"]["pairs"])[name], {})


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def clear(path: Path) -> None:
    """Delete a folder.  It is renamed first, so that a half-deleted one is never visible under its name."""
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


def _copy(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own."""
    return (
        tensor.cpu().contiguous()
        if tensor.device.type != "cpu"
        else tensor.clone(memory_format=torch.contiguous_format)
    )


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
