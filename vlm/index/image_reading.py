"""Files to pixels for an index: each file is read once, hashed, and decoded in a worker process if it is new."""

import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, features
from torch.utils.data import DataLoader, Dataset

from vlm.errors import ImageError, IndexFileError
from vlm.images.open import MAX_BYTES, open_header, open_image
from vlm.images.preprocess import Preprocess
from vlm.index.dates import capture_time
from vlm.index.records import ACCESS_REASONS, Content, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class FileToRead:
    """A file that is new or has changed."""

    path: str
    size: int  # bytes and ns, as they were before reading: a file that changes meanwhile is found by the next run
    mtime: int
    known: frozenset[bytes]  # digests of that size that need no pixels


class ReadFile(NamedTuple):
    """A file that was read, or the reason of access why it was not."""

    record: Record | None  # None: `problem` is a reason of access
    pixels: np.ndarray | None  # uint8 (3, H, W); None: refused, or known
    problem: ImageError | None


@cache
def reader_version() -> str:
    """Returns the formats that can be read here.  Files that another version refused are tried again."""
    parts = [name for name in ("pillow_heif", "rawpy", "resvg_py") if find_spec(name)]
    parts += [name for name in ("avif", "webp", "jpg_2000") if features.check(name)]
    return " ".join(["3", *parts])  # the number grows with the formats of vlm/images


def read_batches(
    files: Sequence[FileToRead], preprocess: Preprocess, batch_size: int, workers: int
) -> Iterator[list[ReadFile]]:
    """Read files in order.

    Args:
        files: what to read.
        preprocess: makes the pixels.
        batch_size: files in a list.
        workers: processes that decode ahead, 0: this one does.

    Raises:
        IndexFileError: if a worker process was killed.
    """
    workers = min(workers, len(files) // batch_size)  # a process takes longer to start than a batch takes to read
    loader = DataLoader(
        _Files(files, preprocess), batch_size, num_workers=workers, collate_fn=_keep, worker_init_fn=_lower_priority
    )
    batches = iter(loader)
    done = 0
    while True:
        try:
            batch = next(batches, None)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise IndexFileError(
                f"A process that decodes images was killed, most often because memory was full. {done:,} of "
                f"{len(files):,} files of this run are done and kept. Run the same command again, with --workers 1."
            ) from error
        if batch is None:
            return
        yield batch
        done += len(batch)


def _lower_priority(worker: int) -> None:
    """A worker takes the processors while the model waits for images, and leaves them alone while it computes.

    Two threads of a matrix product go at the pace of the slower one: a decoder beside it would cost twice its own time.
    """
    if sys.platform != "win32":
        os.nice(10)


class _Files(Dataset[ReadFile]):
    """Data that the worker processes share."""

    def __init__(self, files: Sequence[FileToRead], preprocess: Preprocess) -> None:
        self.files, self.preprocess = files, preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> ReadFile:
        return read_file(self.files[number], self.preprocess)


def _keep(batch: list[ReadFile]) -> list[ReadFile]:
    return batch


def read_file(file: FileToRead, preprocess: Preprocess) -> ReadFile:
    """Read, hash and decode one file.

    Args:
        file: what to read.
        preprocess: makes the pixels.

    Returns:
        A record with pixels; without pixels for known or refused bytes; a problem where the file cannot be accessed.
    """
    try:
        data = _read_bytes(file.path)
        digest = hashlib.sha256(data).digest()
        if digest in file.known:
            return ReadFile(Record(path=file.path, size=file.size, mtime=file.mtime, digest=digest), None, None)
        opened = open_header(data, file.path)
        pixels, (width, height) = preprocess.pixels_and_size(opened)
    except ImageError as error:
        problem = ImageError(file.path, error.reason, error.detail)
        if error.reason in ACCESS_REASONS:
            return ReadFile(None, None, problem)
        record = Record(
            path=file.path,
            size=file.size,
            mtime=file.mtime,
            reason=error.reason,
            detail=error.detail,
            reader=reader_version(),
        )
        return ReadFile(record, None, problem)
    content = Content(digest=digest, size=len(data), width=width, height=height, taken=_taken(opened.image))
    record = Record(path=file.path, size=file.size, mtime=file.mtime, digest=digest, content=content)
    return ReadFile(record, pixels.numpy(), None)


def _read_bytes(path: str) -> bytes:
    """The whole file; one that `open_image` refuses unread is refused with its words."""
    try:
        info = os.stat(path)
        if stat.S_ISREG(info.st_mode) and info.st_size <= MAX_BYTES:
            return Path(path).read_bytes()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        pass
    open_image(path)
    raise ImageError(path, "unreadable", "it changed while it was read; run again")


def _taken(image: Image.Image) -> str | None:
    try:
        return capture_time(image.getexif())  # after decoding: Pillow would decode a PNG without EXIF to find it
    except Exception:  # Pillow raises almost anything on damaged bytes: no date
        return None
