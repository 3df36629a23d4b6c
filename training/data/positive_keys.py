"""What makes two images right for each other's texts: one concept, or a caption in common."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from vlm.positives import NO_KEY
from vlm.training.data.pairs import Pairs
from vlm.training.data.rows import BrokenSample, Rows, plain_text

LOOKED_AT = 10_000  # samples that say how many keys an image has


def keys_of(rows: Rows, index: int, captions: Sequence[tuple[list[str], list[str]]]) -> list[str]:
    """The keys of an image; it is right for the texts of all images with one of them.

    They are its concept and each of its captions, after NFKC and but for spaces; those of an image with neither are the
    name of its group.

    Args:
        rows: the data set.
        index: the sample.
        captions: (captions, keywords) of each of its languages.
    """
    concept = rows.concept(index)
    texts = dict.fromkeys(plain_text(text) for names, _ in captions for text in names)
    keys = ([] if concept is None else [f"concept\n{concept}"]) + list(texts)
    return keys or [rows.group(index)]


def most_keys(pairs: Pairs) -> int:
    """Keys of the image that has most of them, among 10,000 samples evenly spread over the data set."""
    most = 1
    for index in range(0, len(pairs), max(1, len(pairs) // LOOKED_AT)):
        try:
            most = max(most, len(keys_of(pairs.rows, index, pairs.captions(index))))
        except BrokenSample:
            continue
    return most


def key_numbers(keys: Sequence[Sequence[str]], width: int) -> Tensor:
    """(B,) of one key each, else (B, width); an image with fewer is filled up, of one with more the first count."""
    rows = [[key_number(key) for key in own[:width]] for own in keys]
    if width == 1:
        return torch.tensor([row[0] for row in rows])
    return torch.tensor([row + [NO_KEY] * (width - len(row)) for row in rows])


def key_number(key: str) -> int:
    """63 bits of a key, so that nobody needs to hold all keys: two of a million agree by a chance of 1e-7."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 1
