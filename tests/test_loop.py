import copy
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from test_doctor import CLOCK, ROWS, Towers, Vectors, backward
from torch import Tensor, nn

from training.config import Recipe
from training.data import Batch
from training.distributed import Processes
from training.loop import Training, fit, precision, rehearse
from training.parallel import clip_gradients, prepare
from training.record import draw_curves, forget_after, read_metrics
from training.state import load_state, saved

ALONE = Processes(rank=0, size=1, device=torch.device("cpu"))
CHANCE = math.log(ROWS)


def recipe(optim: dict[str, Any] | None = None, **run: Any) -> Recipe:
    run = {"steps": 6, "batch_size": ROWS, "eval_every": 100, "save_every": 2, "log_every": 1} | run
    optim = {"matrices": "adamw", "warmup_steps": 0, "lr": 1e-2} | (optim or {})
    return Recipe.from_dict({"run": run, "data": {"workers": 0}, "optim": optim})


def towers(**settings: Any) -> Towers:
    torch.manual_seed(0)
    return Towers(**settings)


def run(
    model: nn.Module, out: Path, settings: Recipe, *, resume: bool = False, evaluate=lambda _: {}, step=backward
) -> bool:
    out.mkdir(exist_ok=True)
    stream: Any = Vectors()
    return fit(model, step, stream, evaluate, settings, out, peers=ALONE, chance_loss=CHANCE, resume=resume)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def test_a_step_is_the_optimizers_step_on_the_clipped_gradients():
    model, reference = towers(), towers()
    training = Training(model, backward, recipe({"clip_norm": 0.01, "betas": [0.9, 0.98], "weight_decay": 0.1}), ALONE)
    norms = []
    decayed = [p for p in reference.parameters() if p.ndim > 1]
    plain = [p for p in reference.parameters() if p.ndim < 2]
    adamw = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.98), weight_decay=0.1
    )
    for step in range(4):
        numbers = training.step(step, Vectors()[step])
        for group in adamw.param_groups:
            group["lr"] = 1e-2 * numbers.lr_factor
        adamw.zero_grad()
        loss = reference(Vectors()[step].images)
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(reference.parameters(), 0.01)))
        adamw.step()
        assert numbers.loss == pytest.approx(loss.item(), rel=1e-6)
        assert numbers.gradient_norm == pytest.approx(norms[-1], rel=1e-5)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_average_is_the_exponential_average_of_the_weights_and_is_what_remains(tmp_path):
    model = towers()
    training, expected = Training(towers(), backward, recipe(ema_decay=0.7), ALONE), weights(model)
    for step in range(6):
        training.step(step, Vectors()[step])
        expected = {name: 0.7 * old + 0.3 * training.named[name].detach() for name, old in expected.items()}
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


def test_dropout_is_drawn_again_the_same_after_a_resume(tmp_path):
    def noisy(model: nn.Module, batch: Batch, scale: float) -> Tensor:
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

    def draw(model: nn.Module, batch: Batch, scale: float) -> Tensor:
        drawn.append(torch.rand(()).item())
        return backward(model, batch, scale)

    for seed, rank in ((0, 0), (0, 1), (1, 0)):
        training = Training(towers(), draw, recipe(seed=seed), Processes(rank=rank, size=1, device=torch.device("cpu")))
        for step in (0, 1):
            training.step(step, Vectors()[0])
    assert len(set(drawn)) == 6


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_move():
    model = towers()
    before = weights(model)
    batch = Vectors()[0]
    batch.images[3, 3] = math.nan
    with pytest.raises(FloatingPointError, match=r"step 5: loss nan.*Lower the learning rate.*samples: 0/0, 0/1"):
        Training(model, backward, recipe(), ALONE).step(5, batch)
    assert_equal(weights(model), before)


def test_the_temperature_stays_within_its_limits():
    for start, limit in ((4.7, math.log(100)), (-0.5, 0.0)):
        model = towers(logit_scale=start)
        Training(model, backward, recipe({"lr": 1e-6}), ALONE).step(0, Vectors()[0])
        assert model.logit_scale.item() == pytest.approx(limit, abs=1e-6)


def test_float16_finds_its_loss_scale_and_leaves_out_steps_that_overflow():
    model = towers()
    settings = recipe(precision="float16")
    training = Training(model, backward, settings, ALONE)
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


def test_float16_gives_up_when_gradients_overflow_without_a_loss_scale():
    def overflow(model: nn.Module, batch: Batch, scale: float) -> Tensor:
        loss = backward(model, batch, scale)
        for p in model.parameters():
            p.grad = torch.full_like(p, math.inf)
        return loss

    training = Training(towers(), overflow, recipe(precision="float16"), ALONE)
    assert training.loss_scale is not None
    training.loss_scale.value = 2.0
    training.step(0, Vectors()[0])
    assert training.loss_scale.value == 1.0
    with pytest.raises(FloatingPointError, match=r"step 1: loss .*, gradient norm inf. Lower the learning rate"):
        training.step(1, Vectors()[1])


def test_float16_gradients_are_those_of_float32_but_for_rounding():
    norms = {}
    for kind in ("float32", "float16", "bfloat16"):
        training = Training(towers(), backward, recipe(precision=kind), ALONE)
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


def test_clipping_gives_torchs_norm_and_gradients():
    one, two = towers(), towers()
    for model in (one, two):
        model(Vectors()[0].images).backward()
    norm = clip_gradients(one.parameters(), 0.1)
    assert norm.item() == pytest.approx(nn.utils.clip_grad_norm_(two.parameters(), 0.1).item())
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_recomputed_activations_give_the_same_gradients(tiny_clip):
    images, ids = torch.randn(4, 3, 32, 32), torch.tensor([[5, 6, 2], [7, 2, 0], [8, 9, 2], [5, 2, 0]])
    reference = copy.deepcopy(tiny_clip)
    model = prepare(tiny_clip, recipe(checkpoint_activations=True).run, ALONE)
    passes = []
    model.vision.blocks[0].mlp.fc1.register_forward_hook(lambda *_: passes.append(1))  # type: ignore[union-attr]
    for one in (model, reference):
        image_embeds, text_embeds = one(images, ids)
        (image_embeds * text_embeds).sum().backward()
    assert len(passes) == 2  # forward, and once more for backward
    for (name, p), (same, q) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        assert name == same
        if name != "logit_scale":
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.long  # the compiler takes a minute
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_give_the_same_embeddings(tiny_clip):
    images, ids = torch.randn(4, 3, 32, 32), torch.tensor([[5, 6, 2], [7, 2, 0], [8, 9, 2], [5, 2, 0]])
    reference = copy.deepcopy(tiny_clip)
    model = prepare(tiny_clip, recipe(compile=True).run, ALONE)
    assert list(model.state_dict()) == list(reference.state_dict())
    for ours, theirs in zip(model(images, ids), reference(images, ids), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_changed_recipe_is_said_aloud_when_a_run_goes_on(tmp_path, capsys):
    run(towers(), tmp_path / "run", recipe(steps=2))
    run(towers(), tmp_path / "run", recipe(steps=4), resume=True)
    assert "the recipe has changed since step-00000002: run.steps: 4, was 2" in capsys.readouterr().err


def test_metrics_can_be_read_while_the_run_goes_on(tmp_path):
    seen = []

    def evaluate(_: nn.Module) -> dict[str, float]:
        seen.append([step for step, _ in read_metrics(tmp_path / "run" / "metrics.jsonl")["loss"]])
        return {}

    run(towers(), tmp_path / "run", recipe(eval_every=3), evaluate=evaluate)
    assert seen == [[1, 2, 3], [1, 2, 3, 4, 5, 6]]


def test_metrics_hold_what_was_computed_and_timing_what_it_took(tmp_path):
    run(towers(), tmp_path / "run", recipe(eval_every=3, log_every=2), evaluate=lambda _: {"val x": 0.5})
    curves = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [step for step, _ in curves["loss"]] == [2, 4, 6]
    assert curves["val x"] == [(3, 0.5), (6, 0.5)]
    assert curves.keys() == {"loss", "gradient_norm", "lr_factor", "logit_scale", "val x"}
    timing = [json.loads(line) for line in (tmp_path / "run" / "timing.jsonl").read_text().splitlines()]
    for line in timing:
        assert line["samples_per_second"] == pytest.approx(ROWS / line["seconds"])
        assert 0 <= line["waiting"] < line["seconds"]
    draw_curves(tmp_path / "run")
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_has_every_step_when_a_run_ends(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(towers(), tmp_path / "run", recipe())
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("torn", ["", '{"step": 3, "lo', '{"step": 3}\n', '{"step": 3}\n{"step": 4}\n{'])
def test_lines_after_the_checkpoint_are_cut_and_a_torn_one_too(tmp_path, torn):
    whole = '{"step": 1}\n{"step": 2}\n{"step": 2, "val": 1}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + torn)
    forget_after(tmp_path / "metrics.jsonl", 2)
    assert (tmp_path / "metrics.jsonl").read_text() == whole
    forget_after(tmp_path / "none.jsonl", 2)


def test_a_rehearsal_writes_nothing_and_measures_the_second_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("training.loop.time", CLOCK)
    stream: Any = Vectors(seconds=0.25)
    found = rehearse(towers(), backward, stream, recipe(), ALONE)
    assert found.seconds == pytest.approx(1.25)  # waiting and working, as tests/test_doctor.py counts them
    assert found.peak_bytes > 50e6  # torch alone
    assert list(tmp_path.iterdir()) == []


def test_a_rehearsal_weighs_dense_steps_by_their_share(monkeypatch):
    class DenserAtTheEnd(Vectors):
        def __getitem__(self, step: int):
            self.seconds = 0.25 if step < 4 else 1.75
            return super().__getitem__(step)

    monkeypatch.setattr("training.loop.time", CLOCK)
    stream: Any = DenserAtTheEnd()
    plan = recipe(steps=5).to_dict()
    plan["data"]["dense_share"] = 0.2
    found = rehearse(towers(), backward, stream, Recipe.from_dict(plan), ALONE)
    assert found.seconds == pytest.approx(0.8 * 1.25 + 0.2 * 2.75)


def test_the_recipe_is_kept_in_the_checkpoint(tmp_path):
    model, settings = towers(), recipe(steps=2)
    run(model, tmp_path / "run", settings)
    path = saved(tmp_path / "run" / "checkpoints")[0]
    training = Training(towers(), backward, settings, ALONE)
    assert training.restore(path, pytest.fail) == 2
    assert_equal(weights(training.weights), weights(model))
    _, state = load_state(path, training.state())
    assert Recipe.from_dict(state["recipe"]) == settings
