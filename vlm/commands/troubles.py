"""Recognises the troubles of a machine, which no code can prevent: no space, no memory, no access, a killed worker.

Each becomes one line: what came, what was wanted, what to do.  Names of exception classes are compared as text, so that
neither torch nor safetensors is imported to explain an error.
"""

import errno
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from vlm.errors import DISTRIBUTION, missing_package
from vlm.free_space import FULL

_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}
_UNSTABLE = {errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN}
_NETWORK = {errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH}
_PATHS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY}
_NO_SPACE_TEXT = re.compile(r"no space left|disk quota exceeded|file too large|os error (28|122|27)\b", re.I)
_NO_MEMORY_TEXT = re.compile(
    r"DefaultCPUAllocator|out of memory|can(no|')t allocate memory|not enough memory|failed to allocate memory"
    r"|bad_alloc",
    re.I,
)
_KILLED_TEXT = re.compile(r"DataLoader worker \(pid.*?(is killed by signal: [\w ]+|exited unexpectedly)", re.S)
_PACKAGE_OF = {"open_clip": "open_clip_torch", "sklearn": "scikit-learn", "faiss": "faiss-cpu", "google": "protobuf",
               "multipart": "python-multipart"}  # fmt: skip
_SQLITE_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SQLITE_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_SQLITE_NO_ACCESS = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH}


def trouble(error: BaseException, given: Iterable[str | Path] = ()) -> str | None:
    """Explain an error that a machine, not a program, is the reason of.

    Args:
        error: what came; its causes are looked at too.
        given: the paths on the command line.  A file that is missing or in the way is a trouble of the user's only
            where it belongs to one of them.

    Returns:
        One line that says what came, what was wanted and what to do; None where the error is none of these.
    """
    paths = [Path(path) for path in given]
    return next((line for one in _chain(error) if (line := _explain(one, paths)) is not None), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _explain(error: BaseException, given: list[Path]) -> str | None:
    if isinstance(error, MemoryError):
        return _no_memory(error)
    if isinstance(error, ModuleNotFoundError):
        return _missing(error)
    if isinstance(error, BrokenProcessPool):
        return _killed("a worker process ended unexpectedly")
    if isinstance(error, sqlite3.Error):
        return _explain_sqlite(error)
    if isinstance(error, OSError):
        return _explain_system(error, given)
    text, kind = str(error), type(error).__name__
    if kind == "SafetensorError":
        return _full(text) if _NO_SPACE_TEXT.search(text) else None
    if kind == "OutOfMemoryError":
        return _no_memory(error)
    if isinstance(error, RuntimeError):  # torch and ONNX Runtime have no classes for these
        if found := _KILLED_TEXT.search(text):
            return _killed(f"a data-loader worker {' '.join(found[1].split())}")
        if _NO_MEMORY_TEXT.search(text):
            return _no_memory(error)
        if _NO_SPACE_TEXT.search(text):
            return _full(text)
    return None


def _missing(error: ModuleNotFoundError) -> str | None:
    """A module that a package of one of our extras brings; the requirements of this distribution know which."""
    module = (error.name or "").partition(".")[0]
    package = _PACKAGE_OF.get(module, module).replace("_", "-").lower()
    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # a bare copy of the code
        lines = []
    for line in lines:
        found = re.match(r"([\w.-]+).*extra == [\"']([\w-]+)[\"']", line)
        if found and found[1].replace("_", "-").lower() == package and found[2] not in ("all", "dev"):
            return str(missing_package("This", found[1], found[2]))
    return None


def _explain_system(error: OSError, given: list[Path]) -> str | None:
    place = _place(error)
    reason = error.strerror or str(error)
    if error.errno in FULL or _NO_SPACE_TEXT.search(str(error)):
        return _full(f"{place}{reason}")
    if error.errno == errno.ENOMEM:
        return _no_memory(error)
    if error.errno in _NO_ACCESS:
        return f"no access: {place}{reason}. This user needs access there: change its permissions or use another path."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"too many open files: {place}{reason}. Raise the limit with `ulimit -n`, or use fewer workers."
    if error.errno in _UNSTABLE:
        return f"the disk or network drive failed: {place}{reason}. Check the drive, then run the command again."
    if error.errno in _NETWORK or type(error).__name__ == "gaierror":
        return f"the network failed: {place}{reason}. Check the connection, then run the command again."
    if error.errno in _PATHS and _belongs(error, given):
        return f"{place}{reason}. Check the path on the command line."
    return None


def _explain_sqlite(error: sqlite3.Error) -> str | None:
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF  # extended codes hold the primary one in their last byte
    if primary == sqlite3.SQLITE_FULL or code in (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC):
        return _full(str(error))
    if primary in _SQLITE_DAMAGED:
        return f"the index's database is damaged ({error}). Delete the index folder and run vlm index again."
    if primary in _SQLITE_BUSY:
        return f"another process is writing to the index ({error}). Wait until it is done, then run the command again."
    if primary in _SQLITE_NO_ACCESS:
        return f"no access: the index's database cannot be opened for writing ({error}). Change its permissions."
    if primary == sqlite3.SQLITE_NOMEM:
        return _no_memory(error)
    if primary == sqlite3.SQLITE_IOERR:
        return f"the disk or network drive failed ({error}). Check the drive, then run the command again."
    return None


def _full(came: str) -> str:
    return (
        f"no space left: {_line(came)}. Free space or use another disk, then run the command again; finished files are "
        "whole."
    )


def _no_memory(error: BaseException) -> str:
    came = _line(str(error)) or type(error).__name__
    return (
        f"out of memory: {came[:200]}. Use a smaller batch, smaller images, fewer workers or a smaller model, or end "
        "other programs."
    )


def _killed(came: str) -> str:
    return (
        f"{came}. Most often the system ended it because memory ran out. Use fewer workers or a smaller batch, then "
        "run the command again."
    )


def _place(error: OSError) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    return f"{' -> '.join(names)}: " if names else ""


def _belongs(error: OSError, given: list[Path]) -> bool:
    """True where the error's file is one of the given paths, lies in one, or holds one."""
    if not isinstance(error.filename, (str, bytes)):
        return False
    file = Path(os.path.abspath(os.fsdecode(error.filename)))
    places = [Path(os.path.abspath(path)) for path in given]
    return any(
        file == place
        or place in file.parents
        or file in place.parents
        or (
            file.parent == place.parent and file.name.startswith(f".{place.name}.")
        )  # the name before `atomic` renames it
        for place in places
    )


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
