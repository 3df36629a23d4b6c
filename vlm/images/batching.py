"""One image or many, as batches of pixels."""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm.errors import InputError
from vlm.images.open import ImageSource, Readable


def each_image(images: ImageSource | Iterable[ImageSource]) -> Iterator[ImageSource]:
    """The images of an iterable, or the one image that is given in place of it."""
    if isinstance(images, str | bytes | os.PathLike | Image.Image | Readable) or (
        isinstance(images, np.ndarray) and images.ndim <= 3
    ):
        yield images
    elif isinstance(images, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        yield from images
    else:
        raise InputError(f"wanted an image or an iterable of images, got {type(images).__name__}.")


def pixel_batches(
    images: ImageSource | Iterable[ImageSource], preprocess: Callable[[ImageSource], Tensor], batch_size: int
) -> Iterator[Tensor]:
    """Pixels of at most `batch_size` images at a time, (B, C, H, W).

    Args:
        images: one image, or an iterable of images, which is read only as far as needed.
        preprocess: image -> (C, H, W).
        batch_size: B at most.
    """
    remaining = each_image(images)
    while batch := list(islice(remaining, batch_size)):
        yield torch.stack([preprocess(image) for image in batch])
