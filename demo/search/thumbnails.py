"""Small copies of images as data: addresses inside the page; no file is written."""

import base64
import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

import vlm
from vlm.demo.search.samples import SAMPLES

SIDE = 192  # pixels
LARGE = 1280


def thumbnail(path: Path) -> str:
    """A small copy without the file's metadata, as a data: address; empty for an image that cannot be read."""
    try:
        return _thumbnail(path, path.stat().st_mtime_ns)
    except (OSError, vlm.ImageError):
        return ""


def large_image(path: Path) -> str:
    """A copy of at most `LARGE` pixels a side without the file's metadata, as a data: address; empty if unreadable."""
    try:
        image = vlm.open_image(path)
    except (OSError, vlm.ImageError):
        return ""
    image.thumbnail((LARGE, LARGE))
    return webp_address(image)


def webp_address(image: Image.Image) -> str:
    """An image as a data: address."""
    written = io.BytesIO()
    image.save(written, "WEBP", quality=85)
    return _data_address(written.getvalue())


@lru_cache(maxsize=2048)
def _thumbnail(path: Path, mtime: int) -> str:
    if path.is_relative_to(SAMPLES):
        return _data_address(path.read_bytes())
    small = vlm.open_image(path, to_srgb=True)
    small.thumbnail((SIDE, SIDE))
    return webp_address(small)


def _data_address(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
