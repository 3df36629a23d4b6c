"""Colours: embedded profiles against the formulas of their standards, transparency, deep grey, Lab."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from vlm.config import PreprocessConfig
from vlm.images.open import open_image
from vlm.images.preprocess import Preprocess

# Primaries (x, y), the white point D65 and the exponent of the transfer curve
SPACES = {
    "Adobe RGB": (((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), 2.19921875),
    "swapped primaries": (((0.30, 0.60), (0.64, 0.33), (0.15, 0.06)), 2.2),
}
WHITE = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50 = np.array([0.9642, 1, 0.8249])


def to_xyz(primaries: Any) -> np.ndarray:
    """Linear RGB -> XYZ of D65: the columns scaled so that white is white."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    return columns * np.linalg.solve(columns, WHITE)


def profile(name: str) -> bytes:
    """An ICC profile with three primaries and a power curve (ICC.1:2010, sections 8.4 and 10)."""
    primaries, gamma = SPACES[name]
    adapt = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ WHITE)) @ BRADFORD

    def fixed(values: Any) -> bytes:
        return b"".join(round(float(value) * 65536).to_bytes(4, "big", signed=True) for value in values)

    def text(kind: bytes, content: bytes) -> bytes:
        return kind + bytes(4) + content

    described = text(b"desc", (len(name) + 1).to_bytes(4, "big") + name.encode() + b"\0" + bytes(78))
    tags = {b"desc": described, b"cprt": text(b"text", b"none\0"), b"wtpt": text(b"XYZ ", fixed(D50))}
    for letter, column in zip(b"rgb", (adapt @ to_xyz(primaries)).T, strict=True):
        tags[bytes([letter]) + b"XYZ"] = text(b"XYZ ", fixed(column))
        tags[bytes([letter]) + b"TRC"] = text(b"curv", (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big"))
    table, body, at = len(tags).to_bytes(4, "big"), b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        content += bytes(-len(content) % 4)
        table += tag + at.to_bytes(4, "big") + len(content).to_bytes(4, "big")
        body, at = body + content, at + len(content)
    head = bytes(8) + bytes.fromhex("02100000") + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + fixed(D50)
    head = at.to_bytes(4, "big") + head[4:] + bytes(128 - len(head))
    return head[:128] + table + body


def expected(name: str, levels: np.ndarray) -> np.ndarray:
    """The colours in sRGB (IEC 61966-2-1), 0..255, from the definitions alone."""
    primaries, gamma = SPACES[name]
    xyz = (levels / 255) ** gamma @ to_xyz(primaries).T
    srgb = np.array(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)))
    linear = np.clip(xyz @ np.linalg.inv(to_xyz(srgb)).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def inside_srgb(name: str) -> np.ndarray:
    """Colours that sRGB can show, (8, 8, 3), far enough from its edge that clipping plays no part."""
    return np.random.default_rng(0).integers(90, 150, (8, 8, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_an_embedded_profile_becomes_srgb_as_its_definition_says(name: str, kind: str):
    levels = inside_srgb(name)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(levels), kind, icc_profile=profile(name), **options)
    converted = np.asarray(open_image(data, to_srgb=True)).astype(float)
    assert np.abs(converted - expected(name, levels.astype(float))).max() <= 1.5
    assert np.array_equal(np.asarray(open_image(data)), levels)  # as other libraries read it


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_profiles_of_other_modes_are_applied_too(mode: str):
    levels = np.broadcast_to(inside_srgb("Adobe RGB")[:1, :1], (8, 8, 3))
    image = Image.fromarray(np.ascontiguousarray(levels)).convert(mode, palette=Image.Palette.ADAPTIVE)
    converted = np.asarray(open_image(saved(image, "PNG", icc_profile=profile("Adobe RGB")), to_srgb=True)).astype(
        float
    )
    assert np.abs(converted - expected("Adobe RGB", levels.astype(float))).max() <= 1.5


@pytest.mark.parametrize("to_srgb", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (700, 600)], ids=["small", "large"])
def test_a_model_converts_where_its_preprocessing_says_so(to_srgb: bool, size: tuple[int, int]):
    """One colour: resizing does not change it.  The large JPEG takes torch's way."""
    colour = tuple(inside_srgb("Adobe RGB")[0, 0].tolist())
    data = saved(Image.new("RGB", size, colour), "JPEG", quality=100, subsampling=0, icc_profile=profile("Adobe RGB"))
    pixels = Preprocess(PreprocessConfig(image_size=32, to_srgb=to_srgb)).pixels(data)[:, 16, 16].numpy().astype(float)
    wanted = expected("Adobe RGB", np.array(colour, float)) if to_srgb else np.array(colour, float)
    assert np.abs(pixels - wanted).max() <= 2


@pytest.mark.parametrize(
    "icc",
    [
        None,
        b"no profile at all",
        profile("Adobe RGB")[:200],
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    ],
    ids=["none", "garbage", "cut off", "sRGB", "of another colour space"],
)
def test_where_there_is_nothing_to_convert_the_pixels_stay_bit_for_bit(icc: bytes | None):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    data = saved(image, "PNG", icc_profile=icc)
    plain, converting = (Preprocess(PreprocessConfig(image_size=32, to_srgb=to_srgb)) for to_srgb in (False, True))
    assert torch.equal(converting.pixels(data), plain.pixels(data))
    assert np.array_equal(np.asarray(open_image(data, to_srgb=True)), np.asarray(image))


def test_a_lab_image_is_read_as_the_formula_says(tmp_path: Path):
    """CIE 1976: L* = 116 f(Y) - 16; with a* = b* = 0 the image is grey, of this luminance."""
    lightness = np.arange(0, 256, 5)
    lab = np.zeros((1, len(lightness), 3), np.uint8)
    lab[..., 0] = lightness  # a* and b*, signed, are 0
    Image.frombytes("LAB", (len(lightness), 1), lab.tobytes()).save(tmp_path / "lab.tiff")
    star = lightness / 2.55
    linear = np.where(star > 8, ((star + 16) / 116) ** 3, star / 903.3)
    wanted = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    found = np.asarray(open_image(tmp_path / "lab.tiff"))[0].astype(float)
    assert np.abs(found - wanted[:, None]).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_grey_level_is_white_at_any_depth(bits: int):
    top = 2**bits - 1
    levels = np.array([[0, top // 2, top]], np.uint8 if bits == 8 else np.uint16)
    data = saved(Image.fromarray(levels), "PNG", transparency=0)
    assert np.asarray(open_image(data))[0, :, 0].tolist() == [255, 127, 255]


def test_a_deep_grey_map_is_scaled_like_a_deep_png():
    levels = np.linspace(0, 65535, 64).round().astype(">u2").reshape(8, 8)
    data = b"P5\n8 8\n65535\n" + levels.tobytes()
    wanted = levels.astype(float) / 65535 * 255
    assert np.abs(np.asarray(open_image(data))[..., 0] - wanted).max() <= 0.5
