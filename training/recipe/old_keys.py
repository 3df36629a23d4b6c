"""Keys that recipes had in earlier versions: an error in a new recipe, mapped in the recipe of an earlier run."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from vlm.errors import RecipeError
from vlm.training.recipe.sections import HEADS_BEFORE


class Renamed(NamedTuple):
    """A key that has a new name."""

    section: str
    old: str
    new: str
    value: Callable[[Any], Any]  # old value -> new value


def _blocks(train: Any) -> int | None:
    """all -> None, heads -> 0, last-2 -> 2."""
    return {"all": None, "heads": 0}[train] if train in ("all", "heads") else int(str(train).removeprefix("last-"))


RENAMED = {
    "clip": (
        Renamed("model", "train", "train_blocks", _blocks),
        Renamed("data", "captions_per_picture", "captions_per_image", lambda count: count),
    ),
    "vit": (
        Renamed("data", "train_split", "train_splits", lambda split: [] if split is None else [split]),
        Renamed("data", "column", "columns", lambda column: None if column is None else {"label": column}),
    ),
}

# What an earlier version did where its recipe said nothing, and this one does otherwise.
FIRST_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {
        "model": {"size": "mini"},
        "data": {
            "train": "training/picture_words/train.parquet",
            "validation": "training/picture_words/validation.parquet",
            "validation_split": "val_style",
            "resize": "squash",
            "mean": 0.75,
            "std": 0.3,
        },
        "augment": {
            "zoom": [0.7, 1.3], "stretch": 0.15, "rotate": 12.0, "shear": 0.1, "shift": 0.1, "colour": 0.5,
            "hue": 0.05, "gray": 0.1, "line": 0.3, "blur": 0.3, "background": 0.3, "erase": 0.2,
        },
    },
    "vit": {"model": {}, "data": {"resize": "squash", "mean": 0.5, "std": 0.3}},
}  # fmt: skip

# The same of settings whose default changed later: what a run of before then did, which may not have recorded it.
LATER_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {"optim": {"warmup_steps": 100}},
    "vit": {"data": {"hold_out_by": "sample"}, "optim": {"warmup_steps": 100}},
}


def refuse_old_keys(values: dict[str, Any], task: str) -> None:
    """`RecipeError` where a recipe has a key of an earlier version; the message gives the line to write."""
    for key in RENAMED[task]:
        section = values.get(key.section)
        if isinstance(section, dict) and key.old in section:
            try:
                new = key.value(section[key.old])
            except ValueError:
                new = None
            line = f"Write {key.new} = {_toml(new)}." if new is not None else "Leave it out."
            raise RecipeError(f"[{key.section}] {key.old} is called {key.new} now. {line}")


def mapped(values: dict[str, Any], task: str) -> dict[str, Any]:
    """The recipe of an earlier run under today's keys; `values` stays as it is."""
    values = copy.deepcopy(values)
    for key in RENAMED[task]:
        section = values.get(key.section)
        if isinstance(section, dict) and key.old in section:
            section[key.new] = key.value(section.pop(key.old))
    model = values.get("model")
    if task == "vit" and isinstance(model, dict) and model.get("head") in HEADS_BEFORE:
        model["head"] = HEADS_BEFORE[model["head"]]
    return values


def with_first_defaults(values: dict[str, Any], recorded: dict[str, Any], task: str) -> dict[str, Any]:
    """`values` as they meant it when the run began, whose checkpoint holds `recorded`.

    Only a run of an earlier version needs this: where `values` says nothing and the default has changed since, the
    setting is what the run recorded, or what was the default then.
    """
    values, first = copy.deepcopy(values), "task" not in recorded
    recorded = mapped(recorded, task)
    before = [*LATER_DEFAULTS[task].items(), *(FIRST_DEFAULTS[task].items() if first else ())]
    for section, settings in before:
        if section == "model" and values.get("model", {}).get("source") is not None:
            continue
        own = values.setdefault(section, {})
        for name, default in settings.items():
            own.setdefault(name, recorded.get(section, {}).get(name, default))
    return values


def _toml(value: Any) -> str:
    match value:
        case dict():
            return "{ " + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + " }"
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case str():
            return f'"{value}"'
    return str(value)
