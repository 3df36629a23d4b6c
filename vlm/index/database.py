"""The SQLite file of an index: opened for writing where that is possible, else for reading; all errors are ours.

A database that cannot be written (a read-only disk, another user's folder) is read in place, or, where a write-ahead
log is left or the format is older, from a temporary copy.  Nothing is created before the first write.
"""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import RLock

from vlm.errors import IndexFileError
from vlm.free_space import FULL, why_no_space
from vlm.index.database_format import FORMAT, SCHEMA, upgrade
from vlm.index.paths import may

DATABASE = "index.sqlite"
REBUILD = "Restore it from a backup, or delete the index and run vlm index again: the images are untouched."
_WAIT = 60.0  # seconds for another program that writes
_VERSION_AT = 60  # of the SQLite header: user_version, 4 bytes, big-endian

Values = Sequence[str | int | bytes | None]


class Database:
    """One connection for all threads; a lock lets one of them in at a time.

    Args:
        folder: the folder of the index; created by the first write.

    Raises:
        IndexFileError: if the folder holds something else, or a database that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / DATABASE
        self._lock = RLock()
        self._depth = 0  # of nested `reading` and `writing`
        self._in_memory = False  # nothing is on disk yet
        self._created: list[Path] | None = None  # folders that our first, uncommitted write has made
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._stamp: tuple[int, ...] | None = None  # of a database that is read in place or from a copy
        self._connection: sqlite3.Connection | None = None
        self._open()

    def close(self) -> None:
        """Close the connection.  Every later call is an `IndexFileError`."""
        with self._lock:
            self._drop()

    @property
    def exists(self) -> bool:
        """True if the index is on disk."""
        return self.file.exists()

    # ---- transactions ----------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Generator[None]:
        """All reads inside see the same moment.  May be nested."""
        with self._lock, self._translated():
            if self._depth == 0:
                self._refresh()
                self.execute("BEGIN")
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self._connection is not None and self._connection.in_transaction:
                    self.execute("COMMIT")

    @contextmanager
    def writing(self) -> Generator[None]:
        """A transaction: all or nothing.  It also locks the vector files.  May be nested."""
        with self._lock, self._translated():
            if self._depth == 0:
                self._make_writable()
                self.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                with self._translated():  # before the rollback, which frees space
                    yield
                    if self._depth == 1:
                        self.execute("COMMIT")
            except BaseException:
                if self._depth == 1:
                    self._abandon()
                raise
            finally:
                self._depth -= 1
            if self._depth == 0:
                self._created = None

    def execute(self, query: str, values: Values = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self._opened.execute(query, values)

    def execute_many(self, query: str, rows: Iterable[Values]) -> None:
        """Run one statement for every row of values."""
        self._opened.executemany(query, rows)

    def number(self, query: str, *values: str | int | bytes) -> int:
        """The first column of the first row, 0 where there is no row."""
        row = self.execute(query, values).fetchone()
        return 0 if row is None else row[0]

    def changes(self) -> int:
        """Rows changed since the database was opened."""
        return self._opened.total_changes

    def check(self) -> None:
        """Read the whole file; damage is an `IndexFileError`."""
        with self.reading():
            (found,) = self.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise IndexFileError(f"'{self.file}' is damaged: {found}. {REBUILD}")

    def copy(self, target: Path) -> None:
        """Write the committed state to a new file."""
        source, copy = sqlite3.connect(self.file), sqlite3.connect(target)
        with closing(source), closing(copy):
            source.backup(copy)  # from a connection of its own: this one's would wait for its own lock

    @property
    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise IndexFileError(f"The index '{self.folder}' is closed. Open it again: EmbeddingIndex.open(...)")
        return self._connection

    # ---- opening ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        with self._translated():
            self._in_memory = not self.file.exists()
            if self._in_memory:
                if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                    raise IndexFileError(
                        f"'{self.folder}' is not an index. Name a folder that is one, is empty, or does not exist yet."
                    )
                self._connection = _connect(":memory:")
                self._create_tables()
            elif not self._writable() or not self._open_for_writing():
                try:
                    self._open_for_reading()
                except OSError as error:
                    if error.errno in FULL:  # of the temporary folder that holds the copy
                        raise
                    raise IndexFileError(
                        f"'{self.file}' cannot be read: {error.strerror}. Change its rights, or copy the index."
                    ) from error

    def _writable(self) -> bool:
        return may(self.folder, os.W_OK | os.X_OK) and may(self.file, os.W_OK)

    def _open_for_writing(self) -> bool:
        """False where the disk does not let us: it is then read."""
        self._connection = _connect(str(self.file))
        try:
            if self.number("PRAGMA user_version") != FORMAT or self._journal() != "wal":
                self.execute("PRAGMA journal_mode = WAL")
                self._create_tables()
            self.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError as error:
            self._drop()
            if _kind(error) in ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_IOERR"):
                return False
            raise
        except BaseException:
            self._drop()
            raise
        self.execute("PRAGMA synchronous = FULL")
        return True

    def _journal(self) -> str:
        return self.execute("PRAGMA journal_mode").fetchone()[0]

    def _create_tables(self) -> None:
        """Bring an empty or older database to `FORMAT`."""
        connection = self._opened
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = self.number("PRAGMA user_version")
            if version > FORMAT:
                raise IndexFileError(
                    f"'{self.folder}' is an index of format {version}, this program reads {FORMAT}. Update vlm."
                )
            if version == 0:
                for statement in SCHEMA.split(";"):
                    connection.execute(statement)
            elif version < FORMAT:
                upgrade(connection)
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _open_for_reading(self) -> None:
        """Opens the database for reading while others write; from a copy where SQLite would need to create files."""
        self._stamp = None
        log = self.file.with_name(self.file.name + "-wal")
        has_log = log.exists() and log.stat().st_size > 0
        version = int.from_bytes(_read_at(self.file, _VERSION_AT, 4), "big")
        modes = ["mode=ro"] if has_log else ["mode=ro", "immutable=1"]
        for mode in modes if version == FORMAT else []:
            self._connection = _connect(f"{self.file.absolute().as_uri()}?{mode}", uri=True)
            try:
                self.execute("SELECT count(*) FROM sqlite_master")
            except sqlite3.OperationalError:
                self._drop()
                continue
            if mode == "immutable=1":
                self._stamp = self._state_on_disk()
            return
        self._stamp = self._state_on_disk()
        self._copy = tempfile.TemporaryDirectory(prefix="vlm-index-")
        for source in (self.file, log) if has_log else (self.file,):
            target = Path(self._copy.name, source.name)
            shutil.copyfile(source, target)
        self._connection = _connect(str(Path(self._copy.name, DATABASE)))
        try:
            self._create_tables()
        except BaseException:
            self._drop()
            raise

    def _state_on_disk(self) -> tuple[int, ...]:
        log = self.file.with_name(self.file.name + "-wal")
        stats = [path.stat() for path in (self.file, log) if path.exists()]
        return tuple(number for info in stats for number in (info.st_size, info.st_mtime_ns, info.st_ino))

    def _refresh(self) -> None:
        """Another program may have made the index, or changed one that we read in place or from a copy."""
        if self._connection is None:
            return
        if self._in_memory:
            if self.file.exists():
                self._reopen()
        elif self._stamp is not None and self._stamp != self._state_on_disk():
            self._reopen()

    def _reopen(self) -> None:
        self._drop()
        self._open()

    def _make_writable(self) -> None:
        self._refresh()
        if self._in_memory:
            self._drop()
            self._create()
        elif self._copy is not None or self._stamp is not None or not self._writable():
            if self._writable() and (reason := why_no_space(self.folder)) is not None:
                raise full_disk(self.folder, reason)
            raise IndexFileError(
                f"The index '{self.folder}' cannot be written: its disk or folder is read-only for this user. "
                "Copy it to a place that is not, or change the rights."
            )

    def _create(self) -> None:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self._created, self._in_memory = missing, False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._translated():  # before the files are removed, which frees space
                self._connection = _connect(str(self.file))
                self.execute("PRAGMA journal_mode = WAL")
                self.execute("PRAGMA synchronous = FULL")
                self._create_tables()
        except BaseException:
            self._remove_created()
            raise

    def _abandon(self) -> None:
        """Undo a transaction that failed, and with the first one the files of a new index."""
        if self._connection is None:
            return
        if self._opened.in_transaction:
            with suppress(sqlite3.Error):  # a full disk rolls back by itself
                self.execute("ROLLBACK")
        if self._created is not None:
            self._remove_created()

    def _remove_created(self) -> None:
        folders = self._created or []
        self._drop()
        self._created = None
        for path in [*self.folder.glob(f"{DATABASE}*"), *self.folder.glob("vectors-*.f16")]:
            with suppress(OSError):
                path.unlink()
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()
        self._connection, self._in_memory = _connect(":memory:"), True
        self._create_tables()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._copy is not None:
            self._copy.cleanup()
        self._connection = self._copy = self._stamp = None

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise database_error(self.folder, error) from error


def _accessible(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def database_error(folder: Path, error: sqlite3.DatabaseError) -> Exception:
    """Converts an SQLite error that a user can put right into an `IndexFileError`; returns any other unchanged."""
    name, advice = _kind(error), str(error)
    file = folder / DATABASE
    if name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
        return IndexFileError(f"'{folder}' is being written to by another program ({advice}). Wait for it.")
    reason = why_no_space(folder) if name in ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_FULL") else None
    if reason is not None or name == "SQLITE_FULL":
        return full_disk(folder, reason or advice)
    if name in ("SQLITE_CORRUPT", "SQLITE_NOTADB") or (
        name == "SQLITE_ERROR" and ("no such" in advice or "already exists" in advice)
    ):
        return IndexFileError(f"'{file}' is damaged: {advice}. {REBUILD}")
    if name in ("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH"):
        return IndexFileError(f"The index '{folder}' cannot be written: {advice}. Change the rights, or copy it.")
    if name == "SQLITE_CANTOPEN" and not _accessible(file if file.exists() else folder):
        return IndexFileError(f"The index '{file}' cannot be opened: Permission denied. Change the rights, or copy it.")
    if name in ("SQLITE_IOERR", "SQLITE_CANTOPEN"):
        return IndexFileError(
            f"'{file}' cannot be read or written: {advice}. See whether its disk has space and is connected."
        )
    return error


def full_disk(folder: Path, reason: str) -> IndexFileError:
    """The error for an index that cannot grow; `reason` is what the system says."""
    return IndexFileError(
        f"The disk of '{folder}' is full ({reason}). What was committed is kept; free some space and run again."
    )


def _kind(error: sqlite3.Error) -> str:
    """SQLITE_IOERR_WRITE -> SQLITE_IOERR."""
    name: str = getattr(error, "sqlite_errorname", "") or ""
    return "_".join(name.split("_")[:2])


def _connect(name: str, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(name, timeout=_WAIT, isolation_level=None, check_same_thread=False, uri=uri)


def _read_at(file: Path, start: int, size: int) -> bytes:
    with open(file, "rb") as opened:
        opened.seek(start)
        return opened.read(size)
