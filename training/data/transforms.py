"""Augmentation of a classifier: torchvision's v2 transforms, drawn for each sample.

A sample's draws are a pure function of (seed, epoch, position), so that workers, ranks and resumes never change them.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from vlm.errors import RecipeError
from vlm.training.data.device_transforms import ANGLE, COUNT, CROP, ERASE, FACTORS, FLIP, ORDER, PAD
from vlm.training.data.order import AUGMENT
from vlm.training.data.stream import Places
from vlm.training.recipe.augmentation import TransformConfig


class Transform:
    """uint8 (B, C, H, W) -> the same, every image on its own."""

    def __init__(
        self, config: TransformConfig, image_shape: tuple[int, int], seed: int, channels: int = 3, bits: int = 8
    ):
        """Build the transforms.

        Args:
            config: their strengths.
            image_shape: (H, W).
            seed: of the random draws.
            channels: C; colour and rand_augment are defined for 1 and 3.
            bits: of the levels; images of 16 bits are floats from 0 to 1.
        """
        if channels not in (1, 3) and (config.colour or config.rand_augment):
            raise RecipeError(
                f"[transform] colour and rand_augment change colours, and the images have {channels} channels; wanted "
                "1 or 3. Set both to 0."
            )
        self.config, self.seed, self.shape = config, seed, (channels, *image_shape)
        level = config.fill / 255 if bits == 16 else config.fill
        fill = [level] * channels
        self.crop = v2.RandomCrop(image_shape, padding=config.padding, fill=fill) if config.padding else None
        resized = config.scale != (1.0, 1.0)
        self.resized_crop = v2.RandomResizedCrop(image_shape, scale=config.scale, antialias=True) if resized else None
        self.rotation = (
            v2.RandomAffine([-config.rotate, config.rotate], interpolation=v2.InterpolationMode.BILINEAR, fill=fill)
            if config.rotate
            else None
        )
        self.colours = v2.ColorJitter(*(config.colour,) * 3) if config.colour else None
        self.erasing = v2.RandomErasing(config.erase, value=level) if config.erase else None
        several = v2.RandAugment(magnitude=config.rand_augment, fill=fill) if config.rand_augment else None
        flipping = v2.RandomHorizontalFlip(config.flip) if config.flip else None
        steps = (self.crop, self.resized_crop, flipping, self.rotation, self.colours, several, self.erasing)
        self.steps = [step for step in steps if step is not None]
        # whether `draw` and device_transforms.py can do the same
        self.can_be_later = bool(self.steps) and several is None and bits == 8

    def __call__(self, images: Tensor, places: Places) -> Tensor:
        if not self.steps:
            return images
        seen = []
        for number in self._sown(places):
            image = images[number]
            for step in self.steps:
                image = step(image)
            seen.append(image)
        return torch.stack(seen)

    def draw(self, places: Places) -> Tensor:
        """The random numbers of `transform_by`, (B, 19): those that a call would draw."""
        draws = torch.zeros(len(places.positions), COUNT)
        image = [torch.empty(self.shape, device="meta")]
        for number in self._sown(places):
            row = draws[number]
            row[PAD], row[ORDER] = float(self.config.padding), 3.0
            if self.crop is not None:
                row[PAD] = _numbers(self.crop.make_params(image), "top", "left")
            if self.resized_crop is not None:
                row[CROP] = _numbers(self.resized_crop.make_params(image), "top", "left", "height", "width")
            if self.config.flip:
                row[FLIP] = float(torch.rand(1) < self.config.flip)
            if self.rotation is not None:
                row[ANGLE] = self.rotation.make_params(image)["angle"]
            if self.colours is not None:
                found = self.colours.make_params(image)
                row[FACTORS] = _numbers(found, *(f"{name}_factor" for name in ("brightness", "contrast", "saturation")))
                row[ORDER] = found["fn_idx"].float()
            if self.erasing is not None and torch.rand(1) < self.config.erase:
                found = self.erasing.make_params(image)
                if found["v"] is not None:
                    row[ERASE] = _numbers(found, "i", "j", "h", "w")
        return draws

    def _sown(self, places: Places) -> Iterator[int]:
        """The number of each sample, with torch's generator set for it."""
        with torch.random.fork_rng(devices=[]):
            for number, (epoch, position) in enumerate(zip(places.epochs, places.positions, strict=True)):
                torch.manual_seed(_number(self.seed, int(epoch), int(position)))
                yield number


def _numbers(found: dict[str, Any], *names: str) -> Tensor:
    return torch.tensor([float(found[name]) for name in names])


def _number(seed: int, epoch: int, position: int) -> int:
    """Returns a number of 63 bits."""
    return int(np.random.Philox(key=[seed, AUGMENT], counter=[0, 0, epoch, position]).random_raw()) >> 1
