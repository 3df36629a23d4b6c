"""Names of splits, by the rules of the Hugging Face hub: in a column, in the names of files, or as folders."""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from vlm.errors import DataError

_SYNONYMS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
_CANONICAL = {name: split for split, names in _SYNONYMS.items() for name in names}
HELD_OUT = ("validation", "test")


def canonical_split(name: str) -> str | None:
    """Train -> train, dev -> validation; None for what is no name of a split."""
    return _CANONICAL.get(name.lower())


def is_held_out(split: str) -> bool:
    """Returns True for validation and test splits, their synonyms, val_style ..."""
    words = re.split(r"[^a-z]+", split.lower())
    return any(_CANONICAL.get(word) in HELD_OUT for word in words)


def split_of_file(name: str) -> str | None:
    """train-00000-of-00001.parquet -> train; the word stands between letters of other kinds."""
    stem = PurePath(name).name.split(".")[0]
    words = [word for word in re.split(r"[^a-z]+", stem.lower()) if word]
    return next((_CANONICAL[word] for word in words if word in _CANONICAL), None)


def splits_of_files(paths: Sequence[PurePath]) -> list[str]:
    """The split of each data file, "" where it has none.

    Names count when all files have a split, or when one of them is held out: files are never trained on because a
    neighbour has no split in its name.  Without a split in its name a file has that of the folder it stands in.
    """
    own = [split_of_file(path.name) or _of_folders(path) for path in paths]
    if all(own) or any(split in HELD_OUT for split in own):
        return [split or "" for split in own]
    return [""] * len(own)


def _of_folders(path: PurePath) -> str | None:
    return next((split for part in reversed(path.parts[:-1]) if (split := canonical_split(part))), None)


def classes_and_splits(folders: Sequence[tuple[str, ...]]) -> list[tuple[str | None, str]]:
    """(class, split) of each image, off the folders between the root of the data and the image.

    The class is the first folder below those that all images share, with folders of splits taken out; images that lie
    beside those folders have none.  Folders are splits only if all their siblings have names of splits: train/ beside
    car/ and ship/ is a class.
    """
    rest = [list(parts) for parts in folders]
    splits = [""] * len(rest)
    divided = False
    while below := [number for number, parts in enumerate(rest) if parts]:
        heads = {rest[number][0] for number in below}
        deeper = all(len(rest[number]) > 1 for number in below)
        found = _splits_of_folders(heads, deeper) if len(below) == len(rest) else {}
        again = divided and all(found.get(rest[number][0]) == splits[number] for number in below)
        are_splits = bool(found) and (again or not divided)
        if not are_splits and (len(heads) > 1 or (len(below) < len(rest) and not deeper)):
            break
        for number in below:
            head = rest[number].pop(0)
            if are_splits:
                splits[number] = found[head]
        divided = divided or are_splits
    classes = [parts.pop(0) if parts else None for parts in rest]
    inner = {parts[0] for parts in rest if parts}
    if not divided and inner and all(rest) and (found := _splits_of_folders(inner, False)):
        splits = [found[parts[0]] for parts in rest]
    return list(zip(classes, splits, strict=True))


_BESIDE = {"set", "data", "dataset", "images", "image", "imgs", "img", "photos", "pictures", "split"}


def _splits_of_folders(names: Iterable[str], deeper: bool) -> dict[str, str]:
    """Folder -> split, if all of these siblings are splits; else nothing.

    Names with more than the split's (train2017, training_set, seg_train) count where one is of train and another is
    held out, and where the rest is a number or says nothing, or else other folders follow (`deeper`).
    """
    names = list(names)
    exact = {name: split for name in names if (split := canonical_split(name))}
    if len(exact) == len(names):
        return exact
    found: dict[str, str] = {}
    for name in names:
        words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
        own = [_CANONICAL[word] for word in words if word in _CANONICAL]
        if len(own) != 1 or not (deeper or {*words} - {*_CANONICAL} <= _BESIDE):
            return {}
        found[name] = own[0]
    return found if "train" in found.values() and {*HELD_OUT} & {*found.values()} else {}


def matching(source: str, wanted: Sequence[str], there: Sequence[str]) -> list[int]:
    """Numbers of the wanted splits in `there`, by name or else by synonym; `DataError` if one is missing."""
    found: list[int] = []
    missing: list[str] = []
    for name in wanted:
        own = [number for number, split in enumerate(there) if split == name] or [
            number
            for number, split in enumerate(there)
            if canonical_split(name) is not None and canonical_split(split) == canonical_split(name)
        ]
        found += own
        missing += [] if own else [name]
    if missing:
        raise DataError(f"{source} has no split {', '.join(missing)}. It has: {_listed(there)}.")
    return found


def splits_to_train_on(source: str, wanted: Sequence[str], there: Iterable[str]) -> tuple[str, ...]:
    """`wanted`, or where nothing was asked for and some splits are held out: those that are called train.

    Raises:
        DataError: splits are held out and none is called train.
    """
    there = list(there)
    held = [split for split in there if is_held_out(split)]
    if wanted or not held:
        return tuple(wanted)
    train = [split for split in there if canonical_split(split) == "train"]
    if not train:
        raise DataError(f"{source} has {_listed(held)} in it. Say what to train on: train_splits = [...].")
    return tuple(train)


def _listed(splits: Iterable[str]) -> str:
    return ", ".join(sorted(split for split in splits if split)) or "none"
