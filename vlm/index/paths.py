"""Paths as an index stores and compares them."""

import os
import unicodedata
from pathlib import Path

from vlm.errors import InputError


def checked_name(path: str | os.PathLike[str]) -> str:
    """The path as a string.  Raises `InputError` for a NUL, which no file name holds."""
    name = os.fsdecode(path)
    if "\0" in name:
        raise InputError(f"No file can have the name {name!r}: it contains a NUL. Take it out.")
    return name


def absolute_path(path: str | os.PathLike[str]) -> Path:
    """Expands "~" and ".."; does not resolve links."""
    return Path(os.path.abspath(os.path.expanduser(checked_name(path))))


def normalized_path(path: str) -> str | None:
    """The NFC form of a path, None where the path is in that form: file systems of macOS store NFD."""
    normal = unicodedata.normalize("NFC", path)
    return None if normal == path else normal.encode(errors="surrogateescape").decode(errors="replace")


def is_below(path: str, folder: str) -> bool:
    """Returns True if a path is the folder or is below it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def below_folder(folder: str | None) -> tuple[str, tuple[bytes, ...]]:
    """The SQL condition that a path lies below a folder (`None`: any), with its values."""
    if folder is None:
        return "true", ()
    prefix = os.fsencode(folder.rstrip(os.sep) + os.sep)
    return "path > ? AND path < ?", (prefix, prefix[:-1] + bytes([prefix[-1] + 1]))


def may(path: str | os.PathLike[str], mode: int) -> bool:
    """`os.access` by the rights that this process uses now."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
