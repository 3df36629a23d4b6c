"""Which images a folder holds, without leaving it."""

import os
from collections.abc import Iterator
from pathlib import Path

from vlm.errors import ImageError
from vlm.images.signatures import IMAGE_SUFFIXES


def find_images(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Images by suffix below `folder`, in path order; hidden names and links that lead outside are passed over.

    A folder that cannot be listed is yielded itself: opening it gives the `ImageError` that says so.
    """
    root = Path(folder)
    return (path for path, outside in _walk(root, root.resolve()) if not outside)


def survey(folder: str | os.PathLike[str]) -> tuple[list[Path], list[ImageError]]:
    """What `find_images` finds, and the links it passes over: to images or folders outside, or in a circle."""
    root, inside, outside = Path(folder), list[Path](), list[ImageError]()
    for path, leads_out in _walk(root, root.resolve()):
        if leads_out:
            outside.append(ImageError(str(path), "outside the folder", f"it leads to {os.readlink(path)}"))
        else:
            inside.append(path)
    return inside, outside


def _walk(folder: Path, root: Path) -> Iterator[tuple[Path, bool]]:
    """(path, whether it is a link that leads out of `root`)."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield folder, False
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path, root)
        elif entry.is_symlink() and _leads_outside(path, root):
            if path.suffix.lower() in IMAGE_SUFFIXES or path.is_dir():
                yield path, True
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield path, False


def _leads_outside(link: Path, root: Path) -> bool:
    end = Path(os.path.realpath(link))  # of a ring of links: still a link
    return end.is_symlink() or not end.is_relative_to(root)
