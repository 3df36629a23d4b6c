"""Checks at the end of every conversion: finite weights, unit vectors, matching parts."""

import dataclasses
from typing import Any, TypeVar

import torch

from vlm.config import VisionConfig
from vlm.errors import CheckpointError
from vlm.interop.formats.foreign import Foreign, ForeignClassifier
from vlm.interop.formats.tables import State
from vlm.models.clip import CLIP
from vlm.models.vision import ViTClassifier, resize_pos_embed

_F = TypeVar("_F", Foreign, ForeignClassifier)


def with_tokenizer_ids(foreign: Foreign) -> Foreign:
    """Takes the padding id from the tokenizer, and requires one end-of-text id of both where the model looks for it.

    Raises:
        CheckpointError: tokenizer and config name different end-of-text ids.
    """
    tokenizer, text = foreign.tokenizer, foreign.config.text
    if tokenizer is None:
        return foreign
    if text.pool == "eot" and tokenizer.eot_id != text.eot_id:
        raise CheckpointError(
            f"the config's end-of-text id is {text.eot_id}, the tokenizer's {tokenizer.eot_id}: they do not belong "
            "together. Get all files from one place."
        )
    text = dataclasses.replace(text, eot_id=tokenizer.eot_id, pad_id=tokenizer.pad_id)
    return dataclasses.replace(foreign, config=dataclasses.replace(foreign.config, text=text))


def resized(foreign: _F, image_size: int | tuple[int, int], *, bicubic: bool, antialias: bool = True) -> _F:
    """For images of another size: resizes the position embeddings and changes the preprocessing.

    Args:
        foreign: a converted model.
        image_size: pixels, one side or (height, width).
        bicubic: how positions are interpolated; bilinear where False, as big_vision does.
        antialias: False for the ViTs of transformers that are resized without (DINOv2, DeiT, ViT).
    """
    vision = foreign.config.vision if isinstance(foreign, Foreign) else foreign.config
    positions = resize_pos_embed(
        foreign.state["vision.pos_embed"], vision, image_size, bicubic=bicubic, antialias=antialias
    )
    state = foreign.state | {"vision.pos_embed": positions}
    preprocess = foreign.preprocess
    if preprocess is not None:
        cut: dict[str, Any] = {}
        if preprocess.crop_rounding == "first":
            cut = {"crop_pct": 1.0, "resize_side": None, "crop_rounding": "even"}
        elif preprocess.resize_side is not None:  # the same share of the image
            share = preprocess.resize_shape[0] / preprocess.image_shape[0]
            cut = {"resize_side": None, "crop_pct": 1 / share}
        preprocess = dataclasses.replace(preprocess, image_size=image_size, **cut)
    vision = dataclasses.replace(vision, image_size=image_size)
    config = dataclasses.replace(foreign.config, vision=vision) if isinstance(foreign, Foreign) else vision
    return dataclasses.replace(foreign, config=config, state=state, preprocess=preprocess)  # type: ignore[arg-type]


def check_clip(foreign: Foreign) -> None:
    """Every tensor is finite, and an image and a text come out as unit vectors.

    Raises:
        CheckpointError: they do not.
    """
    _check_finite(foreign.state)
    with torch.device("meta"):
        model = CLIP(foreign.config)
    model.load_state_dict(foreign.state, strict=True, assign=True)
    text = foreign.config.text
    ids = torch.full((1, min(4, text.context_length)), text.eot_id)
    with torch.inference_mode():
        vectors = torch.cat([model.eval().encode_image(_image(foreign.config.vision)), model.encode_text(ids)])
    if not torch.allclose(vectors.square().sum(1).sqrt(), torch.ones(2), atol=1e-3):
        raise CheckpointError("the converted model gives no unit vectors: the weights are damaged. Get them again.")


def check_vit(foreign: ForeignClassifier) -> None:
    """Every tensor is finite, and so are the features of an image.

    Raises:
        CheckpointError: they are not.
    """
    _check_finite(foreign.state)
    with torch.device("meta"):
        model = ViTClassifier(foreign.config, max(1, foreign.num_classes)).vision
    model.load_state_dict(
        {n.removeprefix("vision."): t for n, t in foreign.state.items() if n.startswith("vision.")}, assign=True
    )
    with torch.inference_mode():
        if not bool(model.eval()(_image(foreign.config)).isfinite().all()):
            raise CheckpointError(
                "the converted model does not give finite features: the weights are damaged. Get them again."
            )


def _check_finite(state: State) -> None:
    if broken := [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]:
        raise CheckpointError(
            f"{len(broken)} tensors hold values that are not finite (our names): {', '.join(broken)}. The weights are "
            "damaged: get them again."
        )


def _image(config: VisionConfig) -> torch.Tensor:
    """A grey ramp, (1, C, H, W)."""
    height, width = config.image_shape
    return torch.linspace(-1, 1, config.in_channels * height * width).view(1, config.in_channels, height, width)
