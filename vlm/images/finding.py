"""Finds the images of a folder; links that lead outside are not followed."""

import os
from collections.abc import Iterator
from pathlib import Path

from vlm.images.signatures import IMAGE_SUFFIXES, sniff


def find_images(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Images below `folder`, in path order: by suffix, and files without one by their first bytes.

    Hidden names and links that lead outside are left out.  A folder that cannot be listed is yielded itself: opening it
    gives the `ImageError` that says so.
    """
    root = Path(folder)
    return _walk(root, root.resolve())


def _walk(start: Path, root: Path) -> Iterator[Path]:
    waiting = [(start, True)]  # a stack, of folders too: they may be nested deeper than functions may
    while waiting:
        path, is_folder = waiting.pop()
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True) if is_folder else None
        except OSError:
            entries = None
        if entries is None:
            yield path
            continue
        waiting += [
            (path / entry.name, entry.is_dir(follow_symlinks=False))
            for entry in entries
            if _is_wanted(entry, path / entry.name, root)
        ]


def _is_wanted(entry: os.DirEntry[str], path: Path, root: Path) -> bool:
    """Returns True for folders and images."""
    if entry.name.startswith("."):
        return False
    if entry.is_dir(follow_symlinks=False):
        return True
    if entry.is_symlink() and _leads_outside(path, root):
        return False
    return path.suffix.lower() in IMAGE_SUFFIXES or (not path.suffix and _begins_like_an_image(path))


def _begins_like_an_image(path: Path) -> bool:
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with path.open("rb") as file:
            return sniff(file.read(2048)) is not None
    except OSError:
        return False


def _leads_outside(link: Path, root: Path) -> bool:
    end = Path(os.path.realpath(link))  # of a ring of links: still a link
    return end.is_symlink() or not end.is_relative_to(root)
