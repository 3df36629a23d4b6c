"""Tables people write by hand or with pandas: .csv and .tsv (separator found out), .jsonl.

A line that cannot be used stays a sample, and says why when it is asked for its image: one bad row ends nothing.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from vlm.errors import DataError
from vlm.images.signatures import IMAGE_SUFFIXES
from vlm.training.data.formats.columns import Columns, recognise
from vlm.training.data.formats.table import Table, generated, stamp, texts_of, with_splits
from vlm.training.data.rows import ColumnNames

_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_HEAD = 1 << 20  # bytes looked at to find out encoding, separator and columns
_MAX_LINE = 1 << 24  # characters; a longer one is no line


def open_text_file(path: Path, splits: Sequence[str], named: ColumnNames, root: Path | None) -> Table:
    source = str(path)
    head = _head(path)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        separator, present = "", _json_keys(source, head)
    else:
        separator, present = _header(source, head)
    columns = recognise(source, present, named)
    rows = generated(source, _read, _features(columns), file=stamp(path), separator=separator, columns=asdict(columns))
    if all(reason == "bad row" for reason in rows[:100]["problem_reason"]):
        raise DataError(f"{source}: none of the first {len(rows[:100]['line'])} rows is right; {_first_problem(rows)}.")
    return Table(source, with_splits(source, rows, columns.split, splits), columns, root or path.parent)


def _first_problem(rows: Any) -> str:
    return rows[0]["problem_detail"]


def _features(columns: Columns) -> Any:
    from datasets import Features, List, Value

    text = Value("string")
    listed = {name for part in (columns.captions, columns.keywords) for names in part.values() for name in names}
    single = {columns.image, columns.label, columns.language, columns.uid, columns.concept, columns.split} - {None}
    kinds = {name: List(text) if name in listed else text for name in sorted(single | listed)}  # type: ignore[type-var]
    return Features(kinds | {"line": Value("int64"), "problem_reason": text, "problem_detail": text})


def _head(path: Path) -> str:
    """The first lines, as text; `DataError` names the encoding that is not UTF-8."""
    with path.open("rb") as file:
        data = file.read(_HEAD)
    if not data.strip():
        raise DataError(f"{path} has no rows.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data[:200].count(0) > len(data[:200]) // 4:
        raise _encoding(path, "UTF-16", "UTF-16")
    whole = data if len(data) < _HEAD else data[: data.rfind(b"\n") + 1]
    lines = whole.splitlines()
    wrong = [line for line in lines if not _decodes(line, "utf-8")]
    if len(wrong) * 2 >= len(lines) > 0:  # fewer are bad rows of a sound file
        if all(_decodes(line, "cp932") for line in wrong):
            raise _encoding(path, "Shift-JIS", "CP932")
        raise DataError(f"{path} is not UTF-8 (a line has the bytes {wrong[0][:20]!r}). Save it as UTF-8.")
    return whole.decode("utf-8-sig", "replace")


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _encoding(path: Path, seen: str, name: str) -> DataError:
    return DataError(f"{path} is {seen}, wanted UTF-8. Convert it: iconv -f {name} -t UTF-8 {path} > utf8{path.suffix}")


def _header(source: str, head: str) -> tuple[str, list[str]]:
    """(separator, names of the columns), off the first line: the separator that gives most columns."""
    rows = {separator: _first_row(head, separator) for separator in _SEPARATORS}
    separator = max(rows, key=lambda separator: len(rows[separator]))
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
        return next(csv.reader(io.StringIO(head, newline=""), delimiter=separator), [])
    except csv.Error:
        return []


def _json_keys(source: str, head: str) -> list[str]:
    keys: dict[str, None] = {}
    problem = ""
    for number, line in enumerate(head.splitlines()[:1000], start=1):
        try:
            keys |= dict.fromkeys(_json_row(line)) if line.strip() else {}
        except ValueError as error:
            problem = problem or f"line {number}: {error}"
    if not keys:
        raise DataError(f"{source} has no JSON objects, one a line ({problem or 'nothing in it'}).")
    return list(keys)


def _json_row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__}, wanted an object")
    return row


def _read(
    file: tuple[str, int, int], separator: str, columns: dict[str, Any], version: int
) -> Iterator[dict[str, Any]]:
    wanted = Columns(**columns)
    listed = {name for part in (wanted.captions, wanted.keywords) for names in part.values() for name in names}
    names = [name for name in _features(wanted) if name not in ("line", "problem_reason", "problem_detail")]
    newline = "" if separator else "\n"  # a value of a CSV may hold line ends, as they are
    with open(file[0], encoding="utf-8-sig", errors="surrogateescape", newline=newline) as stream:
        for line, row, problem in _csv_rows(stream, separator) if separator else _json_rows(stream):
            values: dict[str, Any] = {}
            for name in names:
                value = row.get(name)
                values[name] = texts_of(value) if name in listed else _single(value)
            if any(not _encodes(value) for value in values.values()):
                values, problem = {name: [] if name in listed else None for name in names}, "not UTF-8"
            reason = "bad row" if problem else None
            yield values | {
                "line": line,
                "problem_reason": reason,
                "problem_detail": f"line {line}: {problem}" if problem else None,
            }


def _csv_rows(stream: TextIO, separator: str) -> Iterator[tuple[int, dict[str, Any], str]]:
    """(line, values by column, what is wrong)."""
    reader = csv.reader(stream, delimiter=separator)
    names = [name.strip() for name in next(reader)]
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, {}, f"no row of a table ({error})"
            continue
        if len(row) == len(names):
            yield reader.line_num, dict(zip(names, row, strict=True)), ""
        elif row:
            yield reader.line_num, {}, f"{len(row)} values, the first line names {len(names)} columns"


def _json_rows(stream: TextIO) -> Iterator[tuple[int, dict[str, Any], str]]:
    number = 0
    while line := stream.readline(_MAX_LINE):
        number += 1
        if line.strip():
            try:
                yield number, _json_row(line), ""
            except ValueError as error:
                yield number, {}, str(error)


def _single(value: Any) -> str | None:
    """Numbers become text; nested values are not for us."""
    if value is None or isinstance(value, (dict, list)):
        return None
    return str(value) or None


def _encodes(value: str | list[str] | None) -> bool:
    try:
        "".join(value or "").encode()
    except UnicodeEncodeError:
        return False
    return True
