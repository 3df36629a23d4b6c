"""Every model of OpenCLIP, built shrunk with random weights: does ours give the same numbers?  Writes docs/interop.md.

python -m benchmarks.interop_table
"""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import timm
import torch

from vlm.clip import CLIP
from vlm.interop import openclip
from vlm.interop.timm import named

VOCAB = 600
EMBED_DIM = 48


@dataclass(frozen=True)
class Difference:
    """The largest differences between their outputs and ours."""

    image: float
    text: float
    logits: float  # in units of exp(logit_scale)

    @property
    def worst(self) -> float:
        return max(self.image, self.text, self.logits)


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """The same flags; depth 2, width at most 128, few patches, few words."""
    config = copy.deepcopy(config) | {"embed_dim": EMBED_DIM}
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        patch, width = int(vision["timm_model_name"].split("_patch")[1].split("_")[0]), timm_width(vision["timm_model_name"])
        if vision["timm_proj"] == "none":
            config["embed_dim"] = width
    else:
        patch = vision["patch_size"]
        heads = 4
        vision |= {"layers": 2, "width": 16 * heads, "head_width": 16}
    vision["image_size"] = patch * 3 + vision["image_size"] % patch
    text |= {"layers": 2, "width": 64, "heads": 4, "vocab_size": VOCAB}
    if text.get("proj_type") == "none":
        text["width"], text["heads"] = config["embed_dim"], 8
    return config


def timm_width(name: str) -> int:
    return 8 * named(name).num_heads


@contextmanager
def small_timm(image_size: int) -> Iterator[None]:
    """timm builds its models at depth 2 and width 8 x heads."""
    create = timm.create_model

    def small(name: str, **settings: Any) -> torch.nn.Module:
        return create(name, **settings, img_size=image_size, depth=2, embed_dim=timm_width(name))

    with mock.patch("open_clip.timm_model.timm.create_model", small):
        yield


def build(config: dict[str, Any]) -> torch.nn.Module:
    """OpenCLIP's own model of a config, with random weights everywhere: zeros and ones would hide mistakes."""
    config = copy.deepcopy(config)
    custom = config.pop("custom_text", False)
    with small_timm(config["vision_cfg"]["image_size"]):
        model = (open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP)(**config)
    randomise(model)
    return model.eval()


def randomise(model: torch.nn.Module) -> None:
    """Large enough that a wrong activation or epsilon shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 * parameter[0].numel() ** -0.5, generator=generator)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def inputs(model: openclip.ModelCfg) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and rows of ids that end and are padded as OpenCLIP's tokenizers do."""
    generator = torch.Generator().manual_seed(1)
    side, text = model.vision_cfg.image_size, model.text_cfg
    assert isinstance(side, int)
    images = torch.randn(3, 3, side, side, generator=generator)
    end = text.eos_id if text.pool_type == "eos" else text.vocab_size - 1
    ids = torch.randint(5, text.vocab_size - 5, (3, text.context_length), generator=generator)
    for row, length in enumerate((4, 9, text.context_length)):
        ids[row, length - 1] = end
        ids[row, length:] = 1 if text.pool_type == "eos" and end != 1 else 0
    return images, ids


def compare(config: dict[str, Any]) -> Difference:
    """Builds, converts, runs both."""
    theirs = build(config)
    model = openclip.ModelCfg.from_dict(config)
    ours_config, state = openclip.read_model(theirs.state_dict(), model)
    ours = CLIP(ours_config)
    ours.load_state_dict(state)
    ours.eval()
    images, ids = inputs(model)
    height, width = ours_config.vision.image_shape
    with torch.inference_mode():
        image, text = theirs.encode_image(images, normalize=True), theirs.encode_text(ids, normalize=True)
        our_image, our_text = ours(images[:, :, :height, :width], ids)
        logits = theirs.get_logits(images, ids)[0] - ours.logits(our_image, our_text)
    return Difference(
        float((image - our_image).abs().max()),
        float((text - our_text).abs().max()),
        float(logits.abs().max() / theirs.logit_scale.detach().exp()),
    )


def main() -> int:
    rows, out = [], []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        outside = openclip.ModelCfg.from_dict(config).outside()
        if outside:
            out.append(f"| {name} | {'; '.join(outside)} |")
            continue
        difference = compare(shrunk(config))
        print(f"{name:32s} {difference.image:.1e} {difference.text:.1e} {difference.logits:.1e}", file=sys.stderr)
        rows.append((name, difference))
    return 0 if all(difference.worst < 1e-5 for _, difference in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
