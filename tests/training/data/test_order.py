"""Which sample comes when, against the definition: permutations, shares, and no memory of the past."""

import pickle

import numpy as np
import pytest

from vlm.training.data.order import Mixture, Shuffled


@pytest.mark.parametrize("window", [0, 1, 5, 8, 20, 23, 99])
def test_every_epoch_is_a_permutation_of_its_own(window: int) -> None:
    order = Shuffled(23, seed=3, window=window)
    epochs = [[order.place(epoch * 23 + p).sample for p in range(23)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_window_keeps_neighbours_together_and_shuffles_them() -> None:
    samples = np.array([Shuffled(100, seed=0, window=10).place(p).sample for p in range(100)]).reshape(10, 10)
    assert all(set(row // 10) == {row[0] // 10} for row in samples)
    assert sorted(samples[:, 0] // 10) == list(range(10)) != list(samples[:, 0] // 10)
    assert not any((np.diff(row) == 1).all() for row in samples)


def test_a_window_of_all_samples_or_more_is_none() -> None:
    none = [Shuffled(23, seed=3).place(number) for number in range(46)]
    for window in (0, 23, 24, 99):
        assert [Shuffled(23, seed=3, window=window).place(number) for number in range(46)] == none
    assert [Shuffled(23, seed=3, window=22).place(number) for number in range(46)] != none


def test_an_order_goes_to_loader_processes_as_it_is() -> None:
    order = Shuffled(50, seed=4, window=7)
    copy = pickle.loads(pickle.dumps(order))
    assert [copy.place(number) for number in range(120)] == [order.place(number) for number in range(120)]


@pytest.mark.parametrize("window", [0, 7])
def test_a_place_depends_on_its_number_alone(window: int) -> None:
    ahead = Shuffled(50, seed=1, window=window)
    truth = [ahead.place(number) for number in range(200)]
    for number in (199, 3, 120, 0):
        assert Shuffled(50, seed=1, window=window).place(number) == truth[number]


def test_stand_ins_are_the_next_of_the_epoch_going_round() -> None:
    order = Shuffled(10, seed=0)
    place = order.place(18)
    expected = [order.place(number).sample for number in (18, 19, 10, 11)]
    assert [order.after(place, steps) for steps in range(4)] == expected


def test_a_mixture_draws_its_shares_and_goes_through_each_set_in_order() -> None:
    parts = [Shuffled(30, seed=0), Shuffled(500, seed=0)]
    mixture = Mixture(parts, [1, 3], seed=0)
    samples = np.array([mixture.place(number).sample for number in range(4000)])
    first, second = samples[samples < 30], samples[samples >= 30] - 30
    assert len(first) == 1000
    assert first.tolist() == [parts[0].place(number).sample for number in range(1000)]
    assert second.tolist() == [parts[1].place(number).sample for number in range(3000)]
    assert (samples.reshape(-1, 1000) < 30).sum(1).tolist() == [250] * 4
    longest = max(len(run) for run in "".join("a" if sample < 30 else "b" for sample in samples).split("a"))
    assert longest < 60  # mixed, not one after the other: 0.75 ** 60 is 3e-8


def test_shares_are_rounded_so_that_the_nearest_numbers_add_up() -> None:
    mixture = Mixture([Shuffled(5, seed=0), Shuffled(6, seed=0), Shuffled(7, seed=0)], [1, 2, 4], seed=0)
    samples = np.array([mixture.place(number).sample for number in range(1000)])
    assert np.histogram(samples, bins=[0, 5, 11, 18])[0].tolist() == [143, 286, 571]  # 142.86, 285.71, 571.43


def test_stand_ins_of_a_mixture_are_the_next_of_their_set() -> None:
    parts = [Shuffled(5, seed=0), Shuffled(6, seed=1), Shuffled(7, seed=2)]
    mixture, drawn = Mixture(parts, [1, 2, 4], seed=0), [0, 0, 0]
    for number in range(1100):
        place = mixture.place(number)
        kind = int(np.searchsorted([5, 11], place.sample, "right"))
        own = parts[kind].place(drawn[kind])
        drawn[kind] += 1
        for steps in (0, 1, 6):
            assert mixture.after(place, steps) == (0, 5, 11)[kind] + parts[kind].after(own, steps)


def test_draws_of_a_mixture_are_keyed_without_repetition() -> None:
    mixture = Mixture([Shuffled(3, seed=0), Shuffled(4, seed=0)], [1, 1], seed=0)
    places = [mixture.place(number) for number in range(100)]
    assert len({(place.epoch, place.position) for place in places}) == 100
    stand_in = mixture.after(places[5], 1)
    assert (stand_in < 3) == (places[5].sample < 3)  # of the same set
