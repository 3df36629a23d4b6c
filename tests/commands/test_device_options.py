"""`--device` and `--dtype`: one shared group of every command that runs a model."""

import json
from pathlib import Path

import pytest

from tests.support.check_sets import noise_image
from vlm.checkpoint.save import save
from vlm.cli import COMMANDS, main
from vlm.embedder import Embedder
from vlm.models.vision import ViTClassifier

# what they do needs no forward pass of a model that the user chooses
WITHOUT = {"check", "convert", "export", "models", "tokenizer"}


@pytest.fixture
def place(tiny_embedder: Embedder, tmp_path: Path) -> Path:
    save(tiny_embedder, tmp_path / "clip")
    config = tiny_embedder.model.vision.config
    save(ViTClassifier(config, 2, labels=["cat", "dog"], preprocess=tiny_embedder.preprocess), tmp_path / "vit")
    save(ViTClassifier(config, 2, labels=["cat", "dog"], preprocess=tiny_embedder.preprocess), tmp_path / "vit2")
    for n in range(8):
        folder = tmp_path / "data" / ("train" if n < 4 else "val") / ("cat" if n % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        noise_image(n, (20, 20)).save(folder / f"{n}.png")
    return tmp_path


COMMAND_LINES = {
    "classify": "data/val/cat/5.png --labels cat dog --model clip --json",
    "classify a ViT": "data/val/cat/5.png --classifier vit --json",
    "look": "data/val/cat/5.png --text cat --model clip --out looked",
    "look at a ViT": "data/val/cat/5.png --classifier vit --out looked",
    "index": "data --index index --model clip --workers 1",
    "search": "cat --folder data --model clip --json",
    "evaluate": "clip --data data --split val --json",
    "embed": "clip data --out shards --workers 0",
    "probe": "clip data --choose val --shots 1 --draws 1 --neighbours 0 --classifier vit --json",
    "report": "vit data --split val --out report --json",
    "wise-ft": "vit vit2 data --choose val --steps 1 --json",
}


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_runs_its_model_where_and_how_it_is_told(
    line: str, dtype: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    assert main([line.split()[0], *COMMAND_LINES[line].split(), "--device", "cpu", "--dtype", dtype]) == 0


def test_scores_in_bfloat16_are_those_in_float32_to_its_rounding(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    found = []
    for dtype in ("float32", "bfloat16"):
        assert main(["classify", *COMMAND_LINES["classify a ViT"].split(), "--dtype", dtype]) == 0
        found.append({row["label"]: row["score"] for row in json.loads(capsys.readouterr().out)})
    assert found[0] == pytest.approx(found[1], abs=0.02)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_that_runs_a_model_has_the_group(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert (name in WITHOUT) == ("where and how the model runs" not in shown)
    assert (name in WITHOUT) == ("--dtype" not in shown)


def test_a_device_that_is_not_there_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    for device in ("cuda:99", "gpu"):
        assert main(["classify", *COMMAND_LINES["classify"].split(), "--device", device]) == 1
        assert device in capsys.readouterr().err
