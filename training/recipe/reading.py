"""Reads recipes from TOML files."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from vlm.errors import RecipeError
from vlm.training.recipe.config import LoopRecipe, Recipe, VitRecipe, task_of
from vlm.training.recipe.old_keys import mapped, with_first_defaults

AnyRecipe = TypeVar("AnyRecipe", bound=LoopRecipe)
Recorded = dict[str, Any]  # a recipe as plain values


def read_any_recipe(
    path: Path, recorded: Recorded | None = None, data: dict[str, Any] | None = None
) -> Recipe | VitRecipe:
    """Read and check a TOML recipe.

    Args:
        path: the file; `task = "clip"` or `task = "vit"` stands at its top.
        recorded: the recipe that the checkpoint of a resumed run holds.  Keys of earlier versions are then accepted,
            and settings that the file leaves out keep the defaults the run began with.
        data: settings of [data] that come before those of the file.

    Raises:
        RecipeError: one line that names the file: it is missing, is not TOML, has no task, or a setting is wrong.
    """
    values = _values(path)
    if data and isinstance(section := values.setdefault("data", {}), dict):
        section |= data
    return _any_recipe(path, values, recorded)


def _any_recipe(path: Path, values: dict[str, Any], recorded: Recorded | None) -> Recipe | VitRecipe:
    task = values.get("task") or (recorded and _recorded_task(recorded))
    if task not in ("clip", "vit"):
        came = "has no task" if task is None else f"has task = {task!r}"
        raise RecipeError(
            f'{path} {came}. Write task = "clip" (images and texts) or task = "vit" (classes) at its top.'
        )
    return _recipe(path, values, Recipe if task == "clip" else VitRecipe, recorded)


def parse_recipe(text: str, path: Path) -> Recipe | VitRecipe:
    """Check the text of a recipe; `path` is named in errors."""
    try:
        return _any_recipe(path, tomllib.loads(text), None)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} would be no TOML: {error}.") from None


def read_recipe(path: Path, kind: type[AnyRecipe] = Recipe, recorded: Recorded | None = None) -> AnyRecipe:
    """The same for a recipe of one kind, which need not say its task; a recipe of another kind is a `RecipeError`."""
    return _recipe(path, _values(path), kind, recorded)


def _recipe(path: Path, values: dict[str, Any], kind: type[AnyRecipe], recorded: Recorded | None) -> AnyRecipe:
    try:
        if recorded is not None:
            values = with_first_defaults(mapped(values, task_of(kind)), recorded, task_of(kind))
        return kind.from_dict(values) if recorded is None else kind.of_run(values)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from error


def _recorded_task(recorded: Recorded) -> str:
    """Recipes of the first version do not say it."""
    return recorded.get("task") or ("vit" if "transform" in recorded else "clip")


def _values(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe {path}. Give the path of a TOML file.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror}). Give the path of a TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        hint = " Put a Windows path into 'single quotes'." if "escape" in str(error) or "hex" in str(error) else ""
        raise RecipeError(f"{path} is no TOML: {error}.{hint}") from None
    for setting, text in _texts(values):
        if "\0" in text:
            raise RecipeError(
                f"{path}: the text of '{setting}' contains a NUL, which no path and no name has. Take it out."
            )
        if re.match(r"[A-Za-z]:[^\n]*[\x07-\x0d\x1b]", text):  # "D:\train" in double quotes
            raise RecipeError(
                f"{path}: '{setting}' is {text!r}: between double quotes TOML reads \\ and a letter as one character. "
                "Put a Windows path into 'single quotes'."
            )
    return values


def _texts(values: Any, setting: str = "") -> Iterator[tuple[str, str]]:
    """(name of the setting, text) of all texts."""
    if isinstance(values, str):
        yield setting, values
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for name, value in items:
        yield from _texts(value, f"{setting}.{name}".lstrip("."))
