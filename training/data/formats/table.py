"""`Table`: the samples of an Arrow table, memory-mapped by `datasets`.  Every format but idx becomes one."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vlm.errors import DataError, ImageReason
from vlm.images.open import ImageSource
from vlm.training.data.formats.cells import CellError, texts_of
from vlm.training.data.formats.columns import Columns
from vlm.training.data.formats.files import file_below
from vlm.training.data.formats.labels import labels_of
from vlm.training.data.formats.splits import matching
from vlm.training.data.rows import BrokenSample, Captions, Remark, text_group


class Table:
    """A data set whose rows are those of `rows`, a `datasets.Dataset`.

    Rows that name the same file, or have the same id and the same image, are one sample with several captions.  A row
    may carry `problem_reason` and `problem_detail`, written by whoever read it.

    Args:
        name: the source, for messages.
        rows: the table.
        columns: which of its columns is what.
        root: where its paths begin; None: it holds no paths that may be followed, but those in `within`.
        within: folders that links and paths may lead to; default: `root`.
    """

    def __init__(
        self, name: str, rows: Any, columns: Columns, root: Path | None = None, within: Sequence[Path] | None = None
    ):
        self.name, self.columns = name, columns
        self.root = None if root is None else root.resolve()
        own = [] if self.root is None else [self.root]
        self.within = own if within is None else [folder.resolve() for folder in within]
        self.rows = _undecoded(rows, columns)
        present = self.rows.column_names
        self._problem = "problem_reason" in present
        more = ["problem_reason", "problem_detail"] if self._problem else []
        self._texts = self.rows.select_columns([*dict.fromkeys(columns.texts), *more]).with_format("arrow")
        singles = [name for name in (columns.uid, columns.concept, columns.split, columns.label) if name]
        self._names = self.rows.select_columns(list(dict.fromkeys(singles))).with_format("arrow")
        self._image = self.rows.select_columns([columns.image, *more] if columns.image else more).with_format("arrow")
        self._path_named = columns.image is not None and _is_string(self.rows.features[columns.image])
        self._class_names = _class_names(self.rows.features[columns.label]) if columns.label else None
        self._members = self._rows_of_each_image() if self._path_named else None
        self._suffixes: dict[int, int] = {}  # row -> which of the images of its id it has, from 2
        if columns.uid is not None:
            self._separate_repeated_ids(columns.uid)

    def _rows_of_each_image(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(row numbers, where each sample's begin), samples in order of first appearance; None: one row each."""
        (paths,) = self._image.select_columns([self.columns.image or ""])[:].columns
        codes = paths.combine_chunks().dictionary_encode()
        return _grouped(np.asarray(codes.indices.fill_null(-1)).astype(np.int64))

    def _separate_repeated_ids(self, column: str) -> None:
        """Rows of one id: with the same image they are one sample; with another image they get another name."""
        names = self._names.select_columns([column])[:][column].combine_chunks().dictionary_encode()
        codes = np.asarray(names.indices.fill_null(-1)).astype(np.int64)
        firsts = np.arange(len(codes)) if self._members is None else self._members[0][self._members[1][:-1]]
        own = codes[firsts]
        counts = np.bincount(own[own >= 0], minlength=1)
        again = firsts[(own >= 0) & (counts[own] > 1)] if len(own) else firsts
        if not len(again):
            return
        seen: dict[int, dict[bytes | str, int]] = {}  # id -> image -> first row that has it
        same = np.arange(len(codes))
        for row in again.tolist():
            images = seen.setdefault(int(codes[row]), {})
            image = self._identity(row)
            if image in images:
                same[row] = images[image]
            else:
                images[image] = row
                if len(images) > 1:
                    self._suffixes[row] = len(images)
        if self._members is None and (same != np.arange(len(codes))).any():
            self._members = _grouped(same)

    def _identity(self, row: int) -> bytes | str:
        """Returns the identity of a row's image."""
        value = self._row(self._image, row).get(self.columns.image or "")
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return hashlib.blake2b(value, digest_size=16).digest()
        return value if isinstance(value, str) else f"row {row}"

    def remarks(self) -> list[Remark]:
        """Returns remarks about the data set as a whole: repeated ids, skipped links."""
        found: list[Remark] = []
        if self._suffixes:
            first = self._id_of(next(iter(self._suffixes)))
            text = (
                f"{self.name}: {len(self._suffixes)} rows have the {self.columns.uid} of another image; "
                f"they are named apart, like '{first} (2)'. Give each image an id of its own."
            )
            found.append(Remark("repeated ids", text))
        if self._problem:
            reasons = self._image.select_columns(["problem_reason"])[:]["problem_reason"].to_pylist()
            links = [row for row, reason in enumerate(reasons) if reason == "outside the folder"]
            if links and self.columns.image:
                first = self._row(self._image, links[0])[self.columns.image]
                text = (
                    f"{self.name}: {len(links)} links lead outside and are passed over, like {first}. Name the folder "
                    "they lead to as root, or put copies in their place."
                )
                found.append(Remark("links", text))
        return found

    def _row_numbers(self, index: int) -> Sequence[int]:
        if self._members is None:
            return (index,)
        order, starts = self._members
        return order[starts[index] : starts[index + 1]].tolist()

    @property
    def fingerprint(self) -> str:
        return f"{self.rows._fingerprint} {self.root}"  # of datasets: the file as it was, and what was selected

    def __len__(self) -> int:
        return len(self.rows) if self._members is None else len(self._members[1]) - 1

    def _row(self, part: Any, number: int) -> dict[str, Any]:
        return {name: values[0] for name, values in part[number].to_pydict().items()}

    def uid(self, index: int) -> str:
        number = self._row_numbers(index)[0]
        name = None
        if self.columns.uid is not None:
            name = self._id_of(number)
        elif self._path_named and self.columns.image is not None:
            name = self._row(self._image, number)[self.columns.image]
        if name is None:
            return f"row {number}"
        return f"{name} ({self._suffixes[number]})" if number in self._suffixes else str(name)

    def _id_of(self, number: int) -> Any:
        return self._row(self._names, number)[self.columns.uid or ""]

    @property
    def run_length(self) -> int:
        return 1

    def read_ahead(self, index: Sequence[int]) -> None:
        pass  # each image is read by itself

    def image(self, index: int) -> ImageSource:
        row = self._row(self._image, self._row_numbers(index)[0])
        self._raise_problem(index, row)
        value = row[self.columns.image] if self.columns.image else None
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and value.strip():
            return self._file(index, value)
        if isinstance(value, bytes) and value:
            return value
        if isinstance(value, list):
            return np.asarray(value, np.uint8)
        raise BrokenSample(self.uid(index), "missing", "the row names no image")

    def _file(self, index: int, name: str) -> str:
        """The path, if it stays below the roots, links followed."""
        if "\0" in name:
            raise BrokenSample(self.uid(index), "missing", "no file can have this name (NUL)")
        path, inside = file_below(name, self.root, self.within)
        if not inside:
            allowed = " or ".join(map(str, self.within)) or "the data set, which brings no files"
            raise BrokenSample(self.uid(index), "outside the folder", f"{path} is not below {allowed}")
        return path

    def captions(self, index: int) -> Captions:
        found: Captions = {}
        for number in self._row_numbers(index):
            row = self._row(self._texts, number)
            self._raise_problem(index, row)
            try:
                of_row = self._of_row(row)
            except CellError as error:
                raise BrokenSample(self.uid(index), "bad row", str(error)) from None
            for language, (captions, keywords) in of_row.items():
                own = found.setdefault(language, ([], []))
                own[0].extend(text for text in captions if text not in own[0])
                own[1].extend(text for text in keywords if text not in own[1])
        if not found:
            raise BrokenSample(self.uid(index), "no caption", f"{', '.join(self.columns.texts)}: empty")
        return found

    def _of_row(self, row: Mapping[str, Any]) -> Captions:
        columns = self.columns
        language = str(row[columns.language] or "") if columns.language else ""
        both: Captions = {}
        for which, part in enumerate((columns.captions, columns.keywords)):
            for code, names in part.items():
                texts = [text for name in names for text in texts_of(row[name])]
                both.setdefault(code or language, ([], []))[which].extend(texts)
        if not columns.captions:
            both.setdefault(language, ([], []))[0].extend(label.replace("_", " ") for label in self._labels(row))
        return {code: texts for code, texts in both.items() if texts[0] or texts[1]}

    def labels(self, index: int) -> list[str]:
        if self.columns.label is None:
            return []
        rows = (self._row(self._names, number) for number in self._row_numbers(index))
        try:
            return list(dict.fromkeys(label for row in rows for label in self._labels(row)))
        except CellError as error:
            raise BrokenSample(self.uid(index), "bad row", str(error)) from None

    def _labels(self, row: Mapping[str, Any]) -> list[str]:
        if self.columns.label is None:
            return []
        value, names = row[self.columns.label], self._class_names
        if names is None:
            return labels_of(value)
        numbers = value if isinstance(value, list) else [value]
        return [names[number] for number in numbers if isinstance(number, int) and 0 <= number < len(names)]

    def concept(self, index: int) -> str | None:
        if self.columns.concept is None:
            return None
        return str(self._row(self._names, self._row_numbers(index)[0])[self.columns.concept] or "") or None

    def group(self, index: int) -> str:
        return self.concept(index) or text_group(self, index)

    def split(self, index: int) -> str:
        if self.columns.split is None:
            return ""
        return str(self._row(self._names, self._row_numbers(index)[0])[self.columns.split] or "")

    @cached_property
    def _splits(self) -> list[str]:
        if self.columns.split is None:
            return []
        return sorted(str(value) for value in self._names[:][self.columns.split].unique().to_pylist() if value)

    def splits(self) -> list[str]:
        return self._splits

    def column(self, name: str) -> list[Any]:
        """One value per sample of any column."""
        if name not in self.rows.column_names:
            raise DataError(f"{self.name} has no column {name}. It has: {', '.join(self.rows.column_names)}.")
        values = self.rows[name][:]
        return values if self._members is None else [values[self._row_numbers(i)[0]] for i in range(len(self))]

    def _raise_problem(self, index: int, row: Mapping[str, Any]) -> None:
        if self._problem and row["problem_reason"]:
            reason: ImageReason = row["problem_reason"]
            raise BrokenSample(self.uid(index), reason, row["problem_detail"] or "")


def _grouped(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows with the same code together, in order of first appearance; -1 stays a row of its own.

    (row numbers, where each group begins), None where every row is a group of its own.
    """
    alone = np.flatnonzero(codes < 0)
    codes = codes.copy()
    codes[alone] = codes.max(initial=0) + 1 + np.arange(len(alone))
    _, codes = np.unique(codes, return_inverse=True)
    distinct = int(codes.max(initial=-1)) + 1
    if distinct == len(codes):
        return None
    first = np.full(distinct, len(codes))
    np.minimum.at(first, codes, np.arange(len(codes)))
    order = np.lexsort((np.arange(len(codes)), first[codes]))
    return order, np.append(np.flatnonzero(np.diff(first[codes][order], prepend=-1)), len(order))


def _is_string(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _class_names(feature: Any) -> list[str] | None:
    """Returns the class names of a ClassLabel, or of a list of them."""
    return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)


def _undecoded(rows: Any, columns: Columns) -> Any:
    """Images stay as bytes or paths: decoding is ours."""
    from datasets import Image

    if columns.image is not None and isinstance(rows.features[columns.image], Image):
        return rows.cast_column(columns.image, Image(decode=False))
    return rows


def with_splits(source: str, rows: Any, column: str | None, splits: Sequence[str]) -> Any:
    """The rows of these splits, under their own names or a synonym (val is validation); all if none is named."""
    if not splits:
        return rows
    if column is None:
        raise DataError(
            f"{source} has no splits, and {', '.join(splits)} was asked for. Leave the split out, or add a column "
            f"split. It has: {', '.join(rows.column_names)}."
        )
    values = rows.select_columns([column]).with_format("arrow")[:][column].combine_chunks().dictionary_encode()
    there = [str(value) for value in values.dictionary.to_pylist()]
    chosen = matching(source, splits, there)
    return rows.select(np.flatnonzero(np.isin(np.asarray(values.indices.fill_null(-1)), chosen)))
