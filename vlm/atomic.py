"""Atomic writes: a reader sees the old content or the whole new one, after a crash, a kill or a full disk too.

The new content is written under another name in the same folder, flushed to the disk, and then renamed.
"""

import glob
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def write(path: Path, content: str | bytes) -> None:
    """Write a whole file atomically.

    Args:
        path: the file; it is replaced where it exists.
        content: text, stored as UTF-8 with the line ends it has, or bytes.

    Raises:
        OSError: the content could not be written; the old file is unchanged.
    """
    with replacing(path) as new:
        new.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yields the name of a file to write; afterwards it takes the place of `path`.

    When the block raises, the unfinished file is removed and `path` is unchanged.  What a killed process left is
    removed by the next write of the same file.
    """
    _remove_leftovers(path)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield new
        sync(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    sync(path.parent)


def _remove_leftovers(path: Path) -> None:
    """Delete unfinished versions of a file whose processes are gone."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.new"):
        process = leftover.name.removeprefix(f".{path.name}.").removesuffix(".new")
        if process.isdigit() and not _runs(int(process)):
            leftover.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if os.name != "posix":  # elsewhere os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to someone else
        pass
    return True


@contextmanager
def replacing_folder(folder: Path) -> Generator[Path]:
    """Yields a new, empty folder; afterwards it takes the place of `folder`, with everything in it.

    When the block raises, the new folder is removed and `folder` is unchanged.  Two renames are needed where `folder`
    exists: a process that dies between them leaves the old one as `set_aside(folder)`, see `restore`.
    """
    new, old = folder.with_name(f".{folder.name}.new"), set_aside(folder)
    restore(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for path in [*new.rglob("*"), new]:
            sync(path)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        new.rename(folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        restore(folder)


def set_aside(folder: Path) -> Path:
    """Path of the old folder between the two renames of `replacing_folder`."""
    return folder.with_name(f".{folder.name}.old")


def restore(folder: Path) -> None:
    """Rename the old folder back where a process died between the two renames of `replacing_folder`."""
    if not folder.exists() and set_aside(folder).exists():
        set_aside(folder).rename(folder)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    if os.name != "posix" and path.is_dir():  # only POSIX systems open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
