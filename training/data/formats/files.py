"""Files of a data set: which paths and links are followed."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Found(NamedTuple):
    """A file below a folder, or a link that is passed over."""

    path: str  # below the folder, as it is written
    outside: str = ""  # where the link leads


def roots_of(folder: Path, root: Path | None = None) -> list[Path]:
    """The folders that links in a data set may lead to.

    The data set itself; the folder the user names; of a snapshot in the hub's cache the repository's folder, where its
    files (blobs) are.
    """
    found = [folder.resolve()] + ([root.resolve()] if root is not None else [])
    for place in folder.resolve().parents:
        if place.name == "snapshots" and (place.parent / "blobs").is_dir():
            found.append(place.parent)
    return found


def files_below(folder: Path, roots: Sequence[Path]) -> Iterator[Found]:
    """All files but hidden ones, sorted by folder and name.  Links are followed where they stay in `roots`."""
    yield from _walk(str(folder), "", tuple(map(str, roots)), (os.path.realpath(folder),))


def _walk(folder: str, below: str, roots: tuple[str, ...], above: tuple[str, ...]) -> Iterator[Found]:
    folders: list[str] = []
    for name in sorted(os.listdir(os.path.join(folder, below))):
        if name.startswith(".") or name == "__MACOSX":  # what macOS packs beside the files
            continue
        own = os.path.join(below, name)
        path = os.path.join(folder, own)
        if os.path.islink(path):
            end = os.path.realpath(path)
            if os.path.islink(end) or not is_below(end, roots) or end in above:  # a ring, or outside
                yield Found(own, os.path.abspath(end))
                continue
        if os.path.isdir(path):
            folders.append(own)
        else:
            yield Found(own)
    for own in folders:
        yield from _walk(folder, own, roots, (*above, os.path.realpath(os.path.join(folder, own))))


def is_below(path: str, roots: Sequence[str]) -> bool:
    """Returns True if a real path is one of the folders or inside one."""
    return any(path == root or path.startswith(root.rstrip(os.sep) + os.sep) for root in roots)


def file_below(name: str, root: Path | None, within: Sequence[Path]) -> tuple[str, bool]:
    """(the file that a name of a table means, links followed; whether it is in one of the folders `within`)."""
    path = os.path.realpath(os.path.join(root or "", name))
    return path, is_below(path, [str(folder) for folder in within])
