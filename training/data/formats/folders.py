"""Images in folders: a folder per class, or captions in .txt files beside the images."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm.errors import DataError
from vlm.images.signatures import IMAGE_SUFFIXES
from vlm.training.data.formats.arrow_cache import generated
from vlm.training.data.formats.cells import CellError, texts_of
from vlm.training.data.formats.columns import Columns
from vlm.training.data.formats.encodings import encodes, is_plain_text, likely_encoding
from vlm.training.data.formats.files import Found, files_below, is_below, roots_of
from vlm.training.data.formats.labels import label_name
from vlm.training.data.formats.splits import classes_and_splits
from vlm.training.data.formats.table import Table, with_splits
from vlm.training.data.rows import ColumnNames

_CAPTION_BYTES = 1 << 20


def has_images(folder: Path, root: Path | None = None) -> bool:
    """Returns True if there is an image below, or a link that may be to one."""
    return any(_is_image(found) for found in files_below(folder, roots_of(folder, root)))


def open_folder(
    folder: Path, splits: Sequence[str], named: ColumnNames | None = None, root: Path | None = None
) -> Table:
    """Class and split are read off the path: dog/1.jpg, train/dog/1.jpg.  1.txt beside it holds a caption a line.

    Args:
        folder: the data set.
        splits: only these; empty takes all.
        named: {"label": "txt"} reads the lines of the .txt files as classes.
        root: a folder that links may lead to, besides the data set itself.

    Raises:
        DataError: the images have neither captions nor classes.
    """
    from datasets import Features, List, Value

    roots = roots_of(folder, root)
    text = Value("string")
    features = {"image": text, "captions": List(text), "label": text, "split": text, "problem_reason": text,
                "problem_detail": text}  # fmt: skip
    allowed = list(map(str, roots))
    stamp = _stamp(folder, roots)
    rows = generated(str(folder), _read, Features(features), folder=str(folder), stamp=stamp, roots=allowed)
    table = rows.with_format("arrow")[:]
    captioned = bool(len(rows)) and np.asarray(table["captions"].combine_chunks().value_lengths()).any()
    labelled = table["label"].null_count < len(rows)
    if not captioned and not labelled and table["problem_reason"].null_count:
        raise DataError(
            f"{folder} has images, but neither captions nor classes. Give each class a folder, each image a .txt, "
            "or list them in metadata.csv: file_name,caption."
        )
    lines = (named or {}).get("label") in ("txt", ["txt"], ("txt",))  # else the folders are the classes
    columns = Columns(
        image="image",
        captions={"": ["captions"]} if captioned and not lines else {},
        label="captions" if lines else "label" if labelled else None,
        split="split",
    )
    return Table(str(folder), with_splits(str(folder), rows, "split", splits), columns, folder, roots)


def _is_image(found: Found) -> bool:
    """By its suffix; a link that leads outside may also be to a folder of images."""
    suffix = os.path.splitext(found.path)[1].lower()
    return suffix in (*IMAGE_SUFFIXES, ".npy") or (bool(found.outside) and (not suffix or os.path.isdir(found.outside)))


def _stamp(folder: Path, roots: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Changes when a file is added, removed or replaced: folders' own times, and the times of texts."""
    found: dict[str, tuple[str, int, int]] = {}
    for own in files_below(folder, roots):
        path = os.path.join(folder, own.path)
        for place in [os.path.dirname(path)] + ([path] if own.path.endswith(".txt") and not own.outside else []):
            if place not in found:
                info = os.stat(place)
                found[place] = (ascii(place), info.st_size, info.st_mtime_ns)
    return list(found.values())


def _read(folder: str, stamp: Any, roots: Sequence[str], version: int) -> Iterator[dict[str, Any]]:
    images = [found for found in files_below(Path(folder), [Path(root) for root in roots]) if _is_image(found)]
    sound = [found for found in images if not found.outside and encodes(found.path)]
    places = dict(zip(sound, classes_and_splits([Path(found.path).parts[:-1] for found in sound]), strict=True))
    for found in images:
        label, split = places.get(found, (None, ""))
        row = {"image": found.path, "captions": [], "label": None, "split": split, "problem_reason": None,
               "problem_detail": None}  # fmt: skip
        if not encodes(found.path):
            yield row | _problem("bad row", "the file's name is not UTF-8: rename it") | {"image": ascii(found.path)}
        elif found.outside:
            yield row | _problem("outside the folder", f"a link to {found.outside}; name that folder as root")
        else:
            captions, problem = _captions(os.path.join(folder, os.path.splitext(found.path)[0] + ".txt"), roots)
            name = label_name(label.encode("utf-8", "replace").decode()) if label else None
            yield row | {"captions": captions, "label": name} | (_problem("bad row", problem) if problem else {})


def _problem(reason: str, detail: str) -> dict[str, str]:
    return {"problem_reason": reason, "problem_detail": detail}


def _captions(path: str, roots: Sequence[str]) -> tuple[list[str], str]:
    """(the lines of the text, what is wrong with it); no lines where there is no text."""
    if not os.path.isfile(path):
        return [], ""
    if not is_below(end := os.path.realpath(path), roots):
        return [], f"{os.path.basename(path)} is a link to {end}, outside of the data"
    with open(path, "rb") as file:
        data = file.read(_CAPTION_BYTES)
    try:
        text = data.decode("utf-8-sig")
        if not is_plain_text(data):
            raise UnicodeError
    except UnicodeError:
        name = os.path.basename(path)
        return [], f"not UTF-8: {name} looks like {likely_encoding(data)}; save it as UTF-8"
    try:
        return [own.strip() for line in text.split("\n") for own in texts_of(line)], ""
    except CellError as error:
        return [], f"{os.path.basename(path)}: {error}"
