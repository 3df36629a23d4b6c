"""Images and class numbers: `Labelled` rows -> `ClassImages` -> `ClassBatch`."""

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlm.images.preprocess import Preprocess
from vlm.training.data.device_transforms import transform_by
from vlm.training.data.labelled import NO_CLASS, Labelled
from vlm.training.data.pairs import Pairs, bytes_of_image
from vlm.training.data.rows import BrokenSample, Selected, in_blocks
from vlm.training.data.stream import EndlessOrder, NoSoundSample, PartedStream, joined, kept_patches
from vlm.training.data.transforms import Transform
from vlm.training.recipe.augmentation import TransformConfig
from vlm.training.recipe.sections import Cache


class ClassBatch(NamedTuple):
    images: Tensor  # uint8 (B, C, H, W)
    targets: Tensor  # (B,), 0..M-1
    keep: Tensor | None  # (B, K), the patches that stay
    uids: list[str]  # sample names, for messages
    broken: tuple[BrokenSample, ...] = ()  # samples that others stand in for
    draws: Tensor | None = None  # (B, 19) on the CPU: the transforms are still to be done, where the images are

    def to(self, device: torch.device) -> "ClassBatch":
        images, targets = (t.to(device, non_blocking=True) for t in (self.images, self.targets))
        keep = None if self.keep is None else self.keep.to(device, non_blocking=True)
        return self._replace(images=images, targets=targets, keep=keep)


def transformed(batch: ClassBatch, config: TransformConfig) -> Tensor:
    """The images of a batch as the model sees them, uint8 (B, C, H, W), computed where they are."""
    return batch.images if batch.draws is None else transform_by(batch.images, config, batch.draws)


class ClassImages:
    """Labelled samples as a model sees them; `cache` as `Pairs` has it."""

    def __init__(self, data: Labelled, preprocess: Preprocess, cache: Cache = "auto"):
        self.rows = Selected(data.rows, data.index)
        self.pairs = Pairs(self.rows, preprocess, cache)
        self.targets = data.targets  # (n,)

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, index: int) -> Tensor:
        """uint8 (C, H, W); `BrokenSample` where the image or the class cannot be used."""
        pixels = self.pairs.pixels(index)
        if self.targets.ndim == 1 and self.targets[index] == NO_CLASS:
            raise BrokenSample(self.rows.uid(index), "bad row", "it has no class: name one, or delete it")
        return pixels

    def batches(self, size: int = 250) -> Iterator[tuple[Tensor, Tensor]]:
        """All that can be opened, in order: uint8 (B, C, H, W), targets (B,)."""
        for index in torch.arange(len(self)).split(size):
            pixels, kept = [], []
            self.pairs.read_ahead(index.tolist())
            for i in index.tolist():
                try:
                    pixels.append(self.pixels(i))
                    kept.append(i)
                except BrokenSample:
                    continue  # named by `say_broken`
            if kept:
                yield torch.stack(pixels), self.targets[kept]

    def say_broken(self, what: str) -> None:
        """Opens every image; those that cannot be are counted on stderr, the first is named."""
        broken = []
        for index in range(len(self)) if self.pairs.in_memory else in_blocks(self.rows, range(len(self))):
            try:
                self.pixels(index)
            except BrokenSample as error:
                broken.append(error)
        if broken:
            print(f"{len(broken)} of {len(self)} {what} images left out; the first: {broken[0]}", file=sys.stderr)
        if len(broken) == len(self):
            raise NoSoundSample(f"None of the {len(self)} {what} images can be opened; the first: {broken[0]}", broken)


class ClassStream(PartedStream[ClassBatch]):
    """Step s -> its `ClassBatch`."""

    def __init__(
        self,
        images: ClassImages,
        transform: Transform,
        order: EndlessOrder,
        *,
        seed: int,
        num_patches: int,
        patch_dropout: float = 0.0,
        dense_from: int | None = None,  # the step from which all patches are seen
        transform_later: bool = False,  # the batches are transformed by `transformed`, on the model's device
    ):
        self.transform_later = transform_later
        self.images, self.transform, self.order, self.seed = images, transform, order, seed
        self.num_patches, self.kept = num_patches, num_patches - int(num_patches * patch_dropout)
        self.dense_from = dense_from

    @property
    def share(self) -> int:
        return self.order.share

    @property
    def sample_bytes(self) -> int:
        return bytes_of_image(self.images.pairs.preprocess)

    def join(self, parts: Sequence[ClassBatch], pin: bool) -> ClassBatch:
        """The parts of a step as one batch."""
        keeps, draws = [part.keep for part in parts], [part.draws for part in parts]
        return ClassBatch(
            images=joined([part.images for part in parts], pin),
            targets=joined([part.targets for part in parts], pin),
            keep=None if keeps[0] is None else joined([keep for keep in keeps if keep is not None], pin),
            uids=[uid for part in parts for uid in part.uids],
            broken=tuple(sample for part in parts for sample in part.broken),
            draws=None if draws[0] is None else torch.cat([own for own in draws if own is not None]),
        )

    def part(self, step: int, own: slice) -> ClassBatch:
        """The samples `own` of this process's share of a step."""
        places, pixels, broken = self.order.load(step, self.images.pixels, own, self.images.pairs.read_ahead)
        sparse = self.kept < self.num_patches and (self.dense_from is None or step < self.dense_from)
        images = torch.stack(pixels)
        return ClassBatch(
            images=images if self.transform_later else self.transform(images, places),
            targets=self.images.targets[torch.from_numpy(places.samples)],
            keep=kept_patches(self.seed, places, self.num_patches, self.kept) if sparse else None,
            uids=[self.images.rows.uid(int(i)) for i in places.samples],
            broken=broken,
            draws=self.transform.draw(places) if self.transform_later else None,
        )
