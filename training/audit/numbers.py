"""Statistics of a scan: duplicates, leaks, sizes, captions, tokens."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from vlm.index.near_duplicates import group_near
from vlm.training.audit.scan import Counts, Doubt, Seen
from vlm.training.data.formats.encodings import ICONV
from vlm.training.data.rows import BrokenSample
from vlm.training.data.same_images import NEAR, UNIFORM

TINY = 16  # pixels of the shorter side
LONG = 5.0  # times as long as wide
LEVELS = ("same file", "same pixels", "nearly the same")
LENGTHS = (16, 32, 64, 77)


class Twins(NamedTuple):
    """For each of LEVELS: (n,) group numbers.  Each level's groups hold those of the one before."""

    labels: tuple[np.ndarray, np.ndarray, np.ndarray]


def find_twins(facts: np.ndarray) -> Twins:
    """Equal bytes; equal pixels; thumbnails with a cosine of NEAR or more, or linked by a chain of such."""
    files = np.unique(facts["file"], return_inverse=True)[1]
    _, first, pixels = np.unique(facts["pixels"], return_index=True, return_inverse=True)
    near = len(first) + np.arange(len(first))  # of distinct pixels; uniform ones look all the same and are left alone
    textured = np.flatnonzero(facts["spread"][first] >= UNIFORM)
    near[textured] = group_near(facts["thumbnail"][first[textured]], NEAR)
    return Twins((files, pixels, near[pixels]))


def numbers(seen: Seen, twins: Twins, context_length: int) -> dict[str, Any]:
    """All that check.json holds but the findings.  Shares are 0..1."""
    facts, counts = seen.facts, seen.counts
    of_split = np.bincount(seen.splits).tolist()
    return {
        "data": seen.rows.name,
        "rows": len(seen.rows),
        "looked_at": seen.looked,
        "sound": len(facts),
        "splits": dict(zip(seen.split_names, of_split, strict=True)),
        "remarks": [remark._asdict() for remark in seen.rows.remarks()],
        "broken": dict(Counter(sample.reason for sample in seen.broken).most_common()),
        "first_broken": _first_broken(seen.broken),
        "encodings": _encodings(seen.broken),
        "duplicates": _duplicates(seen, twins),
        "leaks": _leaks(seen, twins),
        "images": _images(facts),
        "captions": _captions(counts, len(facts)),
        "tokens": _tokens(counts, context_length),
        "classes": dict(counts.get("class", Counter()).most_common()),
        "doubts": dict(Counter(doubt.what for doubt in seen.doubts).most_common()),
    }


def _first_broken(broken: Sequence[BrokenSample], most: int = 3) -> dict[str, list[dict[str, str]]]:
    """The first broken samples of each reason."""
    first: dict[str, list[dict[str, str]]] = {}
    for sample in broken:
        if len(own := first.setdefault(sample.reason, [])) < most:
            own.append({"uid": sample.uid, "detail": sample.detail})
    return first


def _encodings(broken: Sequence[BrokenSample]) -> dict[str, int]:
    """The encodings that bad texts look like -> how many."""
    seen = (re.search(rf"looks like ({'|'.join(ICONV)})", sample.detail) for sample in broken)
    return dict(Counter(match[1] for match in seen if match).most_common())


def _duplicates(seen: Seen, twins: Twins) -> dict[str, int]:
    """Images beyond the first of their group, within each split."""
    extra = [len(seen.facts) - len(np.unique(labels * len(seen.split_names) + seen.splits)) for labels in twins.labels]
    return dict(zip(LEVELS, np.diff(extra, prepend=0).tolist(), strict=True))


def _leaks(seen: Seen, twins: Twins) -> list[dict[str, Any]]:
    """For each two splits: images of the smaller one that the larger one has too."""
    sizes, found = np.bincount(seen.splits), []
    for pair in combinations(range(len(seen.split_names)), 2):
        small, large = sorted(pair, key=lambda split: sizes[split])
        shared = [np.isin(own[seen.splits == small], own[seen.splits == large]).sum() for own in twins.labels]
        if shared[-1]:
            levels = dict(zip(LEVELS, np.diff(shared, prepend=0).tolist(), strict=True))
            found.append({"of": seen.split_names[small], "also_in": seen.split_names[large], **levels})
    return found


def twin_doubts(seen: Seen, twins: Twins) -> Iterator[Doubt]:
    """A line for every image to remove: later ones of a group, and of the larger split where two share one."""
    sizes = np.bincount(seen.splits)
    first: list[dict[int, int]] = [{} for _ in LEVELS]  # group -> its image that stays
    for place in np.lexsort((np.arange(len(seen.facts)), sizes[seen.splits])).tolist():
        twin = next(
            ((level, own[group]) for level, own, labels in zip(LEVELS, first, twins.labels, strict=True)
             if (group := int(labels[place])) in own), None)  # fmt: skip
        for own, labels in zip(first, twins.labels, strict=True):
            own.setdefault(int(labels[place]), place)
        if twin is not None:
            level, other = twin
            splits = [seen.split_names[seen.splits[at]] for at in (place, other)]
            kind = "duplicate" if splits[0] == splits[1] else "leak"
            uids = [seen.rows.uid(int(seen.facts["index"][at])) for at in (place, other)]
            yield Doubt(uids[0], splits[0], kind, f"{level}: {uids[1]} ({splits[1]})")


def image_doubts(seen: Seen) -> Iterator[Doubt]:
    """A line for every image that is uniform, tiny or long."""
    for place in range(len(seen.facts)):
        fact = seen.facts[place]
        shorter, longer = sorted((int(fact["width"]), int(fact["height"])))
        kinds = {"uniform": fact["spread"] < UNIFORM, "tiny": shorter < TINY, "long": longer > LONG * shorter}
        for kind in (kind for kind, is_so in kinds.items() if is_so):
            detail = f"{fact['width']} x {fact['height']} pixels, levels +- {fact['spread']:.1f}"
            yield Doubt(seen.rows.uid(int(fact["index"])), seen.split_names[seen.splits[place]], kind, detail)


def _images(facts: np.ndarray) -> dict[str, Any]:
    width, height = facts["width"].astype(np.int64), facts["height"].astype(np.int64)
    short, long = np.minimum(width, height), np.maximum(width, height)
    return {
        "width": _spread(width),
        "height": _spread(height),
        "shorter_side_below": {str(side): _share(short < side) for side in (TINY, 32, 64, 224)},
        "tiny": int((short < TINY).sum()),
        "long": int((long > LONG * short).sum()),
        "uniform": int((facts["spread"] < UNIFORM).sum()),
        "median_megapixels": float(np.median(width * height)) / 1e6 if len(facts) else 0.0,
        "grey": _share(facts["grey"]),
        "transparent": _share(facts["transparent"]),
        "animated": _share(facts["animated"]),
    }


def _captions(counts: Counts, images: int) -> dict[str, Any]:
    scripts = counts.get("script", Counter())
    captions, grouped = counts.get("caption", Counter()), counts.get("caption of group", Counter())
    apart = Counter(captions)  # images of one group may well share a caption
    for (text, _), count in grouped.items():
        apart[text] -= count - 1
    return {
        "per_image": dict(sorted(counts.get("captions per image", Counter()).items())),
        "keywords": sum(counts.get("keywords", Counter()).values()),
        "distinct": len(captions),
        "letters": _quantiles(counts.get("letters of a text", Counter())),
        "scripts": [
            {"language": language, "script": script, "texts": count}
            for (language, script), count in scripts.most_common()
        ],
        "on_several_images": [
            {"caption": text, "images": count, "share": count / images}
            for text, count in apart.most_common(5)
            if count > 1
        ],
    }


def _tokens(counts: Counts, context_length: int) -> dict[str, Any]:
    lengths, ids = counts.get("ids of a text", Counter()), counts.get("ids", Counter())
    total = sum(lengths.values())
    quantiles = _quantiles(lengths)
    return {
        "context_length": context_length,
        "texts": total,
        "ids": quantiles,
        "cut_at": {
            str(limit): sum(count for length, count in lengths.items() if length > limit) / max(total, 1)
            for limit in sorted({*LENGTHS, context_length})
        },
        "suggested_context_length": max(8, -(-quantiles["99.5%"] // 8) * 8),
        "lost_share": ids["lost"] / max(sum(ids.values()), 1),
        "lost_letters": dict(counts.get("letters without a piece", Counter()).most_common(20)),
    }


def _quantiles(counts: Counter[int]) -> dict[str, int]:
    """Quantiles of counted integers."""
    values = np.array(sorted(counts), np.int64)
    reached = np.cumsum([counts[value] for value in values.tolist()])
    at = {"min": 0.0, "median": 0.5, "95%": 0.95, "99.5%": 0.995, "max": 1.0}
    if not len(values):
        return dict.fromkeys(at, 0)
    return {name: int(values[np.searchsorted(reached, share * reached[-1])]) for name, share in at.items()}


def _spread(values: np.ndarray) -> dict[str, int]:
    return _quantiles(Counter(values.tolist()))


def _share(which: np.ndarray) -> float:
    return float(which.mean()) if len(which) else 0.0
