"""`Table`: the samples of an Arrow table, memory-mapped by `datasets`.  Every format becomes one."""

import ast
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm.errors import DataError, ImageReason
from vlm.images.open import ImageSource
from vlm.training.data.formats.columns import Columns
from vlm.training.data.rows import BrokenSample, Captions

VERSION = 1  # raise it when a reader changes what it yields


class Table:
    """`rows` is a `datasets.Dataset`.  Paths begin at `root`, and may not lead out of it.

    Rows that name the same file are one sample with several captions.  A row may carry `problem_reason` and
    `problem_detail`, written by whoever read it.
    """

    def __init__(self, name: str, rows: Any, columns: Columns, root: Path | None = None):
        self.name, self.columns = name, columns
        self.root = None if root is None else root.resolve()
        self.rows = _undecoded(rows, columns)
        present = self.rows.column_names
        self._problem = "problem_reason" in present
        more = ["problem_reason", "problem_detail"] if self._problem else []
        self._texts = self.rows.select_columns([*dict.fromkeys(columns.texts), *more]).with_format("arrow")
        singles = [name for name in (columns.uid, columns.concept, columns.split, columns.label) if name]
        self._names = self.rows.select_columns(list(dict.fromkeys(singles))).with_format("arrow")
        self._image = self.rows.select_columns([columns.image, *more] if columns.image else more).with_format("arrow")
        self._path_named = columns.image is not None and _is_string(self.rows.features[columns.image])
        self._class_names = getattr(self.rows.features[columns.label], "names", None) if columns.label else None
        self._members = self._rows_of_each_image() if self._path_named else None

    def _rows_of_each_image(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(row numbers, where each sample's begin), samples in order of first appearance; None: one row each."""
        (paths,) = self._image.select_columns([self.columns.image or ""])[:].columns
        paths = paths.combine_chunks()
        codes = paths.dictionary_encode()
        distinct = len(codes.dictionary)
        if distinct == len(codes) - codes.null_count:
            return None
        numbers = np.asarray(codes.indices.fill_null(-1))
        nameless = np.flatnonzero(numbers < 0)  # each stays a sample of its own
        numbers = numbers.astype(np.int64)
        numbers[nameless] = distinct + np.arange(len(nameless))
        first = np.full(distinct + len(nameless), len(numbers))
        np.minimum.at(first, numbers, np.arange(len(numbers)))
        order = np.lexsort((np.arange(len(numbers)), first[numbers]))
        return order, np.append(np.flatnonzero(np.diff(first[numbers][order], prepend=-1)), len(order))

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
            name = self._row(self._names, number)[self.columns.uid]
        elif self._path_named and self.columns.image is not None:
            name = self._row(self._image, number)[self.columns.image]
        return f"row {number}" if name is None else str(name)

    def image(self, index: int) -> ImageSource:
        row = self._row(self._image, self._row_numbers(index)[0])
        self._raise_problem(index, row)
        value = row[self.columns.image] if self.columns.image else None
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and value:
            return self._file(index, value)
        if isinstance(value, bytes) and value:
            return value
        if isinstance(value, list):
            return np.asarray(value, np.uint8)
        raise BrokenSample(self.uid(index), "missing", "the row names no image")

    def _file(self, index: int, name: str) -> str:
        """The path, if it stays below the root, links followed."""
        path, root = name, self.root
        if root is None:
            return path
        if "\0" in name:
            raise BrokenSample(self.uid(index), "missing", "no file can have this name (NUL)")
        inside = os.path.realpath(root / name)
        if not Path(inside).is_relative_to(root):
            raise BrokenSample(self.uid(index), "outside the folder", f"{inside} is not below {root}")
        return inside

    def captions(self, index: int) -> Captions:
        found: Captions = {}
        for number in self._row_numbers(index):
            row = self._row(self._texts, number)
            self._raise_problem(index, row)
            for language, (captions, keywords) in self._of_row(row).items():
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
        if not columns.captions and columns.label is not None and (label := self._label(row)):
            both.setdefault(language, ([], []))[0].append(label.replace("_", " "))
        return {code: texts for code, texts in both.items() if texts[0] or texts[1]}

    def label(self, index: int) -> str | None:
        if self.columns.label is None:
            return None
        return self._label(self._row(self._names, self._row_numbers(index)[0]))

    def _label(self, row: Mapping[str, Any]) -> str | None:
        value = row[self.columns.label] if self.columns.label else None
        if self._class_names is not None and isinstance(value, int):
            return self._class_names[value] if 0 <= value < len(self._class_names) else None
        return None if value is None or value == "" else str(value)

    def group(self, index: int) -> str:
        if self.columns.concept is not None:
            concept = self._row(self._names, self._row_numbers(index)[0])[self.columns.concept]
            if concept:
                return str(concept)
        return (None if self.columns.captions else self.label(index)) or self.uid(index)

    def split(self, index: int) -> str:
        if self.columns.split is None:
            return ""
        return str(self._row(self._names, self._row_numbers(index)[0])[self.columns.split] or "")

    def splits(self) -> list[str]:
        if self.columns.split is None:
            return []
        return sorted(str(value) for value in self._names[:][self.columns.split].unique().to_pylist() if value)

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


def texts_of(value: Any) -> list[str]:
    """A cell -> its captions, blank ones left out.

    pandas and json write a list into a CSV cell as "['a dog', 'a pet']".
    """
    if isinstance(value, str) and value.startswith(("['", '["')) and value.endswith("]"):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return [value]
    if isinstance(value, list):
        return [text for text in value if isinstance(text, str) and text.strip()]
    return [value] if isinstance(value, str) and value.strip() else []


def _is_string(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _undecoded(rows: Any, columns: Columns) -> Any:
    """Images stay as bytes or paths: decoding is ours."""
    from datasets import Image

    if columns.image is not None and isinstance(rows.features[columns.image], Image):
        return rows.cast_column(columns.image, Image(decode=False))
    return rows


def with_splits(source: str, rows: Any, column: str | None, splits: Sequence[str]) -> Any:
    """The rows of these splits; all if none is named."""
    if not splits:
        return rows
    if column is None:
        raise DataError(f"{source} has no column split. It has: {', '.join(rows.column_names)}.")
    values = rows.select_columns([column]).with_format("arrow")[:][column].combine_chunks().dictionary_encode()
    there = [str(value) for value in values.dictionary.to_pylist()]
    if missing := [split for split in splits if split not in there]:
        raise DataError(f"{source} has no split {', '.join(missing)}. It has: {', '.join(sorted(there))}.")
    wanted = [there.index(split) for split in splits]
    return rows.select(np.flatnonzero(np.isin(np.asarray(values.indices.fill_null(-1)), wanted)))


def generated(source: str, generator: Any, features: Any, **kwargs: Any) -> Any:
    """Returns the rows of `generator(**kwargs)` as a memory-mapped `datasets.Dataset`, cached by kwargs."""
    from datasets import Dataset, disable_progress_bars
    from datasets.exceptions import DatasetGenerationError

    disable_progress_bars()
    whole = {name: tuple(value) if isinstance(value, list) else value for name, value in kwargs.items()}
    whole |= {"version": VERSION}  # no lists: datasets would call the generator for every element of one
    try:
        rows: Any = Dataset.from_generator(generator, features=features, gen_kwargs=whole)
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise DataError(f"{source} cannot be read ({' '.join(str(cause).split())}).") from error
    except ValueError as error:
        if "no data" not in str(error):
            raise
        raise DataError(f"{source} has no rows.") from error
    return rows


def stamp(path: str | Path) -> tuple[str, int, int]:
    """Path, size and time of change: a table that was read from the file is good as long as these stay."""
    info = os.stat(path)
    return (os.path.abspath(path), info.st_size, info.st_mtime_ns)
