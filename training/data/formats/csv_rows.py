"""The rows of a CSV or TSV file.  A quote that is never closed spoils its own row, not the rows behind it."""

import csv
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TextIO

MAX_LINES = 1000  # of one row: a quote that is open for longer is not closed


class Row(NamedTuple):
    """One row, or what is wrong with it."""

    line: int  # where it begins, from 1
    values: dict[str, str]  # by column; empty where `problem` says why
    problem: str = ""


def csv_rows(
    stream: TextIO, separator: str, looks_like_a_row: Callable[[dict[str, str]], bool] = lambda values: False
) -> Iterator[Row]:
    """Read the rows below the header.

    A cell in quotes may hold line breaks.  A quote counts as unclosed when the file ends before it closes, when other
    text than a separator follows the closing quote, or when a line inside the cell is a row of its own.

    Args:
        stream: opened with newline="".
        separator: one character.
        looks_like_a_row: whether the values of a line, read on its own, are those of a row.
    """
    lines = _Lines(stream)
    header = lines.take()
    count = (header or "").count(separator)
    form = _Form(separator, 0 < count == (header or "").count(f"{separator} "))
    names = [name.strip() for name in _parse([header], form, strict=False) or []]
    while (first := lines.take()) is not None:
        begin = lines.number
        if not first.strip("\r\n"):
            continue
        block, values = [first], _parse([first], form, strict=True)
        if values is None and '\\"' in first:  # quotes inside a cell as MySQL and Spark write them
            values = _parse([first], form, strict=True, escape="\\")
        if values is None and first.count('"') % 2:
            block, values = _several_lines(lines, first, form)
            if values is None or any(_is_row(line, names, form, looks_like_a_row) for line in block[1:]):
                lines.give_back(block[1:])
                yield Row(begin, {}, "a quote is opened and not closed")
                continue
        if values is None:
            values = _parse([first], form, strict=False)
        if values is None:
            yield Row(begin, {}, "not a row of a table")
        elif len(values) == len(names):
            yield Row(begin, dict(zip(names, values, strict=True)))
        else:
            yield Row(begin, {}, f"{len(values)} values, the first line names {len(names)} columns")


class _Form(NamedTuple):
    """How the cells of a row stand apart."""

    separator: str
    spaces: bool  # a space behind each separator counts for nothing


class _Lines:
    """Lines of a stream, which can be given back."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.waiting: deque[str] = deque()
        self.number = 0  # of the line taken last

    def take(self) -> str | None:
        line = self.waiting.popleft() if self.waiting else self.stream.readline()
        if not line:
            return None
        self.number += 1
        return line

    def give_back(self, lines: Sequence[str]) -> None:
        self.waiting.extendleft(reversed(lines))
        self.number -= len(lines)


def _several_lines(lines: _Lines, first: str, form: _Form) -> tuple[list[str], list[str] | None]:
    """(the lines up to the closing quote, their values); None: the quote does not close in a way CSV allows."""
    block = [first]
    while len(block) < MAX_LINES and (line := lines.take()) is not None:
        block.append(line)
        if line.count('"') % 2:
            try:
                return block, _one_row(block, form)
            except csv.Error as error:
                if "unexpected end" not in str(error):  # other text follows the closing quote
                    break
    return block, None


def _is_row(line: str, names: Sequence[str], form: _Form, looks_like_a_row: Callable[[dict[str, str]], bool]) -> bool:
    values = _parse([line.rstrip("\r\n").rstrip('"')], form, strict=False)
    if values is None or len(values) != len(names):
        return False
    return looks_like_a_row(dict(zip(names, values, strict=True)))


def _parse(lines: Sequence[str | None], form: _Form, *, strict: bool, escape: str | None = None) -> list[str] | None:
    """The values of one row; None where it is none."""
    try:
        return _one_row([line for line in lines if line is not None], form, strict, escape)
    except csv.Error:
        return None


def _one_row(lines: Sequence[str], form: _Form, strict: bool = True, escape: str | None = None) -> list[str] | None:
    rows = list(
        csv.reader(lines, delimiter=form.separator, strict=strict, escapechar=escape, skipinitialspace=form.spaces)
    )
    return rows[0] if len(rows) == 1 else None if rows else []
