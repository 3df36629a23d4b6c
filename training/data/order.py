"""Order of samples: a pure function of (seed, number), so workers, ranks and resumed runs need no history."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

ORDER, AUGMENT, CAPTION, KEEP, WINDOW, MIXTURE = range(6)  # independent random streams
_BLOCK = 1000  # the shares of a mixture are exact in every so many samples


class Place(NamedTuple):
    """Position of a sample in the endless stream.  Random draws are keyed by (epoch, position)."""

    epoch: int
    position: int  # within the epoch
    sample: int  # its number


class Order(Protocol):
    def place(self, number: int) -> Place:
        """Returns the position of the `number`-th sample of the endless stream."""
        ...

    def after(self, place: Place, steps: int) -> int:
        """The sample number `steps` later in the same epoch, going round: what stands in for a broken sample."""
        ...


class Shuffled:
    """Every epoch shows each of `count` samples once, in an order of its own.

    With a `window`, windows of neighbouring samples come in random order and are shuffled inside: few, long reads, and
    memory for a window's order instead of the whole set's.
    """

    def __init__(self, count: int, seed: int, window: int = 0):
        self.count, self.seed = count, seed
        self.window = min(window or count, count)
        self._order = lru_cache(2)(self._order_of)
        self._inside = lru_cache(4)(self._inside_of)

    def place(self, number: int) -> Place:
        epoch, position = divmod(number, self.count)
        return Place(epoch, position, self._index(epoch, position))

    def after(self, place: Place, steps: int) -> int:
        return self._index(place.epoch, (place.position + steps) % self.count)

    def _index(self, epoch: int, position: int) -> int:
        order, ends = self._order(epoch)
        rank = int(np.searchsorted(ends, position, "right"))
        first = int(order[rank]) * self.window
        length = min(self.window, self.count - first)
        return first + int(self._inside(epoch, first, length)[position - (int(ends[rank]) - length)])

    def _order_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The windows in the order they come, and where each ends."""
        order = _generator(self.seed, WINDOW, epoch, 0).permutation(-(-self.count // self.window))
        return order, np.minimum(self.window, self.count - order * self.window).cumsum()

    def _inside_of(self, epoch: int, first: int, length: int) -> np.ndarray:
        return _generator(self.seed, ORDER, epoch, first).permutation(length)

    def __reduce__(self) -> tuple[type["Shuffled"], tuple[int, int, int]]:
        return Shuffled, (self.count, self.seed, self.window)


class Mixture:
    """Several orders, each taking its `weights` share of the stream; the short ones come round more often."""

    def __init__(
        self, orders: Sequence[Shuffled], weights: Sequence[float] | np.ndarray, seed: int, block: int = _BLOCK
    ):
        self.orders, self.seed, self.block = list(orders), seed, block
        self.weights = np.array(weights)
        self.starts = np.cumsum([0, *(order.count for order in orders)])  # sample numbers go on from set to set
        exact = np.array(weights) / np.sum(weights) * block
        self.shares = np.floor(exact).astype(int)  # of a block, in samples
        self.shares[np.argsort(self.shares - exact, kind="stable")[: block - self.shares.sum()]] += 1
        self._turns = lru_cache(4)(self._turns_of)

    def place(self, number: int) -> Place:
        kind, own = self._own(number)
        epoch, position = divmod(number, int(self.starts[-1]))
        return Place(epoch, position, int(self.starts[kind]) + self.orders[kind].place(own).sample)

    def after(self, place: Place, steps: int) -> int:
        kind, own = self._own(place.epoch * int(self.starts[-1]) + place.position)
        order = self.orders[kind]
        return int(self.starts[kind]) + order.after(order.place(own), steps)

    def _own(self, number: int) -> tuple[int, int]:
        """(which set, the how-manieth sample of it)."""
        block, rank = divmod(number, self.block)
        kinds, turns = self._turns(block)
        kind = int(kinds[rank])
        return kind, block * int(self.shares[kind]) + int(turns[rank])

    def _turns_of(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(the set of each number of a block, how many of the same set came before it in the block)."""
        kinds = np.repeat(np.arange(len(self.shares)), self.shares)
        kinds = _generator(self.seed, MIXTURE, block, 0).permutation(kinds)
        by_kind = np.argsort(kinds, kind="stable")
        turns = np.empty(len(kinds), np.int64)
        turns[by_kind] = np.arange(len(kinds)) - np.repeat(np.cumsum(self.shares) - self.shares, self.shares)
        return kinds, turns

    def __reduce__(self) -> tuple[type["Mixture"], tuple[list[Shuffled], np.ndarray, int, int]]:
        return Mixture, (self.orders, self.weights, self.seed, self.block)


def _generator(seed: int, stream: int, epoch: int, first: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[first, 0, epoch, 0]))
