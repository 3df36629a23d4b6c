"""Batches without end: whose turn it is, who stands in, and what a worker is told."""

import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from vlm.errors import DataError
from vlm.training.data.order import Place, Shuffled
from vlm.training.data.rows import BrokenSample
from vlm.training.data.stream import (
    EndlessOrder,
    NoSoundSample,
    Places,
    batches,
    item_size,
    kept_patches,
    prefetched_items,
)


def test_a_process_alone_takes_the_whole_batch():
    order, truth = EndlessOrder(7, seed=5, batch_size=4), Shuffled(7, seed=5)
    for step in range(5):
        found = order.places(step)
        wanted = [truth.place(number) for number in range(4 * step, 4 * step + 4)]
        assert list(zip(*(part.tolist() for part in found), strict=True)) == wanted


def test_processes_share_a_batch_in_the_order_of_their_ranks():
    whole = EndlessOrder(50, seed=1, batch_size=12)
    parts = [EndlessOrder(50, seed=1, batch_size=12, rank=rank, world=3) for rank in range(3)]
    for step in (0, 7):
        places = [part.places(step) for part in parts]
        assert [len(part.samples) for part in places] == [4, 4, 4]
        for name in Places._fields:
            together = np.concatenate([getattr(part, name) for part in places])
            assert np.array_equal(together, getattr(whole.places(step), name))


class Ascending:
    """Sample 10 p stands at position p; its stand-ins follow it."""

    def place(self, number: int) -> Place:
        return Place(3, number, 10 * number)

    def after(self, place: Place, steps: int) -> int:
        return place.sample + steps


def sound_but(*lost: int) -> Any:
    def load(index: int) -> str:
        if index in lost:
            raise BrokenSample(f"p{index}", "missing", "lost")
        return f"sample {index}"

    return load


def test_the_next_sound_sample_stands_in_and_the_place_stays():
    order = EndlessOrder(99, seed=0, batch_size=3, order=Ascending())
    places, loaded, broken = order.load(1, sound_but(40, 41, 50))
    assert loaded == ["sample 30", "sample 42", "sample 51"]
    assert (places.epochs.tolist(), places.positions.tolist()) == ([3, 3, 3], [3, 4, 5])
    assert places.samples.tolist() == [30, 42, 51]
    assert [error.uid for error in broken] == ["p40", "p41", "p50"]


def test_a_thousand_broken_samples_in_a_row_are_too_many():
    order = EndlessOrder(5000, seed=0, batch_size=1, order=Ascending())
    assert order.load(0, sound_but(*range(999))).loaded == ["sample 999"]
    with pytest.raises(NoSoundSample, match=r"1000 samples.*p999"):
        order.load(0, sound_but(*range(1000)))


def test_a_set_without_a_sound_sample_ends_after_one_round_and_names_them_all():
    order = EndlessOrder(10, seed=0, batch_size=1)
    with pytest.raises(NoSoundSample, match="10 samples") as caught:
        order.load(0, sound_but(*range(10)))
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):  # as it comes from a worker
        assert sorted(sample.uid for sample in error.broken) == sorted(f"p{n}" for n in range(10))


def test_every_patch_is_kept_equally_often_whoever_else_is_in_the_batch():
    """Each of 4000 draws keeps 3 of 8: 1500 times a patch, four standard deviations are 122."""
    places = Places(np.repeat([0, 1], 2000), np.tile(np.arange(2000), 2), np.zeros(4000))
    kept = kept_patches(0, places, 8, 3)
    assert kept.shape == (4000, 3)
    assert (kept.diff(dim=1) > 0).all()
    counts = kept.flatten().bincount(minlength=8)
    assert len(counts) == 8 and (counts - 1500).abs().max() < 122
    some = np.array([3999, 5, 17])
    assert torch.equal(kept_patches(0, Places(*(part[some] for part in places)), 8, 3), kept[some])
    assert not torch.equal(kept_patches(1, places, 8, 3), kept)
    assert torch.equal(kept_patches(0, places, 8, 8), torch.arange(8).expand(4000, 8))


ROOT = Path(__file__).parents[3]


class Tiny(NamedTuple):
    step: int
    threads: int
    ignored: list[bool]


class Recorder:
    """What a process is, at each step; errors at some."""

    def __init__(self, errors: dict[int, Exception] | None = None):
        self.errors = errors or {}

    def __getitem__(self, step: int) -> Any:
        if step in self.errors:
            raise self.errors[step]
        ignored = [signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGINT, signal.SIGTERM)]
        return Tiny(step, torch.get_num_threads(), ignored)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("error")
def test_workers_have_one_thread_and_leave_stopping_to_the_loop(workers):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number in (signal.SIGINT, signal.SIGTERM):  # a run in the background is started with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        found = list(batches(Recorder(), 3, 6, workers))
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == [signal.default_int_handler] * 2
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    assert [batch.step for batch in found] == [3, 4, 5]
    assert [batch.ignored for batch in found] == [[bool(workers)] * 2] * 3
    assert not workers or [batch.threads for batch in found] == [1, 1, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_comes_when_its_step_does(workers):
    steps = batches(Recorder({1: DataError("step 1 is broken")}), 0, 3, workers)
    assert next(steps).step == 0
    with pytest.raises(DataError, match=r"^step 1 is broken$"):
        next(steps)
    with pytest.raises(KeyError):
        list(batches(Recorder({0: KeyError("a mistake in the code")}), 0, 1, workers))


@pytest.mark.long
def test_workers_that_an_error_left_behind_do_not_hold_up_the_end():
    script = (
        "from vlm.training.data.stream import batches\n"
        "class Wrong:\n"
        "    def __getitem__(self, step):\n"
        "        raise KeyError('a mistake in the code')\n"
        "list(batches(Wrong(), 0, 9, 1))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "a mistake in the code" in ended.stderr


@pytest.mark.parametrize(
    ("share", "sample_bytes", "size"),
    [
        (256, 3 * 96 * 96, 256),
        (4096, 3 * 96 * 96, 256),
        (4096, 3 * 224 * 224, 128),
        (4096, 3 * 512 * 512, 64),
        (8, 99, 8),
    ],
)
def test_a_worker_builds_64_to_256_samples_at_once(share: int, sample_bytes: int, size: int):
    assert item_size(share, sample_bytes) == size


@pytest.mark.parametrize("workers", [1, 4, 12])
@pytest.mark.parametrize("mib", [256, 1024])
def test_what_waits_in_all_workers_is_within_the_budget(workers: int, mib: int):
    share, sample = 4096, 3 * 224 * 224
    size = item_size(share, sample)
    count = prefetched_items(size, sample, share, workers, mib << 20)
    assert count == 1 or count * workers * size * sample <= mib << 20
    assert (count + 1) * workers * size * sample > mib << 20 or count * size >= 4 * share
