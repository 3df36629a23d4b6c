"""What a run writes down beside its checkpoints.

metrics.jsonl   what was computed, the same bytes for the same recipe, resumed or not
timing.jsonl    how long it took, "seconds" and "waiting" per step; never the same twice
tensorboard/    metrics.jsonl again
curves.png      and again
"""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from vlm.training.recipe.sections import RunSection


class Record:
    """The diary of one run from step `first` on.  Without a folder, for all processes but the first, it stays empty."""

    def __init__(self, folder: Path | None, first: int, run: RunSection):
        self.folder, self.run = folder, run
        self.steps = self.seconds = self.waiting = 0.0  # since the last line
        self.shown: dict[str, str] = {}
        if folder is not None:
            forget_after(folder / "metrics.jsonl", first)
        self.metrics = (folder / "metrics.jsonl" if folder else Path(os.devnull)).open("a", encoding="utf-8")
        self.timing = (folder / "timing.jsonl" if folder else Path(os.devnull)).open("a", encoding="utf-8")
        self.board = _board(folder / "tensorboard", first + 1) if folder else None
        self.progress: Any = tqdm(
            total=run.steps, initial=first, unit="step", dynamic_ncols=True, disable=folder is None, file=sys.stderr
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.close()
        self.metrics.close()
        self.timing.close()
        if self.board is not None:
            self.board.close()

    def step(self, step: int, numbers: dict[str, float], seconds: float, waiting: float) -> None:
        """After each step; a line for every `log_every`."""
        self.steps += 1
        self.seconds += seconds
        self.waiting += waiting
        if step % self.run.log_every == 0 or step == self.run.steps:
            self.write(step, numbers)
            speed = self.run.batch_size * self.steps / self.seconds
            mean = {"seconds": self.seconds / self.steps, "waiting": self.waiting / self.steps}
            print(json.dumps({"step": step} | mean | {"samples_per_second": speed}), file=self.timing, flush=True)
            self.shown |= {"loss": f"{numbers['loss']:.3f}", "samples/s": f"{speed:.0f}"}
            self.steps = self.seconds = self.waiting = 0.0
        self.progress.set_postfix(self.shown, refresh=False)
        self.progress.update()

    def validation(self, step: int, numbers: dict[str, float]) -> None:
        self.write(step, numbers)
        self.shown |= {name.removeprefix("val "): f"{value:.3f}" for name, value in numbers.items()}
        self.say(f"step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in numbers.items()))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        print(json.dumps({"step": step} | numbers), file=self.metrics, flush=True)
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)

    def show(self, words: dict[str, str]) -> None:
        """From now on beside the progress bar."""
        self.shown |= words

    def to_disk(self) -> None:
        """Before a checkpoint of this step: lines it counts on must not be lost with the power."""
        if self.folder is not None:
            os.fsync(self.metrics.fileno())

    def say(self, text: str) -> None:
        """A line above the progress bar; process 0 speaks for all."""
        if self.folder is not None:
            self.progress.write(text, file=sys.stderr)


def forget_after(path: Path, step: int) -> None:
    """Cut lines that a stopped run wrote after its last checkpoint: they will be written again, the same.

    The file is only ever shortened, in one system call: a crash in here loses nothing.
    """
    if not path.exists():
        return
    size = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or json.loads(line)["step"] > step:
            break
        size += len(line)
    os.truncate(path, size)


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """name -> (step, value) pairs, of a metrics.jsonl."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        entry: dict[str, Any] = json.loads(line)
        for name, value in entry.items():
            if name != "step":
                curves[name].append((entry["step"], value))
    return dict(curves)


def draw_curves(folder: Path) -> None:
    """metrics.jsonl -> curves.png: one panel per number, those of validation in one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(dict)
    for name, points in read_metrics(folder / "metrics.jsonl").items():
        panels["validation" if name.startswith("val ") else name][name.removeprefix("val ")] = points
    figure = Figure(figsize=(4.5 * max(1, len(panels)), 3.5))
    FigureCanvasAgg(figure)
    for axes, (title, lines) in zip(
        figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels.items(), strict=False
    ):
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else "")
        axes.set(title=title.replace("_", " "), xlabel="step")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    figure.savefig(folder / "curves.png", dpi=100, bbox_inches="tight")


def _board(folder: Path, purged: int) -> Any:
    """What a stopped run wrote of steps from `purged` on is shown no more."""
    from torch.utils.tensorboard.writer import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purged)
