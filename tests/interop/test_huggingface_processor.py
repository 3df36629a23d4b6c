"""Hugging Face's image processors make the pixels that ours make, and come back as they went."""

import re
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from tests.support.foreign_models import odd_images
from tests.support.odd_images import noise
from vlm.config import PreprocessConfig
from vlm.errors import CheckpointError
from vlm.images.preprocess import Preprocess
from vlm.interop.formats.foreign import exact
from vlm.interop.formats.huggingface_processor import full_side, read_processor, whole_image, write_processor

_PROCESSORS = {
    "clip": transformers.CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}),
    "siglip": transformers.SiglipImageProcessorPil(size={"height": 40, "width": 40}),
    "vit": transformers.ViTImageProcessorPil(size={"height": 40, "width": 40}),
}


@pytest.mark.parametrize("kind", _PROCESSORS)
def test_pixels_equal_the_processors_of_hugging_face_to_a_255th(kind: str) -> None:
    theirs: Any = _PROCESSORS[kind]
    ours = Preprocess(read_processor(theirs.to_dict(), kind, 40))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (ours.config.mean, ours.config.std))
    for image in odd_images():
        expected = theirs(image, return_tensors="pt").pixel_values[0] * std + mean
        assert (expected - ours.pixels(image) / 255).abs().max() < 1.01 / 255


@pytest.mark.parametrize("kind", _PROCESSORS)
def test_processors_come_back_as_they_went(kind: str) -> None:
    preprocess = read_processor(_PROCESSORS[kind].to_dict(), kind, 40)
    assert read_processor(write_processor(preprocess, kind), kind, 40) == preprocess


@pytest.mark.parametrize("ending", ["ImageProcessor", "ImageProcessorFast", "FeatureExtractor"])
@pytest.mark.parametrize("name", ["CLIP", "ChineseCLIP", "Bit", "Siglip", "ViT", "DeiT", "Blip"])
def test_the_named_processor_has_its_own_defaults_whatever_the_model(name: str, ending: str) -> None:
    theirs: Any = getattr(transformers, f"{name}ImageProcessorPil")()
    ours = Preprocess(read_processor({"image_processor_type": f"{name}{ending}"}, "vit", None))
    for image in odd_images(2):
        assert (theirs(image, return_tensors="pt").pixel_values[0] - ours(image)).abs().max() < 0.02


@pytest.mark.parametrize("size", [(1000, 40), (33, 900)])  # much longer than wide
@pytest.mark.parametrize(("edge", "crop"), [(438, 384), (257, 224)])
def test_a_long_image_is_cut_bit_for_bit(size: tuple[int, int], edge: int, crop: int) -> None:
    theirs: Any = transformers.CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=crop, resample=0)
    ours = Preprocess(exact(read_processor(theirs.to_dict(), "clip", crop)) or PreprocessConfig())
    image = noise(*size)
    torch.testing.assert_close(ours(image), theirs(image, return_tensors="pt").pixel_values[0])


@pytest.mark.parametrize(
    "given", [{"size": {"shortest_edge": 32, "longest_edge": 40}}, {"resample": 5}, {"rescale_factor": 0.00392}]
)
def test_what_would_be_computed_otherwise_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(given))):
        read_processor(given, "clip", None)


@pytest.mark.parametrize("name", ["PerceiverImageProcessor", "MobileViTFeatureExtractor"])
def test_a_processor_that_does_other_things_is_refused_by_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name[:5]}.*CLIPImageProcessor"):
        read_processor({"feature_extractor_type": name, "size": {"height": 32, "width": 32}}, "vit", 32)


def test_pixels_that_patches_do_not_cover_are_cut_from_the_right_and_the_bottom() -> None:
    theirs: Any = transformers.SiglipImageProcessorPil(size={"height": 45, "width": 45})
    preprocess = read_processor(theirs.to_dict(), "siglip", 42)  # patches of 14
    for image in odd_images(5):
        expected = theirs(image, return_tensors="pt").pixel_values[0][:, :42, :42]
        assert (expected - Preprocess(preprocess)(image)).abs().max() < 0.01
    assert write_processor(preprocess, "siglip")["size"] == {"height": 45, "width": 45}


def test_a_processor_that_makes_another_size_than_the_model_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="the model takes"):
        read_processor({"crop_size": 64, "size": 64}, "clip", 48)
    with pytest.raises(ValueError, match="do not pad"):
        write_processor(PreprocessConfig(resize="pad"), "clip")


@pytest.mark.parametrize("kind", _PROCESSORS)
def test_what_a_processor_does_not_say_is_that_of_hugging_face(kind: str) -> None:
    theirs = type(_PROCESSORS[kind])().to_dict()
    assert read_processor({}, kind, 224) == read_processor(theirs, kind, 224)
    for name in theirs:
        assert read_processor({n: v for n, v in theirs.items() if n != name}, kind, 224) == read_processor(
            theirs, kind, 224
        )


@pytest.mark.parametrize("kind", _PROCESSORS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_what_is_written_makes_our_pixels_at_hugging_face(kind: str, mode: str) -> None:
    said = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear", "image_size": 40}
    said |= {"resize": "crop", "crop_pct": 0.8, "crop_rounding": "down"} if kind == "clip" else {"resize": "squash"}
    ours = Preprocess(PreprocessConfig.from_dict(said))
    written = write_processor(ours.config, kind)
    backend: Any = type(_PROCESSORS[kind])
    assert written["image_processor_type"] + "Pil" == backend.__name__
    theirs = backend(**written)
    for image in odd_images(6):
        expected = theirs(image.convert(mode).convert("RGB"), return_tensors="pt").pixel_values[0]
        assert (ours(image.convert(mode)) - expected).abs().max() < 1.01 / 255 / 0.4
    if mode != "RGB":
        assert theirs(odd_images(1)[0].convert(mode), return_tensors="pt").pixel_values.shape == (1, 3, 40, 40)
    assert written["rescale_factor"] == 1 / 255


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_filters_are_pillows_numbers(number: int) -> None:
    found = read_processor({"resample": number}, "siglip", 224)
    assert found.interpolation == Image.Resampling(number).name.lower()
    assert write_processor(found, "siglip")["resample"] == number
    with pytest.raises(ValueError, match="resample"):
        read_processor({"resample": 4 + number}, "siglip", 224)


@pytest.mark.parametrize(
    ("kind", "given", "resize", "size"),
    [
        ("clip", {"size": 40}, "crop", 40),  # a number: before transformers 4.20
        ("siglip", {"size": 40}, "squash", 40),
        ("vit", {"size": 40}, "squash", 40),
        ("vit", {"size": {"height": 40, "width": 56}}, "squash", (40, 56)),
        ("vit", {"size": {"shortest_edge": 50}, "do_center_crop": True, "crop_size": 40}, "crop", 40),
        ("clip", {"size": {"height": 40, "width": 56}, "do_center_crop": False}, "squash", (40, 56)),
        ("clip", {"size": {"shortest_edge": 40}, "rescale_factor": 0.00392156862}, "crop", 40),
    ],
)
def test_sizes_are_read_as_each_kind_means_them(kind: str, given: dict[str, Any], resize: str, size: Any) -> None:
    found = read_processor({"crop_size": {"height": 40, "width": 40}} | given, kind, size)
    assert (found.resize, found.image_size) == (resize, size)
    assert found.resize_shape == ((50, 50) if given["size"] == {"shortest_edge": 50} else found.image_shape)


@pytest.mark.parametrize(
    ("kind", "given", "line"),
    [
        ("clip", {"do_resize": False, "do_normalize": False}, "do_resize, do_normalize is not known here."),
        ("clip", {"do_rescale": False}, "do_rescale is not known here."),
        ("clip", {"do_pad": True}, "do_pad is not known here."),
        ("vit", {"rescale_factor": 1 / 127}, f"rescale_factor is {1 / 127}; known here: 1/255."),
        ("clip", {"do_center_crop": False}, "a shortest_edge without a square centre crop is not known here."),
        (
            "clip",
            {"crop_size": {"height": 224, "width": 200}},
            "a shortest_edge without a square centre crop is not known here.",
        ),
        (
            "vit",
            {"size": {"width": 3}},
            "size is {'width': 3}; known here: a shortest_edge alone, or height and width.",
        ),
    ],
)
def test_what_a_processor_does_beyond_ours_is_named(kind: str, given: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=f"^preprocessor_config.json: {re.escape(line)}$"):
        read_processor(given, kind, 224)


def test_a_whole_image_is_larger_by_the_same_share_on_both_sides() -> None:
    squash = PreprocessConfig(image_size=(60, 45), resize="squash")
    assert whole_image(squash, (60, 45)) is squash
    cut = whole_image(squash, (56, 42))
    assert (cut.image_size, cut.crop_rounding) == ((56, 42), "first")
    assert cut.resize_shape == (60, 45)
    for wanted, before in (
        ((56, 45), squash),
        ((64, 48), squash),
        (48, PreprocessConfig(image_size=60, resize="crop", crop_rounding="down")),
        (48, PreprocessConfig(image_size=60, resize="squash", crop_pct=0.9)),
    ):
        with pytest.raises(ValueError, match=r"model.*pixels.*preprocessing"):
            whole_image(before, wanted)


def test_the_full_side_is_that_before_the_top_left_was_cut() -> None:
    assert full_side(None, 37) == 37
    assert full_side(PreprocessConfig(crop_pct=0.5), 37) == 37
    assert full_side(PreprocessConfig(image_size=378, resize_side=384, crop_rounding="first"), 378) == 384


@pytest.mark.parametrize(("edge", "crop"), [(400, 224), (225, 192), (384, 450), (299, 400), (448, 491), (256, 224)])
def test_the_shortest_edge_is_exact_whatever_the_crop(edge: int, crop: int) -> None:
    """224 / (224 / 400) is 399.99... in floating point."""
    edge, crop = max(edge, crop), min(edge, crop)
    theirs: Any = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": edge}, crop_size={"height": crop, "width": crop}
    )
    preprocess = read_processor(theirs.to_dict(), "clip", crop)
    assert preprocess.resize_shape == (edge, edge)
    image = odd_images(1)[0].resize((211, 640))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    expected = theirs(image, return_tensors="pt").pixel_values[0] * std + mean
    assert (expected - Preprocess(preprocess).pixels(image) / 255).abs().max() < 1.01 / 255
    assert read_processor(write_processor(preprocess, "clip"), "clip", crop) == preprocess


@pytest.mark.parametrize(("side", "crop"), [(256, 224), ((50, 40), 32)])
def test_height_and_width_with_a_centre_crop_are_those_of_deit(side: Any, crop: int) -> None:
    height, width = side if isinstance(side, tuple) else (side, side)
    theirs: Any = transformers.DeiTImageProcessorPil(
        size={"height": height, "width": width}, crop_size={"height": crop, "width": crop}, do_center_crop=True
    )
    preprocess = read_processor(theirs.to_dict(), "vit", crop)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    for image in odd_images(5):
        expected = theirs(image, return_tensors="pt").pixel_values[0] * std + mean
        assert (expected - Preprocess(preprocess).pixels(image) / 255).abs().max() < 1.01 / 255
    assert read_processor(write_processor(preprocess, "vit"), "vit", crop) == preprocess


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"resize": "pad"}, r"do not pad; this model's preprocessing does"),
        ({"resize": "crop", "image_size": (32, 48)}, r"crop squares; this model's images are not\.$"),
    ],
)
def test_what_no_processor_does_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=f"^Hugging Face's processors {line}"):
        write_processor(PreprocessConfig(**changes), "clip")
