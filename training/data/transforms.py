"""Augmentation of a classifier: torchvision's v2 transforms, drawn for each sample.

A sample's draws are a pure function of (seed, epoch, position), so that workers, ranks and resumes never change them.
"""

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from vlm.errors import RecipeError
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
        self.seed, steps = seed, []
        level = config.fill / 255 if bits == 16 else config.fill
        fill = [level] * channels
        if config.padding:
            steps.append(v2.RandomCrop(image_shape, padding=config.padding, fill=fill))
        if config.scale != (1.0, 1.0):
            steps.append(v2.RandomResizedCrop(image_shape, scale=config.scale, antialias=True))
        if config.flip:
            steps.append(v2.RandomHorizontalFlip(config.flip))
        if config.rotate:
            steps.append(
                v2.RandomAffine([-config.rotate, config.rotate], interpolation=v2.InterpolationMode.BILINEAR, fill=fill)
            )
        if config.colour:
            steps.append(v2.ColorJitter(config.colour, config.colour, config.colour))
        if config.rand_augment:
            steps.append(v2.RandAugment(magnitude=config.rand_augment, fill=fill))
        if config.erase:
            steps.append(v2.RandomErasing(config.erase, value=level))
        self.steps = steps

    def __call__(self, images: Tensor, places: Places) -> Tensor:
        if not self.steps:
            return images
        seen = []
        with torch.random.fork_rng(devices=[]):
            for image, epoch, position in zip(images, places.epochs, places.positions, strict=True):
                torch.manual_seed(_number(self.seed, int(epoch), int(position)))
                for step in self.steps:
                    image = step(image)
                seen.append(image)
        return torch.stack(seen)


def _number(seed: int, epoch: int, position: int) -> int:
    """Returns a number of 63 bits."""
    return int(np.random.Philox(key=[seed, AUGMENT], counter=[0, 0, epoch, position]).random_raw()) >> 1
