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

    The class is the first folder below those that all images share, with folders of splits taken out.  Folders are
    splits only if all their siblings have names of splits: train/ beside car/ and ship/ is a class.
    """
    rest = [list(parts) for parts in folders]
    splits = [""] * len(rest)
    divided = False
    while rest and all(rest):
        heads = {parts[0] for parts in rest}
        are_splits = not divided and all(canonical_split(head) for head in heads)
        if not are_splits and len(heads) > 1:
            break
        for number, parts in enumerate(rest):
            head = parts.pop(0)
            if are_splits:
                splits[number] = canonical_split(head) or ""
        divided = divided or are_splits
    classes = [parts.pop(0) if parts else None for parts in rest]
    below = {parts[0] for parts in rest if parts}
    if not divided and below and all(rest) and all(canonical_split(name) for name in below):
        splits = [canonical_split(parts[0]) or "" for parts in rest]
    return list(zip(classes, splits, strict=True))


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
