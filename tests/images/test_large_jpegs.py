"""The fast path of large images: one level from Pillow's pixels at most, and the same refusals."""

import io
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import open_clip.transform
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from tests.support.odd_images import ODD_IMAGES, noise, write_odd_images
from vlm.config import PreprocessConfig
from vlm.errors import ImageError
from vlm.images import large_jpegs as large_images
from vlm.images import preprocess
from vlm.images.large_jpegs import decode_jpeg, shrink
from vlm.images.open import open_image
from vlm.images.preprocess import Preprocess


def levels_apart(ours: Tensor, theirs: Tensor) -> int:
    assert ours.dtype == theirs.dtype == torch.uint8 and ours.shape == theirs.shape
    return int((ours.int() - theirs.int()).abs().max())


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes of several sizes and a little noise: JPEG keeps it, as it keeps a photograph."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(noise(max(1, width // side), max(1, height // side), seed + side).resize((width, height)), float)
        for side in (256, 64, 16)
    ]
    levels = np.mean(layers, axis=0) + rng.normal(0, 3, (height, width, 3))
    return Image.fromarray(levels.clip(0, 255).round().astype(np.uint8))


def jpeg(image: Image.Image, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **settings)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


LARGE_JPEGS = {
    "plain": jpeg(photo(1024, 600)),
    "upright": jpeg(photo(601, 1023)),
    "whole colours": jpeg(photo(1024, 600), subsampling=0, quality=95),
    "progressive": jpeg(photo(1024, 600), progressive=True),
    "RGB inside": jpeg(photo(1024, 600), keep_rgb=True),
    "restarts": jpeg(photo(1024, 600), restart_marker_rows=1),
    "grey": jpeg(photo(1024, 600).convert("L")),
    "CMYK": jpeg(photo(1024, 600).convert("CMYK")),
    "profile": jpeg(photo(1024, 600), icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
    **{f"orientation {n}": jpeg(photo(1024, 600), exif=turned(n)) for n in range(1, 9)},
}


def by_pillow(data: bytes, size: int, resize: str, interpolation: str) -> Tensor:
    """What OpenCLIP makes of the upright image, which Pillow decodes and resizes: uint8 (3, H, W)."""
    mode = {"crop": "shortest", "pad": "longest", "squash": "squash"}[resize]
    transform: Any = open_clip.transform.image_transform(
        size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, interpolation=interpolation, fill_color=9
    )
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright is not None
    return (transform(upright.convert("RGB")) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("name", LARGE_JPEGS)
@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_an_exact_large_jpeg_has_pillows_bits(name: str, resize: str, interpolation: str) -> None:
    data = LARGE_JPEGS[name]
    settings = {"image_size": 96, "resize": resize, "fill": 9, "interpolation": interpolation, "exact": True}
    prepare = Preprocess(PreprocessConfig.from_dict(settings))
    theirs = by_pillow(data, 96, resize, interpolation)
    assert torch.equal(prepare.pixels(data), theirs)
    lossless = io.BytesIO()  # another kind of file, and an image in memory
    open_image(data).save(lossless, "PNG")
    assert torch.equal(prepare.pixels(lossless.getvalue()), theirs)
    assert torch.equal(prepare.pixels(open_image(data)), theirs)


@pytest.mark.parametrize("name", LARGE_JPEGS)
@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_a_large_jpeg_is_one_level_from_pillows_at_most(name: str, resize: str) -> None:
    data = LARGE_JPEGS[name]
    ours = Preprocess(PreprocessConfig.from_dict({"image_size": 96, "resize": resize, "fill": 9})).pixels(data)
    theirs = by_pillow(data, 96, resize, "bicubic")
    assert levels_apart(ours, theirs) <= 1
    assert (ours != theirs).float().mean() < 0.02  # and seldom one


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("width, height", [(2000, 1500), (512, 512), (3000, 100), (450, 1400)])
@pytest.mark.parametrize("black_and_white", [True, False])
def test_the_sharpest_large_image_is_one_level_from_pillows_at_most(
    width: int, height: int, interpolation: str, black_and_white: bool
) -> None:
    image = noise(width, height)
    if black_and_white:
        image = Image.fromarray(np.where(np.asarray(image) < 128, 0, 255).astype(np.uint8))
    ours = Preprocess(PreprocessConfig.from_dict({"image_size": 32, "interpolation": interpolation})).pixels(image)
    resized = image.resize(
        (32, 32 * height // width) if width <= height else (32 * width // height, 32),
        Image.Resampling[interpolation.upper()],
    )
    left, top = round((resized.width - 32) / 2), round((resized.height - 32) / 2)
    theirs = torch.tensor(np.asarray(resized.crop((left, top, left + 32, top + 32)))).permute(2, 0, 1)
    assert levels_apart(ours, theirs) <= 1


def test_torchvisions_decoder_is_used_and_gives_pillows_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(data: bytes) -> np.ndarray | None:
        calls.append(len(data))
        return decode_jpeg(data)

    monkeypatch.setattr(preprocess, "decode_jpeg", counted)
    prepare = Preprocess(PreprocessConfig(image_size=96))
    pixels = {name: prepare.pixels(data) for name, data in LARGE_JPEGS.items()}
    assert len(calls) == 8  # three colours, not to be turned
    monkeypatch.setattr(preprocess, "decode_jpeg", lambda data: None)  # as without torchvision
    assert all(torch.equal(prepare.pixels(data), pixels[name]) for name, data in LARGE_JPEGS.items())


@pytest.mark.parametrize("name", LARGE_JPEGS)
def test_scaled_decoding_is_less_than_a_level_away_on_average(name: str) -> None:
    for resize in ("crop", "squash"):
        config = PreprocessConfig.from_dict({"image_size": 96, "resize": resize})
        exact, scaled = Preprocess(config), Preprocess(config, decoding="scaled")
        apart = (exact.pixels(LARGE_JPEGS[name]).int() - scaled.pixels(LARGE_JPEGS[name]).int()).abs().float()
        assert (0 < apart.mean() < 0.6) == (name != "upright")  # a side of 601 has no half in whole pixels
        assert exact.pixels_and_size(LARGE_JPEGS[name])[1] == scaled.pixels_and_size(LARGE_JPEGS[name])[1]


@pytest.mark.parametrize("name", ["plain", "upright", "orientation 6", "grey"])
@pytest.mark.parametrize("resize, interpolation", [("crop", "bicubic"), ("pad", "bilinear"), ("squash", "bicubic")])
@pytest.mark.parametrize("size", [96, 300, 900])  # from a tenth to larger than the file
def test_near_decoding_is_one_level_from_pillows_but_for_a_few_values_of_a_million(
    name: str, resize: str, interpolation: str, size: int
) -> None:
    config = {"image_size": size, "resize": resize, "interpolation": interpolation, "fill": 9}
    near = Preprocess(PreprocessConfig.from_dict(config), decoding="near").pixels(LARGE_JPEGS[name])
    apart = (near.int() - by_pillow(LARGE_JPEGS[name], size, resize, interpolation).int()).abs()
    assert int(apart.max()) <= 2
    assert float((apart > 1).float().mean()) < 1e-4


@pytest.mark.parametrize("decoding", ["near", "scaled"])
def test_other_decoding_changes_jpeg_files_alone_and_no_image_of_the_caller(decoding: preprocess.Decoding) -> None:
    scaled, exact = (Preprocess(PreprocessConfig(image_size=32), decoding=d) for d in (decoding, "exact"))
    file = io.BytesIO()
    photo(600, 500).save(file, "PNG")
    lazy = Image.open(io.BytesIO(LARGE_JPEGS["plain"]))
    for image in (file.getvalue(), lazy, jpeg(photo(31, 70))):
        assert torch.equal(scaled.pixels(image), exact.pixels(image))
    assert lazy.size == (1024, 600)


def test_the_size_is_that_of_the_upright_file(tmp_path: Path) -> None:
    odd = write_odd_images(tmp_path)
    for decoding in get_args(preprocess.Decoding):
        prepare = Preprocess(PreprocessConfig(image_size=32), decoding=decoding)
        for image in [*LARGE_JPEGS.values(), *(odd[name] for name, reason in ODD_IMAGES.items() if reason is None)]:
            assert prepare.pixels_and_size(image)[1] == open_image(image).size


def test_an_unknown_decoding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'quick'.*exact, near, scaled"):
        Preprocess(PreprocessConfig(), decoding="quick")  # type: ignore[arg-type]


def why_not(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(data)
    return caught.value.reason


@pytest.mark.parametrize("decoding", get_args(preprocess.Decoding))
@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_large_jpeg_is_refused_with_pillows_reason_or_whole(
    decoding: preprocess.Decoding, progressive: bool
) -> None:
    data = jpeg(photo(640, 480), progressive=progressive)
    prepare = Preprocess(PreprocessConfig(image_size=32), decoding=decoding)
    whole, refused = prepare.pixels(data), 0
    for keep in {*range(1, len(data), len(data) // 40), len(data) - 1, len(data) - 2}:
        try:
            assert torch.equal(prepare.pixels(data[:keep]), whole)
        except ImageError as error:
            refused += 1
            assert error.reason == why_not(data[:keep])
    assert refused >= 35


@pytest.mark.parametrize("progressive", [False, True])
def test_torchvisions_decoder_takes_no_damaged_file_that_pillow_refuses(progressive: bool) -> None:
    """Where both take it, the bits are the same: what is wrong in a file is Pillow's to say."""
    sound = np.frombuffer(jpeg(photo(64, 48), progressive=progressive), np.uint8)
    rng, taken = np.random.default_rng(5), 0
    for _ in range(150):
        damaged = sound.copy()
        damaged[rng.integers(2, len(sound), 3)] = rng.integers(0, 256, 3)
        data = damaged.tobytes()
        try:
            opened = Image.open(io.BytesIO(data), formats=("JPEG",))
        except Exception:  # nothing is decoded then
            continue
        if opened.mode != "RGB" or opened.width * opened.height > 10_000:
            continue
        levels = decode_jpeg(data)
        if levels is not None:
            taken += 1
            assert np.array_equal(levels, np.asarray(open_image(data)))
    assert taken >= 20


@pytest.mark.parametrize("found", ["nothing", "no folder", "no library", "no decoder", "all"])
def test_without_torchvisions_decoder_the_fast_path_is_not_taken(
    found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not installed; a broken installation; a version whose library lies elsewhere; one without this operator."""
    package = ModuleSpec("torchvision", None, is_package=True)
    package.submodule_search_locations = [] if found == "no folder" else [str(tmp_path)]
    if found != "all":
        monkeypatch.setattr(large_images, "find_spec", lambda name: None if found == "nothing" else package)
    if found == "no decoder":
        monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
        monkeypatch.setattr(torch.ops, "image", None)
    decoder = large_images._decoder.__wrapped__()  # pyright: ignore[reportPrivateUsage]
    assert (decoder is not None) == (found == "all")
    monkeypatch.setattr(large_images, "_decoder", lambda: decoder)
    levels = decode_jpeg(LARGE_JPEGS["plain"])
    assert (levels is not None) == (found == "all")
    assert decode_jpeg(LARGE_JPEGS["plain"][:500]) is None


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_shrinking_takes_width_and_height_and_keeps_the_order_of_bytes(interpolation: str) -> None:
    levels = np.array(noise(90, 60))
    small = shrink(levels, (30, 10), interpolation)
    assert small.shape == (10, 30, 3) and small.dtype == np.uint8 and small.flags.c_contiguous
    pillows = Image.fromarray(levels).resize((30, 10), Image.Resampling[interpolation.upper()])
    assert np.abs(small.astype(int) - np.asarray(pillows).astype(int)).max() <= 1


@pytest.mark.parametrize("decoding", get_args(preprocess.Decoding))
def test_the_cap_is_checked_before_a_large_jpeg_is_decoded(
    decoding: preprocess.Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(preprocess, "decode_jpeg", lambda data: pytest.fail("decoded"))
    monkeypatch.setattr("vlm.images.open.MAX_PIXELS", 1024 * 600 - 1)
    with pytest.raises(ImageError, match="too many pixels"):
        Preprocess(PreprocessConfig(image_size=32), decoding=decoding).pixels(LARGE_JPEGS["plain"])
