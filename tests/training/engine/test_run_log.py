"""What a run writes down, against what was computed and the clock of test_diagnostics.py."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from tests.training.engine.test_diagnostics import CLOCK, ROWS, Vectors
from tests.training.engine.test_loop import recipe, run, towers
from vlm.training.engine.curves import draw_curves, read_metrics
from vlm.training.engine.distributed import Processes
from vlm.training.engine.run_log import forget_after
from vlm.training.engine.state import saved


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_metrics_can_be_read_while_the_run_goes_on(tmp_path):
    seen = []

    def evaluate(_: nn.Module) -> dict[str, float]:
        seen.append([step for step, _ in read_metrics(tmp_path / "run" / "metrics.jsonl")["loss"]])
        return {}

    run(towers(), tmp_path / "run", recipe(eval_every=3), evaluate=evaluate)
    assert seen == [[1, 2, 3], [1, 2, 3, 4, 5, 6]]


def test_metrics_hold_what_was_computed_and_timing_what_it_took(tmp_path, monkeypatch, capsys):
    def evaluate(_: nn.Module) -> dict[str, float]:
        CLOCK.now += 100  # no part of a step
        return {"val x": 0.25, "val y": 0.5}

    monkeypatch.setattr("vlm.training.engine.loop.time", CLOCK)
    settings: Any = {"eval_every": 2, "log_every": 2, "save_every": 5}
    run(towers(), tmp_path / "run", recipe(steps=5, **settings), evaluate=evaluate, stream=Vectors(seconds=0.25))
    curves = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [step for step, _ in curves["loss"]] == [2, 4, 5]
    assert curves["val x"] == [(2, 0.25), (4, 0.25), (5, 0.25)]
    assert curves.keys() == {"loss", "gradient_norm", "lr_factor", "logit_scale", "val x", "val y"}
    err = capsys.readouterr().err
    assert "step 2: val x 0.2500  val y 0.5000\n" in err
    last = err.splitlines()[-1]
    for part in ("5/5", f"loss={curves['loss'][-1][1]:.3f}", "samples/s=13", "waiting=20%", "x=0.250", "y=0.500"):
        assert part in last
    run(towers(), tmp_path / "run", recipe(steps=7, **settings), stream=Vectors(seconds=0.25), resume=True)
    first, other, last, again, end = lines(tmp_path / "run" / "timing.jsonl")
    assert first == {"step": 2, "seconds": 1.125, "waiting": 0.125, "samples_per_second": 2 * ROWS / 2.25}
    assert other == {"step": 4, "seconds": 1.25, "waiting": 0.25, "samples_per_second": ROWS / 1.25}
    assert last == other | {"step": 5}
    assert again == {"step": 6, "seconds": 1.0, "waiting": 0.0, "samples_per_second": ROWS}  # loaders start
    assert end == other | {"step": 7}


def test_processes_but_the_first_write_and_say_nothing(tmp_path, capsys):
    other = Processes(rank=1, size=1, device=torch.device("cpu"))
    for resume in (False, True):
        run(
            towers(),
            tmp_path / "run",
            recipe(steps=2),
            evaluate=lambda _: {"val x": 1.0},
            processes=other,
            resume=resume,
        )
    assert list((tmp_path / "run").iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_metrics_are_on_the_disk_before_the_checkpoint_that_counts_on_them(tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def spy(handle: int) -> None:
        saves = saved(tmp_path / "run" / "checkpoints")
        synced.append((os.fstat(handle).st_ino, len(saves)))
        sync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    run(towers(), tmp_path / "run", recipe(steps=4, keep=9))
    metrics = (tmp_path / "run" / "metrics.jsonl").stat().st_ino
    assert all(saves <= number for number, saves in enumerate(saves for file, saves in synced if file == metrics))
    assert len(saved(tmp_path / "run" / "checkpoints")) == 2


def test_a_panel_is_drawn_for_each_number_and_one_for_validation(tmp_path):
    def width(**numbers: float) -> int:
        entries = [json.dumps({"step": step} | numbers) + "\n" for step in (1, 2, 3)]
        (tmp_path / "metrics.jsonl").write_text("".join(entries))
        draw_curves(tmp_path)
        with Image.open(tmp_path / "curves.png") as image:
            return image.width

    one, two = width(a=1.0), width(a=1.0, **{"val x": 0.5, "val y": 0.25})
    assert 1.8 * one < two < 2.2 * one
    (tmp_path / "metrics.jsonl").write_text("")  # stopped before the first line
    draw_curves(tmp_path)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width == pytest.approx(one, abs=60)


def test_tensorboard_has_every_step_once_when_a_run_ends(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(towers(), tmp_path / "run", recipe())
    (saved(tmp_path / "run" / "checkpoints")[0] / "manifest.json").write_text("{}")  # damaged: step 4 is used
    run(towers(), tmp_path / "run", recipe(), resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    losses = read_metrics(tmp_path / "run" / "metrics.jsonl")["loss"]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([loss for _, loss in losses])


@pytest.mark.parametrize("torn", ["", '{"step": 3, "lo', '{"step": 3}\n', '{"step": 3}\n{"step": 4}\n{'])
def test_lines_after_the_checkpoint_are_cut_and_a_torn_one_too(tmp_path, torn):
    whole = '{"step": 1}\n{"step": 2}\n{"step": 2, "val": 1}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + torn)
    forget_after(tmp_path / "metrics.jsonl", 2)
    assert (tmp_path / "metrics.jsonl").read_text() == whole
    forget_after(tmp_path / "none.jsonl", 2)
