"""Decoded images on disk, for sets too large for memory: each is decoded once, whichever process comes first.

    <name>.pixels   uint8 (count, C, H, W), a sparse file, read through memory mapping
    <name>.sums     uint64 (count,): 0 not there yet, else 2^32 + CRC-32 of the row

A row counts when its sum fits.  So nothing is locked: a process killed half way, two that write at once, or a power cut
leave a row that is right or a row that is decoded again.
"""

import hashlib
import json
import math
import os
import zlib
from pathlib import Path

import numpy as np

from vlm.errors import DataError

_THERE = 1 << 32


class PixelCache:
    """Rows of one data set under one preprocessing: `key` is a fingerprint of both, and another key another file."""

    def __init__(self, folder: Path, count: int, shape: tuple[int, int, int], key: str) -> None:
        self._arguments = folder, count, shape, key
        self.count, self.shape = count, shape
        identity = json.dumps([key, count, *shape])
        path = folder / hashlib.sha256(identity.encode()).hexdigest()[:16]
        self.path = path.with_suffix(".pixels")
        self._row = math.prod(shape)  # bytes
        if count < 1 or self._row < 1:
            raise DataError(f"A cache of {count} images of shape {shape} holds nothing. Is the data set empty?")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._files = [_create(self.path, count * self._row), _create(path.with_suffix(".sums"), count * 8)]
        except OSError as error:
            raise DataError(f"There can be no cache in {folder}: {error.strerror}. Name another folder.") from error
        self._pixels = np.memmap(self.path, np.uint8, "r", shape=(count, *shape))
        self._sums = np.memmap(path.with_suffix(".sums"), np.uint64, "r", shape=(count,))

    def __reduce__(self) -> tuple[type["PixelCache"], tuple[Path, int, tuple[int, int, int], str]]:
        """Pickles the names only."""
        return PixelCache, self._arguments

    def __del__(self) -> None:
        for file in self.__dict__.get("_files", []):
            os.close(file)

    def __len__(self) -> int:
        """Rows that are there."""
        return int(np.count_nonzero(self._sums))

    def __contains__(self, index: int) -> bool:
        """Whether a row is there; it may yet be decoded again if it is damaged."""
        return bool(self._sums[self._checked(index)])

    def get(self, index: int) -> np.ndarray | None:
        """A copy, uint8 (C, H, W); None: decode it, and `put` it here."""
        expected = int(self._sums[self._checked(index)])
        if not expected:
            return None
        pixels = np.array(self._pixels[index])
        return pixels if _sum(pixels) == expected else None

    def put(self, index: int, pixels: np.ndarray) -> None:
        """uint8 (C, H, W).  A disk that is full is a `DataError`."""
        if pixels.dtype != np.uint8 or pixels.shape != self.shape:
            raise ValueError(f"The cache holds uint8 {self.shape}; got {pixels.dtype} {pixels.shape}.")
        data, at = np.ascontiguousarray(pixels), self._checked(index)
        try:
            _write(self._files[0], data.tobytes(), at * self._row)
            _write(self._files[1], _sum(data).to_bytes(8, "little"), at * 8)
        except OSError as error:
            size = self.count * self._row / 2**30
            raise DataError(
                f"The cache {self.path} cannot be written: {error.strerror}. It needs {size:.1f} GiB; "
                "make room, or train without it."
            ) from error

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"row {index} of a cache of {self.count}")
        return index


def _create(path: Path, size: int) -> int:
    """An open file of this size; the others that do the same at this moment get the same one."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    os.truncate(file, size)
    return file


def _write(file: int, data: bytes, offset: int) -> None:
    """Written, not stored through the mapping: a full disk is then an error, and not the end of the process."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _sum(pixels: np.ndarray) -> int:
    return _THERE | zlib.crc32(pixels.data)
