"""Whole runs of `python -m training.train_vit`, tiny ones."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vlm
from tests.support.data_formats import only
from tests.support.kept_data import images
from tests.support.messages import refused
from tests.support.tiny_run import train_file as train
from tests.support.tiny_run import write_vit_recipe
from vlm.checkpoint.load import load_classifier
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.errors import RunFolderError
from vlm.training.engine.curves import read_metrics
from vlm.training.engine.distributed import SINGLE_PROCESS
from vlm.training.tasks import classification

ROOT = Path(__file__).parents[3]
FILES = ("model.safetensors", "metrics.jsonl", "checkpoints/step-00000006/tensors.safetensors")


def bytes_of(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def recipe(run_folder) -> Path:
    """Everything on that draws random numbers: transforms, patch dropout, stochastic depth, mixing, average."""
    return write_vit_recipe(run_folder)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    """A run from start to end."""
    out = tmp_path_factory.mktemp("finished") / "model"
    assert train(recipe, out, SINGLE_PROCESS) == 0
    return out


def test_a_run_ends_with_a_classifier_that_knows_its_classes_and_a_card_with_its_numbers(finished, recipe):
    classifier = vlm.load_classifier(finished)
    assert len(classifier.labels) == 20
    assert {"red dog", "grey sun"} <= set(classifier.labels)
    last = {name: points[-1][1] for name, points in read_metrics(finished / "metrics.jsonl").items()}
    card = (finished / "README.md").read_text(encoding="utf-8")
    assert f"| validation | classification top-1 | en | {last['val top-1']:.3f} | 0.0500 | 12 |" in card
    assert f"| validation | classification top-5 | en | {last['val top-5']:.3f} | 0.2500 | 12 |" in card
    assert recipe.read_text().strip() in card
    assert "load_classifier" in card
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_numbers_of_the_card_are_those_of_the_saved_model_on_the_images_themselves(finished, run_folder):
    from vlm.training.data.sources import open_rows

    classifier = load_classifier(finished)
    assert classifier.preprocess is not None
    rows = open_rows(run_folder / "data.parquet", ["validation"], {"label": "concept"})
    right = 0
    with torch.no_grad():
        for i in range(len(rows)):
            pixels = classifier.preprocess(rows.image(i))
            right += classifier.labels[int(classifier(pixels[None]).argmax())] == only(rows.labels(i))
    assert read_metrics(finished / "metrics.jsonl")["val top-1"][-1][1] == pytest.approx(right / len(rows))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_to_the_same_end_to_the_bit(finished, recipe, tmp_path, monkeypatch, number):
    def stop_and_measure(*arguments: Any) -> tuple[Tensor, Tensor]:
        os.kill(os.getpid(), number)
        return measure(*arguments)

    measure = classification.predictions
    monkeypatch.setattr(classification, "predictions", stop_and_measure)
    out = tmp_path / "model"
    assert train(recipe, out, SINGLE_PROCESS) == 75
    assert not (out / "model.safetensors").exists()
    monkeypatch.setattr(classification, "predictions", measure)
    torch.manual_seed(12345)
    assert train(recipe, out, SINGLE_PROCESS, resume=True) == 0
    assert bytes_of(out) == bytes_of(finished)


def test_loader_processes_change_nothing(finished, run_folder, tmp_path):
    assert train(write_vit_recipe(run_folder, data={"workers": 2}), tmp_path / "model", SINGLE_PROCESS) == 0
    assert bytes_of(tmp_path / "model")[:2] == bytes_of(finished)[:2]


def test_an_earlier_run_is_not_overwritten(finished, recipe):
    with pytest.raises(ValueError, match=r"run's checkpoints.*--resume"):
        train(recipe, finished, SINGLE_PROCESS)


def test_a_run_that_starts_from_words_keeps_its_zero_shot_start(tiny_embedder, run_folder, tmp_path):
    save(tiny_embedder, tmp_path / "clip")
    model = {"source": str(tmp_path / "clip"), "vision": None, "head": "zero_shot"}
    recipe = write_vit_recipe(run_folder, model=model, data={"patch_dropout": 0.0}, run={"steps": 1})
    assert train(recipe, tmp_path / "out", SINGLE_PROCESS) == 0
    start, end = load_classifier(tmp_path / "out/start"), load_classifier(tmp_path / "out")
    image = torch.randint(0, 256, (40, 30, 3), dtype=torch.uint8).numpy()
    assert start.preprocess is not None
    with torch.no_grad():
        ours = start(start.preprocess(image)[None]).softmax(1)
    torch.testing.assert_close(ours, vlm.classify(tiny_embedder, [image], list(start.labels)), rtol=0, atol=1e-5)
    assert start.labels == end.labels
    assert not torch.equal(start.head.weight, end.head.weight)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "recipe.toml").write_text("task = 'vit'\n[data]\ntrain = 'nowhere'\nheld_out = 5\n")
    assert main(["train", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("vlm: error: ")


def test_a_dry_run_writes_nothing(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(recipe), "--dry-run"]) == 0
    assert "samples/s" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_killed_run_goes_on_to_the_same_end_to_the_bit(finished, recipe, tmp_path):
    out = tmp_path / "model"
    command = [sys.executable, "-m", "training.train_vit", str(recipe), "--out", str(out), "--resume", "auto"]
    for _ in range(2):
        run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while run.poll() is None and not list((out / "checkpoints").glob("step-*")):
            pass
        run.kill()
        run.wait()
    assert subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] == [
        json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()
    ]
    assert bytes_of(out)[0] == bytes_of(finished)[0]


@pytest.mark.parametrize("balance", ["sqrt", "equal"])
def test_a_balanced_run_of_epochs_goes_on_where_it_was_stopped(run_folder: Path, tmp_path: Path, balance: str):
    """3 epochs of 48 samples in batches of 16 are 9 steps, in one go or in two."""
    run = {"steps": None, "epochs": 3, "save_every": 3, "keep": 9}
    recipe = write_vit_recipe(run_folder, data={"balance": balance}, run=run)
    assert train(recipe, tmp_path / "a", SINGLE_PROCESS) == 0
    end = "checkpoints/step-00000009/tensors.safetensors"
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for step in (6, 9):
        shutil.rmtree(tmp_path / "b" / "checkpoints" / f"step-{step:08d}")
    assert train(recipe, tmp_path / "b", SINGLE_PROCESS, resume=True) == 0
    assert (tmp_path / "a" / end).read_bytes() == (tmp_path / "b" / end).read_bytes()


@pytest.mark.parametrize("task", ["vit", "clip"])
def test_where_every_sample_is_broken_the_quarantine_has_what_was_seen(task: str, tmp_path: Path):
    for number in range(20):
        path = tmp_path / "data" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if number % 3 else b"no image")
    (tmp_path / "r.toml").write_text(f'task = "{task}"\n[data]\ntrain = "{tmp_path}/data"\nworkers = 0\n')
    assert main(["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run")]) == 1
    listed = [json.loads(line) for line in (tmp_path / "run/quarantine.jsonl").read_text().splitlines()]
    assert len(listed) == 2 and {line["reason"] for line in listed} <= {"empty file", "not an image"}


@pytest.mark.parametrize("marker", ["there", "gone"])
def test_the_checkpoint_itself_knows_the_classes_and_the_data(run_folder: Path, tmp_path: Path, marker: str, capsys):
    data = tmp_path / "data"
    images(data, *[f"{['ant', 'bee', 'cat'][number % 3]}/{number}.png" for number in range(24)])
    recipe = write_vit_recipe(
        run_folder,
        data={"train": str(data), "train_splits": [], "validation_split": None, "columns": None},
        run={"steps": 2, "batch_size": 8, "save_every": 1},
    )
    assert train(recipe, tmp_path / "run", SINGLE_PROCESS) == 0
    if marker == "gone":
        (tmp_path / "run" / "run.json").unlink()
    images(data, "ant/more.png")
    assert train(recipe, tmp_path / "run", SINGLE_PROCESS, resume=True) == 0
    assert "data have changed" in capsys.readouterr().err
    if marker == "gone":
        (tmp_path / "run" / "run.json").unlink()
    (data / "ant").rename(data / "dog")
    with refused(RunFolderError, "gone: ant", "new: dog"):
        train(recipe, tmp_path / "run", SINGLE_PROCESS, resume=True)
