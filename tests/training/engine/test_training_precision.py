"""Steps in float16 and bfloat16 against those in float32, and torch's own loss scale."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.training.engine.test_doctor import Vectors, backward
from tests.training.engine.test_loop import SINGLE_PROCESS, assert_equal, recipe, towers, weights
from vlm.training.data.pair_stream import PairBatch
from vlm.training.engine.loop import Training, precision
from vlm.training.engine.state import save_state


def test_float16_finds_its_loss_scale_and_leaves_out_steps_that_overflow():
    model = towers()
    settings = recipe(precision="float16")
    training = Training(model, backward, settings, SINGLE_PROCESS)
    assert training.loss_scale is not None
    training.loss_scale.value = 2.0**20  # the gradients of the first steps overflow
    before = weights(model)
    training.step(0, Vectors()[0])
    assert_equal(weights(model), before)
    steps = 1
    while weights(model)["vision.weight"].equal(before["vision.weight"]):
        training.step(steps, Vectors()[steps])
        steps += 1
        assert steps < 20
    assert training.loss_scale.value == 2.0 ** (20 - steps + 1)


def test_the_loss_scale_is_that_of_torchs_grad_scaler():
    ours, theirs = (
        Training(towers(), backward, recipe(precision="float16"), SINGLE_PROCESS).loss_scale,
        torch.amp.GradScaler("cpu"),
    )
    assert ours is not None
    assert ours.value == theirs.get_scale()
    interval = theirs.get_growth_interval()
    for bad in (interval - 1, 0):  # one overflow before it would have grown: the count starts anew
        start = ours.value
        for _ in range(bad):
            ours.learn(healthy=True)
        ours.learn(healthy=False)
        assert ours.value == start * theirs.get_backoff_factor()
    start = ours.value
    for growth in (1, 2):
        for _ in range(interval - 1):
            ours.learn(healthy=True)
        assert ours.value == start * theirs.get_growth_factor() ** (growth - 1)
        ours.learn(healthy=True)
        assert ours.value == start * theirs.get_growth_factor() ** growth


def test_float16_goes_on_with_the_loss_scale_it_had(tmp_path):
    def opened(precision: str) -> Training:
        return Training(towers(), backward, recipe(precision=precision), SINGLE_PROCESS)

    one, whole = opened("float16"), opened("float32")
    assert one.loss_scale is not None
    one.loss_scale.value, one.loss_scale.good_steps = 64.0, 6
    for training in (one, whole):
        training.step(0, Vectors()[0])
    for training, found in ((one, (64.0, 7)), (whole, (65536.0, 0))):  # a float32 run has none
        path = save_state(tmp_path, 1, training.state(), 1, SINGLE_PROCESS)
        other = opened("float16")
        other.restore(path, str)
        assert other.loss_scale is not None
        assert (other.loss_scale.value, other.loss_scale.good_steps) == found


def test_float16_gives_up_when_gradients_overflow_without_a_loss_scale():
    def overflow(model: nn.Module, batch: PairBatch, scale: float) -> Tensor:
        loss = backward(model, batch, scale)
        for p in model.parameters():
            p.grad = torch.full_like(p, math.inf)
        return loss

    training = Training(towers(), overflow, recipe(precision="float16"), SINGLE_PROCESS)
    assert training.loss_scale is not None
    training.loss_scale.value = 2.0
    training.step(0, Vectors()[0])
    assert training.loss_scale.value == 1.0
    with pytest.raises(FloatingPointError, match=r"step 1: loss .*, gradient norm inf. Lower the learning rate"):
        training.step(1, Vectors()[1])


def test_float16_gradients_are_those_of_float32_but_for_rounding():
    norms = {}
    for kind in ("float32", "float16", "bfloat16"):
        training = Training(towers(), backward, recipe(precision=kind), SINGLE_PROCESS)
        if training.loss_scale:
            training.loss_scale.value = 1024.0
        norms[kind] = training.step(0, Vectors()[0]).gradient_norm
    assert norms["float16"] == pytest.approx(norms["float32"], rel=5e-3)
    assert norms["bfloat16"] == pytest.approx(norms["float32"], rel=5e-2)
    assert len(set(norms.values())) == 3


def test_precision_is_the_type_that_matrix_products_come_out_in():
    a = torch.ones(2, 2)
    for wanted, got in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        with precision(wanted, torch.device("cpu")):
            assert (a @ a).dtype == got


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bfloat16_where_the_processor_has_it_with_attention_as_plain_products(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    a, fused = torch.ones(2, 2), torch.backends.cuda.flash_sdp_enabled
    before = fused()
    with precision("auto", torch.device("cpu")):
        assert (a @ a).dtype == (torch.bfloat16 if native else torch.float32)
        assert fused() is (before and not native)
    assert fused() is before
