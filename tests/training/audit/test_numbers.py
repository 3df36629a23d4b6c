"""The numbers against their definitions, on made facts: nothing is decoded here."""

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from vlm.training.audit.numbers import LEVELS, find_twins, image_doubts, numbers, twin_doubts
from vlm.training.audit.scan import FACTS, Counts, Doubt, Seen
from vlm.training.data.rows import BrokenSample


class Named:
    """Of a data set, what numbers need: its name, its length and its samples' names."""

    name = "set"

    def __len__(self) -> int:
        return 1000

    def remarks(self) -> list[str]:
        return []

    def uid(self, index: int) -> str:
        return f"sample {index}"


def seen_of(facts: np.ndarray, splits: list[str] | None = None, counts: Counts | None = None, **more: Any) -> Seen:
    splits = splits or ["all"] * len(facts)
    names = list(dict.fromkeys(splits))
    places = np.array([names.index(split) for split in splits], np.int64)
    parts: dict[str, Any] = {"looked": len(facts), "broken": [], "doubts": []} | more
    return Seen(rows=Named(), facts=facts, splits=places, split_names=names, counts=counts or {}, **parts)  # type: ignore[arg-type]


def made(seed: int, count: int = 60) -> np.ndarray:
    """Copies of all three levels among textured and uniform images."""
    rng = np.random.default_rng(seed)
    facts = np.zeros(count, FACTS)
    facts["index"] = 3 + 2 * np.arange(count)
    motif = rng.integers(0, count // 2, count)  # images of one motif are nearly the same
    thumbnails = rng.standard_normal((count, 192))
    near = thumbnails[motif] + 0.02 * rng.standard_normal((count, 192))
    facts["pixels"] = digests = rng.permutation(10 * count)[:count]
    facts["file"] = 10 * count + digests
    facts["spread"] = rng.choice([0.0, 1.9, 2.0, 50.0], count, p=[0.1, 0.1, 0.2, 0.6])
    facts["thumbnail"] = near / np.linalg.norm(near, axis=1, keepdims=True)
    for place in rng.permutation(count)[: count // 3]:
        other = rng.integers(count)
        for name in ("pixels", "spread", "thumbnail"):
            facts[name][place] = facts[name][other]
        facts["file"][place] = facts["file"][other] if rng.random() < 0.5 else 20 * count + place
    return facts


def linked(facts: np.ndarray, level: str, one: int, other: int) -> bool:
    a, b = facts[one], facts[other]
    if level == "same file":
        return a["file"] == b["file"]
    if a["pixels"] == b["pixels"]:
        return True
    cosine = float(a["thumbnail"].astype(float) @ b["thumbnail"].astype(float))
    return level == "nearly the same" and min(a["spread"], b["spread"]) >= 2 and cosine >= 0.995


def by_hand(facts: np.ndarray, level: str) -> list[int]:
    """The first image of each one's group, by following links until nothing changes."""
    groups = list(range(len(facts)))
    pairs = [pair for pair in combinations(range(len(facts)), 2) if linked(facts, level, *pair)]
    for _ in facts:
        for one, other in pairs:
            groups[one] = groups[other] = min(groups[one], groups[other])
    return groups


def first_of_group(labels: np.ndarray) -> list[int]:
    return [labels.tolist().index(label) for label in labels.tolist()]


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_what_links_of_each_level_join(seed: int):
    facts = made(seed)
    for level, labels in zip(LEVELS, find_twins(facts).labels, strict=True):
        assert first_of_group(labels) == by_hand(facts, level)


def test_images_of_one_colour_are_no_twins_of_anything():
    """Whatever place they have among the digests, which number the groups."""
    for order in ((1, 2, 3, 4, 5), (5, 4, 3, 2, 1), (2, 1, 4, 5, 3)):
        facts = np.zeros(5, FACTS)
        facts["file"] = facts["pixels"] = order
        facts["spread"][2:] = 9
        facts["thumbnail"][2:] = np.eye(192)[:3]
        assert [len(set(labels.tolist())) for labels in find_twins(facts).labels] == [5, 5, 5]


def groups_of(facts: np.ndarray) -> dict[str, list[int]]:
    return {level: by_hand(facts, level) for level in LEVELS}


@pytest.mark.parametrize("seed", range(3))
def test_duplicates_and_leaks_are_counted_once_and_at_the_strictest_level(seed: int):
    facts = made(seed)
    splits = np.random.default_rng(seed).choice(["train", "test", "held"], len(facts), p=[0.6, 0.15, 0.25]).tolist()
    seen, groups = seen_of(facts, splits), groups_of(facts)
    found = numbers(seen, find_twins(facts), 32)
    assert found["splits"] == Counter(splits)
    upto = [sum(count - 1 for count in Counter(zip(groups[level], splits, strict=True)).values()) for level in LEVELS]
    assert [found["duplicates"][level] for level in LEVELS] == [upto[0], upto[1] - upto[0], upto[2] - upto[1]]
    assert min(upto[0], upto[1] - upto[0], upto[2] - upto[1]) > 0
    expected = {}
    for one, other in combinations(seen.split_names, 2):
        small, large = sorted((one, other), key=splits.count)
        shared = []
        for level in LEVELS:
            there = {group for group, split in zip(groups[level], splits, strict=True) if split == large}
            shared.append(sum(g in there for g, split in zip(groups[level], splits, strict=True) if split == small))
        if shared[2]:
            expected[small, large] = [shared[0], shared[1] - shared[0], shared[2] - shared[1]]
    assert {(leak["of"], leak["also_in"]): [leak[level] for level in LEVELS] for leak in found["leaks"]} == expected
    assert expected


@pytest.mark.parametrize("level", LEVELS)
def test_a_image_shared_in_one_way_is_a_leak_of_that_kind(level: str):
    """Image 3, in the smaller split, is image 1 of the larger one again."""
    facts = np.zeros(5, FACTS)
    facts["spread"] = 9
    facts["thumbnail"] = np.eye(192)[[0, 1, 2, 1 if level == LEVELS[2] else 3, 4]]
    facts["file"] = [1, 2, 3, 2 if level == LEVELS[0] else 4, 5]
    facts["pixels"] = [1, 2, 3, 4 if level == LEVELS[2] else 2, 5]
    found = numbers(seen_of(facts, ["train", "train", "train", "test", "test"]), find_twins(facts), 32)
    counts = {name: int(name == level) for name in LEVELS}
    assert found["leaks"] == [{"of": "test", "also_in": "train", **counts}]
    assert not any(found["duplicates"].values())


@pytest.mark.parametrize("seed", range(3))
def test_without_the_images_listed_nothing_is_there_twice(seed: int):
    facts = made(seed)
    splits = np.random.default_rng(seed).choice(["train", "test", "held"], len(facts), p=[0.6, 0.15, 0.25]).tolist()
    seen, groups = seen_of(facts, splits), groups_of(facts)
    place_of = {f"sample {index}": place for place, index in enumerate(facts["index"].tolist())}
    listed = list(twin_doubts(seen, find_twins(facts)))
    removed = {place_of[doubt.uid] for doubt in listed}
    assert len(removed) == len(listed)
    stays = [place for place in range(len(facts)) if place not in removed]
    near = groups["nearly the same"]
    assert len({near[place] for place in stays}) == len(stays) == len(set(near))
    for place in stays:  # of the smallest split that has it, and the first there
        group = [other for other in range(len(facts)) if near[other] == near[place]]
        assert place == min(group, key=lambda other: (splits.count(splits[other]), other))
    for doubt in listed:
        level, _, other = doubt.detail.partition(": ")
        uid, _, other_split = other.rstrip(")").partition(" (")
        place, twin = place_of[doubt.uid], place_of[uid]
        assert groups[level][place] == groups[level][twin]
        finer = LEVELS[: LEVELS.index(level)]
        before = [
            at for at in range(len(facts)) if (splits.count(splits[at]), at) < (splits.count(splits[place]), place)
        ]
        assert not any(groups[name][place] == groups[name][at] for name in finer for at in before)
        assert (doubt.split, other_split) == (splits[place], splits[twin])
        assert doubt.what == ("duplicate" if doubt.split == other_split else "leak")
    assert {doubt.what for doubt in listed} == {"duplicate", "leak"}


SIZES = [(16, 80), (80, 16), (15, 75), (200, 15), (16, 81), (300, 40), (400, 500), (64, 63), (224, 223), (10, 10)]


def shaped() -> np.ndarray:
    facts = np.zeros(len(SIZES), FACTS)
    facts["index"] = np.arange(len(SIZES))
    facts["width"], facts["height"] = np.transpose(SIZES)
    facts["spread"] = [1.99, 2.0, *[40.0] * 8]
    facts["grey"][:3] = facts["transparent"][:2] = facts["animated"][:1] = True
    return facts


def test_images_are_tiny_long_or_uniform_beyond_the_limits_and_not_at_them():
    seen = seen_of(shaped())
    doubts = list(image_doubts(seen))
    odd = {
        what: [int(doubt.uid.split()[1]) for doubt in doubts if doubt.what == what]
        for what in ("uniform", "tiny", "long")
    }
    assert odd == {"uniform": [0], "tiny": [2, 3, 9], "long": [3, 4, 5]}  # less than 2 levels, 16 pixels, above 5 : 1
    assert doubts[0] == Doubt("sample 0", "all", "uniform", "16 x 80 pixels, levels +- 2.0")
    found = numbers(seen, find_twins(seen.facts), 32)["images"]
    assert {what: found[what] for what in odd} == {what: len(places) for what, places in odd.items()}


def test_sizes_and_shares_are_those_of_numpy():
    found = numbers(seen_of(shaped()), find_twins(shaped()), 32)["images"]
    for side, values in zip(("width", "height"), np.transpose(SIZES), strict=True):
        shares = {"min": 0, "median": 0.5, "95%": 0.95, "99.5%": 0.995, "max": 1}
        quantiles = {name: np.quantile(values, share, method="inverted_cdf") for name, share in shares.items()}
        assert found[side] == quantiles
    below = {str(limit): np.mean([min(size) < limit for size in SIZES]) for limit in (16, 32, 64, 224)}
    assert found["shorter_side_below"] == below
    assert found["median_megapixels"] * 1e6 == pytest.approx(np.median([w * h for w, h in SIZES]), rel=1e-9)
    assert [found[kind] for kind in ("grey", "transparent", "animated")] == [0.3, 0.2, 0.1]


def test_a_set_without_a_sound_sample_has_numbers_too():
    broken = [BrokenSample("a", "missing", ""), BrokenSample("b", "truncated", ""), BrokenSample("c", "truncated", "")]
    seen = seen_of(np.empty(0, FACTS), [], looked=3, broken=broken)
    found = numbers(seen, find_twins(seen.facts), 32)
    assert (found["data"], found["rows"], found["looked_at"], found["sound"]) == ("set", 1000, 3, 0)
    assert list(found["broken"].items()) == [("truncated", 2), ("missing", 1)]
    assert (found["splits"], found["leaks"], found["classes"], found["doubts"]) == ({}, [], {}, {})
    assert found["duplicates"] == dict.fromkeys(LEVELS, 0)
    assert found["images"]["width"] == dict.fromkeys(("min", "median", "95%", "99.5%", "max"), 0)
    assert {found["images"][kind] for kind in ("median_megapixels", "grey", "transparent", "animated")} == {0.0}
    assert set(found["images"]["shorter_side_below"].values()) | set(found["tokens"]["cut_at"].values()) == {0.0}
    assert found["tokens"]["lost_share"] == 0
    assert list(twin_doubts(seen, find_twins(seen.facts))) == []


def test_words_are_counted_as_the_scan_counted_them():
    counts: Counts = {
        "captions per image": Counter({2: 5, 1: 35}),
        "keywords": Counter({"en": 30, "ja": 12}),
        "caption": Counter({"a dog": 9, "a cat": 8, "a fox": 2, "犬": 2, "猫": 2, "鳥": 2, "虫": 2, "a sun": 1}),
        "caption of group": Counter({("a dog", "dogs"): 4, ("a dog", "pets"): 3, ("a cat", "cats"): 8}),
        "letters of a text": Counter({5: 4, 2: 1}),
        "script": Counter({("en", "latin"): 3, ("ja", "kana"): 5}),
        "class": Counter({"a": 1, "b": 3}),
    }
    doubts = [Doubt("a", "all", what, "") for what in ("x", "y", "y")]
    found = numbers(seen_of(shaped(), None, counts, doubts=doubts), find_twins(shaped()), 32)
    captions = found["captions"]
    assert list(captions["per_image"].items()) == [(1, 35), (2, 5)]
    assert (captions["keywords"], captions["distinct"]) == (42, 8)
    assert captions["scripts"] == [
        {"language": "ja", "script": "kana", "texts": 5},
        {"language": "en", "script": "latin", "texts": 3},
    ]
    # of the nine dogs four and three show the same thing; all the cats do
    assert captions["on_several_images"] == [
        {"caption": text, "images": count, "share": count / len(SIZES)}
        for text, count in (("a dog", 4), ("a fox", 2), ("犬", 2), ("猫", 2), ("鳥", 2))
    ]
    few = numbers(seen_of(shaped(), None, {"caption": Counter({"a": 2, "b": 1, "c": 1})}), find_twins(shaped()), 32)
    assert [row["caption"] for row in few["captions"]["on_several_images"]] == ["a"]
    assert list(found["classes"].items()) == [("b", 3), ("a", 1)]
    assert list(found["doubts"].items()) == [("y", 2), ("x", 1)]


@pytest.mark.parametrize("seed", range(3))
def test_lengths_are_quantiles_and_shares_of_the_texts(seed: int):
    lengths = np.random.default_rng(seed).integers(2, 90, 300)
    counts: Counts = {
        "ids of a text": Counter(lengths.tolist()),
        "ids": Counter(lost=30, whole=970),
        "letters without a piece": Counter({"a": 1, "b": 3}),
    }
    found = numbers(seen_of(shaped(), None, counts), find_twins(shaped()), 20)["tokens"]
    assert (found["context_length"], found["texts"], found["lost_share"]) == (20, 300, 0.03)
    assert list(found["lost_letters"]) == ["b", "a"]
    assert found["cut_at"] == {str(limit): np.mean(lengths > limit) for limit in (16, 20, 32, 64, 77)}
    enough = np.quantile(lengths, 0.995, method="inverted_cdf")
    assert found["ids"]["99.5%"] == enough
    assert found["suggested_context_length"] % 8 == 0
    assert enough <= found["suggested_context_length"] < enough + 8


@pytest.mark.parametrize(("longest", "suggested"), [(3, 8), (8, 8), (9, 16), (16, 16), (17, 24)])
def test_the_suggested_length_is_the_next_multiple_of_8(longest: int, suggested: int):
    seen = seen_of(shaped(), None, {"ids of a text": Counter({2: 1, longest: 9}), "ids": Counter(lost=1)})
    found = numbers(seen, find_twins(seen.facts), 32)["tokens"]
    assert (found["suggested_context_length"], found["lost_share"]) == (suggested, 1)
