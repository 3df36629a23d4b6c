"""The folders on this machine where vlm keeps what belongs to the user: a cache and a config file."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Returns the cache folder: $XDG_CACHE_HOME/vlm, else the system's.  It may be deleted at any time."""
    home = Path.home()
    match sys.platform:
        case "darwin":
            place = home / "Library" / "Caches"
        case "win32":
            place = Path(os.environ.get("LOCALAPPDATA", home))
        case _:
            place = home / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or place).absolute() / "vlm"


def config_file() -> Path | None:
    """The user's config file: $VLM_CONFIG, else config.json in $XDG_CONFIG_HOME/vlm or the system's place for it.

    None where VLM_CONFIG is set and empty: then no config file is read or written.
    """
    given = os.environ.get("VLM_CONFIG")
    if given is not None:
        return Path(given).expanduser().absolute() if given else None
    home = Path.home()
    match sys.platform:
        case "darwin":
            place = home / "Library" / "Application Support"
        case "win32":
            place = Path(os.environ.get("APPDATA", home))
        case _:
            place = home / ".config"
    return Path(os.environ.get("XDG_CONFIG_HOME") or place).absolute() / "vlm" / "config.json"
