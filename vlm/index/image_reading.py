"""Files to pixels for an index: each file is read once, hashed, and decoded in a worker process if it is news."""

import hashlib
import os
import stat
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vlm.errors import ImageError
from vlm.images.open import MAX_BYTES, open_image
from vlm.images.preprocess import Preprocess
from vlm.index.vector_store import Content, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A file to read."""

    path: str
    size: int  # bytes and ns, as they were before reading: a file that changes meanwhile is found by the next run
    mtime: int
    known: frozenset[bytes]  # digests of that size that need no pixels


class Read(NamedTuple):
    """A file that was read."""

    record: Record
    pixels: np.ndarray | None  # uint8 (3, H, W); None: broken, or known


def read_batches(jobs: Sequence[Job], preprocess: Preprocess, batch_size: int, workers: int) -> Iterator[list[Read]]:
    """In order; `workers` processes decode ahead, 0: this one does."""
    workers = min(workers, len(jobs) // batch_size)  # a process takes longer to start than a batch takes to read
    reader = _Reader(jobs, preprocess)
    yield from DataLoader(reader, batch_size, num_workers=workers, collate_fn=_as_they_are, worker_init_fn=_step_back)


def _step_back(worker: int) -> None:
    """A worker takes the processors while the model waits for images, and leaves them alone while it computes.

    Two threads of a matrix product go at the pace of the slower one: a decoder beside it would cost twice its own time.
    """
    if sys.platform != "win32":
        os.nice(10)


class _Reader(Dataset[Read]):
    def __init__(self, jobs: Sequence[Job], preprocess: Preprocess) -> None:
        self.jobs, self.preprocess = jobs, preprocess

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, number: int) -> Read:
        return read(self.jobs[number], self.preprocess)


def _as_they_are(reads: list[Read]) -> list[Read]:
    return reads


def read(job: Job, preprocess: Preprocess) -> Read:
    """Never raises for what a file holds: the record says why there are no pixels."""
    try:
        data = _bytes(job.path)
        digest = hashlib.sha256(data).digest()
        if digest in job.known:
            return Read(Record(path=job.path, size=job.size, mtime=job.mtime, digest=digest), None)
        pixels, (width, height) = preprocess.pixels_and_size(data)
    except ImageError as error:
        broken = Record(path=job.path, size=job.size, mtime=job.mtime, reason=error.reason, detail=error.detail)
        return Read(broken, None)
    content = Content(digest=digest, size=len(data), width=width, height=height, taken=_taken(data))
    return Read(Record(path=job.path, size=job.size, mtime=job.mtime, digest=digest, content=content), pixels.numpy())


def _bytes(path: str) -> bytes:
    """The whole file; one that `open_image` refuses unread is refused with its words."""
    try:
        info = os.stat(path)
        if stat.S_ISREG(info.st_mode) and info.st_size <= MAX_BYTES:
            return Path(path).read_bytes()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        pass
    open_image(path)
    raise ImageError(path, "unreadable", "it changed while it was read")


def _taken(data: bytes) -> str | None:
    """When the camera says it took the image, "2024-05-01 12:00:00", local time."""
    with warnings.catch_warnings(action="ignore"):  # broken EXIF: no date
        try:
            exif = Image.open(BytesIO(data)).getexif()
            stamp = exif.get_ifd(0x8769).get(0x9003) or exif.get(0x0132)
            date, time = str(stamp).strip("\0 ").split(" ")
            year, month, day = map(int, date.split(":"))
            hour, minute, second = map(int, time.split(":"))
        except Exception:
            return None
    return f"{year:04d}-{month:02d}-{day:02d} {hour:02d}:{minute:02d}:{second:02d}"
