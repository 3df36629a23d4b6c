"""Images become the same pixels as in OpenCLIP, timm and Hugging Face."""

from typing import Any

import numpy as np
import open_clip.transform
import pytest
import torch
import transformers
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor

from tests.support.odd_images import noise
from vlm.config import PreprocessConfig
from vlm.images.preprocess import Preprocess

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


@pytest.fixture(scope="module")
def odd_sized() -> list[Image.Image]:
    """20 images, smaller and larger than the frame, up to 12 times as long as wide."""
    sides = np.random.default_rng(7).integers(33, 500, (20, 2))
    return [noise(int(width), int(height), seed) for seed, (width, height) in enumerate(sides)]


def levels_apart(ours: Tensor, theirs: Tensor) -> int:
    assert ours.dtype == torch.uint8 and ours.shape == theirs.shape
    return int((ours.int() - theirs.round().int()).abs().max())


@pytest.mark.parametrize("resize, mode", [("crop", "shortest"), ("squash", "squash"), ("pad", "longest")])
@pytest.mark.parametrize("size", [64, (48, 80)])
def test_pixels_are_openclips(
    odd_sized: list[Image.Image], resize: str, mode: str, size: int | tuple[int, int]
) -> None:
    ours = Preprocess(PreprocessConfig.from_dict({"image_size": size, "resize": resize, "fill": 127}))
    theirs: Any = open_clip.transform.image_transform(
        size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, interpolation="bicubic", fill_color=127
    )
    assert [levels_apart(ours.pixels(image), theirs(image) * 255) for image in odd_sized] == [0] * 20


@pytest.mark.parametrize("resize, mode", [("crop", "center"), ("squash", "squash")])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize("crop_pct, size", [(0.875, 64), (0.9, (48, 80))])
def test_pixels_are_timms(
    odd_sized: list[Image.Image],
    resize: str,
    mode: str,
    interpolation: str,
    crop_pct: float,
    size: int | tuple[int, int],
) -> None:
    settings = {"image_size": size, "resize": resize, "interpolation": interpolation, "crop_pct": crop_pct}
    ours = Preprocess(PreprocessConfig.from_dict(settings))
    theirs: Any = create_transform(
        input_size=size,
        is_training=False,
        interpolation=interpolation,
        crop_pct=crop_pct,
        crop_mode=mode,
        normalize=False,
    )
    assert [levels_apart(ours.pixels(image), theirs(image)) for image in odd_sized] == [0] * 20


HUGGING_FACE = [
    ("CLIPImageProcessor", PreprocessConfig(crop_rounding="down")),
    ("SiglipImageProcessor", PreprocessConfig(resize="squash")),
    ("ViTImageProcessor", PreprocessConfig(resize="squash", interpolation="bilinear")),
]


@pytest.mark.parametrize("name, config", HUGGING_FACE)
def test_pixels_are_hugging_faces(odd_sized: list[Image.Image], name: str, config: PreprocessConfig) -> None:
    ours = Preprocess(config)
    theirs = getattr(transformers, name + "Pil")(do_rescale=False, do_normalize=False)
    for image in odd_sized:
        pixels = theirs(image, return_tensors="pt")["pixel_values"][0]
        assert levels_apart(ours.pixels(image), pixels) == 0


@pytest.mark.parametrize(
    "side, crop", [(400, 224), (225, 192), (450, 384), (400, 299), (491, 448), (256, 224), (248, 224)]
)
def test_a_resize_side_is_exactly_what_hugging_face_resizes_to(side: int, crop: int) -> None:
    """As a fraction some would be a pixel short: 224 / (224 / 400) is 399.99..."""
    ours = Preprocess(PreprocessConfig(image_size=crop, resize_side=side, crop_rounding="down"))
    theirs = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size=crop, do_rescale=False, do_normalize=False
    )
    for image in (noise(500, 333), noise(211, 640), noise(333, 500), noise(2400, 1600)):
        pixels = theirs(image, return_tensors="pt")["pixel_values"][0]
        assert levels_apart(ours.pixels(image), pixels) <= (image.width > 1000)  # large: torch's rounding


@pytest.mark.parametrize("crop_pct, size", [(0.875, 224), (0.9, 224), (0.95, 288), (0.8, (24, 30))])
def test_a_fraction_of_an_older_folder_names_the_same_side(crop_pct: float, size: int | tuple[int, int]) -> None:
    older = PreprocessConfig(image_size=size, crop_pct=crop_pct)
    side = older.resize_shape if isinstance(size, tuple) else older.resize_shape[0]
    image = noise(500, 333)
    newer = Preprocess(PreprocessConfig(image_size=size, resize_side=side))
    assert torch.equal(Preprocess(older).pixels(image), newer.pixels(image))


@pytest.mark.parametrize("name, config", HUGGING_FACE)
def test_pixels_are_hugging_faces_without_pillow_but_for_rounding(
    odd_sized: list[Image.Image], name: str, config: PreprocessConfig
) -> None:
    """Its other backend, torchvision on tensors, is itself up to 2 levels from Pillow, in 1 value of 100,000."""
    ours = Preprocess(config)
    theirs = getattr(transformers, name)(do_rescale=False, do_normalize=False)
    pixels = [theirs(image, return_tensors="pt")["pixel_values"][0] for image in odd_sized]
    apart = torch.stack([ours.pixels(a).int() - b.int() for a, b in zip(odd_sized, pixels, strict=True)]).abs()
    assert apart.max() <= 2 and (apart > 1).float().mean() < 1e-5


def test_normalised_pixels_are_openclips() -> None:
    config = PreprocessConfig(image_size=32)
    theirs: Any = open_clip.transform.image_transform(32, is_train=False, mean=config.mean, std=config.std)
    image = noise(50, 41)
    torch.testing.assert_close(Preprocess(config)(image), theirs(image), rtol=0, atol=1e-6)


def test_normalize_takes_levels_and_fractions_of_a_batch() -> None:
    prepare = Preprocess(PreprocessConfig(image_size=16))
    images = [noise(30, 20, seed) for seed in range(3)]
    batch = torch.stack([prepare.pixels(image) for image in images])
    one_by_one = torch.stack([prepare(image) for image in images])
    torch.testing.assert_close(prepare.normalize(batch), one_by_one, rtol=0, atol=0)
    torch.testing.assert_close(prepare.normalize(batch.double() / 255), one_by_one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("width, height", [(3000, 20), (20, 3000), (3001, 1), (1, 3000)])
def test_long_images_are_resized_as_if_whole(width: int, height: int) -> None:
    side, image = 8, noise(width, height)
    tall = image.resize((side, int(side * height / width)) if width <= height else (int(side * width / height), side))
    left, top = round((tall.width - side) / 2), round((tall.height - side) / 2)
    whole = np.asarray(tall.crop((left, top, left + side, top + side)))
    ours = Preprocess(PreprocessConfig(image_size=side)).pixels(image)
    assert levels_apart(ours, torch.tensor(whole).permute(2, 0, 1)) <= 1


@pytest.mark.parametrize("rounding, fraction", [("first", 0.0), ("down", 0.5), ("even", 0.5)])
def test_a_frame_is_cut_where_its_rounding_says(rounding: str, fraction: float) -> None:
    """SigLIP 384 / 14 ("first") is a patch convolution's: it leaves out what is left over on the right and below."""
    image, (height, width) = noise(40, 50), (24, 30)
    settings = {"image_size": (height, width), "resize": "squash", "crop_pct": 0.8, "crop_rounding": rounding}
    whole = np.asarray(image.resize((37, 30), Image.Resampling.BICUBIC))  # 7 and 6 left over
    top, left = int(6 * fraction), round(7 * fraction) if rounding == "even" else int(7 * fraction)
    cut = torch.tensor(whole[top : top + height, left : left + width]).permute(2, 0, 1)
    assert torch.equal(Preprocess(PreprocessConfig.from_dict(settings)).pixels(image), cut)


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("width, height", [(20000, 1), (1, 20000), (1, 1)])
def test_one_colour_stays_one_colour_at_any_shape(resize: str, width: int, height: int) -> None:
    config = PreprocessConfig.from_dict({"resize": resize, "fill": 77})
    pixels = Preprocess(config).pixels(Image.new("RGB", (width, height), (77, 77, 77)))
    assert torch.equal(pixels, torch.full((3, 224, 224), 77, dtype=torch.uint8))
