"""Large images, fast: torchvision's JPEG decoder and torch's resizing.  Neither copies the image."""

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_RGB = 3  # torchvision.io.ImageReadMode.RGB


def decode_jpeg(data: bytes) -> np.ndarray | None:
    """Decode a JPEG file of three colours -> uint8 (H, W, 3), the same bits as Pillow's.

    None without torchvision, and for a damaged file: Pillow then says why.  The caller has checked the size in the
    header.
    """
    decode = _decoder()
    if decode is None:
        return None
    try:
        levels = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB, False)  # (3, H, W), not upright
    except RuntimeError:
        return None
    return levels.permute(1, 2, 0).contiguous().numpy()  # already in this order: no copy


@cache
def _decoder() -> Callable[[Tensor, int, bool], Tensor] | None:
    """torchvision's operator.  Only its library is loaded: the package takes a second to import."""
    package = find_spec("torchvision")
    try:
        folders = list(package.submodule_search_locations or ()) if package else []
        torch.ops.load_library(os.path.join(folders[0], "image_stable.so"))
        return torch.ops.image.decode_jpeg.default
    except (IndexError, OSError, AttributeError):  # not installed, or a version without it
        return None


def shrink(levels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resize to half the size or less, 1 level from Pillow's result at most.

    Args:
        levels: uint8 (H, W, C).
        size: (width, height) of the result.
        interpolation: "bicubic" or "bilinear".

    Returns:
        uint8 (height, width, C).
    """
    batch = torch.from_numpy(levels).permute(2, 0, 1)[None]  # (1, C, H, W), channels last: torch's fast case
    small = F.interpolate(batch, size[::-1], mode=interpolation, antialias=True)
    return small[0].permute(1, 2, 0).contiguous().numpy()
