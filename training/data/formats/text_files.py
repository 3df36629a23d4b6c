"""Tables people write by hand or with pandas: .csv and .tsv (separator found out), .jsonl, .json, captions.txt.

A row that cannot be used stays a sample, and says why when it is asked for its image: one bad row ends nothing.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vlm.errors import DataError
from vlm.images.signatures import IMAGE_SUFFIXES
from vlm.training.data.formats.arrow_cache import generated, stamp
from vlm.training.data.formats.cells import CellError, single_of, texts_of
from vlm.training.data.formats.columns import Columns, recognise
from vlm.training.data.formats.csv_rows import csv_rows
from vlm.training.data.formats.encodings import check_encoding, encodes
from vlm.training.data.formats.json_rows import json_document, json_lines, keys_of_lines
from vlm.training.data.formats.labels import labels_of
from vlm.training.data.formats.table import Table, with_splits
from vlm.training.data.rows import ColumnNames

TEXT_FILES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")
_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_HEAD = 1 << 20  # bytes looked at to find out encoding, separator and columns
_PROBLEMS = ("line", "problem_reason", "problem_detail")

Kind = Literal["csv", "lines", "document", "captions"]


class _Layout(NamedTuple):
    """Layout of a text file."""

    kind: Kind
    separator: str
    present: list[str]  # columns


def open_text_file(path: Path, splits: Sequence[str], named: ColumnNames, root: Path | None) -> Table:
    """Open one file.

    Args:
        path: the file.
        splits: only these values of the column split; empty takes all.
        named: columns that would not be recognised.
        root: where its paths begin; default: its folder.

    Raises:
        DataError: it is not UTF-8, has no header or no rows, or none of its first rows can be used.
    """
    source = str(path)
    layout = _layout(path, source)
    columns = recognise(source, layout.present, named)
    rows = generated(
        source, _read, _features(columns), file=stamp(path), kind=layout.kind, separator=layout.separator,
        columns=asdict(columns),
    )  # fmt: skip
    first = rows[:100]
    if all(reason == "bad row" for reason in first["problem_reason"]):
        raise DataError(
            f"{source}: none of the first {len(first['line'])} rows can be used; {first['problem_detail'][0]}."
        )
    return Table(source, with_splits(source, rows, columns.split, splits), columns, root or path.parent)


def _layout(path: Path, source: str) -> _Layout:
    head, suffix = _head(path), path.suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        if head.lstrip().startswith("[") or (suffix == ".json" and not _first_line_is_json(head)):
            keys = dict.fromkeys(key for _, row, _ in json_document(source) for key in row)
            return _Layout("document", "", list(keys))
        return _Layout("lines", "", keys_of_lines(source, head))
    if (
        suffix == ".txt"
        and Path(_first_row(head, ",")[0].split("#")[0].split("\t")[0]).suffix.lower() in IMAGE_SUFFIXES
    ):
        return _Layout("captions", "\t" if "\t" in head.split("\n", 1)[0] else ",", ["image", "caption"])
    separator, present = _header(source, head, suffix)
    return _Layout("csv", separator, present)


def _features(columns: Columns) -> Any:
    from datasets import Features, List, Value

    text = Value("string")
    listed = _listed(columns)
    single = {columns.image, columns.language, columns.uid, columns.concept, columns.split} - {None}
    kinds = {name: List(text) if name in listed else text for name in sorted(single | listed)}  # type: ignore[type-var]
    return Features(kinds | {"line": Value("int64"), "problem_reason": text, "problem_detail": text})


def _listed(columns: Columns) -> set[str]:
    """Columns that may hold several texts."""
    names = {name for part in (columns.captions, columns.keywords) for names in part.values() for name in names}
    return names | ({columns.label} if columns.label else set())


def _head(path: Path) -> str:
    """The first lines, as text; `DataError` names the encoding that is not UTF-8."""
    with path.open("rb") as file:
        data = file.read(_HEAD)
    if not data.strip():
        raise DataError(f"{path} has no rows. Name another file.")
    check_encoding(path, data, whole=len(data) < _HEAD)
    whole = data if len(data) < _HEAD else data[: data.rfind(b"\n") + 1]
    return whole.decode("utf-8-sig", "replace")


def _header(source: str, head: str, suffix: str) -> tuple[str, list[str]]:
    """(separator, names of the columns), off the first line: the separator that gives most columns.

    A .tsv file has tabs where its first line has any: its names and captions may hold commas.
    """
    rows = {separator: _first_row(head, separator) for separator in _SEPARATORS}
    separator = max(rows, key=lambda separator: len(rows[separator]))
    if suffix == ".tsv" and len(rows["\t"]) > 1:
        separator = "\t"
    names = [name.strip() for name in rows[separator]]
    if len(names) < 2:
        shown = (names[0] if names else "")[:80]
        raise DataError(
            f"{source} has one column, {ascii(shown) if not shown.isprintable() else shown!r}: no "
            f"{', '.join(_SEPARATORS.values())} in its first line. Wanted a header like filepath,caption."
        )
    if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names if "\0" not in name):
        raise DataError(f"{source} begins with an image, {names[0][:80]!r}. Put a header on top: filepath,caption.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{source} has two columns named {twice[:80]!r}. Rename one.")
    return separator, names


def _first_row(head: str, separator: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(head, newline=""), delimiter=separator), None) or [""]
    except csv.Error:
        return [""]


def _first_line_is_json(head: str) -> bool:
    """Returns True if a .json file has an object a line."""
    first, _, more = head.lstrip().partition("\n")
    return first.rstrip().endswith("}") and more.lstrip().startswith("{")


def _read(
    file: tuple[str, int, int], kind: Kind, separator: str, columns: dict[str, Any], version: int
) -> Iterator[dict[str, Any]]:
    wanted = Columns(**columns)
    listed = _listed(wanted)
    names = [name for name in _features(wanted) if name not in _PROBLEMS]
    for line, row, problem in _rows(file[0], kind, separator, wanted):
        values: dict[str, Any] = {name: [] if name in listed else None for name in names}
        if not problem:
            for name in names:
                try:
                    values[name] = _value(row.get(name), name in listed, name == wanted.label)
                except CellError as error:
                    problem = problem or str(error)
            if not all(encodes(value) for value in values.values()):
                values, problem = {name: [] if name in listed else None for name in names}, "not UTF-8"
        yield values | {
            "line": line,
            "problem_reason": "bad row" if problem else None,
            "problem_detail": f"line {line}: {problem}" if problem else None,
        }


def _value(value: Any, listed: bool, label: bool) -> Any:
    if label:
        return labels_of(value)
    return texts_of(value) if listed else single_of(value)


def _rows(path: str, kind: Kind, separator: str, columns: Columns) -> Iterator[tuple[int, dict[str, Any], str]]:
    """(line, values by column, what is wrong)."""
    if kind == "document":
        yield from json_document(path)
        return
    newline = "" if kind == "csv" else "\n"  # a value of a CSV may hold line ends, as they are
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline=newline) as stream:
        if kind == "lines":
            yield from json_lines(stream)
        elif kind == "captions":
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    name, found, caption = line.strip().partition(separator)
                    problem = "" if found else "no caption behind the file name"
                    yield number, {"image": name.partition("#")[0], "caption": caption.strip()}, problem
        else:
            yield from csv_rows(stream, separator, lambda values: _names_an_image(values, columns.image))


def _names_an_image(values: dict[str, str], column: str | None) -> bool:
    name = values.get(column or "", "")
    return "\n" not in name and Path(name.strip().replace("\0", "")).suffix.lower() in IMAGE_SUFFIXES
