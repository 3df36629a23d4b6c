"""A release of a tiny model that knows nothing, scored on the smallest splits."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pyarrow.parquet import read_table

from vlm.calibration import Calibration
from vlm.checkpoint.load import load
from vlm.checkpoint.save import save
from vlm.cli import run_alone
from vlm.commands.release import release as declare
from vlm.embedder import Embedder
from vlm.training.measure import release as module
from vlm.training.measure.drawings import ICON_WORDS, PICTURE_WORDS, evaluate_drawings
from vlm.training.measure.match_calibration import section
from vlm.training.measure.measurement import Measurement, markdown_table

SPLITS = ("val_both", "test_both")
CALIBRATION = Calibration(scale=20.5, bias=-12.25, data="what a model that knows something would get")
Release = Callable[..., int]


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Release:
    """The command, with one split of each kind; who knows nothing cannot be calibrated."""
    monkeypatch.setattr(module, "VALIDATION", SPLITS[:1])
    monkeypatch.setattr(module, "TEST", SPLITS[1:])
    monkeypatch.setattr(module, "calibrate", lambda embedder: (CALIBRATION, []))

    def run(*words: Path) -> int:
        monkeypatch.setattr("sys.argv", ["release", *map(str, words)])
        return run_alone(declare, "release")

    return run


@pytest.fixture
def finished(tiny_embedder: Embedder, tmp_path: Path) -> Path:
    """A run of 600 steps of which two were timed."""
    run = tmp_path / "hour"
    save(tiny_embedder, run)
    (run / "recipe.toml").write_text('\n[model]\nsize = "tiny"\n', encoding="utf-8")
    lines = [json.dumps({"step": step, "seconds": seconds}) for step, seconds in ((300, 0.5), (600, 1.5))]
    (run / "timing.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return run


def test_what_is_packed_is_the_run_in_float16_and_its_card_says_what_exactly_that_scores(
    release: Release, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "small"
    assert release(out, finished) == 0
    trained, packed = load(finished).model.state_dict(), load(out)
    for name, weight in packed.model.state_dict().items():
        rounded = trained[name] if name == "logit_scale" else trained[name].half().float()
        assert torch.equal(weight, rounded), name
    rows = evaluate_drawings(packed, SPLITS)
    assert [
        Measurement(**row) for row in json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    ] == rows
    card = (out / "README.md").read_text(encoding="utf-8")
    assert markdown_table(rows) in card
    assert "\n# small\n" in card
    assert 'vlm.load("small")' in card
    assert '```toml\n[model]\nsize = "tiny"\n```' in card
    assert "About 10 minutes of steps" in card  # 600 steps of a second
    parameters = sum(weight.numel() for weight in packed.model.parameters())
    assert f"A CLIP of {parameters / 1e6:.1f} million parameters" in card
    assert packed.calibration == CALIBRATION
    assert section(CALIBRATION, []) in card
    size = sum(file.stat().st_size for file in out.iterdir())
    assert capsys.readouterr().err == f"{out}: {size / 1e6:.1f} MB\n"


def test_a_card_begins_with_a_summary_and_folds_the_rest() -> None:
    measured = [
        Measurement(split, task, language, value, 0.002, 547)
        for split in ("val_style", "val_other")
        for task, value in (("text->image R@1", 0.5), ("text->image R@5", 0.75))
        for language in ("en", "ja")
    ]
    (line,) = module.summary_table(measured).splitlines()[2:]  # one split of the summary was measured
    assert "`val_style`" in line
    assert [cell.strip() for cell in line.split("|")[2:6]] == ["0.500", "0.500", "0.0020", "547"]


def test_a_run_that_is_not_there_is_one_line_and_writes_nothing(
    release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert release(tmp_path / "out", tmp_path / "none") == 1
    error = capsys.readouterr().err
    assert error.startswith("vlm: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_authors_and_licences_of_the_data_lie_beside_the_weights(release: Release, finished: Path, tmp_path: Path):
    for _ in range(2):  # the second replaces the first
        assert release(tmp_path / "small", finished) == 0
    attribution = (tmp_path / "small" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    icons = read_table(ICON_WORDS / "train.parquet", columns=["source", "author", "license"]).to_pylist()
    for source, author, license in {tuple(row.values()) for row in icons}:
        package, version = source.removeprefix("npm:").split()
        (line,) = (line for line in attribution.splitlines() if line.startswith(f"| {package} |"))
        assert [version, license, author] == [cell.strip() for cell in line.split("|")[2:5]]
    for artist in ("Noto Emoji", "Twemoji", "Fluent Emoji", "Emoji One", "Open Clip Art"):
        assert artist in attribution
    texts = (tmp_path / "small" / "LICENSES.txt").read_text(encoding="utf-8")
    for folder in (PICTURE_WORDS, ICON_WORDS):
        for path in (folder / "LICENSES").glob("*.txt"):
            assert path.read_text(encoding="utf-8").strip() in texts, path.name
