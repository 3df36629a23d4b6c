"""The folder of a run: what may begin in it, its marker, its lock, and the finished model in it."""

import fcntl
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm import atomic
from vlm.checkpoint.save import save
from vlm.embedder import Embedder
from vlm.errors import InputError, RunFolderError
from vlm.models.vision import ViTClassifier
from vlm.training.engine.loop import Rehearsal
from vlm.training.engine.state import recorded, saved
from vlm.training.recipe.sections import RunSection
from vlm.user_folders import expanded

_log = logging.getLogger(__name__)

MARKER = "run.json"  # says that a folder is a run's, with the classes and the data it began with
_VERSION = 2  # of the marker: 1 held samples out one by one where the recipe of a classifier did not say how
_OF_OLD_RUNS = ("metrics.jsonl", "checkpoints")  # runs of earlier versions have no marker
_HARMLESS = re.compile(r"\..*|.*\.log|nohup\.out")  # what may lie in a new run's folder


def check_run(out: Path, *, resume: bool, push: str | None, data: Sequence[str] = ()) -> None:
    """Refuse a folder before any work is done; nothing is written.

    Args:
        out: the folder of the run.
        resume: whether the run goes on from the checkpoints in `out`.
        push: org/name on the hub, or None.
        data: paths of the training and validation data.

    Raises:
        RunFolderError: `out` holds an earlier run, files of others, or lies in the data.
        InputError: `push` is not a name on the hub.
    """
    if push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", push):
        raise InputError(f"--push {push} is no name on the hub; wanted org/name.")
    for path in data:
        folder = expanded(path)
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise RunFolderError(f"{out} lies in the data {path}: the run's files would be read as data. Name another.")
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out} is a file; wanted a folder for the run. Name another.")
    if not out.exists():
        return
    if not is_run(out):
        others = sorted(path.name for path in out.iterdir() if not _HARMLESS.fullmatch(path.name))
        if others:
            shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
            raise RunFolderError(f"{out} is no run's folder: it holds {shown}. Name a new folder.")
    if not resume and (out / "checkpoints").exists():
        raise RunFolderError(
            f"{out} holds an earlier run's checkpoints. Add --resume auto to go on, or name another folder."
        )


def is_run(out: Path) -> bool:
    """Returns True if a training run has written the folder."""
    return (out / MARKER).exists() or any((out / name).exists() for name in _OF_OLD_RUNS)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it while the block runs.

    Raises:
        RunFolderError: another process writes into the folder; its number and machine are named.
    """
    out.mkdir(parents=True, exist_ok=True)
    folder = os.open(out, os.O_RDONLY)  # the lock is the folder's own, so that nothing is left behind
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _marker(out).get("process", "another process")
            text = f"{out} is in use: {owner} trains there. Wait for it, or name another folder with --out."
            raise RunFolderError(text) from None
        except OSError as error:  # some network drives have no locks
            _log.warning("%s cannot be locked (%s): do not start a second run in it", out, error.strerror)
        yield
    finally:
        os.close(folder)


def _marker(out: Path) -> dict[str, Any]:
    try:
        return json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@dataclass(frozen=True, kw_only=True)
class DataIdentity:
    """What a run must find again when it is resumed."""

    labels: Sequence[str] | None = None  # the classes, in the order of the model's outputs
    data_hash: str = ""  # of the training data

    def plain(self) -> dict[str, Any]:
        """Values of JSON."""
        return {"labels": None if self.labels is None else list(self.labels), "data": self.data_hash}


def begin_run(out: Path, recipe: str, data: DataIdentity = DataIdentity()) -> None:
    """Write the recipe's TOML text and the marker; the marker of a run that is resumed keeps the data it began with."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.toml").write_text(recipe, encoding="utf-8")
    known = data.plain() | {"process": f"process {os.getpid()} on {socket.gethostname()}"}
    atomic.write(out / MARKER, json.dumps({"run": _VERSION} | known, ensure_ascii=False) + "\n")


def changed_since(out: Path, data: DataIdentity) -> str:
    """Returns one line about changes since the run in `out` began; "" if there are none or none are recorded.

    Raises:
        RunFolderError: the classes are others, or in another order.
    """
    began, labels, data_hash = _began_with(out), data.labels, data.data_hash
    before = began.get("labels")
    if before is not None and labels is not None and list(labels) != before:
        gone, new = (
            ", ".join(label for label in one if label not in other) or "none"
            for one, other in ((before, labels), (labels, before))
        )
        raise RunFolderError(
            f"The classes have changed since {out} began: gone: {gone}; new: {new}. Its checkpoints number the classes "
            'as they were. Restore the data, say which class is which ([data] rename = { "new" = "old" }), or begin '
            "another run."
        )
    if began.get("data") and began["data"] != data_hash:
        return f"the training data have changed since {out} began; the run goes on with what is there now"
    return ""


def _began_with(out: Path) -> dict[str, Any]:
    """Labels and data hash of the newest checkpoint that has them, else of the marker."""
    return _recorded(out, "data") or _marker(out)


def recorded_recipe(out: Path) -> dict[str, Any] | None:
    """The recipe, as plain values, that the newest readable checkpoint in `out` was written with; None without one."""
    return _recorded(out, "recipe")


def recorded_settings(out: Path) -> dict[str, Any]:
    """The recipe of a finished classifier's run, whose checkpoints may be gone: what says which defaults it had."""
    if (recipe := recorded_recipe(out)) is not None:
        return recipe
    return {"task": "vit", "data": {"hold_out_by": "concept"} if _marker(out).get("run", 1) >= 2 else {}}


def _recorded(out: Path, name: str) -> Any:
    for path in saved(out / "checkpoints"):
        try:
            return recorded(path, name)
        except (OSError, ValueError, LookupError, TypeError):
            continue  # damaged: `newest` names it when the run begins
    return None


def forecast(found: Rehearsal, run: RunSection) -> str:
    """Returns the text of a dry run."""
    hours, minutes = divmod(round(found.seconds * run.steps / 60), 60)
    return (
        f"memory      {found.peak_bytes / 2**30:.2f} GiB at most, of one process\n"
        f"speed       {run.batch_size / found.seconds:.1f} samples/s, {found.seconds:.2f} s a step\n"
        f"all steps   about {hours} h {minutes:02d} min for {run.steps}, validation not counted"
    )


def place(model: Embedder | ViTClassifier, out: Path, card: str) -> None:
    """Move the trained model among the run's other files, so that vlm opens `out`; the manifest last."""
    new = out / ".model"
    save(model, new, card)
    for path in sorted(new.iterdir(), key=lambda path: path.name == "manifest.json"):
        path.replace(out / path.name)
    new.rmdir()
