"""Samples held out for validation: drawn one by one, or every class its share and no group on both sides."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import torch

from vlm.errors import DataError
from vlm.training.data.rows import BrokenSample, Rows
from vlm.training.data.same_images import same_images


def drawn(total: int, count: float) -> tuple[list[int], list[int]]:
    """(the rest, `count` of the numbers 0..total-1), both ascending."""
    count = _number(total, count)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return order[count:].sort().values.tolist(), order[:count].sort().values.tolist()


def hold_out(rows: Rows, count: float, *, whole: bool = True) -> tuple[list[int], list[int]]:
    """(the rest, the samples held out), both ascending and the same for every seed.

    Args:
        rows: the data set.
        count: how many are held out, or below 1 which share.
        whole: each class gives its share, and samples of one concept, with the same captions or of the same image stay
            on one side; else samples are drawn one by one.
    """
    if not whole:
        return drawn(len(rows), count)
    strata = [", ".join(_labels(rows, index)) for index in range(len(rows))]
    return stratified(strata, groups_of(rows, strata), count)


def groups_of(rows: Rows, strata: Sequence[Hashable]) -> list[int]:
    """Number the samples so that those that belong on one side have equal numbers.

    They are linked by a concept, by the same image (`same_images`), or, without classes, by the same captions.  Where
    every class is one concept, concepts link nothing: a class must be on both sides.

    Args:
        rows: the data set.
        strata: the class of each sample.
    """
    concepts = [rows.concept(index) for index in range(len(rows))]
    named = {(stratum, concept) for stratum, concept in zip(strata, concepts, strict=True) if concept is not None}
    if len(named) == len({stratum for stratum, _ in named}):  # the classes are the concepts
        concepts = [None] * len(rows)
    keys: list[list[Hashable]] = [[("image", number)] for number in same_images(rows)]
    for index, concept in enumerate(concepts):
        if concept is not None:
            keys[index].append(("concept", concept))
        elif not _labels(rows, index):
            keys[index].append(("captions", rows.group(index)))
    return linked(keys)


def linked(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Number samples so that those that share a key, or are linked by a chain of shared keys, have equal numbers."""
    parents = list(range(len(keys)))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    first: dict[Hashable, int] = {}
    for number, own in enumerate(keys):
        for key in own:
            one, other = sorted((root(number), root(first.setdefault(key, number))))
            parents[other] = one
    return [root(number) for number in range(len(keys))]


def stratified(strata: Sequence[Hashable], groups: Sequence[Hashable], count: float) -> tuple[list[int], list[int]]:
    """(the rest, the samples held out), both ascending.

    Every class gives its share, to the nearest whole group, and keeps at least one group; no group is on both sides.

    Args:
        strata: the class of each sample; samples of the class None are not held out.
        groups: the group of each sample; a group of two classes goes with the first.
        count: how many are held out, or below 1 which share.
    """
    total = len(strata)
    count = _number(total, count)
    generator = np.random.default_rng(0)
    members: dict[Hashable, dict[Hashable, list[int]]] = defaultdict(lambda: defaultdict(list))
    owner: dict[Hashable, Hashable] = {}
    for number, (stratum, group) in enumerate(zip(strata, groups, strict=True)):
        members[owner.setdefault(group, stratum)][group].append(number)
    members.pop(None, None)
    wanted = sum(len(own) for groups in members.values() for own in groups.values())
    held: list[int] = []
    exact = 0.0
    for stratum in sorted(members, key=str):
        own = list(members[stratum].values())
        exact += count * sum(map(len, own)) / wanted  # of all classes up to this one
        for place in generator.permutation(len(own))[: len(own) - 1]:
            if exact - len(held) >= len(own[place]) / 2:
                held += own[place]
    if not held:
        raise DataError(
            f"held_out = {count} of {total} samples leaves nothing to validate on without dividing a group: samples of "
            'one concept, or of the same image. Hold out more, or set hold_out_by = "sample".'
        )
    inside = set(held)
    return [number for number in range(total) if number not in inside], sorted(held)


def _number(total: int, count: float) -> int:
    wanted = math.ceil(count * total) if count < 1 else int(count)
    if not 0 < wanted < total:
        raise DataError(f"held_out is {count}, and there are {total} training images: some must be left.")
    return wanted


def _labels(rows: Rows, index: int) -> list[str]:
    try:
        return rows.labels(index)
    except BrokenSample:
        return []
