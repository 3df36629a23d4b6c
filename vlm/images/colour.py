"""Any colour mode -> RGB on white; embedded colour profiles -> sRGB."""

import io
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

from vlm.errors import ImageError

_PROFILE_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}  # a profile's colour space -> Pillow's mode


def flatten(image: Image.Image, name: str, *, to_srgb: bool = False) -> Image.Image:
    """Convert a decoded image to RGB, transparency on white.

    Args:
        image: of any mode.
        name: stands in the error.
        to_srgb: apply an embedded profile of a grey or CMYK image.  That of an RGB image is `srgb_transform`.

    Raises:
        ImageError: the mode has no agreed way to RGB.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow would clip at 255
        return _eight_bits(image)
    if image.mode == "LAB":
        return _lab_to_rgb(image, name)
    if image.mode in ("I", "F"):
        detail = f"colour mode {image.mode} has no agreed way to RGB; save it with 8 or 16 bits per channel"
        raise ImageError(name, "unsupported format", detail)
    key: object = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:  # pyright: ignore[reportUnknownArgumentType]
        image = image.copy()  # 16-bit colours, of which Pillow keeps the upper 8 bits
        image.info["transparency"] = tuple(int(level) >> 8 for level in key)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if image.has_transparency_data:
        rgba, white = image.convert("RGBA"), Image.new("RGB", image.size, (255, 255, 255))
        white.paste(rgba, mask=rgba)
        return white
    if to_srgb and image.mode in ("L", "CMYK") and (transform := _transform(image)) is not None:
        return ImageCms.applyTransform(image, transform) or image.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def srgb_transform(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """The conversion from an RGB image's embedded profile to sRGB.

    None without a profile, where it is sRGB already, and where it is damaged or of another colour space: the numbers
    then stand for sRGB, as browsers read them.
    """
    return None if image.mode in ("L", "I", "F", "CMYK", "LAB") else _transform(image)


def apply(transform: ImageCms.ImageCmsTransform | None, image: Image.Image) -> Image.Image:
    """An RGB image in sRGB; unchanged where there is nothing to convert."""
    return image if transform is None else ImageCms.applyTransform(image, transform) or image


def _transform(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    profile = image.info.get("icc_profile")
    mode = image.mode if image.mode in ("L", "CMYK") else "RGB"
    return _cached_transform(profile, mode) if isinstance(profile, bytes) and profile else None


@lru_cache(maxsize=64)  # photographs of one camera share a profile
def _cached_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _PROFILE_MODES.get(profile[16:20]) != mode:  # ICC.1:2010, section 7.2.6
            return None
        if mode == "RGB" and ImageCms.getProfileDescription(source).strip().startswith("sRGB"):
            return None
        return ImageCms.buildTransform(source, _profile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):  # damaged metadata is no damaged image
        return None


def _profile(space: Literal["sRGB", "LAB"]) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space))  # pyright: ignore[reportUnknownArgumentType]


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey -> the nearest of 256 levels; the transparent level becomes white."""
    levels = np.asarray(image).astype(np.uint32)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels = np.where(levels == transparent, 65535, levels)
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")


def _lab_to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        converted = ImageCms.profileToProfile(image, _profile("LAB"), _profile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        detail = "colour mode LAB needs a Pillow with LittleCMS; save it as RGB"
        raise ImageError(name, "unsupported format", detail) from error
    assert converted is not None
    return converted
