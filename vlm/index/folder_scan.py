"""Scans a folder: files to read as images, entries that cannot be read, and counts of files of other kinds."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from vlm.errors import ImageError, InputError
from vlm.images.signatures import IMAGE_SUFFIXES
from vlm.index.ignore_rules import IGNORE_FILE, IgnoreRules, excluding
from vlm.index.paths import may

NO_SUFFIX = "no suffix"


@dataclass(slots=True)
class FolderScan:
    """The result of `scan_folder`."""

    files: list[str] = field(default_factory=list[str])  # with the suffix of an image, or without a suffix
    problems: list[ImageError] = field(default_factory=list[ImageError])  # entries that could not be looked at
    unlisted: list[str] = field(default_factory=list[str])  # folders of which nothing is known now
    others: Counter[str] = field(default_factory=Counter[str])  # files of other kinds, by suffix
    excluded: int = 0  # files and folders that rules pass over


def scan_folder(root: str, exclude: Sequence[str] = ()) -> FolderScan:
    """Walk through a folder, in path order.  One entry that cannot be read does not stop the walk.

    Args:
        root: the folder, absolute.
        exclude: patterns as in .gitignore, beside those of `.vlmignore` files and the default ones.

    Returns:
        Files, problems and counts.  Hidden names are passed over; links that lead out of the folder are problems.
    """
    scan = FolderScan()
    inside = os.path.realpath(root)
    waiting: list[tuple[str, IgnoreRules]] = [(root, excluding(root, exclude))]  # a stack: folders may be nested deeply
    while waiting:
        folder, rules = waiting.pop()
        try:
            if not may(folder, os.X_OK):
                raise PermissionError(13, "Permission denied")
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            _note_unlisted(scan, folder, error.strerror or str(error))
            continue
        if any(entry.name == IGNORE_FILE for entry in entries):
            try:
                rules = rules.below(folder)
            except (OSError, InputError) as error:
                _note_unlisted(scan, folder, f"its {IGNORE_FILE} cannot be read: {error}")
                continue
        folders: list[tuple[str, IgnoreRules]] = []
        prefix = os.path.join(folder, "")
        for entry in entries:
            if entry.name[0] == ".":
                continue
            path = prefix + entry.name
            try:
                if _is_folder(entry):
                    if rules.ignores(path, entry.name, is_folder=True):
                        scan.excluded += 1
                    else:
                        folders.append((path, rules))
                else:
                    _look_at(entry, path, rules, inside, scan)
            except OSError as error:
                scan.problems.append(ImageError(path, "unreadable", error.strerror or str(error)))
        waiting += reversed(folders)
    scan.files.sort()
    return scan


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _look_at(entry: os.DirEntry[str], path: str, rules: IgnoreRules, inside: str, scan: FolderScan) -> None:
    _, dot, ending = entry.name.rpartition(".")  # pathlib and os.path take many times as long
    suffix = f".{ending.lower()}" if dot and ending else ""
    looked_at = suffix in IMAGE_SUFFIXES or not suffix
    if looked_at and not rules.layers and entry.is_file(follow_symlinks=False):  # nearly all
        scan.files.append(path)
    elif entry.is_symlink() and _leads_outside(path, inside):
        if (looked_at and suffix) or os.path.isdir(path):
            scan.problems.append(ImageError(path, "outside the folder", f"it leads to {os.readlink(path)}"))
    elif rules.ignores(path, entry.name, is_folder=False):
        scan.excluded += 1
    elif not entry.is_symlink() and not entry.is_file(follow_symlinks=False):
        if suffix in IMAGE_SUFFIXES:  # a pipe, a socket: reading says so
            scan.files.append(path)
    elif looked_at and not (entry.is_symlink() and os.path.isdir(path)):
        scan.files.append(path)
    elif not os.path.isdir(path):
        scan.others[suffix] += 1


def _note_unlisted(scan: FolderScan, folder: str, why: str) -> None:
    scan.unlisted.append(folder)
    scan.problems.append(ImageError(folder, "unreadable", f"the folder cannot be listed: {why}"))


def _leads_outside(link: str, inside: str) -> bool:
    end = os.path.realpath(link)  # of a ring of links: still a link
    return os.path.islink(end) or not (end == inside or end.startswith(inside.rstrip(os.sep) + os.sep))
