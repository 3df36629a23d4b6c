"""Writes the twelve broken or odd files that every door to the library must survive."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

# file name -> the reason `ImageError` gives, None where the file is odd but right
ODD_IMAGES: dict[str, str | None] = {
    "truncated.jpg": "truncated",
    "empty.jpg": "empty file",
    "text.png": "not an image",
    "dot.png": None,  # 1 x 1
    "line.png": None,  # 20000 x 1
    "cmyk.jpg": None,
    "grey16.png": None,
    "palette_alpha.png": None,
    "animated.webp": None,
    "rotated.jpg": None,
    "bomb.png": "too many pixels",
    "photo.jxl": "unsupported format",
}


def four_corners(width: int = 64, height: int = 48) -> Image.Image:
    """Red, green / blue, yellow: no turn or flip leaves it as it is."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 255, 0, 0
    pixels[: height // 2, width // 2 :] = 0, 255, 0
    pixels[height // 2 :, : width // 2] = 0, 0, 255
    pixels[height // 2 :, width // 2 :] = 255, 255, 0
    return Image.fromarray(pixels)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Every level, no structure: the hardest image to resize equally."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_odd_images(folder: Path) -> dict[str, Path]:
    """Write all twelve into `folder`; file name -> path."""
    paths = {name: folder / name for name in ODD_IMAGES}
    corners = four_corners()

    noise(200, 150).save(paths["truncated.jpg"])
    whole = paths["truncated.jpg"].read_bytes()
    paths["truncated.jpg"].write_bytes(whole[: len(whole) // 2])
    paths["empty.jpg"].touch()
    paths["text.png"].write_text("これは絵ではありません。 This is not an image.\n", encoding="utf-8")

    Image.new("RGB", (1, 1), (10, 20, 30)).save(paths["dot.png"])
    ramp = np.linspace(0, 255, 20000).astype(np.uint8)
    Image.fromarray(np.stack([ramp, ramp, 255 - ramp], axis=-1)[None]).save(paths["line.png"])

    corners.convert("CMYK").save(paths["cmyk.jpg"], quality=95, subsampling=0)
    grey16 = np.linspace(0, 65535, 64 * 48).round().astype(np.uint16).reshape(48, 64)
    Image.fromarray(grey16).save(paths["grey16.png"])

    palette = Image.new("P", (4, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255, 0, 255, 0, 0, 0, 0])
    palette.putdata([0, 1, 2, 3])
    palette.save(paths["palette_alpha.png"], transparency=bytes([255, 128, 0, 255]))

    frames = [corners, Image.new("RGB", corners.size, (0, 0, 0))]
    frames[0].save(paths["animated.webp"], save_all=True, append_images=frames[1:], lossless=True, duration=50)

    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn a quarter clockwise to see it upright
    corners.transpose(Image.Transpose.ROTATE_90).save(paths["rotated.jpg"], quality=95, subsampling=0, exif=exif)

    paths["bomb.png"].write_bytes(_png_header(60_000, 60_000))
    paths["photo.jxl"].write_bytes(b"\xff\x0a\xfa\x7f")
    return paths


def _png_header(width: int, height: int) -> bytes:
    """A valid PNG that declares a huge image and holds a few bytes of it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)
