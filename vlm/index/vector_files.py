"""Flat float16 files of vectors: one for each model and generation, row after row."""

import os
from pathlib import Path

import numpy as np

from vlm import atomic
from vlm.errors import IndexFileError
from vlm.free_space import FULL
from vlm.index.database import REBUILD, full_disk

_BYTES = 2  # of a float16


def vector_file(folder: Path, model: int, generation: int) -> Path:
    """Path of the vector file of a model; `prune` begins the next generation."""
    return folder / f"vectors-{int(model)}-{int(generation)}.f16"


def write_rows(file: Path, start: int, vectors: np.ndarray) -> None:
    """Write vectors (B, E) from row `start` on, cut what is behind them, and wait until the disk has them.

    Args:
        file: the vector file; created for row 0.
        start: row of the first vector; the file must hold all rows before it.
        vectors: unit vectors, (B, E).

    Raises:
        IndexFileError: if the file is shorter than `start` rows, or the disk is full.
    """
    offset = start * vectors.shape[1] * _BYTES
    if start:
        check_size(file, offset)
    try:
        with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as opened:
            opened.seek(offset)
            opened.write(vectors.astype("<f2").tobytes())
            opened.truncate()
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        if error.errno in FULL:
            raise full_disk(file.parent, error.strerror or str(error)) from error
        raise
    if start == 0:  # the name of a new file is durable when its folder is
        atomic.sync(file.parent)


def map_rows(file: Path, rows: int, embed_dim: int) -> np.ndarray:
    """float16 (rows, E), mapped from disk, not read."""
    shape = rows, embed_dim
    if not rows:
        return np.empty(shape, "<f2")
    check_size(file, rows * embed_dim * _BYTES)
    return np.memmap(file, "<f2", mode="c", shape=shape)  # "c": torch wants arrays it could write to


def is_longer(file: Path, rows: int, embed_dim: int) -> bool:
    """Returns True if the file has more rows than these: the remainder of an interrupted write."""
    return file.exists() and file.stat().st_size > rows * embed_dim * _BYTES


def check_size(file: Path, wanted: int) -> None:
    """Raise `IndexFileError` if the file holds less than `wanted` bytes."""
    if not file.exists():
        raise IndexFileError(f"'{file}' is missing, and the index counts on it. {REBUILD}")
    if (size := file.stat().st_size) < wanted:
        raise IndexFileError(f"'{file}' holds {size} bytes, the index counts on {wanted}. {REBUILD}")


def check_unit_length(vectors: np.ndarray, file: Path) -> None:
    """Raise `IndexFileError` unless all vectors (B, E) have length 1 but for rounding: damage shows as another."""
    for start in range(0, len(vectors), 8192):
        block = vectors[start : start + 8192].astype(np.float32)
        with np.errstate(all="ignore"):
            squares = np.einsum("be,be->b", block, block)
        wrong = ~((squares > 0.98) & (squares < 1.02))  # NaN too
        if wrong.any():
            row = start + int(wrong.argmax())
            raise IndexFileError(
                f"'{file}' is damaged: {int(wrong.sum())} vectors from row {row} on do not have length 1. {REBUILD}"
            )
