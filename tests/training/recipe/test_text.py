"""training/recipe/text.py: a recipe object as TOML."""

from pathlib import Path

import pytest

from vlm.training.recipe.config import LoopRecipe, Recipe, VitRecipe
from vlm.training.recipe.reading import read_recipe
from vlm.training.recipe.text import recipe_text

RECIPES = sorted((Path(__file__).parents[3] / "training" / "recipes").glob("*.toml"))
OBJECTS = [
    Recipe(),
    Recipe.from_dict({"data": {"train": [{"path": "a", "weight": 2.0}, {"path": "b 'c' \"d\" 犬", "splits": ["x"]}]}}),
    VitRecipe.from_dict(
        {"data": {"train": "x", "held_out": 5}, "model": {"vision": {"image_size": [16, 24], "width": 12}}}
    ),
]


@pytest.mark.parametrize("recipe", OBJECTS, ids=lambda recipe: type(recipe).__name__)
def test_the_text_of_a_recipe_is_read_as_an_equal_recipe(recipe: LoopRecipe, tmp_path: Path):
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(recipe), encoding="utf-8")
    assert read_recipe(path, type(recipe)) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_text_of_every_recipe_here_is_read_as_an_equal_recipe(path: Path, tmp_path: Path):
    kind = VitRecipe if path.name.startswith(("groups", "fashion")) else Recipe
    recipe = read_recipe(path, kind)
    (tmp_path / "recipe.toml").write_text(recipe_text(recipe), encoding="utf-8")
    assert read_recipe(tmp_path / "recipe.toml", kind) == recipe


def test_only_the_task_and_what_differs_from_the_defaults_is_written():
    assert recipe_text(Recipe()) == 'task = "clip"\n'
    assert recipe_text(Recipe.from_dict({"run": {"steps": 7}})) == 'task = "clip"\n\n[run]\nsteps = 7\n'
