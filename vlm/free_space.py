"""Whether a folder takes more data: SQLite calls a full disk an input or output error."""

import errno
import os
import tempfile
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # errors of a disk, quota or limit that is reached
_PROBE = 1 << 18  # bytes; SQLite grows its files by 32 KiB


def why_no_space(folder: Path) -> str | None:
    """Try to write 256 KiB into a folder, which shows a full disk, a quota and a limit on the size of files.

    Args:
        folder: the folder, or one that is to be made; the nearest one above it that exists is tried.

    Returns:
        What the system says, such as "No space left on device"; None where the data fits, or cannot be written for
        another reason.
    """
    place = next((path for path in (folder, *folder.parents) if path.is_dir()), Path("."))
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            rest = _PROBE
            while rest:  # a write may be shorter than asked for, and the next one says why
                rest -= file.write(bytes(rest))
            os.fsync(file.fileno())  # network file systems count only then
    except OSError as error:
        return error.strerror if error.errno in FULL else None
    return _at_limit(place)


def _at_limit(folder: Path) -> str | None:
    """Say so where a file has reached the limit that `ulimit -f` sets."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    largest = max((entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()), default=0)
    return os.strerror(errno.EFBIG) if largest + _PROBE > limit else None
