"""Preprocessing by an image processor that `Preprocess` does not know: of transformers, or the model's own code."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm.config import PreprocessConfig
from vlm.errors import CheckpointError
from vlm.images.open import ImageSource, OpenedImage, open_header, to_rgb
from vlm.images.preprocess import Preprocess
from vlm.interop.formats.foreign import one_line


class ProcessorPreprocess(Preprocess):
    """Image -> pixels as a processor makes them, float32 (3, H, W), normalised already."""

    def __init__(self, folder: Path, source: str, options: dict[str, Any]):
        """Open the processor of a folder.

        Args:
            folder: with preprocessor_config.json, and the processor's code where it came with the model.
            source: for messages.
            options: of `AutoImageProcessor.from_pretrained`.

        Raises:
            CheckpointError: transformers cannot open it, or its output is no image of a fixed size.
        """
        from transformers import AutoImageProcessor

        self._source = source
        try:
            self._processor: Any = cast(Any, AutoImageProcessor).from_pretrained(str(folder), **options)
        except Exception as error:  # in code of the model's own almost anything is raised
            raise CheckpointError(
                f"{source}: transformers cannot open its image processor ({one_line(error)}). Are its files whole, and "
                "is transformers new enough?"
            ) from error
        shapes = {tuple(self._pixels(Image.new("RGB", size)).shape) for size in ((300, 200), (200, 300))}
        if len(shapes) != 1:
            raise CheckpointError(
                f"{source}: its image processor makes images of the shapes {sorted(shapes)}; wanted one size for all."
            )
        _, height, width = shapes.pop()
        super().__init__(PreprocessConfig(image_size=(height, width), resize="squash", exact=True))

    def pixels_and_size(self, source: ImageSource | OpenedImage) -> tuple[Tensor, tuple[int, int]]:
        """-> float32 (3, H, W), and the (width, height) of the image itself, upright."""
        image = to_rgb(source if isinstance(source, OpenedImage) else open_header(source))
        return self._pixels(image), image.size

    def normalize(self, pixels: Tensor) -> Tensor:
        """The pixels as they are: the processor has normalised them."""
        return pixels.float()

    def _pixels(self, image: Image.Image) -> Tensor:
        made: Any = self._processor(images=image, return_tensors="pt")
        values: Any = made["pixel_values"]
        pixels = torch.as_tensor(np.asarray(values[0]), dtype=torch.float32)
        if pixels.ndim != 3 or pixels.shape[0] != 3:
            raise CheckpointError(
                f"{self._source}: its image processor makes {tuple(pixels.shape)}; wanted one image (3, H, W)."
            )
        return pixels
