import copy
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.engine.test_diagnostics import CLOCK, ROWS, Towers, Vectors, backward
from vlm.errors import TrainingError
from vlm.training.data.pair_stream import PairBatch
from vlm.training.data.rows import BrokenSample
from vlm.training.engine.curves import read_metrics
from vlm.training.engine.distributed import SINGLE_PROCESS, Processes
from vlm.training.engine.loop import Evaluate, fit, rehearse
from vlm.training.engine.quarantine import Quarantine
from vlm.training.engine.state import load_state, saved
from vlm.training.engine.step import Training
from vlm.training.recipe.config import Recipe

CHANCE = math.log(ROWS)


def recipe(optim: dict[str, Any] | None = None, **run: Any) -> Recipe:
    run = {"steps": 6, "batch_size": ROWS, "eval_every": 100, "save_every": 2, "log_every": 1} | run
    optim = {"matrices": "adamw", "warmup_steps": 0, "lr": 1e-2} | (optim or {})
    return Recipe.from_dict({"run": run, "data": {"workers": 0}, "optim": optim})


def towers(**settings: Any) -> Towers:
    torch.manual_seed(0)
    return Towers(**settings)


def run(
    model: nn.Module,
    out: Path,
    settings: Recipe,
    *,
    evaluate: Evaluate = lambda _: {},
    step: Any = backward,
    stream: Any = Vectors(),  # noqa: B008 (it has no state)
    **more: Any,
) -> bool:
    out.mkdir(exist_ok=True)
    of_fit = {"processes": SINGLE_PROCESS, "chance_loss": CHANCE, "resume": False} | more
    return fit(model, step, stream, evaluate, settings, out, **of_fit)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_a_step_is_the_optimizers_step_on_the_clipped_gradients():
    model, reference = towers(), towers()
    training = Training(
        model, backward, recipe({"clip_norm": 0.01, "betas": [0.9, 0.98], "weight_decay": 0.1}), SINGLE_PROCESS
    )
    norms = []
    decayed = [p for p in reference.parameters() if p.ndim > 1]
    plain = [p for p in reference.parameters() if p.ndim < 2]
    adamw = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.98), weight_decay=0.1
    )
    for step in range(4):
        numbers = training.named_numbers(step, training.step(step, Vectors()[step]).tolist())
        assert numbers is not None
        for group in adamw.param_groups:
            group["lr"] = 1e-2 * numbers["lr_factor"]
        adamw.zero_grad()
        loss = reference(Vectors()[step].images)
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(reference.parameters(), 0.01)))
        adamw.step()
        assert numbers["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert numbers["gradient_norm"] == pytest.approx(norms[-1], rel=1e-5)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_average_is_the_exponential_average_of_the_weights_and_is_what_remains(tmp_path):
    model = towers()
    training, expected = Training(towers(), backward, recipe(ema_decay=0.7), SINGLE_PROCESS), weights(model)
    for step in range(6):
        training.step(step, Vectors()[step])
        decay = min(0.7, (1 + step) / (10 + step))  # the average warms up
        expected = {name: decay * old + (1 - decay) * training.named[name].detach() for name, old in expected.items()}
    run(model, tmp_path / "run", recipe(ema_decay=0.7))
    for name, value in weights(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)


def test_validation_sees_the_average_and_changes_nothing(tmp_path):
    seen: list[dict[str, Tensor]] = []

    def look(model: nn.Module) -> dict[str, float]:
        assert not model.training
        seen.append(weights(model))
        torch.rand(7)  # what validation draws does not matter to the steps after it
        return {"val x": 1.0}

    one, two = towers(), towers()
    run(one, tmp_path / "one", recipe(ema_decay=0.7, eval_every=1), evaluate=look)
    run(two, tmp_path / "two", recipe(ema_decay=0.7))
    assert_equal(weights(one), weights(two))
    assert_equal(seen[-1], weights(one))  # fit leaves the average, as the last validation saw it
    assert len(seen) == 6


def test_a_resumed_run_is_the_uninterrupted_run_to_the_bit(tmp_path):
    def stop_once(model: nn.Module) -> dict[str, float]:
        if not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return {"val x": 1.0}

    settings = recipe(ema_decay=0.7, eval_every=3)
    whole, parts = towers(), towers()
    assert run(whole, tmp_path / "whole", settings, evaluate=lambda _: {"val x": 1.0})
    assert not run(parts, tmp_path / "parts", settings, evaluate=stop_once)
    assert [path.name for path in saved(tmp_path / "parts" / "checkpoints")] == ["step-00000003", "step-00000002"]
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 9.9}\n{"step": 5, "lo')  # of a later run that was killed before it saved
    again = towers()
    assert run(again, tmp_path / "parts", settings, evaluate=stop_once, resume=True)
    assert_equal(weights(whole), weights(again))
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "parts" / "metrics.jsonl").read_bytes()
    for name in ("tensors.safetensors", "state.json"):
        files = [tmp_path / which / "checkpoints" / "step-00000006" / name for which in ("whole", "parts")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ([signal.SIGINT], "SIGINT"),
        ([signal.SIGTERM, signal.SIGTERM], "SIGTERM"),
        ([signal.SIGINT, signal.SIGTERM], "SIGTERM"),
        ([signal.SIGTERM, signal.SIGINT], None),
        ([signal.SIGINT, signal.SIGINT], None),
    ],
)
def test_a_signal_waits_for_the_end_of_the_step_and_a_second_ctrl_c_does_not(tmp_path, capsys, sent, seen):
    def send(_: nn.Module) -> dict[str, float]:
        for number in sent:
            os.kill(os.getpid(), number)
        return {}

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    settings = recipe(eval_every=1, save_every=100)
    if seen is None:
        with pytest.raises(KeyboardInterrupt):
            run(towers(), tmp_path / "run", settings, evaluate=send)
    else:
        assert not run(towers(), tmp_path / "run", settings, evaluate=send)
        said = f"stopped by {seen} after step 1; saved. --resume auto goes on."
        assert said in capsys.readouterr().err
        assert [path.name for path in saved(tmp_path / "run" / "checkpoints")] == ["step-00000001"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_the_last_step_is_measured_and_saved_whatever_its_number(tmp_path):
    measured = []
    run(
        towers(),
        tmp_path / "run",
        recipe(steps=5, eval_every=2, save_every=3, keep=9),
        evaluate=lambda _: measured.append(1) or {},
    )
    assert len(measured) == 3
    names = [path.name for path in saved(tmp_path / "run" / "checkpoints")]
    assert names == ["step-00000005", "step-00000003"]


def test_too_many_broken_samples_end_the_run_at_the_step_that_shows_them(tmp_path, capsys):
    class Broken(Vectors):
        def __getitem__(self, step: int) -> PairBatch:
            one = (BrokenSample("this", "damaged", "by hand"),) if step == 1 else ()
            return super().__getitem__(step)._replace(broken=one)

    (tmp_path / "run").mkdir()
    for allowed in (0.02, 0.04):
        quarantine = Quarantine(tmp_path / "run", 2 * ROWS, allowed, SINGLE_PROCESS, resume=False)
        if allowed < 1 / 32:
            with pytest.raises(ValueError, match=r"1.*32 samples"):
                run(towers(), tmp_path / "run", recipe(), stream=Broken(), quarantine=quarantine)
            assert "broken=1" not in capsys.readouterr().err
        else:
            run(towers(), tmp_path / "run", recipe(), stream=Broken(), quarantine=quarantine)
            assert "broken=1" in capsys.readouterr().err


def test_dropout_is_drawn_again_the_same_after_a_resume(tmp_path):
    def noisy(model: nn.Module, batch: PairBatch, scale: Tensor | float) -> Tensor:
        return backward(model, batch._replace(images=nn.functional.dropout(batch.images, 0.5)), scale)

    whole, parts, again = towers(), towers(), towers()
    run(whole, tmp_path / "whole", recipe(), step=noisy)
    run(parts, tmp_path / "parts", recipe(steps=6), step=noisy)
    for path in saved(tmp_path / "parts" / "checkpoints")[:1]:
        (path / "manifest.json").write_text("{}")  # damaged: step 4 is used
    torch.rand(100)
    run(again, tmp_path / "parts", recipe(), step=noisy, resume=True)
    assert_equal(weights(whole), weights(again))


def test_random_numbers_of_a_step_differ_between_steps_ranks_and_seeds():
    drawn = []

    def draw(model: nn.Module, batch: PairBatch, scale: Tensor | float) -> Tensor:
        drawn.append(torch.rand(()).item())
        return backward(model, batch, scale)

    for seed, rank in ((0, 0), (0, 1), (1, 0)):
        training = Training(towers(), draw, recipe(seed=seed), Processes(rank=rank, size=1, device=torch.device("cpu")))
        for step in (0, 1):
            training.step(step, Vectors()[0])
    assert len(set(drawn)) == 6


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_weight_that_no_step_uses_stays(precision):
    class Spare(Towers):
        def __init__(self):
            super().__init__()
            self.another, self.zebra = nn.Linear(3, 3), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * self.zebra(x).sum()

    torch.manual_seed(0)
    model = Spare()
    before = weights(model)
    training = Training(model, backward, recipe(precision=precision), SINGLE_PROCESS)
    if training.loss_scale:
        training.loss_scale.scale.fill_(1024.0)
    training.step(0, Vectors()[0])
    moved = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert not [name for name in moved if name.startswith("another")]
    assert {"vision.weight", "text.bias", "logit_scale"} <= moved


class Poisoned(Vectors):
    """Some steps hold a value that is not finite."""

    def __init__(self, steps: set[int]):
        super().__init__()
        self.steps = steps

    def __getitem__(self, step: int) -> PairBatch:
        batch = super().__getitem__(step)
        if step in self.steps:
            batch.images[3, 3] = math.nan
        return batch


@pytest.mark.parametrize("optim", [{}, {"matrices": "muon"}])
def test_a_step_that_is_not_finite_changes_no_weight_and_no_state(optim):
    class Blocks(Towers):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(8, 8, bias=False)])  # a matrix for Muon

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.blocks[0](x))

    torch.manual_seed(0)
    training = Training(Blocks(), backward, recipe(optim), SINGLE_PROCESS)
    training.step(0, Vectors()[0])
    before, states = weights(training.weights), copy.deepcopy([opt.state_dict() for opt in training.optimizers])
    row = training.step(1, Poisoned({1})[1]).tolist()
    assert training.named_numbers(1, row) is None
    assert_equal(weights(training.weights), before)
    for opt, old in zip(training.optimizers, states, strict=True):
        for number, state in opt.state_dict()["state"].items():
            for name, value in state.items():
                assert torch.equal(value, old["state"][number][name]), name


@pytest.mark.parametrize("log_every", [1, 4])
def test_skipped_steps_are_listed_with_their_samples_and_the_run_goes_on(tmp_path, capsys, log_every):
    settings = recipe(steps=8, log_every=log_every, max_skipped=2)
    assert run(towers(), tmp_path / "run", settings, stream=Poisoned({1, 5}))
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [(line["step"], line["samples"]) for line in listed] == [
        (step + 1, [f"{step}/{i}" for i in range(ROWS)]) for step in (1, 5)
    ]
    err = capsys.readouterr().err
    assert "step 2: loss nan" in err and "1 of at most 2" in err
    assert f"1/{ROWS - 1}" not in err  # not all samples are named
    logged = [step for step, _ in read_metrics(tmp_path / "run" / "metrics.jsonl")["loss"]]
    assert logged == ([1, 3, 4, 5, 7, 8] if log_every == 1 else [4, 8])


def test_too_many_skipped_steps_end_the_run_a_resumed_one_too(tmp_path):
    settings, poison = recipe(steps=8, log_every=4, max_skipped=1), Poisoned({1, 5})
    for resume in (False, True):
        with pytest.raises(TrainingError, match=r"step 6: .*2nd.*max_skipped = 1.*samples: 5/0, 5/1"):
            run(towers(), tmp_path / "run", settings, stream=poison, resume=resume)
        assert len((tmp_path / "run" / "skipped.jsonl").read_text().splitlines()) == 2
    assert [path.name for path in saved(tmp_path / "run" / "checkpoints")] == ["step-00000004", "step-00000002"]
    assert run(towers(), tmp_path / "run", recipe(steps=8, max_skipped=2), stream=poison, resume=True)


def test_the_temperature_stays_within_its_limits():
    for start, later, limit in ((2.0, 4.7, math.log(100)), (2.0, -0.5, 0.0), (4.77, 4.9, 4.77), (4.77, 4.77, 4.77)):
        model = towers(logit_scale=start)
        training = Training(model, backward, recipe({"lr": 1e-9}), SINGLE_PROCESS)
        with torch.no_grad():
            model.logit_scale.fill_(later)
        training.step(0, Vectors()[0])
        assert model.logit_scale.item() == pytest.approx(limit, abs=1e-6)  # SigLIP is loaded at 4.77, above log 100


def test_a_changed_recipe_is_said_aloud_and_counts_from_then_on(tmp_path, capsys):
    run(towers(), tmp_path / "run", recipe({"weight_decay": 0.1}, steps=2))
    settings = recipe({"weight_decay": 0.3, "betas": [0.5, 0.6], "lr": 0.5, "final_lr": 1.0}, steps=4)
    training, said = Training(towers(), backward, settings, SINGLE_PROCESS), []
    assert training.restore(saved(tmp_path / "run" / "checkpoints")[0], said.append) == 2
    training.step(2, Vectors()[2])
    (adamw,) = training.optimizers
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.3, 0.0}
    assert all((group["betas"], group["lr"]) == ((0.5, 0.6), 0.5) for group in adamw.param_groups)
    assert {state["step"].item() for state in adamw.state.values()} == {3}
    assert "the recipe has changed since step-00000002: optim.weight_decay: 0.3, was 0.1" in said
    run(towers(), tmp_path / "run", settings, resume=True)
    assert "the recipe has changed since step-00000002: run.steps: 4, was 2" in capsys.readouterr().err


def test_a_rehearsal_writes_nothing_and_measures_the_second_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vlm.training.engine.loop.time", CLOCK)
    stream: Any = Vectors(seconds=0.25)
    found = rehearse(towers(), backward, stream, recipe(), SINGLE_PROCESS)
    assert found.seconds == pytest.approx(1.25)  # waiting and working, as test_diagnostics.py counts them
    assert found.peak_bytes > 50e6  # torch alone
    assert list(tmp_path.iterdir()) == []


def test_a_rehearsal_weighs_dense_steps_by_their_share(monkeypatch):
    class DenserAtTheEnd(Vectors):
        def __getitem__(self, step: int):
            self.seconds = 0.25 if step < 4 else 1.75
            return super().__getitem__(step)

    monkeypatch.setattr("vlm.training.engine.loop.time", CLOCK)
    stream: Any = DenserAtTheEnd()
    plan = recipe(steps=5).to_dict()
    plan["data"]["dense_share"] = 0.2
    found = rehearse(towers(), backward, stream, Recipe.from_dict(plan), SINGLE_PROCESS)
    assert found.seconds == pytest.approx(0.8 * 1.25 + 0.2 * 2.75)


def test_the_recipe_is_kept_in_the_checkpoint(tmp_path):
    model, settings = towers(), recipe(steps=2)
    run(model, tmp_path / "run", settings)
    path = saved(tmp_path / "run" / "checkpoints")[0]
    training = Training(towers(), backward, settings, SINGLE_PROCESS)
    assert training.restore(path, pytest.fail) == 2
    assert_equal(weights(training.weights), weights(model))
    _, state = load_state(path, training.state())
    assert Recipe.from_dict(state["recipe"]) == settings
