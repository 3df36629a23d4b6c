"""Preprocessing of SigLIP 2 NaFlex: images keep their aspect ratio and become up to a fixed number of patches."""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vlm.config import PreprocessConfig
from vlm.images.open import ImageSource, OpenedImage, open_header, to_rgb
from vlm.images.preprocess import Preprocess


class NaflexPreprocess(Preprocess):
    """Image -> patches (1 + N, P P 3), computed by transformers' own processor.

    The first row holds the number of patches down and across, two bytes each, so that images of all shapes stack into
    one batch; `split_naflex` takes it off again.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        """Open the processor of a folder; `settings` are those of its preprocessor_config.json."""
        from transformers import AutoImageProcessor

        opened: Any = cast(Any, AutoImageProcessor).from_pretrained(str(folder), local_files_only=True)
        self._processor: Any = opened
        mean, std = tuple(opened.image_mean), tuple(opened.image_std)
        side = opened.patch_size * math.isqrt(opened.max_num_patches)  # of a square image
        super().__init__(PreprocessConfig(image_size=side, resize="squash", mean=mean, std=std))
        self.settings = settings

    def pixels_and_size(self, source: ImageSource | OpenedImage) -> tuple[Tensor, tuple[int, int]]:
        """-> uint8 (1 + N, P P 3), and the (width, height) of the image itself, upright."""
        image = to_rgb(source if isinstance(source, OpenedImage) else open_header(source))
        made = self._processor(
            images=np.array(image), do_rescale=False, do_normalize=False, input_data_format="channels_last",
            return_tensors="pt",
        )  # fmt: skip
        patches = made["pixel_values"][0].to(torch.uint8)  # (N, P P 3)
        header = torch.zeros(1, patches.shape[1], dtype=torch.uint8)
        down, across = (int(count) for count in made["spatial_shapes"][0])
        header[0, :4] = torch.tensor([*divmod(down, 256), *divmod(across, 256)], dtype=torch.uint8)
        return torch.cat([header, patches]), image.size

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 (..., 1 + N, P P 3) -> float32 of the same shape: (x - mean) / std, padding 0, the header as it is."""
        levels = pixels.float()
        times = levels.shape[-1] // 3
        mean = self._mean.flatten().repeat(times).to(levels.device)
        std = self._std.flatten().repeat(times).to(levels.device)
        normal = (levels / 255 - mean) / std
        _, mask = _shapes(levels)
        normal[..., 1:, :] *= mask[..., None]
        normal[..., :1, :] = levels[..., :1, :]
        return normal


def split_naflex(pixels: Tensor) -> dict[str, Tensor]:
    """Converts a batch (B, 1 + N, P P 3) to the arguments of `Siglip2Model.get_image_features`."""
    shapes, mask = _shapes(pixels)
    return {
        "pixel_values": pixels[:, 1:],
        "pixel_attention_mask": mask.to(torch.int32),
        "spatial_shapes": shapes,
    }


def _shapes(levels: Tensor) -> tuple[Tensor, Tensor]:
    """(patches down and across (..., 2), which rows are patches (..., N))."""
    header = levels[..., 0, :4].long()
    shapes = torch.stack([256 * header[..., 0] + header[..., 1], 256 * header[..., 2] + header[..., 3]], dim=-1)
    rows = torch.arange(levels.shape[-2] - 1, device=levels.device)
    return shapes, rows < shapes.prod(-1, keepdim=True)
