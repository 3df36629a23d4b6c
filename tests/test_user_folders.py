"""Folders that results are written to: nobody's files are replaced, and none lie in the data."""

from pathlib import Path

import pytest

from tests.support.messages import refused
from tests.training.measure.test_report import SMALL, write_photos
from vlm.cli import main
from vlm.errors import InputError
from vlm.training import VitRecipe, train
from vlm.user_folders import check_output


@pytest.mark.parametrize("name", ["README.md", "metrics.json"])
def test_a_file_of_somebody_else_is_named_and_stays(name: str, tmp_path: Path):
    (tmp_path / name).write_text("mine")
    if name == "README.md":
        with refused(InputError, "README.md", "lost"):
            check_output(tmp_path, [], ("metrics.json", "README.md"), "metrics.json")
    else:  # an earlier result
        check_output(tmp_path, [], ("metrics.json", "README.md"), "metrics.json")
    check_output(tmp_path / "new", [tmp_path / "nowhere"], ("README.md",), "metrics.json")


@pytest.mark.parametrize("place", ["photos", "photos/checked", "photos/../photos/."])
@pytest.mark.parametrize("command", ["check", "report", "embed", "train"])
def test_no_command_writes_into_the_data(command: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    photos = write_photos(tmp_path / "photos")
    before = sorted(photos.rglob("*"))
    words = {"check": ["check", photos], "embed": ["embed", "mini", photos], "train": ["train", tmp_path / "r.toml"],
             "report": ["report", tmp_path / "run", photos, "--split", ""]}[command]  # fmt: skip
    (tmp_path / "r.toml").write_text(f'task = "vit"\n[data]\ntrain = "{photos}"\n')
    if command == "report":
        settings = {"model": {"vision": SMALL}, "data": {"train": str(photos), "held_out": 6, "workers": 0},
                    "run": {"steps": 1, "batch_size": 4}}  # fmt: skip
        assert train(VitRecipe.from_dict(settings), tmp_path / "run")
    assert main([*map(str, words), "--out", str(tmp_path / place)]) == 1
    assert "data" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(photos.rglob("*")) == before
