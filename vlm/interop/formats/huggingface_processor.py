"""Hugging Face's preprocessor_config.json, both ways: the image processors of CLIP, SigLIP and ViT."""

import math
from typing import Any

from vlm.config import PreprocessConfig
from vlm.errors import CheckpointError, InputError

_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling
_NUMBERS = {name: number for number, name in _FILTERS.items()}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_CLIP_MEAN = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
_DEFAULTS: dict[str, dict[str, Any]] = {  # transformers/models/*/image_processing_*.py
    "clip": {"resample": 3, "size": {"shortest_edge": 224}, "do_center_crop": True, **_CLIP_MEAN},
    "siglip": {"resample": 3, "size": {"height": 224, "width": 224}, "do_center_crop": False, **_HALF},
    "vit": {"resample": 2, "size": {"height": 224, "width": 224}, "do_center_crop": False, **_HALF},
}


def read_processor(given: dict[str, Any], model_type: str, image_size: int | tuple[int, int]) -> PreprocessConfig:
    """`image_size`: what the model takes; less than the processor's where patches do not fill the image."""
    defaults = _DEFAULTS[model_type]
    skipped = [name for name in ("do_resize", "do_rescale", "do_normalize") if given.get(name) is False]
    if skipped or given.get("do_pad"):
        raise CheckpointError(f"preprocessor_config.json: {', '.join(skipped) or 'do_pad'} is not known here.")
    if not math.isclose(given.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-3):
        raise CheckpointError(
            f"preprocessor_config.json: rescale_factor is {given['rescale_factor']}; known here: 1/255."
        )
    size = given.get("size", defaults["size"])
    # before transformers 4.20 a number: the shortest side for CLIP, both sides for the others
    square = (
        {"height": size, "width": size} if isinstance(size, int) and model_type != "clip" else {"shortest_edge": size}
    )
    size = square if isinstance(size, int) else size
    settings = {
        "interpolation": _FILTERS.get(given.get("resample", defaults["resample"]), "?"),
        "mean": given.get("image_mean", defaults["mean"]),
        "std": given.get("image_std", defaults["std"]),
    }
    if "shortest_edge" in size:
        crop = _sides(given.get("crop_size", size["shortest_edge"]))
        if not given.get("do_center_crop", defaults["do_center_crop"]) or crop[0] != crop[1]:
            raise CheckpointError(
                "preprocessor_config.json: a shortest_edge without a square centre crop is not known here."
            )
        full, rest = crop, {"resize": "crop", "crop_rounding": "down", "crop_pct": crop[0] / size["shortest_edge"]}
    elif given.get("do_center_crop", defaults["do_center_crop"]):
        raise CheckpointError(
            "preprocessor_config.json: do_center_crop with a size of height and width is not known here."
        )
    else:
        full, rest = _sides(size), {"resize": "squash"}
    return whole_image(PreprocessConfig.from_dict(settings | rest | {"image_size": _one(full)}), image_size)


def whole_image(preprocess: PreprocessConfig, image_size: int | tuple[int, int]) -> PreprocessConfig:
    """For a model whose patches leave some pixels over: resized to the full size, then the top left is cut out."""
    wanted = (image_size, image_size) if isinstance(image_size, int) else image_size
    full = preprocess.image_shape
    if wanted == full:
        return preprocess
    if (
        preprocess.resize != "squash"
        or preprocess.crop_pct != 1
        or full[0] * wanted[1] != full[1] * wanted[0]
        or wanted[0] > full[0]
    ):
        raise CheckpointError(
            f"the model takes {wanted} pixels, its preprocessing makes {full}: they do not belong together."
        )
    settings = {"image_size": image_size, "crop_pct": crop_pct(wanted[0], full[0]), "crop_rounding": "first"}
    return PreprocessConfig.from_dict(preprocess.to_dict() | settings)


def crop_pct(side: int, full: int) -> float:
    """The fraction whose `floor(side / fraction)` is `full`."""
    fraction = side / full
    return fraction if math.floor(side / fraction) == full else math.nextafter(fraction, 0)


def full_side(preprocess: PreprocessConfig | None, side: int) -> int:
    """The image's side before `whole_image` cut it."""
    if preprocess is None or preprocess.crop_rounding != "first":
        return side
    return math.floor(side / preprocess.crop_pct)


def write_processor(preprocess: PreprocessConfig, model_type: str) -> dict[str, Any]:
    """preprocessor_config.json; a crop becomes CLIP's processor, a squash SigLIP's or ViT's."""
    height, width = (full_side(preprocess, side) for side in preprocess.image_shape)
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
        if preprocess.crop_pct != 1 and preprocess.crop_rounding != "first":
            raise InputError(
                f"Hugging Face's processors do not crop a squashed image; crop_pct is {preprocess.crop_pct}."
            )
        kind = "ViTImageProcessor" if model_type == "vit" else "SiglipImageProcessor"
        return common | {
            "image_processor_type": kind,
            "size": {"height": height, "width": width},
            "do_center_crop": False,
        }
    if height != width:
        raise InputError("Hugging Face's processors crop squares; this model's images are not.")
    size = {"shortest_edge": math.floor(height / preprocess.crop_pct)}
    crop = {"height": height, "width": width}
    return common | {
        "image_processor_type": "CLIPImageProcessor",
        "size": size,
        "do_center_crop": True,
        "crop_size": crop,
    }


def _sides(size: dict[str, int] | int) -> tuple[int, int]:
    return (size["height"], size["width"]) if isinstance(size, dict) else (size, size)


def _one(sides: tuple[int, int]) -> int | tuple[int, int]:
    return sides[0] if sides[0] == sides[1] else sides
