"""The folders that were indexed: which are there, which have moved or are gone."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlm.errors import InputError
from vlm.index.paths import below_folder, is_below, normalized_path
from vlm.index.vector_store import VectorStore

RootState = Literal["present", "empty", "gone", "unreadable"]


@dataclass(frozen=True, slots=True)
class Root:
    """A folder that was indexed."""

    path: Path
    images: int  # that can be found below it, of all models
    state: RootState  # now, on disk; "empty": there is nothing in it, as in the place of a disk that is not mounted


class Roots:
    """The folders of one index."""

    def __init__(self, store: VectorStore) -> None:
        self._store = store

    def all(self) -> list[Root]:
        """In path order."""
        database = self._store.database
        with self._store.reading():
            paths = [os.fsdecode(path) for (path,) in database.execute("SELECT path FROM root ORDER BY path")]
            counts = [self._count(path) for path in paths]
        return [Root(Path(path), count, state_of(path)) for path, count in zip(paths, counts, strict=True)]

    def add(self, folder: str) -> None:
        """Remember a folder, unless it lies below one that is known."""
        known = [str(root.path) for root in self.all()]
        if any(is_below(folder, root) for root in known):
            return
        with self._store.writing():
            self._store.database.execute("INSERT OR IGNORE INTO root (path) VALUES (?)", [os.fsencode(folder)])

    def drop_empty(self) -> None:
        """Forget folders that are gone and of which no image is left: all were found elsewhere."""
        over = [root for root in self.all() if root.state == "gone" and not root.images]
        if over:
            with self._store.writing():
                for root in over:
                    self._store.database.execute("DELETE FROM root WHERE path = ?", [os.fsencode(root.path)])

    def move(self, old: str, new: str) -> int:
        """Files below `old` are now below `new`, at the same places -> how many.  Nothing is read or embedded.

        Args:
            old: the former folder, as `all` lists it, or one below it.
            new: where it is now.

        Raises:
            InputError: if the index knows no file below `old`, `new` is not a folder, or both are the same.
        """
        if not os.path.isdir(new):
            raise InputError(f"There is no folder {new!r}. Name the place where the images are now.")
        if old == new:
            raise InputError(f"The old and the new folder are both {new!r}. Name two folders: --move OLD NEW.")
        # Where one folder lies in the other, a file's new place may be another one's old place: that one goes first.
        paths = sorted(self._paths(old), key=len, reverse=len(new) > len(old))
        moved = [(path, new.rstrip(os.sep) + path[len(old.rstrip(os.sep)) :]) for path in paths]
        encoded = [(os.fsencode(target), normalized_path(target), os.fsencode(path)) for path, target in moved]
        replaced = {target for target, _, _ in encoded} - {path for _, _, path in encoded}
        database = self._store.database
        with self._store.writing():
            database.execute_many("DELETE FROM file WHERE path = ?", [(target,) for target in replaced])
            database.execute_many("UPDATE file SET path = ?, normalized = ? WHERE path = ?", encoded)
            database.execute("DELETE FROM root WHERE path = ?", [os.fsencode(old)])
        self.add(new)
        self.drop_empty()
        return len(moved)

    def forget(self, folder: str) -> int:
        """Delete all files below a folder from the index -> how many.  The images themselves are never touched.

        Raises:
            InputError: if the index knows no file below it.
        """
        deleted = self._store.delete(self._paths(folder, listed_is_enough=True))
        with self._store.writing():
            self._store.database.execute("DELETE FROM root WHERE path = ?", [os.fsencode(folder)])
        self._store.prune()
        return deleted

    def _count(self, folder: str) -> int:
        below, bounds = below_folder(folder)
        query = f"SELECT count(*) FROM file WHERE content IS NOT NULL AND NOT missing AND {below}"
        return self._store.database.number(query, *bounds)

    def _paths(self, folder: str, listed_is_enough: bool = False) -> list[str]:
        paths = [*self._store.states_below(0, folder)]
        roots = [str(root.path) for root in self.all()]
        if not paths and not (listed_is_enough and folder in roots):
            listed = ", ".join(map(repr, roots)) or "none"
            raise InputError(f"The index has no file below {folder!r}. Folders that were indexed: {listed}.")
        return paths


def state_of(folder: str) -> RootState:
    """Returns the current state of a root folder."""
    try:
        with os.scandir(folder) as entries:
            return "present" if next(entries, None) else "empty"
    except (FileNotFoundError, NotADirectoryError):
        return "gone"
    except OSError:
        return "unreadable"
