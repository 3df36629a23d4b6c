"""Images in folders: a folder per class, or captions in .txt files beside the images."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm.errors import DataError
from vlm.images.signatures import IMAGE_SUFFIXES
from vlm.training.data.formats.columns import Columns
from vlm.training.data.formats.table import Table, generated, with_splits

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


def has_images(folder: Path) -> bool:
    """Returns True if there is an image below, without following links."""
    return next(_images(folder), None) is not None


def open_folder(folder: Path, splits: Sequence[str]) -> Table:
    """Class and split are read off the path: dog/1.jpg, train/dog/1.jpg.  1.txt beside it holds a caption a line."""
    from datasets import List, Value

    text = Value("string")
    features = {"image": text, "captions": List(text), "label": text, "split": text}
    rows = generated(str(folder), _read, _features(features), folder=str(folder), stamp=_stamp(folder))
    table = rows.with_format("arrow")[:]
    captioned = bool(len(rows)) and np.asarray(table["captions"].combine_chunks().value_lengths()).any()
    labelled = table["label"].null_count < len(rows)
    if not captioned and not labelled:
        raise DataError(
            f"{folder} has images, but neither captions nor classes. Give each class a folder, each image a .txt, "
            "or list them in metadata.csv: file_name,caption."
        )
    columns = Columns(
        image="image",
        captions={"": ["captions"]} if captioned else {},
        label="label" if labelled else None,
        split="split",
    )
    return Table(str(folder), with_splits(str(folder), rows, "split", splits), columns, folder)


def _features(columns: dict[str, Any]) -> Any:
    from datasets import Features

    return Features(columns)


def _stamp(folder: Path) -> list[tuple[str, int, int]]:
    """Changes when a file is added, removed or replaced: folders' own times, and the times of texts."""
    found = []
    for place, _, files in _walk(folder):
        texts = [name for name in files if name.endswith(".txt")]
        for path in (place, *(os.path.join(place, name) for name in texts)):
            info = os.stat(path)
            found.append((path, info.st_size, info.st_mtime_ns))
    return found


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield place, inner, sorted(name for name in files if not name.startswith("."))


def _images(folder: Path) -> Iterator[tuple[str, str]]:
    """(path below folder, path without its suffix), sorted by folder and name."""
    for place, _, files in _walk(folder):
        for name in files:
            stem, suffix = os.path.splitext(os.path.join(place, name))
            if suffix.lower() in IMAGE_SUFFIXES:
                yield os.path.relpath(stem + suffix, folder), stem


def _read(folder: str, stamp: Any, version: int) -> Iterator[dict[str, Any]]:
    for path, stem in _images(Path(folder)):
        *places, _ = Path(path).parts
        divided = places and places[0].lower() in SPLITS
        classes = places[1:] if divided else places
        yield {
            "image": path,
            "captions": _captions(stem + ".txt", folder),
            "label": classes[0] if classes else None,
            "split": places[0] if divided else "",
        }


def _captions(path: str, folder: str) -> list[str]:
    """The lines of the text; none where it is missing, not UTF-8, or outside of the folder."""
    if not os.path.isfile(path) or not Path(path).resolve().is_relative_to(Path(folder).resolve()):
        return []
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file.read(1 << 20).splitlines() if line.strip()]
    except UnicodeDecodeError:
        return []
