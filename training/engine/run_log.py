"""The log of a run: what it writes beside its checkpoints.

metrics.jsonl   what was computed; the same bytes for the same recipe, resumed or not
timing.jsonl    how long it took, by log interval: seconds and waiting per step, rates, memory
tensorboard/    both, as curves
wandb, trackio  both, where the recipe names one of them
curves.png      metrics.jsonl, drawn when the run ends (curves.py)
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, Protocol, Self

from tqdm import tqdm

from vlm.errors import MissingPackageError
from vlm.training.engine.throughput import Throughput
from vlm.training.recipe.config import RunSection


class Tracker(Protocol):
    """Receives numbers by step."""

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Numbers of one step, by name."""
        ...

    def finish(self) -> None:
        """At the end of the run."""
        ...


class RunLog:
    """The log of one run.

    Args:
        folder: the run's; None, for all processes but the first, writes and shows nothing.
        first: the step that the run begins with; later lines of an earlier attempt are deleted.
        run: [run] of the recipe.
    """

    def __init__(self, folder: Path | None, first: int, run: RunSection):
        self.folder, self.run = folder, run
        self.steps, self.seconds, self.waiting = 0, 0.0, 0.0  # since the last line
        self.shown: dict[str, str] = {}
        if folder is not None:
            forget_after(folder / "metrics.jsonl", first)
        self.metrics = (folder / "metrics.jsonl" if folder else Path(os.devnull)).open("a", encoding="utf-8")
        self.timing = (folder / "timing.jsonl" if folder else Path(os.devnull)).open("a", encoding="utf-8")
        self.trackers = _trackers(folder, first, run) if folder else []
        self.progress: Any = tqdm(
            total=run.steps, initial=first, unit="step", dynamic_ncols=True, disable=folder is None, file=sys.stderr
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.close()
        self.metrics.close()
        self.timing.close()
        for tracker in self.trackers:
            tracker.finish()

    def advance(self) -> None:
        """Move the progress bar by one step."""
        self.progress.set_postfix(self.shown, refresh=False)
        self.progress.update()

    def step(
        self, step: int, numbers: dict[str, float], seconds: float, waiting: float, throughput: Throughput
    ) -> None:
        """Note a step; every `log_every` steps a line is written.

        Args:
            step: how many steps are done.
            numbers: what was computed, by name; empty for a step that was skipped.
            seconds: the step took, waiting for data included.
            waiting: of these, for data.
            throughput: rates of the run.
        """
        self.steps += 1
        self.seconds += seconds
        self.waiting += waiting
        if step % self.run.log_every and step != self.run.steps:
            return
        if numbers:
            self.write(step, numbers)
            self.shown["loss"] = f"{numbers['loss']:.3f}"
        mean = {"seconds": self.seconds / self.steps, "waiting": self.waiting / self.steps}
        rates = throughput.numbers(mean["seconds"])
        print(json.dumps({"step": step} | mean | rates), file=self.timing, flush=True)
        share = self.waiting / self.seconds if self.seconds else 0.0
        self._track({f"speed/{name}": value for name, value in (rates | {"waiting_share": share}).items()}, step)
        self.shown["samples/s"] = f"{rates['samples_per_second']:.0f}"
        if share >= 0.01:
            self.shown["waiting"] = f"{share:.0%}"
        if "mfu" in rates:
            self.shown["mfu"] = f"{rates['mfu']:.0%}"
        if "peak_memory_gib" in rates:
            self.shown["GiB"] = f"{rates['peak_memory_gib']:.1f}"
        self.steps, self.seconds, self.waiting = 0, 0.0, 0.0

    def validation(self, step: int, numbers: dict[str, float]) -> None:
        """Write the numbers of a validation after `step` steps."""
        self.write(step, numbers)
        self.shown |= {name.removeprefix("val "): f"{value:.3f}" for name, value in numbers.items()}
        self.say(f"step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in numbers.items()))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """A line of metrics.jsonl and a point of each curve."""
        print(json.dumps({"step": step} | numbers), file=self.metrics, flush=True)
        self._track(numbers, step)

    def _track(self, numbers: dict[str, float], step: int) -> None:
        for tracker in self.trackers:
            tracker.log(numbers, step)

    def show(self, words: dict[str, str]) -> None:
        """Show these beside the progress bar from now on."""
        self.shown |= words

    def to_disk(self) -> None:
        """Flush metrics.jsonl; a checkpoint of this step counts on its lines."""
        if self.folder is not None:
            os.fsync(self.metrics.fileno())

    def say(self, text: str) -> None:
        """A line above the progress bar; only process 0 prints."""
        if self.folder is not None:
            self.progress.write(text, file=sys.stderr)


def forget_after(path: Path, step: int) -> None:
    """Delete lines of later steps: a stopped run wrote them after its last checkpoint, and they will come again.

    The file is only ever shortened, in one system call, so a crash loses nothing.

    Args:
        path: a file of JSON lines with "step"; it need not exist.
        step: the last step that stays.
    """
    if not path.exists():
        return
    size = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or json.loads(line)["step"] > step:
            break
        size += len(line)
    os.truncate(path, size)


def _trackers(folder: Path, first: int, run: RunSection) -> list[Tracker]:
    trackers: list[Tracker] = [_TensorBoard(folder / "tensorboard", first + 1)]
    if run.tracker == "wandb":
        trackers.append(_Wandb(folder, run))
    elif run.tracker == "trackio":
        trackers.append(_Trackio(folder, run))
    return trackers


class _TensorBoard:
    """Curves in `folder`; what a stopped run wrote of steps from `first` on is hidden."""

    def __init__(self, folder: Path, first: int):
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first)

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self.writer.close()


class _Wandb:
    """Weights & Biases: a run named as the folder; a resumed run continues it."""

    def __init__(self, folder: Path, run: RunSection):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingPackageError("tracker 'wandb' needs the package wandb. pip install wandb") from error
        self.run = wandb.init(dir=folder, name=folder.name, id=folder.name, resume="allow", config=run.to_dict())

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.run.log(numbers, step=step)

    def finish(self) -> None:
        self.run.finish()


class _Trackio:
    """trackio, the local tracker with wandb's calls."""

    def __init__(self, folder: Path, run: RunSection):
        try:
            import trackio  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingPackageError("tracker 'trackio' needs the package trackio. pip install trackio") from error
        self.trackio = trackio
        trackio.init(project="vlm", name=folder.name, resume="allow", config=run.to_dict())

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.trackio.log(numbers, step=step)

    def finish(self) -> None:
        self.trackio.finish()
