"""Images of a data set that are the same: equal files, and copies in another format, size or quality."""

import hashlib
import os
from collections import Counter

import numpy as np
from PIL import Image
from tqdm import tqdm

from vlm.errors import ImageError
from vlm.images.open import ImageSource, open_image
from vlm.index.near_duplicates import group_near
from vlm.training.data.rows import BrokenSample, Rows

MOST_HASHED = 100_000  # images: equal files are looked for in no larger set
MOST_OPENED = 10_000  # images: near copies are looked for in no larger set
OPENED_BYTES = 1 << 30  # of all files together; larger sets are not decoded for this
NEAR = 0.995  # cosine of two thumbnails
SIDE = 8  # of a thumbnail
_SILENT = 1000  # images that are looked at without a progress bar
UNIFORM = 2.0  # levels of spread; images of one colour look all the same and are not compared


def same_images(rows: Rows) -> list[int]:
    """Number the images so that equal files and near copies have equal numbers.

    Near copies are images whose 8 x 8 thumbnails, less their mean colour, have a cosine of 0.995 or more, or that a
    chain of such images links.

    Args:
        rows: the data set.  Files are compared in sets of at most 100,000 images, and thumbnails in sets of at most
            10,000 images and 1 GiB of files; in larger sets every image is its own.

    Returns:
        n numbers; images that cannot be read are their own.
    """
    if len(rows) > MOST_HASHED:
        return list(range(len(rows)))
    files, size = _equal_files(rows)
    if len(rows) > MOST_OPENED or size > OPENED_BYTES:
        return files
    first = list(dict.fromkeys(files))
    looked = tqdm(first, desc="looking for copies", unit="image", disable=len(first) < _SILENT)
    found = [(number, thumbnail) for number in looked if (thumbnail := _thumbnail(rows, number)) is not None]
    if not found:
        return files
    numbers, thumbnails = zip(*found, strict=True)
    labels = group_near(np.stack(thumbnails), NEAR)
    near = {number: numbers[label] for number, label in zip(numbers, labels.tolist(), strict=True)}
    return [near.get(number, number) for number in files]


def _equal_files(rows: Rows) -> tuple[list[int], int]:
    """(the first image with the same bytes, for every image; bytes of all).  Files of a size of their own stay shut."""
    sizes = [_size(rows, index) for index in range(len(rows))]
    alike = Counter(sizes)
    first: dict[tuple[int, bytes], int] = {}
    numbers = []
    for index, size in enumerate(sizes):
        digest = _digest(rows, index) if size and alike[size] > 1 else None
        numbers.append(index if digest is None else first.setdefault((size, digest), index))
    return numbers, sum(sizes)


def _source(rows: Rows, index: int) -> ImageSource | None:
    try:
        return rows.image(index)
    except BrokenSample:
        return None


def _size(rows: Rows, index: int) -> int:
    """Bytes of an image; 0 where they cannot be read."""
    source = _source(rows, index)
    if isinstance(source, np.ndarray):
        return source.nbytes
    if isinstance(source, bytes):
        return len(source)
    try:
        return os.stat(source).st_size if isinstance(source, (str, os.PathLike)) else 0
    except (OSError, ValueError):
        return 0


def _digest(rows: Rows, index: int) -> bytes | None:
    source = _source(rows, index)
    if isinstance(source, np.ndarray):
        return hashlib.blake2b(repr(source.shape).encode() + source.tobytes(), digest_size=16).digest()
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=16).digest()
    try:
        with open(str(source), "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except (OSError, ValueError):
        return None


def thumbnail_of(image: Image.Image) -> np.ndarray:
    """8 x 8 colours of an RGB image less their mean, of length 1: float32 (192,)."""
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    small = (small - small.mean((0, 1))).ravel()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def spread_of(image: Image.Image) -> float:
    """Standard deviation of the levels of an RGB image, of the channel where it is largest.

    Exact, and in no more memory than 3 x 256 counts.
    """
    counts, levels = np.reshape(image.histogram(), (3, 256)) / (image.width * image.height), np.arange(256)
    return float(np.sqrt((counts @ levels**2 - (counts @ levels) ** 2).clip(0)).max())


def _thumbnail(rows: Rows, index: int) -> np.ndarray | None:
    """float16; None for an image of one colour, or that cannot be opened as RGB."""
    source = _source(rows, index)
    if source is None:
        return None
    try:
        image = open_image(source)
    except ImageError:
        return None
    return None if spread_of(image) < UNIFORM else thumbnail_of(image).astype(np.float16)
