"""Findings about how a data set was read: what all samples share, odd cells, splits, ids, links, encodings."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from vlm.training.audit.scan import NO_SPLIT
from vlm.training.data.formats.encodings import ICONV
from vlm.training.data.formats.splits import canonical_split


class Finding(NamedTuple):
    name: str
    text: str


def reading_findings(found: dict[str, Any], listed: str) -> Iterator[Finding]:
    """One line for each sign that a table, folder or tar was read otherwise than its author meant.

    Args:
        found: what `numbers` returns.
        listed: appended to lines about listed samples.
    """
    yield from _one_for_all(found)
    yield from _cells(found, listed)
    yield from _encodings(found)
    yield from _splits(found)
    for remark in found["remarks"]:
        yield Finding(remark["kind"], remark["text"])


def _one_for_all(found: dict[str, Any]) -> Iterator[Finding]:
    images, captions, classes = found["sound"], found["captions"], found["classes"]
    if images < 2:
        return
    if len(classes) == 1 and sum(classes.values()) == images:
        (name,) = classes
        yield Finding(
            "one class",
            f"All {images:,} images have the class {name}: nothing can be learned from it. If {name} is a folder "
            "around the classes, name its folder below; if a column holds the classes, name it (--columns label=NAME).",
        )
    elif captions["distinct"] == 1 and not captions["keywords"]:
        text = next((row["caption"] for row in captions["on_several_images"]), "")
        yield Finding(
            "one caption",
            f'All {images:,} images have the caption "{text[:60]}": a model cannot tell them apart. If another column '
            "holds the captions, name it (--columns caption=NAME); a folder's name is no caption.",
        )


def _cells(found: dict[str, Any], listed: str) -> Iterator[Finding]:
    bad = found["broken"].get("bad row", 0)
    lists = [sample for sample in found["first_broken"].get("bad row", []) if _about_a_cell(sample["detail"])]
    if lists:
        first = lists[0]
        yield Finding(
            "cells",
            f"Cells that look like lists and cannot be read as lists are among the {bad:,} bad rows; the first: "
            f"{first['uid']}: {first['detail']}. Write lists as JSON (json.dumps){listed}.",
        )
    if count := found["doubts"].get("caption is a printed value"):
        yield Finding(
            "printed values",
            f"{count:,} captions are the print of a program's value (a dict, tuple, tensor or n/a), not a text. Write "
            f"the text itself, or leave the cell empty{listed}.",
        )


def _about_a_cell(detail: str) -> bool:
    return "list" in detail or "a cell holds" in detail or "a quote" in detail


def _encodings(found: dict[str, Any]) -> Iterator[Finding]:
    for encoding, count in found["encodings"].items():
        yield Finding(
            "encoding",
            f"{count:,} texts are not UTF-8 and look like {encoding}; their samples are left out. Convert them: "
            f"iconv -f {ICONV[encoding]} -t UTF-8.",
        )


def _splits(found: dict[str, Any]) -> Iterator[Finding]:
    splits = found["splits"]
    if (count := splits.get(NO_SPLIT, 0)) and len(splits) > 1:
        others = ", ".join(name for name in splits if name != NO_SPLIT)
        yield Finding(
            "mixed splits",
            f"{count:,} samples have no split and the others have ({others}): a run that trains on train leaves them "
            "out. Give every sample or file a split, or none.",
        )
    by_split: dict[str, list[str]] = {}
    for name in splits:
        if split := canonical_split(name):
            by_split.setdefault(split, []).append(name)
    for split, names in by_split.items():
        if len(names) > 1:
            yield Finding(
                "mixed splits",
                f"{' and '.join(names)} are names of one split, {split}: a recipe that names one of them leaves the "
                "other out. Use one name.",
            )
    names = [name for name in found["classes"] if canonical_split(name)]
    if names:
        yield Finding(
            "mixed splits",
            f"{', '.join(names)} is read as a class, since {_others(found, names)} beside it is no split. If it is a "
            "split, put every class folder into train, validation and test folders.",
        )


def _others(found: dict[str, Any], names: list[str]) -> str:
    others = [name for name in found["classes"] if name not in names]
    return ", ".join(others[:3]) + (", ..." if len(others) > 3 else "") if others else "nothing else"
