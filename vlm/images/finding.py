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


def _walk(folder: Path, root: Path) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield folder
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path, root)
        elif entry.is_symlink() and _leads_outside(path, root):
            continue
        elif path.suffix.lower() in IMAGE_SUFFIXES or (not path.suffix and _begins_like_an_image(path)):
            yield path


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
