import json
import subprocess
import sys
from pathlib import Path

import pytest

from training.probe import main
from vlm.checkpoint import load_classifier, save
from vlm.embedder import Embedder


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["probe", *map(str, words)])
    return main()


def test_one_command_makes_the_whole_table_and_the_linear_probe_as_a_classifier(
    tiny_embedder: Embedder,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    save(tiny_embedder, tmp_path / "clip")
    words = (tmp_path / "clip", run_folder / "data.parquet", "--label", "concept", "--shots", 1, 2, "--draws", 2)
    assert run(monkeypatch, *words, "--choose", "validation", "--out", tmp_path / "linear", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == [
        "zero-shot, names",
        "few-shot, 1 per class",
        "few-shot, 2 per class",
        "linear probe",
    ]
    assert all(row["chance"] == 1 / 20 and row["n"] == 12 and row["split"] == "validation" for row in rows)
    assert len(load_classifier(tmp_path / "linear").labels) == 20

    assert run(monkeypatch, tmp_path / "linear", *words[1:], "--choose", "validation", "--json") == 0
    methods = [row["method"] for row in json.loads(capsys.readouterr().out)]
    assert methods == [row["method"] for row in rows[1:]]  # a ViT reads no names

    more = ("--held-out", 8, "--report", "validation", "--shots", "--classifier", tmp_path / "linear")
    assert run(monkeypatch, *words, *more) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[29:41].strip() for line in lines[1:]] == ["held out", "validation"] * 3
    assert lines[-1].startswith("classifier linear")
    assert f"{rows[-1]['top_1']:6.3f}" in lines[-1]  # the same pictures as before


def test_what_does_not_fit_is_one_line_and_exit_code_1(
    tiny_embedder: Embedder,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    save(tiny_embedder, tmp_path / "clip")
    words = (tmp_path / "clip", run_folder / "data.parquet", "--label", "concept")
    assert run(monkeypatch, *words, "--choose", "test") == 1
    assert run(monkeypatch, tmp_path / "none", *words[1:], "--choose", "validation") == 1
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if line.startswith("probe: error: ")]) == len(errors) == 2


@pytest.mark.parametrize("command", ["probe", "wise_ft", "report"])
def test_help_does_not_wait_for_torch(command: str):
    code = (
        f"import sys; sys.argv = ['x', '--help']; from training.{command} import main\n"
        "try: main()\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
