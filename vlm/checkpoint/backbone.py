"""Image encoders for other work: features, probes, new heads.  A ViT with or without a head, or that of a CLIP."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from vlm.checkpoint.load import load, load_classifier
from vlm.checkpoint.sources import locate
from vlm.checkpoint.weights import fill, unfilled
from vlm.errors import CheckpointError, InputError, OtherKind
from vlm.images.open import ImageSource
from vlm.images.preprocess import Preprocess
from vlm.interop.names.catalog import source_of
from vlm.models.external import ExternalModel
from vlm.models.vision import VisionTransformer, ViTClassifier
from vlm.precision import cast_weights, choose_device, weight_dtype


@dataclass(frozen=True)
class Backbone:
    """An image encoder with the preprocessing it was trained with."""

    vision: VisionTransformer
    preprocess: Preprocess | None  # None where the source had none
    name: str

    def features(self, images: Iterable[ImageSource], batch_size: int = 32) -> Tensor:
        """Embed images: what a head would read.

        Args:
            images: paths, PIL images or uint8 arrays.
            batch_size: images computed at once.

        Returns:
            float32 (B, D), not normalised, on the CPU.

        Raises:
            CheckpointError: the source came without preprocessing.
            ImageError: an image cannot be used.
        """
        if self.preprocess is None:
            raise CheckpointError(f"{self.name} came without preprocessing settings, so it cannot read images.")
        device = self.vision.patch_embed.proj.weight.device
        remaining, found = iter(images), [torch.empty(0, self.vision.config.width)]
        with torch.inference_mode():
            while batch := [self.preprocess(image) for image in islice(remaining, batch_size)]:
                found.append(self.vision(torch.stack(batch).to(device)).float().cpu())
        return torch.cat(found).clone()


def load_backbone(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    image_size: int | tuple[int, int] | None = None,
) -> Backbone:
    """Open an image encoder.

    Args:
        source: all that `load` and `load_classifier` open, and ViTs without a head: DINOv2, MAE, timm's and others.
        device: where the weights go; "auto" as in `load`.
        dtype: of the weights, as in `load`.
        image_size: pixels; resizes the position embeddings of a foreign model.

    Raises:
        InputError: the source is an external model, which has no layers of ours.
        CheckpointError: the model is missing, damaged or of no known kind.
        HubError: the hub cannot be reached, or refuses.
    """
    name, source = str(source), source_of(str(source)) if isinstance(source, str) else source
    try:
        own = isinstance(locate(source, "vit"), Path)
    except OtherKind:  # a CLIP on the hub
        own = False
    if own:
        try:
            classifier = load_classifier(source, device=device, dtype=dtype, image_size=image_size)
            return Backbone(classifier.vision, classifier.preprocess, name)
        except OtherKind:
            embedder = load(source, device=device, dtype=dtype, image_size=image_size)
        if isinstance(embedder.model, ExternalModel):
            raise InputError(f"{name} is an external model, which has no layers of this library.")
        return Backbone(embedder.model.vision, embedder.parts()[1], name)
    from vlm.interop.loading import load_foreign_backbone  # only those who need it wait for it

    foreign = load_foreign_backbone(str(source), image_size=image_size)
    with unfilled():
        vision = VisionTransformer(foreign.config)
    weights = {
        key.removeprefix("vision."): weight for key, weight in foreign.state.items() if key.startswith("vision.")
    }
    fill(vision, weights, name)
    if (wanted := weight_dtype(dtype)) is not None:
        cast_weights(vision, wanted)
    preprocess = Preprocess(foreign.preprocess) if foreign.preprocess else None
    return Backbone(vision.to(choose_device(device)).eval(), preprocess, name)


def _open(source: str | Path) -> tuple[VisionTransformer, Preprocess | None]:
    """Returns the encoder that `ViTClassifier.from_pretrained` starts from."""
    backbone = load_backbone(source)
    return backbone.vision, backbone.preprocess


ViTClassifier.open_backbone = staticmethod(_open)
