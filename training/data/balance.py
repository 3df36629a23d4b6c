"""Order of samples that shows rare classes more often."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from vlm.errors import DataError
from vlm.training.data.order import Mixture, Order, Place, Shuffled
from vlm.training.data.rows import BrokenSample, Rows
from vlm.training.recipe.sections import Balance

_LARGEST_BLOCK = 1 << 16


class Balanced:
    """The samples of each class in turn, each class as often as its weight says.

    A pure function of (seed, number), like every order.  An epoch has as many positions as there are samples; a rare
    class is shown again before a frequent one has been seen whole.

    Args:
        classes: of each sample.
        how: "sqrt": in proportion to the square root of a class's size; "equal": all classes equally often.
        seed: of the order.
    """

    def __init__(self, classes: Sequence[str], how: Literal["sqrt", "equal"], seed: int):
        names, numbers, sizes = np.unique(np.asarray(classes), return_inverse=True, return_counts=True)
        self.samples = np.argsort(numbers, kind="stable")  # those of the first class, then of the second ...
        weights = np.sqrt(sizes) if how == "sqrt" else np.ones(len(sizes))
        smallest = float(weights.min() / weights.sum())
        block = int(np.clip(np.ceil(8 / smallest), 1000, _LARGEST_BLOCK))
        if smallest * block < 1:
            raise DataError(f"balance shares the steps among {len(names):,} classes; at most {_LARGEST_BLOCK:,} work.")
        self.mixture = Mixture([Shuffled(int(size), seed) for size in sizes], weights, seed, block)

    def place(self, number: int) -> Place:
        place = self.mixture.place(number)
        return place._replace(sample=int(self.samples[place.sample]))

    def after(self, place: Place, steps: int) -> int:
        return int(self.samples[self.mixture.after(place, steps)])


def balanced_order(rows: Rows, how: Balance, seed: int) -> Order | None:
    """The order of a data set whose recipe says `balance`; None for "none".

    The class of a sample with several labels is the rarest of them; without labels it is its concept.

    Raises:
        DataError: no sample has a class.
    """
    if how == "none":
        return None
    labels = [_labels(rows, index) for index in range(len(rows))]
    counts = Counter(label for own in labels for label in own)
    if not counts:
        raise DataError(f'{rows.name} has no classes to balance. Name their column, or set balance = "none".')
    return Balanced([min(own, key=lambda label: (counts[label], label), default="") for own in labels], how, seed)


def _labels(rows: Rows, index: int) -> list[str]:
    """A sample whose class cannot be read has none: it is in the quarantine when it is drawn."""
    try:
        found = rows.labels(index)
    except BrokenSample:
        return []
    concept = None if found else rows.concept(index)
    return [concept] if concept else found
