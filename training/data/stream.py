"""Batches without end, in an order that depends on nothing but the recipe: all that `fit` knows of data.

Position p of the endless row of samples belongs to epoch p // n; what is drawn for it is a pure function of
(seed, epoch, p mod n), so that workers and resumed runs need no history.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from traceback import clear_frames
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlm.errors import DataError, VlmError
from vlm.training.data.augment import uniform_draws
from vlm.training.data.order import KEEP, Order, Place, Shuffled
from vlm.training.data.rows import BrokenSample

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

    def load(self, step: int, load: Callable[[int], Sample]) -> Loaded[Sample]:
        """`load` every sample of a step; where it raises `BrokenSample`, the next sound one of the epoch stands in."""
        places, loaded, broken = [], [], []
        limit = min(MAX_STAND_INS, self.count)
        for place in self._places(step):
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


def batches(
    stream: Stream[AnyBatch], first_step: int, last_step: int, workers: int, *, pin: bool = False
) -> Iterator[AnyBatch]:
    """The batches of steps first_step .. last_step - 1, in order, built ahead of need in `workers` processes.

    `pin`: in memory from which copies to a GPU are fast.
    """
    loader = DataLoader(
        _Careful(stream),
        sampler=range(first_step, last_step),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_prepare_worker,
        pin_memory=pin,
    )
    try:
        for batch in loader:
            if isinstance(batch, VlmError):
                raise batch
            yield batch
    except Exception as error:
        clear_frames(error.__traceback__)  # they hold the workers, which ignore the SIGTERM that Python ends them with
        raise


class _Careful(Dataset[Any]):
    """Hands on a `VlmError` as a value: the loader would add a worker's traceback to its one line."""

    def __init__(self, stream: Stream[Any]):
        self.stream = stream

    def __getitem__(self, step: int) -> Any:
        try:
            return self.stream[step]
        except VlmError as error:
            return error


def _prepare_worker(worker: int) -> None:
    """One thread.  Ctrl-C and SIGTERM may reach all processes; it is the training loop that decides when to stop."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
