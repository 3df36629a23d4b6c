"""What the tests of `vlm serve` send."""

import base64
import io

import numpy as np
from PIL import Image


def png(seed: int = 0, side: int = 24) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def base64_of(file: bytes) -> str:
    return base64.b64encode(file).decode()
