"""Samples held out: as many as asked for, of every class its share, and no concept on both sides unless asked."""

from collections import Counter
from pathlib import Path

import pytest

from tests.support.kept_data import png
from vlm.training.data.division import hold_out
from vlm.training.data.rows import Rows
from vlm.training.data.sources import open_rows
from vlm.training.data.targets import open_classifier_data
from vlm.training.recipe.sections import LabelledSection

SIZES = {"cat": 120, "dog": 60, "fox": 20}


def table(folder: Path, concepts: int) -> Path:
    """Images in three classes; `concepts` images show one thing, 0: no column of concepts."""
    lines, number = [f"image,caption,label{',concept' if concepts else ''}"], 0
    (folder / "1.png").write_bytes(png(1))
    for name, size in SIZES.items():
        for own in range(size):
            concept = f",{name} {own // concepts}" if concepts else ""
            lines.append(f"{number}.png,a {name} {number},{name}{concept}")
            (folder / f"{number}.png").write_bytes(png(number % 256))
            number += 1
    (folder / "d.csv").write_text("\n".join(lines))
    return folder / "d.csv"


def concepts_of(rows: Rows, index: list[int]) -> set[str | None]:
    return {rows.concept(i) for i in index}


@pytest.mark.parametrize("count", [40, 0.2])
@pytest.mark.parametrize("concepts", [0, 1, 4])
def test_each_class_gives_its_share_and_no_concept_is_on_both_sides(count: float, concepts: int, tmp_path: Path):
    rows = open_rows(table(tmp_path, concepts))
    rest, held = hold_out(rows, count)
    assert sorted([*rest, *held]) == list(range(200))
    taken = Counter(rows.labels(i)[0] for i in held)
    for name, size in SIZES.items():
        assert abs(taken[name] - size * 0.2) <= max(1, concepts)
    if concepts:
        assert not concepts_of(rows, rest) & concepts_of(rows, held)
    assert hold_out(rows, count) == (rest, held)


def test_samples_are_drawn_one_by_one_where_it_is_asked(tmp_path: Path):
    rows = open_rows(table(tmp_path, 4))
    rest, held = hold_out(rows, 0.2, whole=False)
    assert len(held) == 40
    assert concepts_of(rows, rest) & concepts_of(rows, held)


def test_a_classifiers_recipe_holds_whole_concepts_out_where_it_says_so(tmp_path: Path):
    path = str(table(tmp_path, 4))
    data = LabelledSection(train=path, held_out=0.2, hold_out_by="concept")
    found = open_classifier_data(data, "single_label")
    sides = [concepts_of(part.rows, part.index) for part in (found.training, found.validation)]
    assert not sides[0] & sides[1] and len(found.validation.index) == 40


@pytest.mark.parametrize("captions", [["a", "b", "a b"], ["same", "same", "same"]])
def test_images_with_the_same_captions_stay_on_one_side(captions: list[str], tmp_path: Path):
    lines = [f"{n}.png,{captions[n % 3]} {n // 6}" for n in range(60)]
    (tmp_path / "d.csv").write_text("\n".join(["image,caption", *lines]))
    rows = open_rows(tmp_path / "d.csv")
    rest, held = hold_out(rows, 12)
    assert held and not {rows.group(i) for i in rest} & {rows.group(i) for i in held}
