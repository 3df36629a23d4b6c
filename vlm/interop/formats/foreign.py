"""Result of a conversion: our config, our weights, and the files that came with them."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlm.config import Activation, CLIPConfig, Json, PreprocessConfig, VisionConfig
from vlm.errors import CheckpointError, InputError
from vlm.models.vision import VisionTransformer, ViTClassifier
from vlm.tokenizers.protocol import Tokenizer


@dataclass(frozen=True)
class Foreign:
    """A CLIP in our terms.  `tokenizer` and `preprocess` are None where the source had none."""

    config: CLIPConfig
    state: dict[str, Tensor]
    tokenizer: Tokenizer | None
    preprocess: PreprocessConfig | None


@dataclass(frozen=True)
class ForeignClassifier:
    """A ViT in our terms; `labels` None and `num_classes` 0 where the source has no head."""

    config: VisionConfig
    num_classes: int
    labels: tuple[str, ...] | None
    state: dict[str, Tensor]
    preprocess: PreprocessConfig | None


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Settings given by the caller, because neither the weights nor a config contain them."""

    num_heads: int | None = None
    activation: Activation | None = None
    norm_eps: float | None = None

    def need_heads(self, width: int, known: dict[int, int], where: str) -> int:
        """`num_heads`: as said, or as every published model of this width has it."""
        heads = self.num_heads or known.get(width)
        if heads is None:
            divisors = ", ".join(str(n) for n in range(1, width // 16 + 1) if width % n == 0)
            raise InputError(
                f"{where}: the number of heads is not in the weights; width {width} fits {divisors}. "
                "Say num_heads (--num-heads)."
            )
        return heads

    def need_activation(self, candidates: tuple[Activation, ...], where: str) -> Activation:
        """`activation`: as said, or the only candidate."""
        if self.activation is None and len(candidates) == 1:
            return candidates[0]
        if self.activation is None:
            raise InputError(
                f"{where}: the activation is not in the weights; it may be {' or '.join(candidates)}. "
                "Say activation (--activation)."
            )
        return self.activation


# Heads of the published ViTs of that width: ViT paper table 1, Touvron et al. 2021, Zhai et al. 2022, OpenCLIP.
HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 896: 14, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16}


def skeleton(config: VisionConfig, num_classes: int) -> nn.Module:
    """The names and shapes a ViT's weights must have, without memory; without a head where there are no classes."""
    with torch.device("meta"):
        return (
            ViTClassifier(config, num_classes) if num_classes else nn.ModuleDict({"vision": VisionTransformer(config)})
        )


def whole_patches(side: Any, patch: int) -> int | tuple[int, int]:
    """The part of an image that patches cover: 384 pixels in patches of 14 are 27 patches, 378 pixels.

    Args:
        side: pixels, one side or (height, width).
        patch: pixels, one side.

    Raises:
        CheckpointError: `side` is neither.
    """
    sides = cast(Any, side) if isinstance(side, (list, tuple)) else (side, side)
    if len(sides) != 2 or not all(isinstance(one, int) and one > 0 for one in sides):
        raise CheckpointError(f"the config's image_size is {side!r}; wanted pixels, one side or [height, width].")
    height, width = (one // patch * patch for one in sides)
    return height if height == width else (height, width)


def exact(preprocess: PreprocessConfig | None) -> PreprocessConfig | None:
    """The same preprocessing, which resizes large images too as the model's own library does."""
    return None if preprocess is None else replace(preprocess, exact=True)


def check_not_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer: a clone without git-lfs holds a few lines of text in the place of each large file."""
    with path.open("rb") as file:
        begin = file.read(200)
    if begin.startswith(b"version https://git-lfs.github.com/spec/"):
        size = next(
            (line[5:] for line in begin.decode("ascii", "replace").split("\n") if line.startswith("size ")), "?"
        )
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file ({size} bytes). Run git lfs pull in its folder, or load the "
            "model by its name on the hub: hf:ORG/NAME."
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or one line that names the file."""
    try:
        content: Json = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing.") from error
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ValueError):
            check_not_pointer(path)
        raise CheckpointError(f"{path} is not readable JSON ({one_line(error)}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; wanted a JSON object.")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented, UTF-8, ending in a line break."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def one_line(error: BaseException) -> str:
    """The first 200 characters of what an error says, without line breaks; its class's name where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__
