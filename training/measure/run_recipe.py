"""The recipe of a finished run, as the run understood it."""

from pathlib import Path

from vlm.training.engine.run_folder import recorded_settings
from vlm.training.recipe.config import VitRecipe
from vlm.training.recipe.reading import read_any_recipe
from vlm.training.recipe.sections import HoldOutBy
from vlm.user_folders import expanded


def recipe_of_run(folder: str | Path) -> VitRecipe | None:
    """The recipe of the classifier's run in a folder, today's or an earlier version's; None where it is no run."""
    folder = expanded(folder)
    path = folder / "recipe.toml"
    if not path.is_file():
        return None
    recipe = read_any_recipe(path, recorded_settings(folder))
    return recipe if isinstance(recipe, VitRecipe) else None


def hold_out_by(folder: str | Path, data: str) -> HoldOutBy:
    """How the run in `folder` held out a part of `data`; "concept" for other data, and where it is no run."""
    recipe = recipe_of_run(folder)
    return "concept" if recipe is None or recipe.data.train != data else recipe.data.hold_out_by
