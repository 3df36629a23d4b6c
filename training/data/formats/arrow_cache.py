"""Tables made once from files of other formats: `datasets` keeps them as Arrow files and maps them into memory."""

import errno
import os
from pathlib import Path
from typing import Any

from vlm.errors import DataError

VERSION = 3  # raise it when a reader changes what it yields
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def generated(source: str, generator: Any, features: Any, **kwargs: Any) -> Any:
    """Returns the rows of `generator(**kwargs)` as a memory-mapped `datasets.Dataset`, cached by kwargs.

    Raises:
        DataError: the generator fails, yields nothing, or the cache cannot be written.
    """
    from datasets import Dataset, disable_progress_bars
    from datasets.exceptions import DatasetGenerationError

    disable_progress_bars()
    whole = {name: tuple(value) if isinstance(value, list) else value for name, value in kwargs.items()}
    whole |= {"version": VERSION}  # no lists: datasets would call the generator for every element of one
    try:
        rows: Any = Dataset.from_generator(generator, features=features, gen_kwargs=whole)
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, DataError):
            raise cause from None
        raise_cache_error(cause)
        raise DataError(f"{source} cannot be read ({' '.join(str(cause).split())}).") from error
    except OSError as error:
        raise_cache_error(error)
        raise
    except ValueError as error:
        if "no data" not in str(error):
            raise
        raise DataError(f"{source} has no rows. Name another file.") from error
    return rows


def raise_cache_error(error: BaseException) -> None:
    """`DataError` if `error` says that the cache of `datasets` is full or may not be written; else nothing."""
    from datasets.config import HF_DATASETS_CACHE

    cache = Path(HF_DATASETS_CACHE)
    if not isinstance(error, OSError):
        return
    ours = str(error.filename or "").startswith(str(cache)) or (
        error.errno in _FORBIDDEN and not os.access(_nearest(cache), os.W_OK)
    )
    if error.errno in _FULL or (error.errno in _FORBIDDEN and ours):
        raise DataError(
            f"The folder where tables are kept, {cache}, cannot be written: {error.strerror}. Make room there, or name "
            "another folder in the environment variable HF_DATASETS_CACHE."
        ) from error


def _nearest(folder: Path) -> Path:
    """The folder, or the one above it that exists."""
    return next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))


def stamp(path: str | Path) -> tuple[str, int, int]:
    """Path, size and time of change: a table that was read from the file is good as long as these stay."""
    info = os.stat(path)
    return (os.path.abspath(path), info.st_size, info.st_mtime_ns)
