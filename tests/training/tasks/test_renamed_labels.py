"""Labels belong to the checkpoint: a renamed class goes on as the class it was only where the recipe says so."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vlm
from tests.training.measure.test_report import SMALL, write_photos
from vlm.errors import DataError, RunFolderError
from vlm.training import VitRecipe, train


def recipe(photos: Path, rename: dict[str, str] | None = None, **model: Any) -> VitRecipe:
    return VitRecipe.from_dict({
        "model": model or {"vision": SMALL},
        "data": {"train": str(photos), "held_out": 6, "workers": 0, "rename": rename},
        "run": {"steps": 2, "batch_size": 4, "save_every": 1},
    })  # fmt: skip


@pytest.mark.parametrize("rename", [{"sky blue": "blue"}, {"sky blue": "blue", "gr\u00fcn": "green"}])
def test_a_renamed_class_is_the_class_it_was_where_the_recipe_says_so(tmp_path: Path, rename: dict[str, str]):
    photos = write_photos(tmp_path / "photos")
    assert train(recipe(photos), tmp_path / "run")
    before = vlm.load_classifier(tmp_path / "run")
    card = json.loads((tmp_path / "run" / "config.json").read_text())["labels"]
    for new, old in rename.items():
        (photos / old).rename(photos / new)
    with pytest.raises(RunFolderError, match=r"gone: .*blue.*sky blue.*rename"):
        train(recipe(photos), tmp_path / "run", resume=True)
    assert train(recipe(photos, rename), tmp_path / "run", resume=True)
    after = vlm.load_classifier(tmp_path / "run")
    assert list(after.labels) == list(before.labels) == card == ["blue", "green", "red"]
    images = torch.randn(2, 3, *after.vision.config.image_shape)
    with torch.no_grad():
        torch.testing.assert_close(after(images), before(images))
    kept = recipe(photos, rename, source=str(tmp_path / "run"), head="keep")
    assert train(kept, tmp_path / "kept")
    assert list(vlm.load_classifier(tmp_path / "kept").labels) == card


@pytest.mark.parametrize(
    ("rename", "said"), [({"violet": "red"}, "violet.*blue, green"), ({"blue": "red"}, "one class")]
)
def test_a_name_that_is_not_there_or_is_taken_is_refused(tmp_path: Path, rename: dict[str, str], said: str):
    photos = write_photos(tmp_path / "photos")
    with pytest.raises(DataError, match=said):
        train(recipe(photos, rename), tmp_path / "run")
