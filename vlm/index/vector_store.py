"""Storage of an index: one SQLite file of committed records and one float16 vector file per model.

A batch is written vectors first, behind the last committed row, then fsync, then one SQLite transaction.  A crash in
between leaves a tail that nothing points to, and the next batch writes over it.  Images are known by the sha256 of
their bytes: a vector belongs to a content, and any number of paths may hold that content.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np

from vlm.errors import IndexFileError, InputError
from vlm.index.database import DATABASE, Database
from vlm.index.filters import FILE_DATE, Filter
from vlm.index.paths import below_folder, normalized_path
from vlm.index.records import Content, FileState, FoundFile, Record, StoredModel
from vlm.index.vector_files import check_unit_length, is_longer, map_rows, vector_file, write_rows

_FILES = "FROM vector JOIN file ON file.content = vector.content JOIN content ON content.id = vector.content"


class VectorStore:
    """A folder.  One process writes at a time, any number read; models are numbers that `model` gives out.

    All methods may be called from any thread.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = Database(folder)

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def reading(self) -> AbstractContextManager[None]:
        """All reads inside see the same moment."""
        return self.database.reading()

    def writing(self) -> AbstractContextManager[None]:
        """All writes inside are committed together, or none is."""
        return self.database.writing()

    # ---- models ----------------------------------------------------------------------------------------------------

    def find_model(self, fingerprint: str) -> int:
        """The number of a model here, 0 where it has no vectors yet."""
        with self.reading():
            return self.database.number("SELECT id FROM model WHERE fingerprint = ?", fingerprint)

    def model(self, fingerprint: str, name: str, embed_dim: int, source: str | None = None) -> int:
        """The number of a model here; a new model gets one.

        Args:
            fingerprint: of the embedder.
            name: of the embedder, for messages.
            embed_dim: E.
            source: what `vlm.load` opens the model by; None leaves what is stored.

        Returns:
            The number, 1 or more.
        """
        with self.writing():
            self.database.execute(
                "INSERT INTO model (fingerprint, name, embed_dim, source, used)"
                " VALUES (?, ?, ?, ?, (SELECT coalesce(max(used), 0) + 1 FROM model))"
                " ON CONFLICT (fingerprint) DO UPDATE SET source = coalesce(excluded.source, source),"
                " used = excluded.used",
                (fingerprint, name, embed_dim, source),
            )
            return self.find_model(fingerprint)

    def models(self) -> list[StoredModel]:
        """All models, the one used last first."""
        with self.reading():
            found = self.database.execute("SELECT fingerprint, name, source FROM model ORDER BY used DESC, id DESC")
            return [StoredModel(*row) for row in found]

    # ---- writing ---------------------------------------------------------------------------------------------------

    def add(
        self, model: int, records: Sequence[Record], vectors: Mapping[bytes, np.ndarray], *, replace: bool = False
    ) -> None:
        """Commit a batch.

        Args:
            model: number of the model that made the vectors.
            records: what the files hold.
            vectors: (E,) by digest; a content that has a vector of this model keeps it.
            replace: exchange such vectors.
        """
        contents = [record.content for record in records if record.content]
        with self.writing():
            self.database.execute_many(
                "INSERT INTO content (digest, size, width, height, taken) VALUES (?, ?, ?, ?, ?) ON CONFLICT (digest)"
                " DO UPDATE SET width = excluded.width, height = excluded.height, taken = excluded.taken",
                [(c.digest, c.size, c.width, c.height, c.taken) for c in contents],
            )
            self.database.execute_many(
                "INSERT OR REPLACE INTO file (path, size, mtime, content, reason, detail, reader, normalized)"
                " VALUES (?, ?, ?, (SELECT id FROM content WHERE digest = ?), ?, ?, ?, ?)",
                [
                    (
                        *(os.fsencode(r.path), r.size, r.mtime, r.digest),
                        *(r.reason, r.detail, r.reader, normalized_path(r.path)),
                    )
                    for r in records
                ],
            )
            if replace:
                self.database.execute_many(
                    "DELETE FROM vector WHERE model = ? AND content = (SELECT id FROM content WHERE digest = ?)",
                    [(model, digest) for digest in vectors],
                )
            new = [digest for digest in vectors if not self.has_vector(model, digest)]
            if not new:
                return
            start = self._next_row(model)
            write_rows(self._vector_file(model), start, np.stack([vectors[digest] for digest in new]))
            self.database.execute_many(
                "INSERT INTO vector (model, row, content) VALUES (?, ?, (SELECT id FROM content WHERE digest = ?))",
                [(model, row, digest) for row, digest in enumerate(new, start)],
            )

    def mark_missing(self, paths: Sequence[str]) -> None:
        """Hide these paths; they are found again if they come back."""
        if paths:
            self._write_for_each("UPDATE file SET missing = 1 WHERE path = ?", paths)

    def delete(self, paths: Iterable[str]) -> int:
        """Forget these paths -> how many were known.  Their vectors stay, unseen, until `prune`."""
        known = [path for path in paths if self.state_of(0, path) is not None]
        if known:
            self._write_for_each("DELETE FROM file WHERE path = ?", known)
        return len(known)

    def _write_for_each(self, query: str, paths: Sequence[str]) -> None:
        with self.writing():
            self.database.execute_many(query, [(os.fsencode(path),) for path in paths])

    def prune(self, folder: str | None = None) -> int:
        """Forget missing files (below `folder`), then whatever no file shows, in all models -> files forgotten."""
        if not self.database.exists:
            return 0
        with self.writing():
            below, bounds = below_folder(folder)
            forgotten = self.database.execute(f"DELETE FROM file WHERE missing AND {below}", bounds).rowcount
            unseen = "SELECT id FROM content EXCEPT SELECT content FROM file"
            self.database.execute(f"DELETE FROM vector WHERE content IN ({unseen})")
            self.database.execute(f"DELETE FROM content WHERE id IN ({unseen})")
            for model in self._model_numbers():
                self._compact(model)
        with self.writing():  # whatever is not named now is old, or the tail of a crash
            kept = {
                file for model in self._model_numbers() for file in (self._vector_file(model), self.ann_file(model))
            }
            for stray in {*self.folder.glob("vectors-*.f16"), *self.folder.glob("ann-*")} - kept:
                with suppress(OSError):  # Windows keeps what a reader has open; the next time takes it
                    stray.unlink()
        return forgotten

    def put_ann(self, model: int, file: Path, write: Callable[[Path], None]) -> None:
        """Let `write` make the file that `ann_file` named when the building began; nobody prunes meanwhile."""
        with self.writing():
            if file != self.ann_file(model):
                raise IndexFileError(
                    f"'{self.folder}' was pruned while its approximate index was built. Build it again."
                )
            write(file)

    def _compact(self, model: int) -> None:
        """Close the gaps: the vectors that are left move into a new file, which the same transaction makes the one."""
        found = self.database.execute("SELECT row FROM vector WHERE model = ? ORDER BY row", [model])
        kept = [row for (row,) in found]
        old = self._map(model, kept[-1] + 1 if kept else 0)
        if len(kept) == len(old) and not is_longer(self._vector_file(model), len(kept), self.embed_dim(model)):
            return
        self.database.execute("UPDATE model SET generation = generation + 1 WHERE id = ?", [model])
        self._vector_file(model).unlink(missing_ok=True)  # of a compaction that crashed
        for start in range(0, len(kept), 65536):
            write_rows(self._vector_file(model), start, old[kept[start : start + 65536]])
        self.database.execute_many(  # each row moves down or stays, in order: no two meet
            "UPDATE vector SET row = ? WHERE model = ? AND row = ?",
            [(new, model, row) for new, row in enumerate(kept) if new != row],
        )

    # ---- reading ---------------------------------------------------------------------------------------------------

    def rows(self, model: int) -> int:
        """Number of vectors in the file of this model, including those of forgotten contents."""
        with self.reading():
            return self._next_row(model)

    def vectors(self, model: int) -> np.ndarray:
        """float16 (rows, E), mapped from disk, not read.  Some rows may be of contents that no file shows any more."""
        with self.reading():
            return self._map(model, self._next_row(model))

    def check(self, model: int) -> None:
        """Read everything; damage is an `IndexFileError`."""
        self.database.check()
        if model:
            with self.reading():
                found = self.database.execute("SELECT row FROM vector WHERE model = ? ORDER BY row", [model])
                rows = np.fromiter((row for (row,) in found), np.int64)
                vectors = self.vectors(model)
                for start in range(0, len(rows), 65536):
                    check_unit_length(vectors[rows[start : start + 65536]], self._vector_file(model))

    def ann_file(self, model: int) -> Path:
        """Path of the approximate index of these vectors; changes when vectors move to other rows."""
        with self.reading():
            return self.folder / f"{self._vector_file(model).stem.replace('vectors', 'ann')}.safetensors"

    def has_vector(self, model: int, digest: bytes) -> bool:
        """Returns True if this model has embedded this content."""
        joined = "SELECT count(*) FROM vector JOIN content ON content.id = vector.content"
        with self.reading():
            return bool(self.database.number(f"{joined} WHERE model = ? AND digest = ?", model, digest))

    def states_below(self, model: int, folder: str | None) -> dict[str, FileState]:
        """Returns the state of every path below a folder."""
        below, bounds = below_folder(folder)
        with self.reading():
            found = self.database.execute(f"{_STATES} WHERE {below}", (model, *bounds))
            return {os.fsdecode(row[0]): FileState._make(row[1:]) for row in found}

    def state_of(self, model: int, path: str) -> FileState | None:
        """Returns the state of a path, None if it is unknown."""
        with self.reading():
            row = self.database.execute(f"{_STATES} WHERE path = ?", (model, os.fsencode(path))).fetchone()
        return None if row is None else FileState._make(row[1:])

    def count(self, model: int) -> int:
        """Files that can be found."""
        with self.reading():
            return self.database.number(f"SELECT count(*) {_FILES} WHERE model = ? AND NOT missing", model)

    def row_of(self, model: int, path: str) -> int | None:
        """The vector of a file, None unless the file is as it was when it was embedded."""
        query = "SELECT row, file.size, mtime FROM file JOIN vector USING (content) WHERE model = ? AND path = ?"
        with self.reading():
            found = self.database.execute(query, (model, os.fsencode(path))).fetchone()
        try:
            now = os.stat(path)
        except OSError:
            return None
        return found[0] if found and found[1:] == (now.st_size, now.st_mtime_ns) else None

    def digests_of_size(self, model: int, size: int) -> frozenset[bytes]:
        """Contents of that many bytes that have a vector: what a new file might turn out to be."""
        query = "SELECT digest FROM content JOIN vector ON content = content.id WHERE model = ? AND size = ?"
        with self.reading():
            return frozenset(digest for (digest,) in self.database.execute(query, (model, size)))

    def digests_at(self, paths: Iterable[str]) -> set[bytes]:
        """The contents that these paths hold."""
        query = "SELECT digest FROM file JOIN content ON content.id = file.content WHERE path = ?"
        with self.reading():
            encoded = [(os.fsencode(path),) for path in paths]
            return {digest for path in encoded for (digest,) in self.database.execute(query, path)}

    def paths_of(self, digests: Iterable[bytes]) -> list[str]:
        """Paths that hold one of these contents and are not missing."""
        query = "SELECT path FROM content JOIN file ON file.content = content.id WHERE digest = ? AND NOT missing"
        with self.reading():
            return [os.fsdecode(path) for digest in digests for (path,) in self.database.execute(query, (digest,))]

    def refused(self, folder: str | None = None) -> list[tuple[str, str, str]]:
        """(path, reason, detail) of files that are no images, in path order."""
        below, bounds = below_folder(folder)
        query = f"SELECT path, reason, detail FROM file WHERE reason IS NOT NULL AND NOT missing AND {below}"
        with self.reading():
            found = self.database.execute(f"{query} ORDER BY path", bounds)
            return [(os.fsdecode(path), *why) for path, *why in found]

    def allowed_rows(self, model: int, filter: Filter) -> np.ndarray:
        """Rows that at least one file shows which passes the filter, ascending."""
        condition, values = filter.sql()
        query = f"SELECT DISTINCT row {_FILES} WHERE model = ? AND {condition}"
        with self.reading():
            found = self.database.execute(query, [model, *values])
            return np.sort(np.array([row for (row,) in found], np.int64))

    def files_at(self, model: int, rows: Sequence[int], filter: Filter) -> list[FoundFile]:
        """Every file that shows one of these rows and passes the filter, in path order."""
        condition, values = filter.sql()
        among = "row IN (SELECT value FROM json_each(?))"
        query = f"SELECT row, path, {FILE_DATE} {_FILES} WHERE model = ? AND {among} AND {condition} ORDER BY path"
        with self.reading():
            found = self.database.execute(query, [model, json.dumps(list(rows)), *values])
            return [FoundFile(row, os.fsdecode(path), taken) for row, path, taken in found]

    def shown(self, model: int) -> Iterator[tuple[int, Record]]:
        """(row, record with its content) of every file that can be found, in path order.  Use it inside `reading`."""
        columns = "row, path, file.size, mtime, digest, content.size, width, height, taken"
        query = f"SELECT {columns} {_FILES} WHERE model = ? AND NOT missing ORDER BY path"
        for row, path, size, mtime, digest, bytes_, width, height, taken in self.database.execute(query, [model]):
            content = Content(digest=digest, size=bytes_, width=width, height=height, taken=taken)
            yield row, Record(path=os.fsdecode(path), size=size, mtime=mtime, digest=digest, content=content)

    def save(self, folder: Path) -> None:
        """A whole copy, also while others write."""
        if folder.exists():
            raise InputError(f"'{folder}' exists already. Name a folder that does not exist yet.")
        if not self.database.exists:
            raise IndexFileError(f"'{self.folder}' has no images yet, so there is nothing to copy. Add some first.")
        folder.mkdir(parents=True)
        with self.writing():  # nothing moves while the files are copied
            self.database.copy(folder / DATABASE)
            for model in self._model_numbers():
                if rows := self._next_row(model):
                    (folder / self._vector_file(model).name).write_bytes(self._map(model, rows).tobytes())
                if (ann := self.ann_file(model)).exists():
                    shutil.copyfile(ann, folder / ann.name)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def embed_dim(self, model: int) -> int:
        """E of a model, 0 where it is not known."""
        return self.database.number("SELECT embed_dim FROM model WHERE id = ?", model)

    def _model_numbers(self) -> list[int]:
        return [number for (number,) in self.database.execute("SELECT id FROM model").fetchall()]

    def _next_row(self, model: int) -> int:
        return self.database.number("SELECT coalesce(max(row) + 1, 0) FROM vector WHERE model = ?", model)

    def _vector_file(self, model: int) -> Path:
        return vector_file(self.folder, model, self.database.number("SELECT generation FROM model WHERE id = ?", model))

    def _map(self, model: int, rows: int) -> np.ndarray:
        return map_rows(self._vector_file(model), rows, self.embed_dim(model))


_STATES = (
    "SELECT path, file.size, mtime, reader, reason IS NOT NULL, row IS NOT NULL, missing"
    " FROM file LEFT JOIN vector ON vector.content = file.content AND vector.model = ?"
)
