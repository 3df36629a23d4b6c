"""What an index has on disk: one SQLite file that says what is committed, one flat float16 file of vectors per model.

A batch is written vectors first, behind the last committed row, then fsync, then one SQLite transaction.  A crash in
between leaves a tail that nothing points to, and the next batch writes over it.  Images are known by the sha256 of
their bytes: a vector belongs to a content, and any number of paths may show that content.
"""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlm import atomic

_DATABASE = "index.sqlite"
_FORMAT = 1
_BYTES = 2  # of a float16
_SCHEMA = """
CREATE TABLE model (
    id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
    embed_dim INTEGER NOT NULL, generation INTEGER NOT NULL DEFAULT 0);
CREATE TABLE content (
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, taken TEXT);
CREATE INDEX content_size ON content (size);
CREATE TABLE file (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER NOT NULL, content INTEGER REFERENCES content,
    reason TEXT, detail TEXT, missing INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX file_content ON file (content);
CREATE TABLE vector (
    model INTEGER NOT NULL REFERENCES model, row INTEGER NOT NULL, content INTEGER NOT NULL REFERENCES content,
    PRIMARY KEY (model, row), UNIQUE (model, content)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """An image, whatever its name."""

    digest: bytes
    size: int  # bytes
    width: int  # pixels, upright
    height: int
    taken: str | None  # EXIF, local time, "2024-05-01 12:00:00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one path showed: a content (or the digest of one that is stored already), or the reason why not."""

    path: str
    size: int  # bytes
    mtime: int  # ns
    digest: bytes | None = None
    content: Content | None = None
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which files a search may find.  The date is EXIF's, else that of the file."""

    glob: str | None = None  # of the path; `*` crosses folders; one that does not begin at / may begin at any folder
    since: str | None = None  # ISO date or time, the first that counts
    until: str | None = None  # the last that counts, all of that day
    min_side: int | None = None  # pixels of the shorter side

    def sql(self) -> tuple[str, list[str | int]]:
        """The conditions as SQL, and the values for its question marks."""
        conditions = ["NOT file.missing"]
        values: list[str | int] = []
        taken = "coalesce(content.taken, datetime(file.mtime / 1000000000, 'unixepoch', 'localtime'))"
        if self.glob is not None:
            anchored = self.glob.startswith(("/", "*")) or Path(self.glob).is_absolute()
            conditions.append("CAST(file.path AS TEXT) GLOB ?")
            values.append(self.glob if anchored else f"*/{self.glob}")
        if self.since is not None:
            conditions.append(f"{taken} >= ?")
            values.append(self.since.replace("T", " "))
        if self.until is not None:
            conditions.append(f"{taken} <= ?")
            values.append(self.until.replace("T", " ") + "~")  # sorts after every time that begins so
        if self.min_side is not None:
            conditions.append("min(content.width, content.height) >= ?")
            values.append(self.min_side)
        return " AND ".join(conditions), values


class VectorStore:
    """A folder.  One process writes at a time, any number read; models are numbers that `model` gives out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        existing = folder / _DATABASE
        if not existing.exists() and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"'{folder}' is not an index. Name a folder that is one, is empty, or is not there yet.")
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as if_not_opened:
            try:
                self._db = sqlite3.connect(existing, timeout=60, isolation_level=None)
                if_not_opened.callback(self._db.close)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                with self._writing():
                    version = self._one("PRAGMA user_version")
                    if not version:
                        for statement in _SCHEMA.split(";"):
                            self._db.execute(statement)
                        self._db.execute(f"PRAGMA user_version = {_FORMAT}")
            except sqlite3.DatabaseError as error:
                busy = "Is another program writing to it?"
                raise ValueError(f"'{existing}' cannot be opened: {error}. {busy}") from error
            if version not in (0, _FORMAT):
                raise ValueError(
                    f"'{folder}' is an index of format {version}, this program reads {_FORMAT}. Update vlm."
                )
            if_not_opened.pop_all()

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    # ---- writing ---------------------------------------------------------------------------------------------------

    def model(self, fingerprint: str, name: str, embed_dim: int) -> int:
        """The number of this model here, a new one when it is new."""
        with self._writing():
            values = fingerprint, name, embed_dim
            self._db.execute("INSERT OR IGNORE INTO model (fingerprint, name, embed_dim) VALUES (?, ?, ?)", values)
        return self._one("SELECT id FROM model WHERE fingerprint = ?", fingerprint)

    def add(self, model: int, records: Sequence[Record], vectors: Mapping[bytes, np.ndarray]) -> None:
        """Commit a batch: what its paths show, and vectors (E,) by digest, for contents that have none yet."""
        contents = [record.content for record in records if record.content]
        with self._writing():
            self._db.executemany(
                "INSERT OR IGNORE INTO content (digest, size, width, height, taken) VALUES (?, ?, ?, ?, ?)",
                [(c.digest, c.size, c.width, c.height, c.taken) for c in contents],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO file (path, size, mtime, content, reason, detail)"
                " VALUES (?, ?, ?, (SELECT id FROM content WHERE digest = ?), ?, ?)",
                [(os.fsencode(r.path), r.size, r.mtime, r.digest, r.reason, r.detail) for r in records],
            )
            new = [digest for digest in vectors if not self.has_vector(model, digest)]
            if not new:
                return
            start = self.rows(model)
            self._write(model, start, np.stack([vectors[digest] for digest in new]))
            self._db.executemany(
                "INSERT INTO vector (model, row, content) VALUES (?, ?, (SELECT id FROM content WHERE digest = ?))",
                [(model, row, digest) for row, digest in enumerate(new, start)],
            )

    def mark_missing(self, paths: Iterable[str]) -> None:
        """These paths are gone; they are found again if they come back."""
        with self._writing():
            self._db.executemany("UPDATE file SET missing = 1 WHERE path = ?", [(os.fsencode(path),) for path in paths])

    def delete(self, paths: Iterable[str]) -> int:
        """Forget these paths -> how many were known.  Their vectors stay, unseen, until `prune`."""
        before = self._db.total_changes
        with self._writing():
            self._db.executemany("DELETE FROM file WHERE path = ?", [(os.fsencode(path),) for path in paths])
        return self._db.total_changes - before

    def prune(self, folder: str | None = None) -> int:
        """Forget missing files (below `folder`), then whatever no file shows, in all models -> files forgotten."""
        with self._writing():
            below, bounds = _below(folder)
            forgotten = self._db.execute(f"DELETE FROM file WHERE missing AND {below}", bounds).rowcount
            unseen = "SELECT id FROM content EXCEPT SELECT content FROM file"
            self._db.execute(f"DELETE FROM vector WHERE content IN ({unseen})")
            self._db.execute(f"DELETE FROM content WHERE id IN ({unseen})")
            for (model,) in self._db.execute("SELECT id FROM model").fetchall():
                self._compact(model)
        with self._writing():  # whatever is not named now is old, or the tail of a crash
            models = self._db.execute("SELECT id FROM model").fetchall()
            kept = {file for (model,) in models for file in (self._vector_file(model), self.ann_file(model))}
            for stray in {*self.folder.glob("vectors-*.f16"), *self.folder.glob("ann-*")} - kept:
                with suppress(OSError):  # Windows keeps what a reader has open; the next time takes it
                    stray.unlink()
        return forgotten

    def put_ann(self, model: int, file: Path, write: Callable[[Path], None]) -> None:
        """Let `write` make the file that `ann_file` named when the building began; nobody prunes meanwhile."""
        with self._writing():
            if file != self.ann_file(model):
                raise ValueError(f"'{self.folder}' was pruned while its approximate index was built. Build it again.")
            write(file)

    def _compact(self, model: int) -> None:
        """Close the gaps: the vectors that are left move into a new file, which the same transaction makes the one."""
        kept = [row for (row,) in self._db.execute("SELECT row FROM vector WHERE model = ? ORDER BY row", [model])]
        old = self._map(model, kept[-1] + 1 if kept else 0)
        if len(kept) == len(old) and not self._has_tail(model, len(kept)):
            return
        self._db.execute("UPDATE model SET generation = generation + 1 WHERE id = ?", [model])
        self._vector_file(model).unlink(missing_ok=True)  # of a compaction that crashed
        for start in range(0, len(kept), 65536):
            self._write(model, start, old[kept[start : start + 65536]])
        self._db.executemany(  # each row moves down or stays, in order: no two meet
            "UPDATE vector SET row = ? WHERE model = ? AND row = ?",
            [(new, model, row) for new, row in enumerate(kept) if new != row],
        )

    def _write(self, model: int, start: int, vectors: np.ndarray) -> None:
        path = self._vector_file(model)
        offset = start * vectors.shape[1] * _BYTES
        if start:
            self._check_whole(path, offset)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            file.seek(offset)
            file.write(vectors.astype("<f2").tobytes())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        if start == 0:  # the name of a new file is durable when its folder is
            atomic.sync(self.folder)

    # ---- reading ---------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Generator[None]:
        """All reads inside see the same moment."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    def rows(self, model: int) -> int:
        """How many vectors the file of this model holds, those of forgotten contents too."""
        return self._one("SELECT coalesce(max(row) + 1, 0) FROM vector WHERE model = ?", model)

    def vectors(self, model: int) -> np.ndarray:
        """float16 (rows, E), mapped from disk, not read.  Some rows may be of contents that no file shows any more."""
        return self._map(model, self.rows(model))

    def ann_file(self, model: int) -> Path:
        """Where an approximate index of these vectors is kept; another place when they have moved to other rows."""
        return self.folder / f"{self._vector_file(model).stem.replace('vectors', 'ann')}.safetensors"

    def has_vector(self, model: int, digest: bytes) -> bool:
        """Whether this content has been embedded by this model."""
        joined = "SELECT count(*) FROM vector JOIN content ON content.id = vector.content"
        return bool(self._one(f"{joined} WHERE model = ? AND digest = ?", model, digest))

    def is_current(self, model: int, path: str, size: int, mtime: int) -> bool:
        """Nothing to do for this file: it is as it was, and has its vector, or a reason why not."""
        return bool(
            self._one(
                "SELECT count(*) FROM file LEFT JOIN vector ON vector.content = file.content AND vector.model = ?"
                " WHERE path = ? AND size = ? AND mtime = ? AND NOT missing AND coalesce(reason, row) IS NOT NULL",
                *(model, os.fsencode(path), size, mtime),
            )
        )

    def count(self, model: int) -> int:
        """Files that can be found."""
        return self._one(f"SELECT count(*) {_FILES} WHERE model = ? AND NOT missing", model)

    def row_of(self, model: int, path: str) -> int | None:
        """Of a file that is as it was when it was embedded."""
        query = "SELECT row, file.size, mtime FROM file JOIN vector USING (content) WHERE model = ? AND path = ?"
        found = self._db.execute(query, (model, os.fsencode(path))).fetchone()
        try:
            now = os.stat(path)
        except OSError:
            return None
        return found[0] if found and found[1:] == (now.st_size, now.st_mtime_ns) else None

    def digests_of_size(self, model: int, size: int) -> frozenset[bytes]:
        """Contents of that many bytes that have a vector: what a new file might turn out to be."""
        query = "SELECT digest FROM content JOIN vector ON content = content.id WHERE model = ? AND size = ?"
        return frozenset(digest for (digest,) in self._db.execute(query, (model, size)))

    def present_below(self, folder: str) -> set[str]:
        """Paths that were there when last looked at."""
        below, bounds = _below(folder)
        found = self._db.execute(f"SELECT path FROM file WHERE NOT missing AND {below}", bounds)
        return {os.fsdecode(path) for (path,) in found}

    def broken(self, folder: str | None = None) -> list[tuple[str, str, str]]:
        """(path, reason, detail), in path order."""
        below, bounds = _below(folder)
        query = f"SELECT path, reason, detail FROM file WHERE reason IS NOT NULL AND NOT missing AND {below}"
        return [(os.fsdecode(path), *why) for path, *why in self._db.execute(f"{query} ORDER BY path", bounds)]

    def allowed_rows(self, model: int, filter: Filter) -> np.ndarray:
        """Rows that at least one file shows which passes the filter, ascending."""
        condition, values = filter.sql()
        found = self._db.execute(f"SELECT DISTINCT row {_FILES} WHERE model = ? AND {condition}", [model, *values])
        return np.sort(np.array([row for (row,) in found], np.int64))

    def files_at(self, model: int, rows: Sequence[int], filter: Filter) -> list[tuple[int, str]]:
        """(row, path) of every file that shows one of these rows and passes the filter."""
        condition, values = filter.sql()
        among = "row IN (SELECT value FROM json_each(?))"
        query = f"SELECT row, path {_FILES} WHERE model = ? AND {among} AND {condition} ORDER BY path"
        found = self._db.execute(query, [model, json.dumps(list(rows)), *values])
        return [(row, os.fsdecode(path)) for row, path in found]

    def shown(self, model: int) -> Iterator[tuple[int, Record]]:
        """(row, record with its content) of every file that can be found, in path order."""
        columns = "row, path, file.size, mtime, digest, content.size, width, height, taken"
        query = f"SELECT {columns} {_FILES} WHERE model = ? AND NOT missing ORDER BY path"
        for row, path, size, mtime, digest, bytes_, width, height, taken in self._db.execute(query, [model]):
            content = Content(digest=digest, size=bytes_, width=width, height=height, taken=taken)
            yield row, Record(path=os.fsdecode(path), size=size, mtime=mtime, digest=digest, content=content)

    def save(self, folder: Path) -> None:
        """A whole copy, also while others write."""
        if folder.exists():
            raise ValueError(f"'{folder}' exists already. Name a folder that is not there yet.")
        folder.mkdir(parents=True)
        with self._writing():  # nothing moves while the files are copied
            source, copy = sqlite3.connect(self.folder / _DATABASE), sqlite3.connect(folder / _DATABASE)
            source.backup(copy)  # from a connection of its own: this one's would wait for its own lock
            source.close()
            copy.close()
            for (model,) in self._db.execute("SELECT id FROM model").fetchall():
                if rows := self.rows(model):
                    (folder / self._vector_file(model).name).write_bytes(self._map(model, rows).tobytes())
                if (ann := self.ann_file(model)).exists():
                    shutil.copyfile(ann, folder / ann.name)

    # ---- inside ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")  # the lock on the vector files too
        except sqlite3.OperationalError as error:
            raise ValueError(
                f"'{self.folder}' is being written to by another program ({error}). Wait for it."
            ) from error
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _one(self, query: str, *values: str | int | bytes) -> int:
        return self._db.execute(query, values).fetchone()[0]

    def _vector_file(self, model: int) -> Path:
        generation = self._one("SELECT generation FROM model WHERE id = ?", model)
        return self.folder / f"vectors-{int(model)}-{int(generation)}.f16"

    def _embed_dim(self, model: int) -> int:
        return self._one("SELECT embed_dim FROM model WHERE id = ?", model)

    def _has_tail(self, model: int, rows: int) -> bool:
        file = self._vector_file(model)
        return file.exists() and file.stat().st_size > rows * self._embed_dim(model) * _BYTES

    def _map(self, model: int, rows: int) -> np.ndarray:
        shape = rows, self._embed_dim(model)
        if not rows:
            return np.empty(shape, "<f2")
        path = self._vector_file(model)
        self._check_whole(path, rows * shape[1] * _BYTES)
        return np.memmap(path, "<f2", mode="c", shape=shape)  # "c": torch wants arrays it could write to

    def _check_whole(self, path: Path, wanted: int) -> None:
        advice = "Restore it, or delete the index and build it again: the images are untouched."
        if not path.exists():
            raise FileNotFoundError(f"'{path}' is gone. {advice}")
        if path.stat().st_size < wanted:
            size = path.stat().st_size
            raise ValueError(f"'{path}' holds {size} bytes, the index counts on {wanted}. {advice}")


_FILES = "FROM vector JOIN file ON file.content = vector.content JOIN content ON content.id = vector.content"


def _below(folder: str | None) -> tuple[str, tuple[bytes, ...]]:
    """The SQL condition that a path lies below a folder (`None`: any), with its values."""
    if folder is None:
        return "true", ()
    prefix = os.fsencode(folder.rstrip(os.sep) + os.sep)
    return "path > ? AND path < ?", (prefix, prefix[:-1] + bytes([prefix[-1] + 1]))
