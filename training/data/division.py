"""Divides data into training and validation: by their splits, or by samples held out."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import torch

from vlm.errors import DataError, RecipeError
from vlm.training.data.formats.splits import canonical_split, is_held_out, splits_to_train_on
from vlm.training.data.rows import BrokenSample, Rows, Selected
from vlm.training.data.sources import open_rows
from vlm.training.recipe.sections import DataSettings, SourceSection

AUTOMATIC = 0.1  # share that is held out where a recipe does not say what to validate on


def open_training_rows(source: SourceSection) -> Rows:
    """A part of the training data; splits that are held out are left out unless the recipe names them."""
    rows = open_rows(source.path, source.splits, source.columns, source.root)
    chosen = splits_to_train_on(rows.name, source.splits, rows.splits())
    return rows if source.splits or not chosen else open_rows(source.path, chosen, source.columns, source.root)


def validation_split_of(source: SourceSection) -> str:
    """The split to validate on where the recipe does not say it: validation, else test; "" where there is none."""
    there = [split for split in open_rows(source.path, (), source.columns, source.root).splits() if is_held_out(split)]
    return next((name for wanted in ("validation", "test") for name in there if canonical_split(name) == wanted), "")


def divide(data: DataSettings, train: str) -> tuple[Rows, Rows, str]:
    """Open the training data of one source and the validation data.

    Args:
        data: the [data] section.
        train: where the training data are.

    Returns:
        (to train on, to validate on, one line that says how they were divided).

    Raises:
        DataError: data cannot be read, or too few are left.
        RecipeError: the recipe says two things at once.
    """
    source = SourceSection(path=train, splits=data.train_splits, columns=data.columns, root=data.root)
    named = bool(data.validation or data.validation_split)
    if data.held_out and named:
        raise RecipeError("held_out and validation are two ways to the validation data. Leave out one of them.")
    rows = open_training_rows(source)
    if named:
        return rows, open_validation_rows(data, train), ""
    if not data.held_out and (split := validation_split_of(source)):
        return rows, open_rows(train, (split,), data.columns, data.root), f"validation on the split {split} of {train}"
    count = data.held_out or AUTOMATIC
    rest, held = hold_out(rows, count, whole=data.hold_out_by == "concept")
    said = "" if data.held_out else f"validation on {len(held)} samples of {train} that are held out ({AUTOMATIC:.0%})"
    return Selected(rows, rest), Selected(rows, held), said


def open_validation_rows(data: DataSettings, train: str) -> Rows:
    """The validation data that a recipe names."""
    wanted = data.validation_source(train)
    return open_rows(wanted.path, wanted.splits, wanted.columns, wanted.root)


def hold_out(rows: Rows, count: float, *, whole: bool = True) -> tuple[list[int], list[int]]:
    """(the rest, the samples held out), both ascending and the same for every seed.

    Args:
        rows: the data set.
        count: how many are held out, or below 1 which share.
        whole: each class gives its share, and samples of one concept, or with the same captions, stay on one side; else
            samples are drawn one by one.
    """
    if not whole:
        rest, held = drawn(len(rows), count)
        return rest.tolist(), held.tolist()
    strata, units = zip(*(_stratum_and_unit(rows, index) for index in range(len(rows))), strict=True)
    if len(set(zip(strata, units, strict=True))) == len(set(strata)):  # the classes are the concepts
        units = range(len(rows))
    return stratified(strata, units, count)


def drawn(total: int, count: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(the rest, `count` of the numbers 0..total-1), both ascending."""
    count = _number(total, count)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return order[count:].sort().values, order[:count].sort().values


def stratified(strata: Sequence[Hashable], units: Sequence[Hashable], count: float) -> tuple[list[int], list[int]]:
    """The same, of samples whose class is `strata` and whose concept is `units`.

    Every class gives its share, to the nearest whole unit, and keeps at least one unit; no unit is on both sides.
    """
    total = len(strata)
    count = _number(total, count)
    generator = np.random.default_rng(0)
    members: dict[Hashable, dict[Hashable, list[int]]] = defaultdict(lambda: defaultdict(list))
    owner: dict[Hashable, Hashable] = {}
    for number, (stratum, unit) in enumerate(zip(strata, units, strict=True)):
        members[owner.setdefault(unit, stratum)][unit].append(number)  # a unit of two classes goes with the first
    held: list[int] = []
    exact = 0.0
    for stratum in sorted(members, key=str):
        own = list(members[stratum].values())
        exact += count * sum(map(len, own)) / total  # of all classes up to this one
        for place in generator.permutation(len(own))[: len(own) - 1]:
            missing = exact - len(held)
            if missing < len(own[place]) / 2:
                break
            held += own[place]
    if not held:
        raise DataError(
            f"held_out = {count} of {total} samples leaves nothing to validate on without dividing a concept. "
            'Hold out more, or set hold_out_by = "sample".'
        )
    inside = set(held)
    return [number for number in range(total) if number not in inside], sorted(held)


def _number(total: int, count: float) -> int:
    wanted = math.ceil(count * total) if count < 1 else int(count)
    if not 0 < wanted < total:
        raise DataError(f"held_out is {count}, and there are {total} training images: some must be left.")
    return wanted


def _stratum_and_unit(rows: Rows, index: int) -> tuple[Hashable, Hashable]:
    """(class, what stays on one side): the concept; without one the sample if it has a class, else its captions."""
    try:
        labels = rows.labels(index)
    except BrokenSample:
        labels = []
    concept = rows.concept(index)
    unit = concept or (rows.uid(index) if labels else rows.group(index))
    return ", ".join(labels), unit
