"""`Pairs`: a data set as a model sees it, images as pixels."""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from vlm.errors import ImageError, RecipeError
from vlm.images.preprocess import Preprocess
from vlm.training.data.pixel_cache import PixelCache
from vlm.training.data.rows import BrokenSample, Captions, ColumnNames, Rows, Selected, broken_sample, in_blocks
from vlm.training.data.sources import open_rows
from vlm.training.recipe.sections import Cache

AUTO_BYTES = 1 << 28  # of pixels: more is not kept in memory unless asked for


class Pairs:
    """`rows` seen through `preprocess`.

    `cache` "memory": images are decoded once, now, and kept as uint8; "disk": once, when first asked for, and kept in
    a file; "none": whenever they are asked for; "auto": memory if they fit into 256 MiB.
    """

    def __init__(self, rows: Rows, preprocess: Preprocess, cache: Cache = "auto"):
        self.rows, self.preprocess = rows, preprocess
        self._pixels: list[Tensor | BrokenSample] | None = None
        if cache == "memory" or (cache == "auto" and len(rows) * bytes_of_image(preprocess) <= AUTO_BYTES):
            self._pixels = [self._decode_or_say(index) for index in in_blocks(rows, range(len(rows)))]
        self._disk = _on_disk(rows, preprocess) if cache == "disk" else None

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, index: int) -> Tensor:
        """uint8 (C, H, W); `BrokenSample`."""
        if self._disk is not None and (stored := self._disk.get(index)) is not None:
            return torch.from_numpy(stored)
        found = self._pixels[index] if self._pixels is not None else self._decode_or_say(index)
        if isinstance(found, BrokenSample):
            raise found
        if self._disk is not None:
            self._disk.put(index, found.numpy())
        return found

    @property
    def in_memory(self) -> bool:
        """Whether all pixels are decoded and kept."""
        return self._pixels is not None

    def read_ahead(self, index: Sequence[int]) -> None:
        """Prepare to read the images of these samples, which will be asked for in this order."""
        if self._pixels is None:
            self.rows.read_ahead([own for own in index if self._disk is None or own not in self._disk])

    def images(self, index: Sequence[int]) -> Tensor:
        """uint8 (B, C, H, W)."""
        return torch.stack([self.pixels(int(i)) for i in index])

    def captions(self, index: int) -> list[tuple[list[str], list[str]]]:
        """(captions, keywords) of every language that has any; `BrokenSample`."""
        return list(self.rows.captions(index).values())

    def _decode_or_say(self, index: int) -> Tensor | BrokenSample:
        try:
            return self.preprocess.pixels(self.rows.image(index))
        except ImageError as error:
            return broken_sample(self.rows.uid(index), error)

    @cached_property
    def uids(self) -> list[str]:
        """For data sets that are looked at whole."""
        return [self.rows.uid(index) for index in range(len(self))]

    @cached_property
    def groups(self) -> Tensor:
        """(n,), equal numbers show the same thing; numbered as they appear."""
        numbers: dict[str, int] = {}
        return torch.tensor([numbers.setdefault(self.rows.group(i), len(numbers)) for i in range(len(self))])

    @cached_property
    def languages(self) -> list[str]:
        """Languages of the captions, in order of appearance."""
        return list(dict.fromkeys(language for own in self._captions for language, texts in own.items() if texts[0]))

    def texts(self, language: str) -> list[list[str]]:
        """The captions of every sample in a language."""
        return [own.get(language, ([], []))[0] for own in self._captions]

    @cached_property
    def _captions(self) -> list[Captions]:
        return [self._captions_if_any(index) for index in range(len(self))]

    def _captions_if_any(self, index: int) -> Captions:
        try:
            return self.rows.captions(index)
        except BrokenSample:
            return {}

    def select(self, index: Sequence[int]) -> "Pairs":
        """These samples only."""
        part = Pairs(Selected(self.rows, list(index)), self.preprocess, cache="none")
        part._pixels = None if self._pixels is None else [self._pixels[i] for i in index]
        return part

    def sound(self) -> tuple["Pairs", list[BrokenSample]]:
        """The samples that can be used, and what is wrong with the others: each is opened."""
        broken: list[BrokenSample] = []
        whole = []
        for index in range(len(self)) if self.in_memory else in_blocks(self.rows, range(len(self))):
            try:
                self.captions(index)
                self.pixels(index)
                whole.append(index)
            except BrokenSample as error:
                broken.append(error)
        return (self.select(whole) if broken else self), broken


def bytes_of_image(preprocess: Preprocess) -> int:
    """Memory of the pixels of one image."""
    config = preprocess.config
    return len(config.mean) * math.prod(config.image_shape) * (4 if config.bits == 16 else 1)


def _on_disk(rows: Rows, preprocess: Preprocess) -> PixelCache:
    """Beside the tables that `datasets` keeps."""
    from datasets.config import HF_DATASETS_CACHE

    height, width = preprocess.config.image_shape
    if preprocess.config.bits == 16:
        raise RecipeError('cache "disk" keeps 8 bits a level, and the model reads 16. Use cache = "memory" or "none".')
    channels = len(preprocess.config.mean)
    near = "" if preprocess.decoding == "exact" else f" {preprocess.decoding}"
    key = f"{rows.fingerprint} {preprocess.config}{near}"
    return PixelCache(Path(HF_DATASETS_CACHE) / "pixels", len(rows), (channels, height, width), key)


def open_pairs(
    source: str | Path,
    preprocess: Preprocess,
    splits: Sequence[str] = (),
    columns: ColumnNames | None = None,
    cache: Cache = "auto",
    *,
    root: str | Path | None = None,
) -> Pairs:
    """A data set of any format."""
    return Pairs(open_rows(source, splits, columns, root), preprocess, cache)
