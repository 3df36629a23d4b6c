"""The best weights of a run by one validation metric, and when a run ends because it no longer improves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm.errors import RecipeError
from vlm.training.recipe.sections import RunSection

LOWER = ("loss", "MAE")  # metrics of which less is better; of all others more


class Best:
    """The weights of the best validation so far; the earlier of equals.

    They are part of every checkpoint, so that a resumed run knows them too.

    Args:
        named: the trained weights.
        run: [run] of the recipe; `best` names the metric.
    """

    def __init__(self, named: Mapping[str, Tensor], run: RunSection):
        self.metric, self.patience = run.best, run.patience
        self.weights = {name: p.detach().clone() for name, p in named.items()}
        self.value: float | None = None  # of the metric; None before the first validation
        self.step = 0  # steps done when it was measured
        self.waiting = 0  # validations since

    @property
    def exhausted(self) -> bool:
        """True where as many validations as the recipe allows have brought nothing better."""
        return 0 < self.patience <= self.waiting

    @torch.no_grad()
    def look(self, step: int, value: float, named: Mapping[str, Tensor]) -> None:
        """Take the weights where the value is better than all before.

        Args:
            step: number of steps done.
            value: of the metric; one that is not finite is never the best.
            named: the weights that were measured.
        """
        if not math.isfinite(value) or (self.value is not None and not self._better(value, self.value)):
            self.waiting += 1
            return
        self.value, self.step, self.waiting = value, step, 0
        for name, weight in named.items():
            self.weights[name].copy_(weight)

    def _better(self, value: float, than: float) -> bool:
        return value < than if self.metric.split()[0] in LOWER else value > than

    def describe(self) -> str:
        """One line: the metric, its best value, the step."""
        if self.value is None:
            return f"no validation had a finite {self.metric}: the last weights are the model"
        return f"best {self.metric}: {self.value:.4f} after step {self.step}; those weights are the model"

    def state(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint."""
        return {"weights": self.weights, "value": self.value, "step": self.step, "waiting": self.waiting}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the plain values of a checkpoint; its tensors have been read into `weights` already."""
        self.value, self.step, self.waiting = state["value"], state["step"], state["waiting"]


def metric_of(numbers: Mapping[str, float], metric: str) -> float:
    """The value of a metric, which a recipe names without "val"."""
    check_metric(metric, list(numbers))
    return numbers[f"val {metric}"]


def check_metric(metric: str, names: Sequence[str]) -> None:
    """Raise RecipeError, with the names that there are, for a metric that validation does not measure.

    Args:
        metric: as [run] best names it; "" asks for none.
        names: of the validation numbers, "val top-1" and others.
    """
    known = [name.removeprefix("val ") for name in names if name.startswith("val ")]
    if metric and metric not in known:
        raise RecipeError(
            f"[run] best = {metric!r} is not measured. This run measures: {', '.join(known) or 'nothing'}."
        )
