"""Batches without end, in an order that depends on nothing but the recipe: all that `fit` knows of data.

Position p of the endless row of samples belongs to epoch p // n; what is drawn for it is a pure function of
(seed, epoch, p mod n), so that workers and resumed runs need no history.
"""

import math
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from traceback import clear_frames
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vlm.errors import DataError, VlmError
from vlm.training.data.augment import uniform_draws
from vlm.training.data.order import KEEP, Order, Place, Shuffled
from vlm.training.data.rows import BrokenSample

LARGEST_ITEM, SMALLEST_ITEM = 256, 64  # samples a worker builds at once
ITEM_BYTES = 32 << 20  # of pixels in them
PREFETCH_BYTES = 1 << 30  # of pixels that wait in all workers
MAX_STAND_INS = 1000  # broken samples in a row: then something else is wrong


class NoSoundSample(DataError):
    """No sample of a set, or of a long part of it, can be used; `broken` are those that were tried."""

    def __init__(self, text: str, broken: Sequence[BrokenSample]):
        super().__init__(text, tuple(broken))
        self.broken = tuple(broken)

    def __str__(self) -> str:
        return str(self.args[0])


class Batch(Protocol):
    """The samples of one step, of this process."""

    @property
    def uids(self) -> list[str]:
        """Sample names, for messages."""
        ...

    @property
    def broken(self) -> Sequence[BrokenSample]:
        """Samples that others stand in for."""
        ...

    def to(self, device: torch.device) -> Self: ...


AnyBatch = TypeVar("AnyBatch", bound=Batch)
SomeBatch = TypeVar("SomeBatch", bound=Batch, covariant=True)


class Stream(Protocol[SomeBatch]):
    """Step s -> its batch: random access."""

    def __getitem__(self, step: int, /) -> SomeBatch: ...


class PartedStream(ABC, Generic[AnyBatch]):
    """A stream whose steps can be built in parts, by several workers."""

    def __getitem__(self, step: int) -> AnyBatch:
        return self.part(step, slice(None))

    @property
    @abstractmethod
    def share(self) -> int:
        """Samples of a step, of this process."""

    @property
    @abstractmethod
    def sample_bytes(self) -> int:
        """Memory of one sample's pixels."""

    @abstractmethod
    def part(self, step: int, own: slice) -> AnyBatch:
        """The samples `own` of this process's share of a step."""

    @abstractmethod
    def join(self, parts: Sequence[AnyBatch], pin: bool) -> AnyBatch:
        """The parts of a step, in order, as one batch; `pin`: in memory from which copies to a GPU are fast."""


class Places(NamedTuple):
    """Positions of the samples of a step, each (B,)."""

    epochs: np.ndarray
    positions: np.ndarray  # within the epoch
    samples: np.ndarray  # their numbers


Sample = TypeVar("Sample")


class Loaded(NamedTuple, Generic[Sample]):
    """Result of `EndlessOrder.load`, each (B,); `places.samples` are the samples used, replacements included."""

    places: Places
    loaded: list[Sample]
    broken: tuple[BrokenSample, ...]


class EndlessOrder:
    """n samples over and over, shuffled anew at every epoch; `rank` of `world` takes its slice of each batch."""

    def __init__(
        self, n: int, *, seed: int, batch_size: int, rank: int = 0, world: int = 1, order: Order | None = None
    ):
        self.count = n
        self.batch_size, self.rank, self.share = batch_size, rank, batch_size // world
        self.order = order or Shuffled(n, seed)

    def places(self, step: int) -> Places:
        return Places(*map(np.array, zip(*self._places(step), strict=True)))

    def load(
        self,
        step: int,
        load: Callable[[int], Sample],
        own: slice = slice(None),
        read_ahead: Callable[[Sequence[int]], None] | None = None,
    ) -> Loaded[Sample]:
        """`load` the samples of a step, or those of `own`; the next sound sample stands in for a broken one.

        Args:
            step: number of the step.
            load: a sample's number -> the sample, or `BrokenSample`.
            own: which of this process's share.
            read_ahead: is told all numbers before the first is loaded.
        """
        places, loaded, broken = [], [], []
        limit = min(MAX_STAND_INS, self.count)
        wanted = self._places(step)[own]
        if read_ahead is not None:
            read_ahead([place.sample for place in wanted])
        for place in wanted:
            for later in range(limit):
                index = self.order.after(place, later)
                try:
                    loaded.append(load(index))
                except BrokenSample as error:
                    broken.append(error)
                    continue
                places.append(place._replace(sample=index))
                break
            else:
                what = (
                    f"None of the {self.count} samples" if limit == self.count else f"None of {limit} samples in a row"
                )
                raise NoSoundSample(f"{what} can be used; the last: {broken[-1]}", broken)
        return Loaded(Places(*map(np.array, zip(*places, strict=True))), loaded, tuple(broken))

    def _places(self, step: int) -> list[Place]:
        start = step * self.batch_size + self.rank * self.share
        return [self.order.place(number) for number in range(start, start + self.share)]


def kept_patches(seed: int, places: Places, num_patches: int, count: int) -> Tensor:
    """(B, count) numbers of the patches that stay, in order (patch dropout, FLIP, Li et al. 2023)."""
    order = uniform_draws(seed, KEEP, places.epochs, places.positions, num_patches).argsort(1)
    return torch.from_numpy(np.sort(order[:, :count], axis=1))


class _Item(NamedTuple):
    """What a worker builds at once: a part of a step."""

    step: int
    first: int
    last: int
    whole: bool  # the part is the whole share of the step


def item_size(share: int, sample_bytes: int) -> int:
    """Samples a worker builds at once: 64 to 256, about 32 MiB of pixels, and no more than a step has."""
    fitting = max(1, ITEM_BYTES // max(1, sample_bytes))
    return min(share, max(SMALLEST_ITEM, min(LARGEST_ITEM, 2 ** int(math.log2(fitting)))))


def prefetched_items(size: int, sample_bytes: int, share: int, workers: int, budget: int) -> int:
    """Parts that each worker keeps ready: at most 4 steps together, and together at most `budget` bytes.

    Args:
        size: samples of a part.
        sample_bytes: of one.
        share: samples of a step.
        workers: loader processes.
        budget: bytes for the parts that wait in all workers.
    """
    affordable = budget // max(1, size * sample_bytes * workers)
    return int(max(1, min(4 * -(-share // size), affordable)))


def batches(
    stream: Stream[AnyBatch],
    first_step: int,
    last_step: int,
    workers: int,
    *,
    pin: bool = False,
    prefetch_bytes: int = PREFETCH_BYTES,
    largest_item: int | None = None,
) -> Iterator[AnyBatch]:
    """The batches of steps first_step .. last_step - 1, in order, built ahead of need in `workers` processes.

    Args:
        stream: batches by step.
        first_step: the first one.
        last_step: the one behind the last.
        workers: loader processes; 0 builds each batch when it is asked for.
        pin: in memory from which copies to a GPU are fast.
        prefetch_bytes: pixels that wait in all workers at most; one part of each worker may always wait.
        largest_item: samples that a worker builds at once; None: `item_size`.
    """
    parted = stream if isinstance(stream, PartedStream) else None
    items, prefetch = [(0, 0)], 4
    if parted is not None:
        share, size = parted.share, largest_item or item_size(parted.share, parted.sample_bytes)
        items = [(start, min(start + size, share)) for start in range(0, share, size)]
        prefetch = prefetched_items(size, parted.sample_bytes, share, max(1, workers), prefetch_bytes)
    loader = DataLoader(
        _Careful(stream),
        sampler=_Items(first_step, last_step, items),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_prepare_worker,
        pin_memory=pin and len(items) == 1,
    )
    parts: list[Any] = []
    try:
        for part in loader:
            if isinstance(part, VlmError):
                raise part
            parts.append(part)
            if len(parts) == len(items):
                yield parts[0] if parted is None or len(items) == 1 else parted.join(parts, pin)
                parts = []
    except Exception as error:
        clear_frames(error.__traceback__)  # they hold the workers, which ignore the SIGTERM that Python ends them with
        raise


class _Items(Sampler[_Item]):
    """The parts of all steps, in order."""

    def __init__(self, first_step: int, last_step: int, items: Sequence[tuple[int, int]]):
        self.steps, self.items = range(first_step, last_step), items

    def __len__(self) -> int:
        return len(self.steps) * len(self.items)

    def __iter__(self) -> Iterator[_Item]:
        whole = len(self.items) == 1
        return (_Item(step, first, last, whole) for step in self.steps for first, last in self.items)


def joined(tensors: Sequence[Tensor], pin: bool) -> Tensor:
    """One tensor of several, along the samples."""
    if not pin:
        return torch.cat(list(tensors))
    out = torch.empty((sum(map(len, tensors)), *tensors[0].shape[1:]), dtype=tensors[0].dtype, pin_memory=True)
    return torch.cat(list(tensors), out=out)


class _Careful(Dataset[Any]):
    """Hands on a `VlmError` as a value: the loader would add a worker's traceback to its one line."""

    def __init__(self, stream: Stream[Any]):
        self.stream = stream

    def __getitem__(self, item: _Item) -> Any:
        try:
            if item.whole or not isinstance(self.stream, PartedStream):
                return self.stream[item.step]
            return self.stream.part(item.step, slice(item.first, item.last))
        except VlmError as error:
            return error


def _prepare_worker(worker: int) -> None:
    """One thread.  Ctrl-C and SIGTERM may reach all processes; it is the training loop that decides when to stop."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
