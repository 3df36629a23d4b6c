"""Sampling by class: how often each class comes, and that the order is a pure function."""

import pickle
from collections import Counter
from pathlib import Path

import pytest

from tests.support.kept_data import images
from tests.support.messages import refused
from vlm.errors import DataError
from vlm.training.data.balance import Balanced, balanced_order
from vlm.training.data.sources import open_rows
from vlm.training.data.stream import EndlessOrder

CLASSES = ["common"] * 900 + ["some"] * 90 + ["rare"] * 9 + ["one"]


@pytest.mark.parametrize(("how", "exact"), [("equal", 0.25), ("sqrt", 1 / (30 + 90**0.5 + 3 + 1))])
def test_a_class_comes_as_often_as_its_weight_says(how, exact: float):
    order = Balanced(CLASSES, how, seed=0)
    drawn = Counter(CLASSES[order.place(number).sample] for number in range(8000))
    assert drawn["one"] / 8000 == pytest.approx(exact, rel=0.1)
    assert drawn["rare"] / drawn["one"] == pytest.approx(1 if how == "equal" else 3, rel=0.1)


def test_every_sample_comes_and_none_of_a_class_twice_before_all_others():
    order = Balanced(CLASSES, "sqrt", seed=3)
    seen: dict[str, list[int]] = {}
    for number in range(5000):
        sample = order.place(number).sample
        seen.setdefault(CLASSES[sample], []).append(sample)
    assert {sample for own in seen.values() for sample in own} == set(range(1000))
    for name, own in seen.items():
        size = CLASSES.count(name)
        assert all(len(set(own[start : start + size])) == size for start in range(0, len(own) - size + 1, size))


def test_the_order_depends_on_seed_and_number_alone():
    first, again, other = (Balanced(CLASSES, "equal", seed) for seed in (0, 0, 1))
    numbers = [5000, 3, 999, 1000, 4]
    assert [first.place(n) for n in numbers] == [pickle.loads(pickle.dumps(again)).place(n) for n in numbers]
    assert [first.place(n).sample for n in range(50)] != [other.place(n).sample for n in range(50)]
    places = [first.place(n) for n in range(2500)]
    assert len({(place.epoch, place.position) for place in places}) == 2500  # what draws of augmentation are keyed by


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_see_the_same_samples(world: int):
    whole = EndlessOrder(1000, seed=0, batch_size=16, order=Balanced(CLASSES, "sqrt", 0)).places(7).samples.tolist()
    parts = [
        EndlessOrder(1000, seed=0, batch_size=16, rank=rank, world=world, order=Balanced(CLASSES, "sqrt", 0)).places(7)
        for rank in range(world)
    ]
    assert [sample for part in parts for sample in part.samples.tolist()] == whole


def test_what_stands_in_for_a_broken_sample_is_of_its_class():
    order = Balanced(CLASSES, "equal", 0)
    for number in range(100):
        place = order.place(number)
        assert CLASSES[order.after(place, 1)] == CLASSES[place.sample]
        assert order.after(place, 0) == place.sample


def test_many_classes_of_very_different_size_all_come():
    classes = ["huge"] * 50_000 + [f"class {n}" for n in range(300)]
    order = Balanced(classes, "sqrt", 0)
    drawn = {classes[order.place(number).sample] for number in range(order.mixture.block)}
    assert len(drawn) == 301


def test_the_class_of_a_sample_is_its_rarest_label(tmp_path: Path):
    (tmp_path / "d.csv").write_text(
        "image,label\n" + "".join(f"{n}.png,dog\n" for n in range(20)) + "\"x.png\",\"['dog', 'fox']\"\ny.png,\n"
    )
    rows = open_rows(tmp_path / "d.csv")
    order = balanced_order(rows, "equal", 0)
    assert order is not None
    drawn = Counter(rows.uid(order.place(number).sample) for number in range(3000))
    assert drawn["x.png"] == pytest.approx(1000, rel=0.02)  # fox, dog, and those without a class
    assert drawn["y.png"] == pytest.approx(1000, rel=0.02)


def test_nothing_to_balance_is_one_line(tmp_path: Path):
    (tmp_path / "d.csv").write_text("image,caption\n1.png,a\n2.png,b\n")
    assert balanced_order(open_rows(tmp_path / "d.csv"), "none", 0) is None
    with refused(DataError, "no classes", "d.csv", "balance"):
        balanced_order(open_rows(tmp_path / "d.csv"), "sqrt", 0)
    rows = open_rows(images(tmp_path / "f", "cat/1.png", "dog/2.png"))
    assert balanced_order(rows, "equal", 0) is not None
