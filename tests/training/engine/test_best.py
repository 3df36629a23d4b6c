"""The best weights by a metric, and the end of a run that no longer improves."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.engine.test_loop import assert_equal, recipe, run, towers, weights
from vlm.errors import RecipeError
from vlm.training.engine.best import check_metric
from vlm.training.engine.curves import read_metrics

VALUES = [0.2, 0.5, float("nan"), 0.5, 0.4, 0.3]  # of the six validations: the second is the first of the best


class Validation:
    """Gives the values in turn, and remembers the weights that were measured; may ask to stop after one of them."""

    def __init__(self, name: str, values: list[float], first: int = 0, stop_at: int = -1):
        self.name, self.values, self.count, self.stop_at = name, values, first, stop_at
        self.seen: dict[int, dict[str, torch.Tensor]] = {}

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.seen[self.count] = weights(model)
        if self.count == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
        self.count += 1
        return {self.name: self.values[self.count - 1]}


@pytest.mark.parametrize(
    ("metric", "change"), [("top-1", float), ("mAP", float), ("loss", lambda value: -value), ("MAE", lambda v: -v)]
)
@pytest.mark.parametrize("average", [0.0, 0.5])
def test_the_model_is_that_of_the_best_validation_the_earlier_of_equals(
    tmp_path: Path, metric: str, change: Callable[[float], float], average: float
) -> None:
    model, validation = towers(), Validation(f"val {metric}", [change(value) for value in VALUES])
    assert run(model, tmp_path / "run", recipe(best=metric, eval_every=1, ema_decay=average), evaluate=validation)
    assert_equal(weights(model), validation.seen[1])


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_a_resumed_run_knows_the_best_weights_of_before(tmp_path: Path, stop_at: int) -> None:
    settings, values = recipe(best="top-1", eval_every=1, save_every=2), VALUES
    whole, first = Validation("val top-1", values), Validation("val top-1", values, stop_at=stop_at)
    model = towers()
    assert run(model, tmp_path / "whole", settings, evaluate=whole)
    assert not run(towers(), tmp_path / "parts", settings, evaluate=first)
    again = towers()
    second = Validation("val top-1", values, first=stop_at + 1)
    assert run(again, tmp_path / "parts", settings, evaluate=second, resume=True)
    assert_equal(weights(again), weights(model))
    assert_equal(weights(model), whole.seen[1])


def test_a_run_ends_when_its_patience_is_at_an_end_and_stays_ended(tmp_path: Path) -> None:
    settings = recipe(best="top-1", patience=2, eval_every=1, save_every=100)
    model, validation = towers(), Validation("val top-1", VALUES)
    assert run(model, tmp_path / "run", settings, evaluate=validation)
    assert validation.count == 4  # the best is the second; two more brought nothing better
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")["loss"][-1][0] == 4
    assert_equal(weights(model), validation.seen[1])
    again = towers()
    assert run(again, tmp_path / "run", settings, evaluate=lambda _: pytest.fail("measured again"), resume=True)
    assert_equal(weights(again), weights(model))


def test_without_a_finite_value_the_last_weights_are_the_model(tmp_path: Path) -> None:
    model, validation = towers(), Validation("val top-1", [float("nan")] * 6)
    assert run(model, tmp_path / "run", recipe(best="top-1", eval_every=1), evaluate=validation)
    assert_equal(weights(model), validation.seen[5])


def test_settings_that_do_not_fit_are_refused_with_the_metrics_there_are() -> None:
    with pytest.raises(RecipeError, match="patience is 3 and best ''"):
        recipe(patience=3)
    with pytest.raises(RecipeError, match=r"'top1'.*measured.*loss, top-1"):
        check_metric("top1", ["val loss", "val top-1"])
    check_metric("R@5 en", ["val R@1 en", "val R@5 en"])
