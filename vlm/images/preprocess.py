"""Images -> pixels, bit for bit as the library that trained the model does it (`Preprocess`)."""

import math
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageCms
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from vlm.config import PreprocessConfig
from vlm.errors import InputError
from vlm.images.bands import open_bands
from vlm.images.colour import apply, srgb_transform
from vlm.images.large_jpegs import decode_jpeg, shrink
from vlm.images.open import ON_ITS_SIDE, UPRIGHT, ImageSource, OpenedImage, decode, open_header, orientation_of
from vlm.images.svg import SvgImage

Decoding = Literal["exact", "near", "scaled"]

_LARGE = 2**18  # pixels, 512 x 512
_WHOLE = 2**25  # pixels of a resized image that exact preprocessing makes before it cuts, 100 MB
_SPARE = 1.6  # how many times as large as the resized image a scaled one is at least


class Preprocess:
    """Image -> pixels, as `config` says: those of OpenCLIP, timm and Hugging Face, bit for bit (`tests/images`).

    Where `config.exact` is false, as in models trained here, torch shrinks large images: in a fifth to a tenth of
    Pillow's time, 1 level from its result at most.

    Args:
        config: size, resizing, mean and standard deviation.
        decoding: "near" has torch shrink JPEG files of any size (training uses it): 1 level from "exact" at most, 2 in
            some values of a million where a side becomes smaller by less than a half.  "scaled" decodes JPEG files at a
            half, a quarter or an eighth where that is still `_SPARE` times as large as needed, about half a level away
            on average (benchmarks/decoding.md).  Neither is ever exact.

    Raises:
        InputError: there is no such decoding.
    """

    def __init__(self, config: PreprocessConfig, *, decoding: Decoding = "exact") -> None:
        if decoding not in get_args(Decoding):
            raise InputError(f"decoding is {decoding!r}; it must be one of {', '.join(get_args(Decoding))}.")
        self.config = config
        self.decoding: Decoding = decoding
        self._filter = Image.Resampling[config.interpolation.upper()]
        self._mean = torch.tensor(config.mean).view(-1, 1, 1)
        self._std = torch.tensor(config.std).view(-1, 1, 1)

    def near(self) -> "Preprocess":
        """The same with "near" decoding, for training, where it says nothing else."""
        return Preprocess(self.config, decoding="near") if self.decoding == "exact" else self

    def __call__(self, image: ImageSource) -> Tensor:
        """Image -> float32 (C, H, W), normalised.  May raise `ImageError`."""
        return self.normalize(self.pixels(image))

    def pixels(self, image: ImageSource) -> Tensor:
        """Image -> uint8 (C, H, W), before mean and standard deviation.  May raise `ImageError`."""
        return self.pixels_and_size(image)[0]

    def pixels_and_size(self, source: ImageSource | OpenedImage) -> tuple[Tensor, tuple[int, int]]:
        """Prepare an image.

        Args:
            source: as in `open_image`, or opened already; for a model of other than 3 channels, or of 16 bits, as in
                `open_bands`.

        Returns:
            Pixels, uint8 (C, H, W), or float32 from 0 to 1 for a model of 16 bits; and the (width, height) of the image
            itself, upright.

        Raises:
            ImageError: the image cannot be used; it names the file.
        """
        if self.config.channels != 3 or self.config.bits == 16:
            return self._band_pixels(source)
        opened = source if isinstance(source, OpenedImage) else open_header(source)
        if opened.data is not None and isinstance(opened.image, JpegImageFile):
            image, size = self._fit_jpeg(opened, opened.data)
            if isinstance(image, np.ndarray):
                return torch.from_numpy(image).permute(2, 0, 1).contiguous(), size
        else:
            if isinstance(opened.image, SvgImage) and not self._is_band(opened.image.size):
                opened.image.render_at(self._resized(*opened.image.size))
            whole, transform = decode(opened, to_srgb=self.config.to_srgb)
            image, size = self._fit(whole, whole.size, transform), whole.size
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), size

    def _fit_jpeg(self, opened: OpenedImage, data: bytes) -> tuple[Image.Image | np.ndarray, tuple[int, int]]:
        orientation = orientation_of(opened)
        width, height = opened.image.size
        size = (height, width) if orientation in ON_ITS_SIDE else (width, height)
        if self.decoding == "scaled" and (factor := self._factor(size)) > 1:
            opened.image.draft(None, (width // factor, height // factor))  # type: ignore[arg-type]  # None: same colours
        elif (
            opened.image.mode == "RGB"
            and orientation not in UPRIGHT
            and (self._torch_can_shrink(size) if self.decoding == "near" else self._is_large(size))
        ):
            levels = decode_jpeg(data)
            if levels is not None and levels.shape == (height, width, 3):
                transform = srgb_transform(opened.image) if self.config.to_srgb else None
                small = self._shrink(levels, size)
                if transform is None and self._covers(small.shape[1], small.shape[0]):
                    return self._cut(small), size
                return self._frame(apply(transform, Image.fromarray(small))), size
        image, transform = decode(opened, to_srgb=self.config.to_srgb)
        return self._fit(image, size, transform), size

    def _band_pixels(self, source: ImageSource | OpenedImage) -> tuple[Tensor, tuple[int, int]]:
        """The same for any number of channels, each resized by itself."""
        if isinstance(source, OpenedImage):
            source = source.image if source.data is None else source.data
        levels = open_bands(source, self.config.channels)  # (H, W, C)
        size = (levels.shape[1], levels.shape[0])
        fitted = [self._fit_band_level(Image.fromarray(band), size) for band in np.moveaxis(levels, 2, 0)]
        pixels = torch.from_numpy(np.stack(fitted)).clamp_(0, 1)
        return (pixels if self.config.bits == 16 else (pixels * 255).round_().to(torch.uint8)), size

    def _fit_band_level(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        """One channel as floats, resized, then cut or padded, (H, W)."""
        if self._is_band(size):
            return np.asarray(self._fit_band(image, *self._resized(*size)))
        height, width = self.config.image_shape
        resized = image.resize(self._resized(*size), self._filter)
        left, top = self._offset(resized.width, 1), self._offset(resized.height, 0)
        frame = Image.new("F", (width, height), self.config.fill / 255)
        frame.paste(resized, (-left, -top))
        return np.asarray(frame)

    def _factor(self, size: tuple[int, int]) -> int:
        """Returns the largest allowed scale factor for decoding a JPEG of this (width, height)."""
        sides = tuple(zip(size, self._resized(*size), strict=True))
        allowed = (f for f in (8, 4, 2) if all(side % f == 0 and side >= f * _SPARE * new for side, new in sides))
        return next(allowed, 1)

    def normalize(self, pixels: Tensor) -> Tensor:
        """(x - mean) / std: uint8 0..255, or float 0..1, (..., C, H, W) -> float32 of the same shape."""
        levels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        return (levels - self._mean.to(levels.device)) / self._std.to(levels.device)

    def _fit(
        self, image: Image.Image, size: tuple[int, int], transform: ImageCms.ImageCmsTransform | None = None
    ) -> Image.Image:
        """Resize, convert the colours, then cut or pad.

        Args:
            image: RGB, at most as large as `size` says: a scaled JPEG is smaller.
            size: (width, height) of the image itself.
            transform: to sRGB, from `decode`.
        """
        if self._is_band(size):
            return apply(transform, self._fit_band(image, *self._resized(*size)))
        if self._is_large(size) and not self._exact:
            return self._frame(apply(transform, Image.fromarray(self._shrink(np.array(image), size))))
        return self._frame(apply(transform, image.resize(self._resized(*size), self._filter)))

    @property
    def _exact(self) -> bool:
        return self.config.exact and self.decoding == "exact"

    def _shrink(self, levels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if self._exact:
            return np.array(Image.fromarray(levels).resize(self._resized(*size), self._filter))
        return shrink(levels, self._resized(*size), self.config.interpolation)

    def _covers(self, width: int, height: int) -> bool:
        """Returns True if a resized image of this size fills the model's."""
        left, top = self._offset(width, 1), self._offset(height, 0)
        wanted_height, wanted_width = self.config.image_shape
        return min(left, top) >= 0 and width >= left + wanted_width and height >= top + wanted_height

    def _cut(self, levels: np.ndarray) -> np.ndarray:
        """Cut around the centre: (H', W', C), at least as large -> (H, W, C)."""
        height, width = self.config.image_shape
        left, top = self._offset(levels.shape[1], 1), self._offset(levels.shape[0], 0)
        return levels[top : top + height, left : left + width]

    def _frame(self, image: Image.Image) -> Image.Image:
        """Cut or pad around the centre to (H, W)."""
        height, width = self.config.image_shape
        if image.size == (width, height):
            return image
        left, top = self._offset(image.width, 1), self._offset(image.height, 0)
        if self._covers(image.width, image.height):
            return image.crop((left, top, left + width, top + height))
        frame = Image.new("RGB", (width, height), (self.config.fill,) * 3)
        frame.paste(image, (-left, -top))
        return frame

    def _is_band(self, size: tuple[int, int]) -> bool:
        """Returns True if the image is so long that, resized whole, it might not fit in memory."""
        largest = 32 * math.prod(self.config.image_shape)
        if self.config.exact:
            largest = max(largest, _WHOLE)
        return self.config.resize == "crop" and math.prod(self._resized(*size)) > largest

    def _is_large(self, size: tuple[int, int]) -> bool:
        """Returns True if torch may decode and shrink the image; Pillow resizes all smaller ones, bit for bit."""
        return math.prod(size) >= _LARGE and self._torch_can_shrink(size, 2)

    def _torch_can_shrink(self, size: tuple[int, int], factor: int = 1) -> bool:
        """Returns True if torch can resize the image, and each side becomes smaller by this factor or more."""
        if self.config.interpolation not in ("bicubic", "bilinear") or self._is_band(size):
            return False
        width, height = self._resized(*size)
        return size[0] >= factor * width and size[1] >= factor * height

    def _fit_band(self, image: Image.Image, new_width: int, new_height: int) -> Image.Image:
        """Resize and cut in one, so that only the middle is computed.

        Other images take the exact way: Pillow keeps the box in float32, which moves about 1 value in 3000 by a level.
        """
        height, width = self.config.image_shape
        left, top = self._offset(new_width, 1), self._offset(new_height, 0)
        across, down = image.width / new_width, image.height / new_height
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return image.resize((width, height), self._filter, box=box)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the whole image after resizing."""
        scaled_height, scaled_width = self.config.resize_shape
        if self.config.resize == "squash":
            return scaled_width, scaled_height
        if self.config.resize == "crop" and scaled_width == scaled_height:  # torchvision.transforms.Resize(side)
            short, long = sorted((width, height))
            new_long = int(scaled_width * long / short)
            return (scaled_width, new_long) if width <= height else (new_long, scaled_width)
        ratios = height / scaled_height, width / scaled_width  # timm's and OpenCLIP's ResizeKeepRatio
        ratio = max(ratios) if self.config.resize == "pad" else min(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _offset(self, side: int, axis: int) -> int:
        """Returns the offset of the crop in a side of the resized image; negative where the image is smaller.

        Args:
            side: of the resized image.
            axis: 0 is the height, 1 the width.
        """
        first = self.config.crop_rounding == "first"  # the top left of the crop that the model's own library makes
        spare = side - (self.config.resize_shape if first else self.config.image_shape)[axis]
        if spare < 0:
            return -(-spare // 2)
        return spare // 2 if self.config.crop_rounding == "down" else round(spare / 2)
