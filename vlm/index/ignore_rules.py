"""Ignore rules of an index: patterns of the user, `.vlmignore` files, folders of other programs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm.errors import InputError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE = ".vlmignore"
# Folders of version control, of NAS systems, of thumbnails and of deleted files; names are compared in lower case.
DEFAULT_EXCLUDES = frozenset(
    {
        *(".git", "@eadir", "@recycle", "#recycle", "#snapshot", "__macosx", "lost+found"),
        *("thumbnails", ".thumbnails", "thumbs", "$recycle.bin", "recycler", "system volume information"),
        *(".trash", ".trashes", "trash"),
    }
)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Patterns that hold below one folder."""

    folder: str
    patterns: "GitIgnoreSpec"


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """Patterns as in .gitignore; those of a deeper folder count more, and `!` takes one back."""

    layers: tuple[_Layer, ...] = ()

    def below(self, folder: str) -> "IgnoreRules":
        """These rules and those of the `.vlmignore` in `folder`, if there is one.

        Raises:
            OSError: if it cannot be read.
            InputError: if it holds a pattern that is none.
        """
        file = os.path.join(folder, IGNORE_FILE)
        try:
            with open(file, encoding="utf-8-sig", errors="surrogateescape") as opened:
                lines = opened.read().splitlines()
        except FileNotFoundError:
            return self
        return IgnoreRules((*self.layers, _Layer(folder, _parse(lines, file))))

    def ignores(self, path: str, name: str, is_folder: bool) -> bool:
        """Returns True if a file or folder is ignored."""
        for layer in reversed(self.layers):
            relative = path[len(layer.folder.rstrip(os.sep)) + 1 :]
            verdict = layer.patterns.check_file(f"{relative}/" if is_folder else relative).include
            if verdict is not None:
                return verdict
        return is_folder and (name.lower() in DEFAULT_EXCLUDES or name.lower().startswith(".trash-"))


def excluding(folder: str, patterns: Sequence[str]) -> IgnoreRules:
    """Rules from the patterns of `--exclude`.

    Raises:
        InputError: for a pattern that is none.
    """
    return IgnoreRules((_Layer(folder, _parse(patterns, "--exclude")),) if patterns else ())


def _parse(lines: Sequence[str], source: str) -> "GitIgnoreSpec":
    from pathspec import GitIgnoreSpec  # most folders need none

    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError as error:  # pathspec's own errors are of this kind
        raise InputError(
            f"{source} holds a pattern that cannot be read: {error}. Write it as in .gitignore."
        ) from error
