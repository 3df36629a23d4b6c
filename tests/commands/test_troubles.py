"""Each trouble of a machine is recognised by what it really raises, and nothing else is taken for one."""

import errno
import os
import socket
import sqlite3
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from vlm.commands.troubles import trouble

LOCKED = "database is locked"


def sqlite_error(kind: type[sqlite3.Error], code: int, text: str) -> sqlite3.Error:
    error = kind(text)
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/a"), ["no space left", "/x/a", "Free space"]),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x/a"), ["no space left", "quota", "/x/a"]),
        (OSError(errno.EFBIG, "File too large"), ["no space left", "File too large"]),
        (OSError("[Errno 28] Error writing bytes to file: No space left on device"), ["no space left"]),  # pyarrow
        (
            sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_FULL, "database or disk is full"),
            ["no space left", "database or disk is full"],
        ),
        (SafetensorError("I/O error: No space left on device (os error 28)"), ["no space left", "os error 28"]),
        (SafetensorError("I/O error: File too large (os error 27)"), ["no space left"]),
        (RuntimeError("PytorchStreamWriter failed: No space left on device"), ["no space left"]),
        (MemoryError(), ["out of memory", "smaller batch"]),
        (np.exceptions.AxisError("x"), None),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ["out of memory"]),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ["out of memory", "2 GiB"]),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            ["out of memory", "DefaultCPUAllocator"],
        ),
        (
            RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed. "),
            ["killed by signal: Killed", "memory", "fewer workers"],
        ),
        (RuntimeError("DataLoader worker (pid(s) 5, 6) exited unexpectedly"), ["exited unexpectedly", "fewer workers"]),
        (BrokenProcessPool("A process in the pool was terminated abruptly"), ["worker", "fewer workers"]),
        (
            sqlite_error(sqlite3.DatabaseError, sqlite3.SQLITE_CORRUPT, "database disk image is malformed"),
            ["damaged", "malformed", "vlm index"],
        ),
        (
            sqlite_error(sqlite3.DatabaseError, sqlite3.SQLITE_NOTADB, "file is not a database"),
            ["damaged", "not a database", "vlm index"],
        ),
        (sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_BUSY, LOCKED), ["another process", LOCKED, "Wait"]),
        (
            sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_READONLY, "attempt to write a readonly database"),
            ["no access", "permissions"],
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x/a"), ["no access", "/x/a", "permissions"]),
        (OSError(errno.EROFS, "Read-only file system", "/x/a"), ["no access", "/x/a", "Read-only"]),
        (OSError(errno.EIO, "Input/output error", "/x/a"), ["drive", "/x/a"]),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), ["network", "refused", "connection"]),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), ["network", "not known", "connection"]),
        (OSError(errno.EMFILE, "Too many open files"), ["too many open files", "ulimit -n"]),
        (ModuleNotFoundError("No module named 'sklearn'", name="sklearn"), ["scikit-learn", "vlm-clip[train]"]),
        (ModuleNotFoundError("No module named 'faiss'", name="faiss.x"), ["faiss-cpu", "vlm-clip[retrieval]"]),
        (ModuleNotFoundError("No module named 'vlm.nothing'", name="vlm.nothing"), None),
        (RuntimeError("shape '[3]' is invalid for input of size 4"), None),
        (ValueError("a mistake of ours"), None),
        (OSError(errno.ENOENT, "No such file or directory", "/x/a"), None),
        (SafetensorError("Error while deserializing header: InvalidHeader"), None),
        (sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_ERROR, "no such table: x"), None),
        (KeyError("x"), None),
    ],
    ids=lambda value: type(value).__name__ + str(value)[:25] if isinstance(value, Exception) else "",
)
def test_a_trouble_says_what_came_and_what_to_do(error: Exception, facts: list[str] | None):
    found = trouble(error)
    assert (found is None) == (facts is None)
    assert all(fact in (found or "") for fact in facts or [])
    assert "\n" not in (found or "")


def test_a_trouble_that_another_error_hides_is_found():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/x/model")
        except OSError as full:
            raise RuntimeError("unexpected pos 64 vs 0") from full
    except RuntimeError as error:
        assert "/x/model" in (trouble(error) or "")


@pytest.mark.parametrize(
    ("error", "given"),
    [
        (lambda at: OSError(errno.ENOENT, "No such file or directory", str(at)), "a"),
        (lambda at: OSError(errno.ENOTDIR, "Not a directory", str(at / "b")), "a"),
        (lambda at: OSError(errno.EEXIST, "File exists", os.fsencode(at)), "a/b/c"),
    ],
)
def test_a_path_is_the_users_mistake_only_where_the_user_gave_it(error, given: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    came = error(tmp_path / "a")
    assert trouble(came, ["some words", "elsewhere/deep"]) is None
    assert "command line" in (trouble(came, [given]) or "")


def test_a_real_allocation_that_cannot_be_made_is_a_trouble():
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 52)
    assert "out of memory" in (trouble(of_torch.value) or "")
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 52)
    assert "out of memory" in (trouble(of_numpy.value) or "")
