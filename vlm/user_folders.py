"""Folders of the user: where vlm keeps a cache and a config file, and which folders results may be written to."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vlm.errors import InputError


def cache_folder() -> Path:
    """Returns the cache folder: $XDG_CACHE_HOME/vlm, else the system's.  It may be deleted at any time."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given).absolute() / "vlm"
    home = _home()
    if home is None:
        raise InputError("the home folder of this user is not known, wanted a place for a cache. Set HOME.")
    match sys.platform:
        case "darwin":
            return (home / "Library" / "Caches" / "vlm").absolute()
        case "win32":
            return (Path(os.environ.get("LOCALAPPDATA", home)) / "vlm").absolute()
        case _:
            return (home / ".cache" / "vlm").absolute()


def config_file() -> Path | None:
    """The user's config file: $VLM_CONFIG, else config.json in $XDG_CONFIG_HOME/vlm or the system's place for it.

    None where VLM_CONFIG is set and empty, or where this user has no home folder: then no config file is read or
    written.
    """
    given = os.environ.get("VLM_CONFIG")
    if given is not None:
        return expanded(given).absolute() if given else None
    if folder := os.environ.get("XDG_CONFIG_HOME"):
        return Path(folder).absolute() / "vlm" / "config.json"
    home = _home()
    if home is None:
        return None
    match sys.platform:
        case "darwin":
            place = home / "Library" / "Application Support"
        case "win32":
            place = Path(os.environ.get("APPDATA", home))
        case _:
            place = home / ".config"
    return place.absolute() / "vlm" / "config.json"


def expanded(path: str | os.PathLike[str]) -> Path:
    """Replace a leading ~ or ~user by that user's home folder; the path stays as it is where there is no such user."""
    return Path(os.path.expanduser(path))


def check_output(
    out: str | os.PathLike[str], data: Sequence[str | os.PathLike[str]], names: Sequence[str] = (), marker: str = ""
) -> None:
    """Refuse a folder for results before any work is done; nothing is written.

    Args:
        out: the folder.
        data: what is read; results inside would be read as data the next time.
        names: of the files that will be written.
        marker: the file by which an earlier result of the same command is known, which may be replaced.

    Raises:
        InputError: the folder lies in the data, is a file, or holds a file of that name that is somebody else's.
    """
    folder = expanded(out)
    for source in map(expanded, data):
        if os.path.isdir(source) and folder.resolve().is_relative_to(source.resolve()):
            raise InputError(f"{out} lies in the data {source}: what is written would be read as data. Name another.")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{out} is a file; wanted a folder. Name another.")
    others = [name for name in names if os.path.exists(folder / name)]
    if others and not os.path.exists(folder / marker):
        raise InputError(
            f"{out} holds {', '.join(others)}, which would be lost. Name a new folder, or one of an earlier result."
        )


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and a user id without an account: a container
        return None
