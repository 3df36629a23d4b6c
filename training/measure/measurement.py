"""One measured number with chance beside it, and tables of such numbers."""

from collections.abc import Sequence
from typing import NamedTuple


class Measurement(NamedTuple):
    """One number that was measured on a split."""

    split: str
    task: str
    language: str
    value: float
    chance: float  # value of a model that gives every answer the same score
    n: int  # queries, or images


def text_table(measured: Sequence[Measurement]) -> str:
    """The measurements as columns of text."""
    lines = [f"{'split':<14} {'task':<52} {'':<3} {'value':>7} {'chance':>8} {'n':>5}"]
    lines += [f"{m.split:<14} {m.task:<52} {m.language:<3} {m.value:7.3f} {m.chance:8.4f} {m.n:5d}" for m in measured]
    return "\n".join(lines)


def markdown_table(measured: Sequence[Measurement]) -> str:
    """The measurements as a Markdown table."""
    lines = ["| split | task | language | value | chance | n |", "|---|---|---|---|---|---|"]
    lines += [f"| {m.split} | {m.task} | {m.language} | {m.value:.3f} | {m.chance:.4f} | {m.n} |" for m in measured]
    return "\n".join(lines)
