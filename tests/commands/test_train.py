"""The command line of a training run: what reaches the work, and what becomes of its errors."""

import os
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from vlm.cli import main
from vlm.training.recipe.config import Recipe, VitRecipe

CALLS: list[tuple[Any, ...]] = []
TASKS = {"clip": 'task = "clip"\n', "vit": 'task = "vit"\n[data]\ntrain = "x"\nheld_out = 5\n'}


@pytest.fixture(autouse=True)
def work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Recipes clip.toml and vit.toml, and in place of the work a note of what was asked for."""
    monkeypatch.chdir(tmp_path)
    for task, text in TASKS.items():
        Path(f"{task}.toml").write_text(text)
    CALLS.clear()

    def train(recipe, out, processes, *, resume, push, text, profile):
        assert profile is False
        CALLS.append(("train", type(recipe), out, processes.device.type, resume, push, text))
        return 75

    monkeypatch.setattr("vlm.training.tasks.train.train", train)
    monkeypatch.setattr(
        "vlm.training.tasks.train.dry_run",
        lambda recipe, processes: CALLS.append(("dry run", type(recipe), processes.device.type)),
    )
    monkeypatch.setattr(
        "vlm.training.measure.cost.print_plan", lambda recipe, *words: CALLS.append(("plan", type(recipe), *words))
    )


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("clip.toml --out o", ("train", Recipe, Path("o"), "cpu", False, None, TASKS["clip"])),
        ("vit.toml --out o --resume never", ("train", VitRecipe, Path("o"), "cpu", False, None, TASKS["vit"])),
        (
            "clip.toml --out o --resume auto --push a/b",
            ("train", Recipe, Path("o"), "cpu", True, "a/b", TASKS["clip"]),
        ),
        ("vit.toml --dry-run", ("dry run", VitRecipe, "cpu")),
        ("clip.toml --out o --dry-run", ("dry run", Recipe, "cpu")),
        ("clip.toml --dry-run --gpus 8", ("plan", Recipe, 8, None, None, 0.4, None)),
        (
            "clip.toml --dry-run --gpus 8 --gpu l4 --tflops 3.5 --efficiency 0.25 --caption-tokens 9",
            ("plan", Recipe, 8, "l4", 3.5, 0.25, 9),
        ),
        ("clip.toml --dry-run --gpus 0", ("plan", Recipe, 0, None, None, 0.4, None)),
    ],
)
def test_words_reach_the_work(words: str, call: tuple[Any, ...]):
    code = main(["train", *words.split(), "--device", "cpu"])
    assert [call] == CALLS
    assert code == (75 if call[0] == "train" else 0)


@pytest.mark.parametrize("words", ["", "--resume auto", "--out o --gpus 8", "--out o --gpus 0"])
def test_wrong_usage_is_code_2_and_does_nothing(capsys: pytest.CaptureFixture[str], words: str):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "clip.toml", *words.split()])
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("vlm train: error: ") and ("--gpus" if "gpus" in words else "--out") in last
    assert CALLS == []


def test_what_cannot_be_planned_says_so(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "vit.toml", "--dry-run", "--gpus", "8"]) == 1
    assert "--gpus plans CLIP recipes only" in capsys.readouterr().err
    assert CALLS == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_device_that_is_not_here_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "clip.toml", "--out", "o", "--device", "cuda"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cuda" in error and "cpu" in error
    assert CALLS == []


def test_few_products_stay_compiled_unless_the_user_says_how_many(monkeypatch: pytest.MonkeyPatch):
    names = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    for given in ({}, dict.fromkeys(names, "7")):
        for name in names:
            monkeypatch.delenv(name, raising=False)
            if name in given:
                monkeypatch.setenv(name, given[name])
        main(["train", "clip.toml", "--dry-run", "--gpus", "8"])
        found = [int(os.environ[name]) for name in names]
        assert found == [7, 7] if given else all(0 < number < 1024 for number in found)  # oneDNN's own is 1024


def test_the_processes_part_after_an_error_too(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("vlm.training.tasks.train.train", fail)
    monkeypatch.setattr("vlm.training.engine.distributed.leave", lambda: CALLS.append(("left",)))
    assert main(["train", "clip.toml", "--out", "o", "--device", "cpu"]) == 70
    assert CALLS == [("left",)]
