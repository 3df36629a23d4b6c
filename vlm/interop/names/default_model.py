"""Chooses the model among option, index, VLM_MODEL and config file; reads and writes the config file."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from vlm.errors import ConfigError, InputError
from vlm.interop.names.catalog import catalog
from vlm.user_folders import config_file, expanded

REMOTE = ("hf:", "openclip:")


class ChosenModel(NamedTuple):
    """A model, and who named it."""

    name: str  # as it was written: a short name, a folder, "openclip:..." or "hf:..."
    origin: str  # "--model", "the index", "VLM_MODEL", "the config file PATH" or "the default"


def resolve_model(given: str | None = None, *, index_model: str | None = None) -> ChosenModel:
    """Choose the model: `given`, then the model of the index, VLM_MODEL, the config file, mini.

    Args:
        given: what the user said with --model, or None.
        index_model: the model that an index remembers, or None.

    Returns:
        The name, which `vlm.load` opens, and where it comes from.

    Raises:
        InputError: the name is neither a short name, nor remote, nor a path.
        ConfigError: the config file cannot be read.
    """
    if given is not None:
        return _checked(given, "--model")
    if index_model is not None:
        return _checked(index_model, "the index")
    if name := os.environ.get("VLM_MODEL"):
        return _checked(name, "VLM_MODEL")
    path = config_file()
    if path is not None and (name := read_default()) is not None:
        return _checked(name, f"the config file {path}")
    return ChosenModel("mini", "the default")


def read_default() -> str | None:
    """The model that the config file names; None where there is no file, or it names none."""
    path = config_file()
    if path is None or not path.is_file():
        return None
    name = _read(path).get("model")
    if not isinstance(name, str | None):
        raise ConfigError(f"{path}: model is {name!r}; wanted a name in quotes. Run: vlm models use NAME")
    return name


def write_default(name: str) -> Path:
    """Make a model the default of all commands: write it into the config file.

    Args:
        name: a short name, a folder, "openclip:NAME/TAG" or "hf:ORG/NAME".

    Returns:
        The config file.

    Raises:
        InputError: there is no such model, or VLM_CONFIG is empty, which switches the config file off.
    """
    path = config_file()
    if path is None:
        raise InputError("VLM_CONFIG is empty: there is no config file to write. Unset it, or set it to a file name.")
    name = _checked(name, "NAME").name
    if not is_named(name):
        name = str(expanded(name).absolute())  # a folder is found from everywhere
    content = (_read(path) if path.is_file() else {}) | {"model": name}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(path)
    return path


def is_named(name: str) -> bool:
    """Returns True if this is a short name or a remote model, not a path."""
    return name in catalog() or name.startswith(REMOTE)


def _checked(name: str, origin: str) -> ChosenModel:
    if is_named(name) or expanded(name).exists():
        return ChosenModel(name, origin)
    known = ", ".join(catalog())
    raise InputError(
        f"{origin} names '{name}', which is no model: wanted a short name ({known}), a folder, openclip:NAME/TAG or "
        "hf:ORG/NAME. vlm models lists the short names."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Repair it, or delete it.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; wanted an object. Repair it, or delete it.")
    return content  # pyright: ignore[reportUnknownVariableType]
