"""Each warning is provoked in a real run of the training loop; a healthy run gets none."""

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from vlm.loss import clip_loss
from vlm.training.data.pair_stream import PairBatch, PairStream
from vlm.training.engine.diagnostics import WINDOW, Diagnostics, Signs
from vlm.training.engine.distributed import Processes
from vlm.training.engine.loop import fit
from vlm.training.recipe.config import Recipe

ROWS = 16


class Clock:
    """In place of `time`: stands still but for what the run below says it takes."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


class Vectors(Dataset[PairBatch]):
    """In place of images: 16 random vectors a step, `ids` with the same ones; `seconds` to build a batch."""

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds

    def __getitem__(self, step: int) -> PairBatch:
        CLOCK.now += self.seconds
        x = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(step))
        return PairBatch(x, x[:, None], torch.arange(ROWS), None, [f"{step}/{i}" for i in range(ROWS)])


class Towers(nn.Module):
    """Two projections of the vectors; `blind` ones see only a constant."""

    def __init__(self, *, blind: bool = False, logit_scale: float = 2.0):
        super().__init__()
        self.vision, self.text = nn.Linear(8, 8), nn.Linear(8, 8)
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale))
        self.blind = blind

    def forward(self, x: Tensor) -> Tensor:
        x = torch.ones_like(x) if self.blind else x
        return clip_loss(F.normalize(self.vision(x), dim=1), F.normalize(self.text(x), dim=1), self.logit_scale)


def backward(model: nn.Module, batch: PairBatch, scale: Tensor | float) -> Tensor:
    CLOCK.now += 1.0
    loss = model(batch.images)
    (scale * loss).backward()
    return loss.detach()


def warnings_of(model: nn.Module, stream: Vectors, out: Path, capsys: Any, steps: int = 170, **optim: Any) -> list[str]:
    """The warnings of so many steps."""
    torch.manual_seed(0)
    run = {"steps": steps, "batch_size": ROWS, "eval_every": 1000, "save_every": 1000, "log_every": 50}
    sections = {"run": run, "data": {"workers": 0}, "optim": {"matrices": "adamw", "warmup_steps": 0} | optim}
    processes = Processes(rank=0, size=1, device=torch.device("cpu"))
    out.mkdir()
    recipe, of_pairs = Recipe.from_dict(sections), cast(PairStream, stream)
    fit(
        model,
        backward,
        of_pairs,
        lambda _: {},
        recipe,
        out,
        processes=processes,
        chance_loss=math.log(ROWS),
        resume=False,
    )
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return [
        line
        for line in lines
        if line.startswith("step ") and any(word in line for word in ("chance", "limit", "waits"))
    ]


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch):
    monkeypatch.setattr("vlm.training.engine.loop.time", CLOCK)


def test_a_healthy_run_gets_no_warning(tmp_path, capsys):
    assert warnings_of(Towers(), Vectors(seconds=0.3), tmp_path / "run", capsys, lr=1e-2) == []


def test_a_collapsed_model_is_reported(tmp_path, capsys):
    (said,) = warnings_of(Towers(blind=True), Vectors(), tmp_path / "run", capsys)
    assert said.count("2.773") == 2  # ln(16): the loss, and chance
    assert "Lower the learning rates" in said


def test_a_saturated_temperature_is_reported(tmp_path, capsys):
    model = Towers(logit_scale=math.log(100))
    model.vision.load_state_dict(model.text.state_dict())  # pairs fit perfectly: the surer, the better
    (said,) = warnings_of(model, Vectors(), tmp_path / "run", capsys)
    assert "limit of 100 for 50 steps" in said and "raise max_logit_scale" in said


def test_a_slow_loader_is_reported(tmp_path, capsys):
    (said,) = warnings_of(Towers(), Vectors(seconds=0.5), tmp_path / "run", capsys, steps=60)
    assert "33%" in said and "Raise workers in [data] (now 0)" in said


def diagnostics() -> Diagnostics:
    return Diagnostics(chance_loss=4.0, max_logit_scale=100.0, patience=60, workers=1)


def test_a_loss_near_chance_is_no_warning_at_the_start_nor_after_one_lucky_step():
    signs = Signs(loss=4.0, logit_scale=2.0, seconds=1.0, waiting=0.0)
    one = diagnostics()
    assert [step for step in range(100) if one.look(step, signs)] == [60]
    other = diagnostics()
    for step in range(100, 100 + WINDOW - 1):
        assert other.look(step, signs._replace(loss=2.0)) == []
    assert other.look(200, signs) == []


@pytest.mark.parametrize("scale", [None, 2.0, math.log(100) - 0.1])
def test_a_temperature_below_its_limit_is_no_warning(scale):
    one = diagnostics()
    for step in range(2 * WINDOW):
        assert one.look(step, Signs(loss=2.0, logit_scale=scale, seconds=1.0, waiting=0.1)) == []


def test_each_warning_is_given_once():
    one = diagnostics()
    signs = Signs(loss=4.0, logit_scale=math.log(100), seconds=1.0, waiting=0.9)
    said = [text for step in range(300) for text in one.look(step, signs)]
    assert len(said) == 3
