"""Fashion-MNIST and MNIST as their authors publish them: train-images-idx3-ubyte(.gz) and three more files."""

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlm.errors import DataError
from vlm.images.open import ImageSource
from vlm.training.data.formats.splits import matching
from vlm.training.data.rows import Captions, Remark, text_group

FILES = {"train": "train", "test": "t10k"}  # split -> how its files begin
MNIST = [str(digit) for digit in range(10)]
FASHION = {  # Xiao et al. 2017, table 2
    "t-shirt or top": "Tシャツ", "trousers": "ズボン", "pullover": "セーター", "dress": "ワンピース", "coat": "コート",
    "sandals": "サンダル", "shirt": "シャツ", "sneakers": "スニーカー", "bag": "バッグ", "ankle boots": "ブーツ",
}  # fmt: skip


def is_idx(folder: Path) -> bool:
    return any(_find(folder, begin, "images-idx3-ubyte") for begin in FILES.values())


class IdxRows:
    """The images of a folder of idx files, split by split.

    The files do not name their classes: labels.txt in the folder does, one a line; without it, a folder with "fashion"
    in its path has Fashion-MNIST's, any other the digits.
    """

    def __init__(self, folder: Path, splits: Sequence[str] = ()):
        self.name = str(folder)
        there = [split for split, begin in FILES.items() if _find(folder, begin, "images-idx3-ubyte")]
        chosen = [there[number] for number in matching(self.name, splits, there)] or there
        images, labels = zip(*(_read_split(folder, FILES[split]) for split in chosen), strict=True)
        self._splits = np.repeat(chosen, [len(part) for part in images])
        self._numbers = np.concatenate([np.arange(len(part)) for part in images])
        self._images, self._labels = np.concatenate(images), np.concatenate(labels)
        self._names = _class_names(folder, int(self._labels.max(initial=0)) + 1)

    @property
    def fingerprint(self) -> str:
        return f"{self.name} {zlib.crc32(self._images.data)}"

    def __len__(self) -> int:
        return len(self._images)

    def uid(self, index: int) -> str:
        return f"{self._splits[index]}/{self._numbers[index]}"

    @property
    def run_length(self) -> int:
        return 1

    def read_ahead(self, index: Sequence[int]) -> None:
        pass  # each image is read by itself

    def image(self, index: int) -> ImageSource:
        return self._images[index]

    def captions(self, index: int) -> Captions:
        name = self._name(index)
        return {"en": ([name], []), "ja": ([FASHION[name]], [])} if name in FASHION else {"": ([name], [])}

    def _name(self, index: int) -> str:
        return self._names[self._labels[index]]

    def labels(self, index: int) -> list[str]:
        return [self._name(index)]

    def concept(self, index: int) -> None:
        return None

    def group(self, index: int) -> str:
        return text_group(self, index)

    def split(self, index: int) -> str:
        return str(self._splits[index])

    def splits(self) -> list[str]:
        return sorted(set(self._splits.tolist()))

    def column(self, name: str) -> list[str]:
        raise DataError(f"{self.name} has no column {name}: idx files have images and labels.")

    def remarks(self) -> list[Remark]:
        return []


def _class_names(folder: Path, count: int) -> list[str]:
    file = folder / "labels.txt"
    if file.exists():
        names = file.read_text(encoding="utf-8").split("\n")
        names = [name.strip() for name in names if name.strip()]
    else:
        names = list(FASHION) if "fashion" in str(folder.resolve()).lower() else MNIST
    if len(names) < count:
        raise DataError(f"{folder} has {count} classes, and names for {len(names)}. Write one name a line in {file}.")
    return names


def _find(folder: Path, begin: str, kind: str) -> Path | None:
    names = [f"{begin}-{kind}{suffix}" for suffix in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_split(folder: Path, begin: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, H, W) and (n,)."""
    images, labels = (_find(folder, begin, kind) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    if images is None or labels is None:
        raise DataError(f"{folder} has {begin}-images-idx3-ubyte, but no {begin}-labels-idx1-ubyte (or .gz) beside it.")
    pixels, numbers = _read(images, 3), _read(labels, 1)
    if len(pixels) != len(numbers):
        raise DataError(f"{images} has {len(pixels)} images, {labels} has {len(numbers)} labels.")
    return pixels, numbers


def _read(path: Path, dimensions: int) -> np.ndarray:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else np.memmap(path, np.uint8, "r")
        shape = struct.unpack(f">{dimensions}I", bytes(data[4 : 4 + 4 * dimensions]))
        magic, size = bytes(data[:4]), 4 + 4 * dimensions + int(np.prod(shape))
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an idx file ({error}).") from error
    if magic != bytes((0, 0, 8, dimensions)) or len(data) != size:
        raise DataError(
            f"{path} is no whole idx file: it begins with {magic.hex()} and has {len(data):,} bytes; wanted "
            f"0000080{dimensions} and {size:,} bytes. Get a whole copy."
        )
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
