"""What a classifier sees of an image while it learns: torchvision's v2 transforms, each drawn per sample.

A sample's draws are a pure function of (seed, epoch, position), so that workers, ranks and resumes never change them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from vlm.config import StrictConfig, check_not_negative, check_share
from vlm.training.data.order import AUGMENT
from vlm.training.data.stream import Places


@dataclass(frozen=True, kw_only=True)
class TransformConfig(StrictConfig):
    """Names and meanings are torchvision's; the defaults leave an image as it is."""

    padding: int = 0  # RandomCrop, pixels on every side
    scale: tuple[float, float] = (1.0, 1.0)  # RandomResizedCrop, share of the area
    flip: float = 0.0  # RandomHorizontalFlip, probability
    rotate: float = 0.0  # RandomAffine, degrees either way
    colour: float = 0.0  # ColorJitter: brightness, contrast, saturation within 1 +- this
    rand_augment: int = 0  # RandAugment, magnitude of 0..30, two operations an image (Cubuk et al. 2020)
    erase: float = 0.0  # RandomErasing, probability
    fill: int = 0  # grey level of what is moved in from outside, and of erased parts, 0..255

    def __post_init__(self) -> None:
        check_not_negative(self, "padding", "rotate", "colour")
        check_share(self, "flip", "erase")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}; wanted two shares of the area in (0, 1], the smaller one first.")
        if not 0 <= self.rand_augment <= 30 or not 0 <= self.fill <= 255:
            raise ValueError(
                f"rand_augment must be 0 to 30 and fill 0 to 255, got {self.rand_augment} and {self.fill}."
            )


class Transform:
    """uint8 (B, 3, H, W) -> the same, every image on its own."""

    def __init__(self, config: TransformConfig, image_shape: tuple[int, int], seed: int):
        self.seed, steps = seed, []
        fill = [config.fill] * 3
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
            steps.append(v2.RandomErasing(config.erase, value=config.fill))
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
    """Of 63 bits."""
    return int(np.random.Philox(key=[seed, AUGMENT], counter=[0, 0, epoch, position]).random_raw()) >> 1
