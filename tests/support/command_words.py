"""The words of each command for one model, folder of images, data set and recipe, and the check of its one line."""

from pathlib import Path

import pytest

from tests.support.tiny_run import write_recipe, write_vit_recipe
from vlm.cli import main


class CommandWords:
    """A model, images, data and recipes in one folder, and the words of each command for them."""

    def __init__(self, folder: Path, images: Path, run_folder: Path):
        self.folder, self.images, self.run_folder = folder, images, run_folder
        self.data = str(run_folder / "data.parquet")
        changes = {"run": {"steps": 4, "save_every": 2, "eval_every": 4}, "data": {"workers": 1, "cache": "none"}}
        self.recipe = write_recipe(run_folder, **changes)
        self.vit_recipe = write_vit_recipe(run_folder, **changes)

    def words(self, command: str) -> list[str]:
        model, images, data = str(self.folder / "model"), str(self.images), self.data
        return [
            str(word)
            for word in {
                "classify": ["classify", self.images / "a.png", "--labels", "a", "b", "--model", model],
                "look": ["look", self.images / "a.png", "--out", self.folder / "look", "--model", model],
                "search": ["search", "a dog", "--folder", images, "--model", model],
                "find": ["search", "a dog", "--index", self.folder / "i", "--model", model, "--json"],
                "index": ["index", images, "--index", self.folder / "i", "--model", model],
                "train": ["train", self.recipe, "--out", self.folder / "run"],
                "train vit": ["train", self.vit_recipe, "--out", self.folder / "run"],
                "evaluate": ["evaluate", model, "--data", data, "--split", "validation"],
                "embed": ["embed", model, data, "--out", self.folder / "shards", "--rows-per-shard", "20"],
                "check": ["check", data, "--workers", "1", "--out", self.folder / "found"],
                "convert": ["convert", model, self.folder / "out"],
                "serve": ["serve", "--index", self.folder / "i", "--model", model, "--port", "0"],
            }[command]
        ]

    def run(self, command: str) -> int:
        return main(self.words(command))


def one_line(code: int, capsys: pytest.CaptureFixture[str], *facts: str) -> None:
    """One line behind the progress, exit code 1, no traceback."""
    err = capsys.readouterr().err
    errors = [line for line in err.splitlines() if "vlm: " in line and "error: " in line]
    assert code == 1, err
    assert len(errors) == 1 and err.splitlines()[-1] == errors[0] and "Traceback" not in err, err
    assert all(fact in errors[0] for fact in facts), errors[0]
