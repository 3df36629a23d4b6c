"""Steps in float16 and bfloat16 against those in float32, and torch's own loss scale."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.engine.test_diagnostics import Vectors
from tests.training.engine.test_loop import SINGLE_PROCESS, assert_equal, recipe, towers, weights
from vlm.errors import RunFolderError
from vlm.training.data.pair_stream import PairBatch
from vlm.training.engine.precision import LossScale, autocast, resolve, with_precision
from vlm.training.engine.state import save_state
from vlm.training.engine.step import Training

CPU = torch.device("cpu")


def backward_in(precision: str) -> Callable[[nn.Module, PairBatch, Tensor | float], Tensor]:
    """As the tasks do it: autocast covers the forward pass and the loss alone."""

    def backward(model: nn.Module, batch: PairBatch, scale: Tensor | float) -> Tensor:
        with autocast(precision, CPU):
            loss = model(batch.images)
        (scale * loss).backward()
        return loss.detach()

    return backward


def training_in(precision: str, scale: float | None = None, good_steps: int = 0) -> Training:
    training = Training(towers(), backward_in(precision), recipe(precision=precision), SINGLE_PROCESS)
    if scale is not None:
        training.loss_scale = LossScale(CPU, scale, good_steps)
    return training


def scale_of(training: Training) -> float:
    assert training.loss_scale is not None
    return training.loss_scale.scale.item()


def test_float16_finds_its_loss_scale_and_skips_steps_that_overflow():
    training = training_in("float16", 2.0**20)  # the gradients of the first steps overflow
    before = weights(training.weights)
    training.step(0, Vectors()[0])
    assert_equal(weights(training.weights), before)
    steps = 1
    while weights(training.weights)["vision.weight"].equal(before["vision.weight"]):
        training.step(steps, Vectors()[steps])
        steps += 1
        assert steps < 20
    assert scale_of(training) == 2.0 ** (20 - steps + 1)


def test_the_loss_scale_is_that_of_torchs_grad_scaler():
    ours, theirs = LossScale(CPU), torch.amp.GradScaler("cpu")
    assert ours.scale.item() == theirs.get_scale()
    interval = theirs.get_growth_interval()
    fine, overflow = torch.tensor(0.0), torch.tensor(1.0)
    for bad in (interval - 1, 0):  # one overflow before it would have grown: the count starts anew
        start = ours.scale.item()
        for _ in range(bad):
            ours.update(fine)
        ours.update(overflow)
        assert ours.scale.item() == start * theirs.get_backoff_factor()
    start = ours.scale.item()
    for growth in (1, 2):
        for _ in range(interval - 1):
            ours.update(fine)
        assert ours.scale.item() == start * theirs.get_growth_factor() ** (growth - 1)
        ours.update(fine)
        assert ours.scale.item() == start * theirs.get_growth_factor() ** growth


def test_float16_goes_on_with_the_loss_scale_it_had(tmp_path):
    for training, found in (
        (training_in("float16", 64.0, 6), {"value": 64.0, "good_steps": 7}),
        (training_in("float32"), {"value": 65536.0, "good_steps": 0}),  # a float32 run has none
    ):
        training.step(0, Vectors()[0])
        path = save_state(tmp_path, 1, training.state(), 1, SINGLE_PROCESS)
        other = training_in("float16")
        other.restore(path, str)
        assert other.loss_scale is not None
        assert other.loss_scale.state() == found


def counted(training: Training, step: int) -> bool:
    """Whether a step was skipped for good, as the loop reads it."""
    return training.named_numbers(step, training.step(step, Vectors()[step]).tolist()) is None


@pytest.mark.parametrize("broken", ["gradients", "loss"])
def test_float16_counts_what_no_loss_scale_can_help(broken):
    """Gradients that overflow without a scale, and a loss that is not finite at any."""
    training = training_in("float16", 2.0)
    usual = training.backward

    def overflow(model: nn.Module, batch: PairBatch, scale: Tensor | float) -> Tensor:
        loss = usual(model, batch, scale)
        if broken == "loss":
            return torch.full_like(loss, math.inf)
        for p in model.parameters():
            p.grad = torch.full_like(p, math.inf)
        return loss

    training.backward = overflow
    before = weights(training.weights)
    found = [counted(training, step) for step in range(4)]
    assert found == [True] * 4 if broken == "loss" else [False, False, True, True]
    assert_equal(weights(training.weights), before)


def test_float16_gradients_are_those_of_float32_but_for_rounding():
    norms = {}
    for kind in ("float32", "float16", "bfloat16"):
        training = training_in(kind, 1024.0 if kind == "float16" else None)
        norms[kind] = training.step(0, Vectors()[0])[1].item()
    assert norms["float16"] == pytest.approx(norms["float32"], rel=5e-3)
    assert norms["bfloat16"] == pytest.approx(norms["float32"], rel=5e-2)
    assert len(set(norms.values())) == 3


def test_precision_is_the_type_that_matrix_products_come_out_in():
    a = torch.ones(2, 2)
    for wanted in ("float32", "bfloat16", "float16"):
        with autocast(wanted, CPU):
            assert (a @ a).dtype == getattr(torch, wanted)


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bfloat16_where_the_processor_has_it_with_attention_as_plain_products(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    assert resolve("auto", CPU) == ("bfloat16" if native else "float32")
    a, fused = torch.ones(2, 2), torch.backends.cuda.flash_sdp_enabled
    before = fused()
    with autocast("auto", CPU):
        assert (a @ a).dtype == (torch.bfloat16 if native else torch.float32)
        assert fused() is (before and not native)
    assert fused() is before


def recorded(precision: str) -> dict[str, Any]:
    """The recipe in a checkpoint."""
    return recipe(precision=precision).to_dict()


@pytest.mark.parametrize("before", ["float32", "bfloat16"])
def test_auto_keeps_the_precision_of_the_checkpoint(before, monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda native=native: {"avx512_bf16": native})
        assert with_precision(recipe(precision="auto"), CPU, recorded(before)).run.precision == before
        assert with_precision(recipe(precision="auto"), CPU).run.precision == resolve("auto", CPU)


def test_another_precision_than_the_checkpoints_is_refused():
    assert with_precision(recipe(precision="float16"), CPU, recorded("float16")).run.precision == "float16"
    for other in ("float32", "bfloat16"):
        with pytest.raises(RunFolderError, match=f"{other}.*float16.*Set precision"):
            with_precision(recipe(precision=other), CPU, recorded("float16"))


def test_an_old_checkpoint_that_says_auto_may_be_anything():
    assert with_precision(recipe(precision="float32"), CPU, recorded("auto")).run.precision == "float32"
