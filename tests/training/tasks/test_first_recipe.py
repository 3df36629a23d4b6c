"""`vlm train --init`: what is chosen for a data set, and that it trains as it is written."""

from pathlib import Path

import pytest

from tests.support.check_sets import COLOURS, THINGS, noise_image
from vlm.cli import main
from vlm.training.data.targets import open_classifier_data
from vlm.training.recipe.config import Recipe, VitRecipe
from vlm.training.recipe.reading import read_any_recipe


def photos(folder: Path, count: int = 40, *, side: int = 64, captions: bool = False, splits: bool = False) -> Path:
    """Images in class folders or, with captions, one text beside each."""
    for n in range(count):
        place = folder / (("val" if n % 5 == 0 else "train") if splits else "") / ("" if captions else THINGS[n % 3])
        place.mkdir(parents=True, exist_ok=True)
        noise_image(n, (side, side)).save(place / f"{n}.png")
        if captions:
            (place / f"{n}.txt").write_text(f"a {COLOURS[n % 5]} {THINGS[n % 8]} {n // 5}")
    return folder


def overwrite(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.write_text("the same")


def init(data: Path, *words: str) -> int:
    return main(["train", "--init", str(data), *words])


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ({"captions": True}, Recipe),
        ({}, VitRecipe),
        ({"side": 28}, VitRecipe),
        ({"splits": True}, VitRecipe),
        ({"count": 120, "captions": True, "side": 20}, Recipe),
    ],
)
def test_the_recipe_fits_the_data_and_says_why(shape, kind, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = photos(tmp_path / "photos", **shape)
    assert init(data) == 0
    out = capsys.readouterr().out
    recipe = read_any_recipe(tmp_path / "photos.toml")
    text = (tmp_path / "photos.toml").read_text()
    assert isinstance(recipe, kind)
    for name in ("task", "model", "image size", "context length", "augmentation", "batch", "steps", "validation"):
        assert any(line.startswith(f"{name} ") for line in out.splitlines()), name
        assert f"# {name}: " in text
    assert "vlm train photos.toml --out runs/photos" in out
    count = shape.get("count", 40)
    if shape.get("splits"):
        assert recipe.data.validation_split == "validation" and not recipe.data.held_out
        count = 32
    else:
        assert 0 < recipe.data.held_out < 1 and recipe.data.hold_out_by == "concept"
    assert recipe.run.batch_size <= count // 4
    assert (recipe.optim.warmup_steps or 0) < recipe.run.steps
    assert (recipe.model.start is None) == (shape.get("side") == 28)  # no pretrained model for tiny images


def test_a_test_split_is_neither_trained_on_nor_chosen_by(tmp_path: Path):
    data = photos(tmp_path / "photos", 40, side=20, splits=True)
    (data / "val").rename(data / "test")
    assert init(data, str(tmp_path / "r.toml")) == 0
    recipe = read_any_recipe(tmp_path / "r.toml")
    assert isinstance(recipe, VitRecipe) and not recipe.data.validation_split and recipe.data.held_out
    found = open_classifier_data(recipe.data, "single_label")
    assert len(found.training.index) + len(found.validation.index) == 32


def test_rare_classes_and_broken_files_are_provided_for(tmp_path: Path):
    data = photos(tmp_path / "photos", 66)
    for number in range(3, 66, 3):
        (data / THINGS[0] / f"{number}.png").unlink()
    (data / THINGS[1] / "broken.png").write_text("no image")
    (data / THINGS[0] / "0.png").rename(data / THINGS[0] / "first.png")
    assert init(data, str(tmp_path / "r.toml")) == 0
    recipe = read_any_recipe(tmp_path / "r.toml")
    assert isinstance(recipe, VitRecipe)
    assert recipe.data.balance == "sqrt" and recipe.data.max_broken > 1 / 46


@pytest.mark.parametrize("kind", ["table", "several labels"])
def test_a_described_table_is_described_in_the_recipe(kind: str, tmp_path: Path):
    photos(tmp_path / "photos", 40, captions=True)
    labels = ["\"['a', 'b']\"" if kind == "several labels" and n % 4 == 0 else "ab"[n % 2] for n in range(40)]
    (tmp_path / "d.csv").write_text("shot,breed\n" + "".join(f"{n}.png,{labels[n]}\n" for n in range(40)))
    words = ["--columns", "image=shot,label=breed", "--root", str(tmp_path / "photos")]
    assert init(tmp_path / "d.csv", str(tmp_path / "r.toml"), *words) == 0
    recipe = read_any_recipe(tmp_path / "r.toml")
    assert isinstance(recipe, VitRecipe)
    assert recipe.data.columns == {"image": ["shot"], "label": ["breed"]} and recipe.data.root == words[-1]
    assert recipe.loss.problem == ("multi_label" if kind == "several labels" else "single_label")


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda f: f.mkdir(), ["without images"]),
        (lambda f: photos(f, 6), ["6 samples", "20 or more"]),
        (lambda f: overwrite(photos(f, 24), "*/*.png"), ["no sample", "vlm check"]),
        (lambda f: overwrite(photos(f, 24, captions=True), "*.txt"), ["same caption"]),
        (lambda f: None, ["There is no data"]),
    ],
    ids=["empty", "few", "broken", "one caption", "missing"],
)
def test_what_cannot_be_learned_from_is_one_line_and_nothing_is_written(make, facts, tmp_path: Path, capsys):
    make(tmp_path / "photos")
    capsys.readouterr()
    assert init(tmp_path / "photos", str(tmp_path / "r.toml")) == 1
    error = capsys.readouterr().err
    assert [fact for fact in facts if fact not in error] == [] and "defect" not in error
    assert not (tmp_path / "r.toml").exists()


def test_a_recipe_that_is_there_stays_as_it_is(tmp_path: Path, capsys):
    (tmp_path / "r.toml").write_text("mine")
    assert init(photos(tmp_path / "photos"), str(tmp_path / "r.toml")) == 1
    assert "r.toml is there already" in capsys.readouterr().err
    assert (tmp_path / "r.toml").read_text() == "mine"
    with pytest.raises(SystemExit) as stop:
        main(["train"])
    assert stop.value.code == 2 and "--init" in capsys.readouterr().err


@pytest.mark.parametrize("captions", [False, True])
def test_it_trains_as_it_is_written(captions: bool, tmp_path: Path, monkeypatch):
    """Nothing but the number of steps is changed, so that the test is short."""
    data = photos(tmp_path / "photos", 24, side=30 if not captions else 48, captions=captions)
    recipe = tmp_path / "r.toml"
    assert init(data, str(recipe)) == 0
    steps = read_any_recipe(recipe).run.steps
    text = recipe.read_text()
    recipe.write_text(
        text.replace(f"\nsteps = {steps}\n", "\nsteps = 3\n").replace("warmup_steps = ", "warmup_steps = 1 # ")
    )
    assert main(["train", str(recipe), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert (tmp_path / "run" / "model.safetensors").exists()
