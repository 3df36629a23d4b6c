"""Hugging Face's preprocessor_config.json, both ways: the image processors of CLIP, SigLIP, ViT and their like."""

import math
import re
from typing import Any, cast

from vlm.config import PreprocessConfig
from vlm.errors import CheckpointError, InputError

_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling
_NUMBERS = {name: number for number, name in _FILTERS.items()}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_CLIP_MEAN = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
_DEFAULTS: dict[str, dict[str, Any]] = {  # transformers/models/*/image_processing_*.py
    "clip": {"resample": 3, "size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224, **_CLIP_MEAN},
    "siglip": {"resample": 3, "size": {"height": 224, "width": 224}, "do_center_crop": False, **_HALF},
    "vit": {"resample": 2, "size": {"height": 224, "width": 224}, "do_center_crop": False, **_HALF},
    "deit": {"resample": 3, "size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": 224, **_HALF},
    "blip": {"resample": 3, "size": {"height": 384, "width": 384}, "do_center_crop": False, **_CLIP_MEAN},
}
_KINDS = {"CLIP": "clip", "ChineseCLIP": "clip", "Bit": "clip", "Siglip": "siglip", "ViT": "vit", "DeiT": "deit",
          "Blip": "blip"}  # fmt: skip  # whose defaults the processors take


def processor_kind(given: dict[str, Any]) -> str | None:
    """The processor's name without its ending: "CLIP" for CLIPImageProcessor, CLIPFeatureExtractor; or None."""
    name = given.get("image_processor_type") or given.get("feature_extractor_type")
    return re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", name) if isinstance(name, str) else None


def is_known(given: dict[str, Any]) -> bool:
    """Returns True if `read_processor` knows what this processor does."""
    return processor_kind(given) in (None, *_KINDS)


def read_processor(
    given: dict[str, Any], model_type: str, image_size: int | tuple[int, int] | None
) -> PreprocessConfig:
    """Read preprocessor_config.json.

    Args:
        given: its content, or the part about images of processor_config.json.
        model_type: "clip", "siglip" or "vit", whose defaults apply where the content names no processor.
        image_size: what the model takes, less than the processor's where patches do not fill the image; None takes the
            processor's.

    Raises:
        CheckpointError: the processor does what `Preprocess` does not, or makes another size than the model takes.
    """
    kind = processor_kind(given)
    if kind not in (None, *_KINDS):
        raise CheckpointError(
            f"preprocessor_config.json: the processor {kind}ImageProcessor is not known here. Known: "
            f"{', '.join(f'{name}ImageProcessor' for name in _KINDS)}."
        )
    model_type = model_type if kind is None else _KINDS[kind]
    defaults = _DEFAULTS[model_type]
    skipped = [name for name in ("do_resize", "do_rescale", "do_normalize") if given.get(name) is False]
    if skipped or given.get("do_pad"):
        raise CheckpointError(f"preprocessor_config.json: {', '.join(skipped) or 'do_pad'} is not known here.")
    factor = given.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise CheckpointError(f"preprocessor_config.json: rescale_factor is {factor}; known here: 1/255.")
    number = given.get("resample", defaults["resample"])
    if number not in _FILTERS:
        known = ", ".join(f"{number} {name}" for number, name in _FILTERS.items())
        raise CheckpointError(f"preprocessor_config.json: resample is {number!r}; known here: {known}.")
    settings = {
        "interpolation": _FILTERS[number],
        "mean": given.get("image_mean", defaults["mean"]),
        "std": given.get("image_std", defaults["std"]),
    }
    size = _size(given.get("size", defaults["size"]), model_type)
    cropped = given.get("do_center_crop", defaults["do_center_crop"])
    crop_size = given.get("crop_size", defaults.get("crop_size", 224))
    if isinstance(size, int):  # the shortest edge
        crop = _sides(crop_size)
        if not cropped or crop[0] != crop[1]:
            raise CheckpointError(
                "preprocessor_config.json: a shortest_edge without a square centre crop is not known here."
            )
        made: dict[str, Any] = {"resize": "crop", "crop_rounding": "down"}
        made |= {} if size == crop[0] else {"resize_side": size}
    elif cropped:
        crop = _sides(crop_size)
        made = {"resize": "squash", "crop_rounding": "down", "resize_side": _one(size)}
    else:
        crop, made = size, {"resize": "squash"}
    preprocess = PreprocessConfig.from_dict(settings | made | {"image_size": _one(crop)})
    return preprocess if image_size is None else whole_image(preprocess, image_size)


def _size(size: Any, model_type: str) -> int | tuple[int, int]:
    """The shortest edge, or (height, width).

    Before transformers 4.20 a number: the shortest edge for CLIP, both sides for the others.
    """
    if isinstance(size, int):
        return size if model_type == "clip" else (size, size)
    if isinstance(size, dict):
        given = {name: side for name, side in cast(dict[str, Any], size).items() if side is not None}
        if given.keys() == {"shortest_edge"} and isinstance(edge := given["shortest_edge"], int):
            return edge
        if given.keys() == {"height", "width"}:
            return _sides(given)
    raise CheckpointError(
        f"preprocessor_config.json: size is {size!r}; known here: a shortest_edge alone, or height and width."
    )


def whole_image(preprocess: PreprocessConfig, image_size: int | tuple[int, int]) -> PreprocessConfig:
    """For a model whose patches leave some pixels over: made as large as the full size, then cut to the top left."""
    wanted = (image_size, image_size) if isinstance(image_size, int) else image_size
    full = preprocess.image_shape
    if wanted == full:
        return preprocess
    if (
        (preprocess.resize != "squash" and preprocess.crop_rounding != "even")
        or preprocess.resize_shape != full
        or full[0] * wanted[1] != full[1] * wanted[0]
        or wanted[0] > full[0]
    ):
        raise CheckpointError(
            f"the model takes {wanted} pixels, its preprocessing makes {full}: they do not belong together."
        )
    settings = {"image_size": image_size, "resize_side": _one(full), "crop_rounding": "first"}
    return PreprocessConfig.from_dict(preprocess.to_dict() | settings)


def full_side(preprocess: PreprocessConfig | None, side: int) -> int:
    """The image's side before `whole_image` cut it."""
    if preprocess is None or preprocess.crop_rounding != "first":
        return side
    return preprocess.resize_shape[0]


def write_processor(preprocess: PreprocessConfig, model_type: str) -> dict[str, Any]:
    """preprocessor_config.json; a crop becomes CLIP's processor, a squash SigLIP's or ViT's."""
    height, width = preprocess.resize_shape if preprocess.crop_rounding == "first" else preprocess.image_shape
    if preprocess.resize == "pad":
        raise InputError(
            "Hugging Face's processors do not pad; this model's preprocessing does. Use resize 'crop' or 'squash'."
        )
    common = {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": _NUMBERS[preprocess.interpolation],
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    if preprocess.resize == "squash":
        if preprocess.resize_shape != preprocess.image_shape and preprocess.crop_rounding != "first":
            resized = preprocess.resize_shape
            return common | {
                "image_processor_type": "DeiTImageProcessor",
                "size": {"height": resized[0], "width": resized[1]},
                "do_center_crop": True,
                "crop_size": {"height": height, "width": width},
            }
        kind = "ViTImageProcessor" if model_type == "vit" else "SiglipImageProcessor"
        return common | {
            "image_processor_type": kind,
            "size": {"height": height, "width": width},
            "do_center_crop": False,
        }
    if height != width:
        raise InputError("Hugging Face's processors crop squares; this model's images are not.")
    size = {"shortest_edge": preprocess.resize_shape[0]}
    crop = {"height": height, "width": width}
    return common | {
        "image_processor_type": "CLIPImageProcessor",
        "size": size,
        "do_center_crop": True,
        "crop_size": crop,
    }


def _sides(size: Any) -> tuple[int, int]:
    sides = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if not all(isinstance(side, int) and side > 0 for side in sides):  # pyright: ignore[reportUnknownVariableType]
        raise CheckpointError(f"preprocessor_config.json: {size!r} is no size; wanted height and width in pixels.")
    return cast(tuple[int, int], sides)


def _one(sides: tuple[int, int]) -> int | tuple[int, int]:
    return sides[0] if sides[0] == sides[1] else sides
