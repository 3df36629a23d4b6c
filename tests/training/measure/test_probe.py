import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlm.checkpoint.load import load_classifier
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.embedder import Embedder


@pytest.fixture
def clip(tiny_embedder: Embedder, tmp_path: Path) -> Path:
    save(tiny_embedder, tmp_path / "clip")
    return tmp_path / "clip"


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    return main(["probe", *map(str, words)])


def test_one_command_makes_the_whole_table_and_the_linear_probe_as_a_classifier(
    clip: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = (clip, run_folder / "data.parquet", "--label", "concept", "--shots", 1, 2, "--draws", 2)
    assert run(monkeypatch, *words, "--choose", "validation", "--out", tmp_path / "linear", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == [
        "zero-shot, names",
        "few-shot, 1 per class",
        "few-shot, 2 per class",
        "linear probe",
    ]
    assert all(row["chance"] == 1 / 20 and row["n"] == 12 and row["split"] == "validation" for row in rows)
    assert [row["note"].split(", ")[-1] for row in rows] == ["default templates", "2 draws", "2 draws", "48 images"]
    assert len(load_classifier(tmp_path / "linear").labels) == 20

    assert run(monkeypatch, tmp_path / "linear", *words[1:], "--choose", "validation", "--json") == 0
    methods = [row["method"] for row in json.loads(capsys.readouterr().out)]
    assert methods == [row["method"] for row in rows[1:]]  # a ViT reads no names

    more = ("--held-out", 8, "--report", "validation", "--shots", "--classifier", tmp_path / "linear")
    assert run(monkeypatch, *words, *more) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[29:41].strip() for line in lines[1:]] == ["held out", "validation"] * 3
    assert all(line.endswith(", 40 images") for line in lines[3:5])  # of 48
    assert [line.split()[-5 if "C " in line else -1] for line in lines[5:]] == ["8", "12"]
    assert lines[-1].startswith("classifier linear")
    assert f"{rows[-1]['top_1']:6.3f}" in lines[-1]  # the same images as before


def test_classes_are_named_by_a_set_beside_the_data_in_the_language_asked_for(
    clip: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shutil.copy(run_folder / "data.parquet", tmp_path / "data.parquet")
    names = {"red dog": ("a dog", "犬"), "red cat": ("a cat", "猫"), "red bird": ("a bird", "鳥")}
    few = {key: {"en": [en], "ja": [ja]} for key, (en, ja) in names.items()}
    (tmp_path / "classes.json").write_text(json.dumps({"few": {"by": "concept", "classes": few}}))
    words = (clip, tmp_path / "data.parquet", "--classes", "few", "--shots", "--held-out", 2)
    for language, number in (("en", 0), ("ja", 1)):
        out = tmp_path / language
        assert run(monkeypatch, *words, "--lang", language, "--out", out, "--json") == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["method"] for row in rows] == ["zero-shot, en", "zero-shot, ja", "linear probe"]
        assert all(row["chance"] == 1 / 3 and row["n"] == 2 and row["spread"] is None for row in rows)
        assert load_classifier(out).labels == tuple(pair[number] for pair in names.values())


@pytest.mark.parametrize("words", [(), ("--choose", "validation", "--held-out", 2)])
def test_one_way_to_choose_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "mini", "nowhere", *words)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("error: give either --choose SPLIT or --held-out N\n")


def test_what_does_not_fit_is_one_line_and_exit_code_1(
    clip: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = (clip, run_folder / "data.parquet", "--label", "concept")
    assert run(monkeypatch, *words, "--choose", "test") == 1
    assert run(monkeypatch, tmp_path / "none", *words[1:], "--choose", "validation") == 1
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if line.startswith("vlm: error: ")]) == len(errors) == 2


@pytest.mark.parametrize("command", ["probe", "wise_ft", "report", "train_tokenizer"])
def test_help_does_not_wait_for_torch(command: str):
    words = [sys.executable, "-X", "importtime", "-m", f"training.{command}", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "argparse" in done.stderr and "torch" not in done.stderr and "sentencepiece" not in done.stderr
