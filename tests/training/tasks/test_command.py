"""The command line of a training run: what reaches the work, and what becomes of its errors."""

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from vlm.training.engine.distributed import Processes
from vlm.training.tasks.command import Actions, run

CALLS: list[tuple[Any, ...]] = []


def train(recipe_file: Path, out: Path, processes: Processes, *, resume: bool = False, push: str | None = None) -> int:
    CALLS.append(("train", recipe_file, out, processes.device.type, resume, push))
    return 75


def dry_run(recipe_file: Path, processes: Processes) -> None:
    CALLS.append(("dry run", recipe_file, processes.device.type))


def plan(*words: Any, **_: Any) -> None:
    CALLS.append(("plan", *words))


ABLE = Actions(train, dry_run, plan)


def command(monkeypatch: pytest.MonkeyPatch, *words: str, actions: Actions = ABLE) -> int:
    monkeypatch.setattr(sys, "argv", ["train_x", "r.toml", *words])
    CALLS.clear()
    return run("train_x", "What it is.", lambda: actions)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("--out o", ("train", Path("r.toml"), Path("o"), "cpu", False, None)),
        ("--out o --resume never", ("train", Path("r.toml"), Path("o"), "cpu", False, None)),
        ("--out o --resume auto --push a/b", ("train", Path("r.toml"), Path("o"), "cpu", True, "a/b")),
        ("--dry-run", ("dry run", Path("r.toml"), "cpu")),
        ("--out o --dry-run", ("dry run", Path("r.toml"), "cpu")),
        ("--dry-run --gpus 8", ("plan", Path("r.toml"), 8, None, None, 0.4, None)),
        (
            "--dry-run --gpus 8 --gpu l4 --tflops 3.5 --efficiency 0.25 --caption-tokens 9",
            ("plan", Path("r.toml"), 8, "l4", 3.5, 0.25, 9),
        ),
        ("--dry-run --gpus 0", ("plan", Path("r.toml"), 0, None, None, 0.4, None)),
    ],
)
def test_words_reach_the_work(monkeypatch, words, call):
    code = command(monkeypatch, "--device", "cpu", *words.split())
    assert [call] == CALLS
    assert code == (75 if call[0] == "train" else 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--out is needed: where shall the model go?"),
        ("--resume auto", "--out is needed: where shall the model go?"),
        ("--out o --gpus 8", "--gpus goes with --dry-run; torchrun starts a run on many"),
        ("--out o --gpus 0", "--gpus goes with --dry-run; torchrun starts a run on many"),
    ],
)
def test_wrong_usage_is_code_2_and_does_nothing(monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, *words.split())
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(f"train_x: error: {message}\n")
    assert CALLS == []


@pytest.mark.parametrize("kind", [ValueError, OSError, FloatingPointError])
def test_an_error_the_user_can_put_right_is_one_line_and_code_1(monkeypatch, capsys, kind):
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise kind("so it is")

    for words in ("--out o", "--dry-run", "--dry-run --gpus 8"):
        assert command(monkeypatch, "--device", "cpu", *words.split(), actions=Actions(fail, fail, fail)) == 1
        assert capsys.readouterr() == ("", "train_x: error: so it is\n")


def test_another_error_is_not_hidden(monkeypatch):
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="of ours"):
        command(monkeypatch, "--out", "o", actions=Actions(fail, fail))


def test_what_cannot_be_planned_says_so(monkeypatch, capsys):
    assert command(monkeypatch, "--dry-run", "--gpus", "8", actions=Actions(train, dry_run)) == 1
    assert "--gpus plans CLIP recipes only. Leave it out" in capsys.readouterr().err
    assert CALLS == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_device_that_is_not_here_is_one_line(monkeypatch, capsys):
    assert command(monkeypatch, "--out", "o", "--device", "cuda") == 1
    assert capsys.readouterr().err == "train_x: error: device cuda: torch sees no such GPU here. Use device cpu.\n"
    assert CALLS == []


def test_few_products_stay_compiled_unless_the_user_says_how_many(monkeypatch):
    names = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    for given in ({}, dict.fromkeys(names, "7")):
        for name in names:
            monkeypatch.delenv(name, raising=False)
            if name in given:
                monkeypatch.setenv(name, given[name])
        command(monkeypatch, "--dry-run", "--gpus", "8")
        found = [int(os.environ[name]) for name in names]
        assert found == [7, 7] if given else all(0 < number < 1024 for number in found)  # oneDNN's own is 1024


def test_help_shows_the_words_of_the_module_as_they_stand(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_x", "--help"])
    with pytest.raises(SystemExit):
        run("train_x", "One line.\n\n    indented", lambda: Actions(train, dry_run))
    out = capsys.readouterr().out
    assert "usage: python -m training.train_x" in out
    assert "One line.\n\n    indented\n" in out
