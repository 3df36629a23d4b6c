"""Pairs of images and captions: sample on disk -> training/data/rows.py -> `Pairs` -> `PairBatch`.

What is drawn for a sample (captions, augmentation, kept patches) depends on its place in training/data/stream.py alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.tokenizers.protocol import Tokenizer
from vlm.training.data.augment import augment_by, augmentation_draws, uniform_draws
from vlm.training.data.captions import DRAWS, CaptionChoice
from vlm.training.data.order import AUGMENT, CAPTION, Order
from vlm.training.data.pairs import Pairs, bytes_of_image
from vlm.training.data.positive_keys import key_numbers, keys_of, most_keys
from vlm.training.data.rows import BrokenSample
from vlm.training.data.stream import EndlessOrder, PartedStream, joined, kept_patches
from vlm.training.recipe.augmentation import AugmentConfig


class PairBatch(NamedTuple):
    images: Tensor  # uint8 (B, C, H, W)
    ids: Tensor  # (B, c, T), c captions an image
    groups: Tensor  # (B,), equal numbers show the same thing; or (B, G) keys, those who share one do
    keep: Tensor | None  # (B, K), the patches that stay
    uids: list[str]  # sample names, for messages
    broken: tuple[BrokenSample, ...] = ()  # samples that others stand in for
    host_ids: Tensor | None = None  # ids on the CPU, where `ids` are on another device
    draws: Tensor | None = None  # (B, 32) on the CPU: the augmentation is still to be done, where the images are
    coarse_size: int = 0  # and before it the images get this side; 0: they stay as they are

    def chunks(self, count: int) -> list["PairBatch"]:
        """Cut along the samples into `count` equal parts."""
        side = len(self.uids) // count
        chunks = []
        for start in range(0, side * count, side):
            own = slice(start, start + side)
            parts = (None if part is None else part[own] for part in self[:5])
            ids = None if self.host_ids is None else self.host_ids[own]
            draws = None if self.draws is None else self.draws[own]
            chunks.append(PairBatch(*parts, host_ids=ids, draws=draws, coarse_size=self.coarse_size))  # type: ignore[arg-type]
        return chunks

    def to(self, device: torch.device) -> "PairBatch":
        """On a device, copied without waiting for it."""
        if device.type == "cpu":
            return self
        keep = None if self.keep is None else self.keep.to(device, non_blocking=True)
        images, ids, groups = (t.to(device, non_blocking=True) for t in (self.images, self.ids, self.groups))
        return self._replace(images=images, ids=ids, groups=groups, keep=keep, host_ids=self.ids)


def augmented(batch: PairBatch, config: AugmentConfig) -> Tensor:
    """The images of a batch as the model sees them, uint8 (B, 3, H, W), computed where they are."""
    if batch.draws is None:
        return batch.images
    images = shrink(batch.images, batch.coarse_size) if batch.coarse_size else batch.images
    return augment_by(images, config, batch.draws)


class PairStream(PartedStream[PairBatch]):
    """Step s -> its `PairBatch`; `rank` of `world` takes its slice of each global batch.

    `order`: by default, all samples shuffled anew at every epoch.
    """

    def __init__(
        self,
        pairs: Pairs,
        tokenizer: Tokenizer,
        augmentation: AugmentConfig,
        *,
        seed: int,
        batch_size: int,
        num_patches: int,
        patch_dropout: float = 0.0,
        coarse_size: int = 0,  # side of the images, num_patches tile them; 0: as `pairs` has them
        dense_from: int | None = None,  # the step from which all patches are seen, at full size
        choice: CaptionChoice | None = None,
        order: Order | None = None,
        rank: int = 0,
        world: int = 1,
        augment_later: bool = False,  # the batches are augmented by `augmented`, on the model's device
    ):
        self.order = EndlessOrder(len(pairs), seed=seed, batch_size=batch_size, rank=rank, world=world, order=order)
        self.pairs, self.tokenizer, self.augmentation, self.seed = pairs, tokenizer, augmentation, seed
        self.kept = num_patches - int(num_patches * patch_dropout) if patch_dropout else None
        self.num_patches, self.coarse_size, self.dense_from = num_patches, coarse_size, dense_from
        self.choice, self.augment_later = choice or CaptionChoice(), augment_later
        self.keys = most_keys(pairs)  # of an image, G

    @property
    def share(self) -> int:
        return self.order.share

    @property
    def sample_bytes(self) -> int:
        return bytes_of_image(self.pairs.preprocess)

    def join(self, parts: Sequence[PairBatch], pin: bool) -> PairBatch:
        """The parts of a step as one batch."""
        keeps, draws = [part.keep for part in parts], [part.draws for part in parts]
        return PairBatch(
            images=joined([part.images for part in parts], pin),
            ids=joined(_of_one_length([part.ids for part in parts], self.tokenizer.pad_id), pin),
            groups=joined([part.groups for part in parts], pin),
            keep=None if keeps[0] is None else joined([keep for keep in keeps if keep is not None], pin),
            uids=[uid for part in parts for uid in part.uids],
            broken=tuple(sample for part in parts for sample in part.broken),
            draws=None if draws[0] is None else torch.cat([own for own in draws if own is not None]),
            coarse_size=parts[0].coarse_size,
        )

    def part(self, step: int, own: slice) -> PairBatch:
        """The samples `own` of this process's share of a step."""
        places, loaded, broken = self.order.load(step, self._load, own, self.pairs.read_ahead)
        epochs, positions, samples = places
        loaded_images, languages = zip(*loaded, strict=True)
        draws = uniform_draws(self.seed, CAPTION, epochs, positions, DRAWS * self.choice.per_image)
        texts = [self.choice.choose(own, u) for own, u in zip(languages, draws, strict=True)]
        keys = [keys_of(self.pairs.rows, int(i), own) for i, own in zip(samples, languages, strict=True)]
        ids = self.tokenizer([text for row in texts for text in row])
        images, keep, coarse = torch.stack(loaded_images), None, 0
        if self.dense_from is None or step < self.dense_from:
            coarse = self.coarse_size
            if coarse and not self.augment_later:
                images = shrink(images, coarse)
            if self.kept is not None:
                keep = kept_patches(self.seed, places, self.num_patches, self.kept)
        draws = augmentation_draws(self.seed, AUGMENT, epochs, positions)
        return PairBatch(
            images=images if self.augment_later else augment_by(images, self.augmentation, draws),
            ids=ids.view(len(samples), self.choice.per_image, -1),
            groups=key_numbers(keys, self.keys),
            keep=keep,
            uids=[self.pairs.rows.uid(int(i)) for i in samples],
            broken=broken,
            draws=draws if self.augment_later else None,
            coarse_size=coarse if self.augment_later else 0,
        )

    def _load(self, index: int) -> tuple[Tensor, list[tuple[list[str], list[str]]]]:
        captions = self.pairs.captions(index)  # first: a missing caption is found sooner than a broken image
        return self.pairs.pixels(index), captions


def _of_one_length(ids: Sequence[Tensor], pad_id: int) -> list[Tensor]:
    """Ids of several parts, padded to the longest."""
    length = max(part.shape[-1] for part in ids)
    return [F.pad(part, (0, length - part.shape[-1]), value=pad_id) for part in ids]


def shrink(images: Tensor, side: int) -> Tensor:
    """uint8 (B, C, H, W) -> (B, C, side, side): few patches that show all of an image (CLIPA, Li et al. 2023)."""
    if images.device.type == "cpu":
        return F.interpolate(images, (side, side), mode="bilinear", antialias=True)
    small = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)  # no kernel for uint8
    return small.round_().clamp_(0, 255).to(torch.uint8)
