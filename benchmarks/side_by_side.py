"""Two libraries on one machine: the same weights for both, captions as people write them, rounds in turns, ratios."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pyarrow.parquet import read_table

PICTURE_WORDS = Path(__file__).parents[1] / "training/picture_words"
ROUNDS = 9
QUICK_ROUNDS = 2


def english_captions(keywords: int) -> list[str]:
    """a drawing of NAME, KEYWORD, ...: the training images' names, each with its first `keywords` keywords."""
    table = read_table(PICTURE_WORDS / "train.parquet", columns=["captions_en", "keywords_en"])
    rows = (row for row in table.to_pylist() if row["captions_en"])
    names = (", ".join([row["captions_en"][0], *row["keywords_en"][:keywords]]) for row in rows)
    return list(dict.fromkeys(f"a drawing of {name}" for name in names))


def in_turns(variants: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1) -> dict[str, list[float]]:
    """Seconds of a call, `rounds` of each variant, A B C A B C ...; one call before the first round is not counted."""

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls

    for work in variants.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, work in variants.items():
            taken[name].append(seconds(work))
    return taken


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Theirs / ours, round by round, smallest first."""
    return sorted(their / our for their, our in zip(theirs, ours, strict=True))


def head(what: str, *more: str) -> str:
    names = [what, "ms, median", "best", "this / vlm: median of rounds", "smallest to largest", "best / best", *more]
    return f"| {' | '.join(names)} |\n|---|{'---:|' * (len(names) - 1)}"


def row(name: str, taken: Sequence[float], ours: Sequence[float], *more: str) -> str:
    """One variant beside `ours`."""
    beside = ratios(taken, ours)
    cells = [
        name,
        f"{statistics.median(taken) * 1e3:.1f}",
        f"{min(taken) * 1e3:.1f}",
        f"{statistics.median(beside):.2f}",
        f"{beside[0]:.2f} to {beside[-1]:.2f}",
        f"{min(taken) / min(ours):.2f}",
        *more,
    ]
    return f"| {' | '.join(cells)} |"
