"""The folder of a run: what may begin in it, and the finished model in it."""

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm.checkpoint.save import save
from vlm.embedder import Embedder
from vlm.errors import InputError, RunFolderError
from vlm.models.vision import ViTClassifier
from vlm.training.engine.loop import Rehearsal
from vlm.training.engine.state import recorded, saved
from vlm.training.recipe.sections import RunSection

_log = logging.getLogger(__name__)


def check_run(out: Path, *, resume: bool, push: str | None) -> None:
    """Checks, before any work, that no earlier run is overwritten and that the name on the hub is valid."""
    if not resume and (out / "checkpoints").exists():
        raise RunFolderError(
            f"{out} holds an earlier run's checkpoints. Add --resume auto to go on, or name another folder."
        )
    if push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", push):
        raise InputError(f"--push {push} is no name on the hub; wanted org/name.")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder of a run and lock it while the run goes on.

    Args:
        out: the folder.

    Raises:
        RunFolderError: another process trains into it.  Nothing is written then.
    """
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"another process is training into {out}. Wait until it is done, or name another folder with --out."
            ) from None
        except OSError as error:  # some network drives have no locks
            _log.warning("%s cannot be locked (%s): do not start a second run in it", out, error.strerror)
        yield
    finally:
        os.close(handle)  # which unlocks it


def begin_run(out: Path, recipe: str) -> None:
    """Make the folder and write the recipe's TOML text into it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.toml").write_text(recipe, encoding="utf-8")


def recorded_recipe(out: Path) -> dict[str, Any] | None:
    """The recipe, as plain values, that the newest readable checkpoint in `out` was written with; None without one."""
    for path in saved(out / "checkpoints"):
        try:
            return recorded(path, "recipe")
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
    """The trained model among the run's other files, so that vlm opens `out`; the manifest last."""
    new = out / ".model"
    save(model, new, card)
    for path in sorted(new.iterdir(), key=lambda path: path.name == "manifest.json"):
        path.replace(out / path.name)
    new.rmdir()
