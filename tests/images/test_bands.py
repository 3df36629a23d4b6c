"""vlm/images/bands.py and Preprocess for 1, 4 and 13 channels, against Pillow and numpy."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from vlm.config import PreprocessConfig
from vlm.errors import ImageError
from vlm.images.bands import open_bands
from vlm.images.preprocess import Preprocess


def noise(channels: int, dtype: str = "uint8", shape: tuple[int, int] = (20, 30)) -> np.ndarray:
    rng = np.random.default_rng(0)
    highest = {"uint8": 256, "uint16": 65536}.get(dtype)
    if highest is None:
        return rng.random((*shape, channels)).astype(dtype)
    return rng.integers(0, highest, (*shape, channels)).astype(dtype)


def saved(array: np.ndarray, kind: str, folder: Path) -> Path | bytes | np.ndarray:
    match kind:
        case "npy":
            np.save(folder / "a.npy", array)
            return folder / "a.npy"
        case "npy bytes":
            file = io.BytesIO()
            np.save(file, array)
            return file.getvalue()
        case "tiff":
            tifffile.imwrite(folder / "a.tif", array, photometric="minisblack", planarconfig="contig")
            return folder / "a.tif"
        case "tiff bands first":
            bands = np.moveaxis(array, 2, 0).copy()
            tifffile.imwrite(folder / "a.tif", bands, photometric="minisblack", planarconfig="separate")
            return folder / "a.tif"
    return array


@pytest.mark.parametrize("kind", ["array", "npy", "npy bytes", "tiff", "tiff bands first"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_thirteen_bands_are_read_as_they_were_written(kind: str, dtype: str, tmp_path: Path):
    array = noise(13, dtype)
    highest = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    found = open_bands(saved(array, kind, tmp_path), 13)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, array / highest, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_band_is_resized_as_pillow_resizes_it(bits: Literal[8, 16]):
    array = noise(13, "uint16", (40, 40))
    config = PreprocessConfig(image_size=16, resize="squash", mean=(0.5,) * 13, std=(0.25,) * 13, bits=bits)
    pixels = Preprocess(config).pixels(array)
    for band, found in zip(np.moveaxis(array, 2, 0), pixels, strict=True):
        image = Image.fromarray((band / 65535).astype(np.float32))
        expected = np.clip(np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)), 0, 1)
        if bits == 8:
            assert np.abs(found.numpy().astype(int) - (expected * 255).round()).max() <= 1
        else:
            np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert pixels.dtype == (torch.uint8 if bits == 8 else torch.float32)
    normal = Preprocess(config)(array)
    torch.testing.assert_close(normal, ((pixels / 255 if bits == 8 else pixels) - 0.5) / 0.25)


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_one_channel_of_a_grey_image_is_each_of_its_three(resize: Literal["crop", "pad", "squash"], tmp_path: Path):
    Image.fromarray(noise(1)[..., 0]).save(tmp_path / "grey.png")
    three = PreprocessConfig(image_size=16, resize=resize)
    one = PreprocessConfig(image_size=16, resize=resize, mean=(0.5,), std=(0.25,))
    of_one, of_three = (Preprocess(config).pixels(tmp_path / "grey.png").int() for config in (one, three))
    assert of_one.shape == (1, 16, 16)
    assert int((of_one - of_three).abs().max()) <= 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_four_channels_are_colours_and_opacity(mode: str, tmp_path: Path):
    image = Image.fromarray(noise(4)).convert(mode)
    image.save(tmp_path / "a.png")
    config = PreprocessConfig(image_size=(20, 30), resize="squash", mean=(0.5,) * 4, std=(0.25,) * 4)
    with Image.open(tmp_path / "a.png") as again:
        expected = np.asarray(again.convert("RGBA"))
    np.testing.assert_array_equal(Preprocess(config).pixels(tmp_path / "a.png").permute(1, 2, 0), expected)


def test_sixteen_bits_of_a_grey_png_are_kept_where_the_model_wants_them(tmp_path: Path):
    array = noise(1, "uint16")[..., 0]
    Image.fromarray(array).save(tmp_path / "a.png")
    config = PreprocessConfig(image_size=(20, 30), resize="squash", mean=(0.5,), std=(0.25,), bits=16)
    found = Preprocess(config).pixels(tmp_path / "a.png")[0].numpy()
    np.testing.assert_allclose(found, array / 65535, atol=1e-6)
    assert len(np.unique(found)) > 256


@pytest.mark.parametrize(
    ("data", "channels", "reason"),
    [
        (b"\x93NUMPY\x01\x00", 13, "damaged"),
        (b"II*\0" + bytes(20), 13, "damaged"),
        (noise(12), 13, "unsupported format"),
        (noise(13)[0], 13, "not an image"),
        (noise(13).astype("int64"), 13, "not an image"),
        (np.full((4, 4, 13), np.nan, np.float32), 13, "damaged"),
    ],
    ids=["npy", "tiff", "channels", "flat", "type", "nan"],
)
def test_what_cannot_be_read_is_an_image_error(data: bytes | np.ndarray, channels: int, reason: str):
    if isinstance(data, np.ndarray) and data.ndim == 2:
        channels = 1
        data = data[None, None]
    with pytest.raises(ImageError) as found:
        open_bands(data, channels)
    assert found.value.reason == reason


def test_an_ordinary_image_has_no_thirteen_channels(tmp_path: Path):
    Image.fromarray(noise(3)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"3 channels.*13"):
        open_bands(tmp_path / "a.png", 13)


def test_settings_of_older_folders_say_nothing_of_bits():
    assert "bits" not in PreprocessConfig().to_dict()
    assert PreprocessConfig.from_dict(PreprocessConfig(bits=16).to_dict()).bits == 16
