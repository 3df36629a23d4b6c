"""A recipe object as TOML text."""

import dataclasses
from typing import Any

import tomli_w

from vlm.config import StrictConfig
from vlm.training.recipe.config import LoopRecipe


def recipe_text(recipe: LoopRecipe) -> str:
    """TOML of the task and of the settings that differ from the defaults; reading it gives an equal recipe."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if not isinstance(value, StrictConfig):
            if value != field.default or field.name == "task":
                values[field.name] = value
        elif changed := _changed(value):
            values[field.name] = changed
    return tomli_w.dumps(values)


def _changed(section: StrictConfig) -> dict[str, Any]:
    defaults = type(section)().to_dict()
    return {name: _without_none(value) for name, value in section.to_dict().items() if value != defaults[name]}


def _without_none(value: Any) -> Any:
    """TOML has no null; a setting that is None is left out."""
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, (list, tuple)) else value
