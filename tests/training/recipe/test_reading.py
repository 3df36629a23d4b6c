"""Recipe files: unreadable ones, their task, keys and defaults of earlier versions."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.messages import refused
from vlm.errors import RecipeError
from vlm.training.recipe.config import LoopRecipe, Recipe, VitRecipe
from vlm.training.recipe.reading import read_any_recipe, read_recipe

DATA = '[data]\ntrain = "x"\nvalidation = "y"\n'


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "r.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("[run\nsteps = 3", ["line 1"]),
        ("[run] # für".encode("latin-1"), ["UTF-8"]),
        ("[run]\nsteps = 'many'", ["steps", "'many'", "int"]),
        ('[data]\ntrain = "D:\\train"', ["data.train", "'single quotes'"]),
        ('[data]\nroot = "C:\\new"', ["data.root", "'single quotes'"]),
        ('[data]\ntrain = "C:\\photos"', ["'single quotes'"]),
        ('[data]\ntrain = "D:\\users\\me"', ["'single quotes'"]),
    ],
)
def test_a_recipe_that_cannot_be_read_is_one_line_with_its_name(content: str | bytes, facts: list[str], tmp_path: Path):
    with refused(RecipeError, "r.toml", *facts):
        read_recipe(written(tmp_path, content))


def test_what_is_no_file_is_no_recipe(tmp_path: Path):
    for path, fact in ((tmp_path / "none.toml", "no recipe"), (tmp_path, "cannot be read")):
        with refused(RecipeError, path.name, fact):
            read_recipe(path)


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path):
    assert read_recipe(written(tmp_path, b"\xef\xbb\xbf[run]\nsteps = 7")).run.steps == 7


@pytest.mark.parametrize(("task", "kind"), [("clip", Recipe), ("vit", VitRecipe)])
def test_a_recipe_says_its_task(task: str, kind: type[LoopRecipe], tmp_path: Path):
    path = written(tmp_path, f"task = '{task}'\n" + DATA)
    assert isinstance(read_any_recipe(path), kind)
    with refused(RecipeError, "r.toml", task):
        read_recipe(path, VitRecipe if kind is Recipe else Recipe)


@pytest.mark.parametrize("top", ["", 'task = "clipp"\n', "[run]\ntask = 'clip'\n", "task = 3\n"])
def test_a_recipe_without_a_task_asks_for_one(top: str, tmp_path: Path):
    path = written(tmp_path, top)
    with refused(RecipeError, "r.toml", 'task = "clip"', 'task = "vit"'):
        read_any_recipe(path)


def test_the_recipe_of_an_old_run_need_not_say_its_task(tmp_path: Path):
    path = written(tmp_path, DATA)
    assert isinstance(read_any_recipe(path, {"augment": {}}), Recipe)
    assert isinstance(read_any_recipe(path, {"transform": {}}), VitRecipe)


OLD = [  # kind, section, old line, new line, name and value of the setting
    (Recipe, "data", "captions_per_picture = 2", "captions_per_image = 2", "captions_per_image", 2),
    (Recipe, "model", 'source = "mini"\ntrain = "last-2"', "train_blocks = 2", "train_blocks", 2),
    (Recipe, "model", 'source = "mini"\ntrain = "heads"', "train_blocks = 0", "train_blocks", 0),
    (Recipe, "model", 'source = "mini"\ntrain = "all"', "Leave it out", "train_blocks", None),
    (VitRecipe, "data", 'held_out = 5\ntrain_split = "a"', 'train_splits = ["a"]', "train_splits", ("a",)),
    (
        VitRecipe,
        "data",
        'held_out = 5\ncolumn = "breed"',
        'columns = { label = "breed" }',
        "columns",
        {"label": "breed"},
    ),
]


@pytest.mark.parametrize(("kind", "section", "old", "new", "name", "value"), OLD)
def test_an_old_key_is_an_error_that_gives_the_new_line_and_goes_on_in_an_old_run(
    kind: type[LoopRecipe], section: str, old: str, new: str, name: str, value: Any, tmp_path: Path
):
    data = 'train = "x"\n' if section == "data" or kind is Recipe else ""
    text = f"[data]\n{data}" + (f"[{section}]\n" if section != "data" else "") + old
    path = written(tmp_path, text)
    with refused(RecipeError, "r.toml", new):
        read_recipe(path, kind)
    resumed = read_recipe(path, kind, recorded={section: {}}).to_dict()
    assert resumed[section][name] == value


def test_an_old_run_keeps_the_defaults_it_began_with(tmp_path: Path):
    """Its file says little, its checkpoint all."""
    began = {"model": {"size": "mini", "train": "all"}, "data": {"mean": 0.75, "std": 0.3, "captions_per_picture": 2},
             "augment": {"line": 0.12, "zoom": [0.7, 1.3]}, "optim": {"lr": 0.5}}  # fmt: skip
    path = written(tmp_path, '[model]\ntokenizer = "t"\n[data]\ntrain = "x"\n[augment]\nblur = 0.5\n')
    recipe, new = read_recipe(path, recorded=began), read_recipe(path)
    assert (recipe.data.mean, recipe.data.std, recipe.data.resize) == (0.75, 0.3, "squash")
    assert (recipe.augment.line, recipe.augment.zoom, recipe.augment.background) == (0.12, (0.7, 1.3), 0.3)
    assert recipe.model.start is new.model.start is None
    assert recipe.augment.blur == new.augment.blur == 0.5  # the file comes first
    assert (recipe.optim.warmup_steps, new.optim.warmup_steps) == (100, None)
    assert recipe.optim.lr == new.optim.lr  # a default that has not changed is the file's to leave out
    assert recipe.data.captions_per_image == 1
    assert (new.data.mean, new.data.resize, new.augment.line) == (None, "crop", 0)


def test_a_run_of_this_version_is_resumed_with_its_file_alone(tmp_path: Path):
    path = written(tmp_path, '[data]\ntrain = "x"\n')
    assert read_recipe(path, recorded=Recipe.from_dict({"augment": {"line": 0.5}}).to_dict()) == read_recipe(path)
