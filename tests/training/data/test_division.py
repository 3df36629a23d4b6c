"""Samples held out: as many as asked for, of every class its share, and no concept on both sides unless asked."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.kept_data import png
from vlm.config import Problem
from vlm.training.data.held_out import hold_out
from vlm.training.data.rows import Rows
from vlm.training.data.sources import open_rows
from vlm.training.data.targets import open_classifier_data
from vlm.training.measure.run_recipe import hold_out_by
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


def photograph(number: int, side: int = 48) -> Image.Image:
    """Smooth colours, other ones for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def write_files(folder: Path, again: str) -> Callable[[Rows, int], object]:
    """Class folders of 40 images, of which each thing is shown twice; returns what names the thing of a sample."""
    lines = ["file_name,label,concept"]
    for number in range(40):
        name = f"{number:02}.{'jpg' if again == 'quality' and number % 2 else 'png'}"
        path = folder / ("ab"[number % 4 // 2]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        thing = number // 2 if again != "concept" else number
        image = photograph(thing, 96 if again == "size" and number % 2 else 48)
        image.save(path, quality=70)
        lines.append(f"{path.relative_to(folder)},{path.parent.name},{number // 2}")
    if again == "concept":
        (folder / "metadata.csv").write_text("\n".join(lines))
        return lambda rows, index: rows.concept(index)
    return lambda rows, index: int(re.findall(r"(\d\d)\.", rows.uid(index))[0]) // 2


@pytest.mark.parametrize("again", ["file", "size", "quality", "concept"])
@pytest.mark.parametrize("held_out", [8, 0.2])
def test_a_classifier_is_not_validated_on_what_it_was_trained_on(again: str, held_out: float, tmp_path: Path):
    """The same file, a copy of it and the same concept stay on one side; every class is on both."""
    thing = write_files(tmp_path, again)
    found = open_classifier_data(LabelledSection(train=str(tmp_path), held_out=held_out), "single_label")
    sides = [{thing(part.rows, index) for index in part.index} for part in (found.training, found.validation)]
    assert not sides[0] & sides[1]
    assert Counter(found.validation.targets.tolist()) == {0: 4, 1: 4}
    drawn = LabelledSection(train=str(tmp_path), held_out=held_out, hold_out_by="sample")
    found = open_classifier_data(drawn, "single_label")
    sides = [{thing(part.rows, index) for index in part.index} for part in (found.training, found.validation)]
    assert sides[0] & sides[1] and len(found.validation.index) == 8


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_rare_labels_and_all_numbers_are_on_both_sides(problem: Problem, tmp_path: Path):
    """60 images, of which 6 have a rare label; numbers from 0 to 59."""
    lines = ["file_name,label"]
    for number in range(60):
        photograph(number, 16).save(tmp_path / f"{number}.png")
        several = json.dumps(["any", "even"] if number % 2 == 0 else ["any"] + ["rare"] * (number % 10 == 1))
        lines.append(
            f"{number}.png,"
            + (f'"{several.replace(chr(34), chr(34) * 2)}"' if problem == "multi_label" else str(number))
        )
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    data = LabelledSection(train=str(tmp_path), held_out=20, columns={"label": "label"})
    found = open_classifier_data(data, problem)
    assert (len(found.training.index), len(found.validation.index)) == (40, 20)
    if problem == "multi_label":
        assert dict(zip(found.labels, found.validation.targets.sum(0).tolist(), strict=True)) == {
            "any": 20, "even": 10, "rare": 2}  # fmt: skip
    else:
        assert Counter(int(value) // 6 for value in found.validation.targets[:, 0]) == dict.fromkeys(range(10), 2)


def test_a_run_from_before_keeps_the_samples_it_held_out(tmp_path: Path):
    """Where a recipe of an earlier version does not say it, samples were drawn one by one."""
    (tmp_path / "recipe.toml").write_text('task = "vit"\n[data]\ntrain = "photos"\nheld_out = 5\n')
    marker = tmp_path / "run.json"
    for text, by in (('{"run": 1}', "sample"), ('{"run": 2}', "concept"), ("", "sample")):
        marker.write_text(text)
        assert hold_out_by(tmp_path, "photos") == by
    marker.unlink()
    assert (hold_out_by(tmp_path, "photos"), hold_out_by(tmp_path, "others")) == ("sample", "concept")


@pytest.mark.parametrize("captions", [["a", "b", "a b"], ["same", "same", "same"]])
def test_images_with_the_same_captions_stay_on_one_side(captions: list[str], tmp_path: Path):
    lines = [f"{n}.png,{captions[n % 3]} {n // 6}" for n in range(60)]
    (tmp_path / "d.csv").write_text("\n".join(["image,caption", *lines]))
    rows = open_rows(tmp_path / "d.csv")
    rest, held = hold_out(rows, 12)
    assert held and not {rows.group(i) for i in rest} & {rows.group(i) for i in held}
