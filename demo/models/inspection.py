"""Arrays and figures of a ViT's computation for the page.  `vlm.inspect` computes and draws them.

Blocks, heads and patches count from 1 on the page; patch 0 is the vector of the whole image.
"""

from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

import vlm
from vlm.demo.page.texts import PageError
from vlm.images.open import ImageSource
from vlm.images.preprocess import Preprocess
from vlm.inspect.attention import attention_maps, attention_read, patch_grid
from vlm.inspect.drawing import image_seen, overlay, tint
from vlm.inspect.relevance import relevance as relevance_map
from vlm.inspect.relevance import text_score
from vlm.inspect.rollout import rollout_map
from vlm.models.vision import VisionTransformer
from vlm.zero_shot import class_embeddings

SIDE = 384  # pixels of a large figure
TOP = 5


class PreparedImage(NamedTuple):
    """An image after the preprocessing of a model."""

    vision: VisionTransformer
    images: Tensor
    """(1, 3, H, W), normalised."""
    image: Image.Image
    """The same for display."""

    @property
    def blocks(self) -> int:
        return self.vision.config.depth

    @property
    def heads(self) -> int:
        return self.vision.config.num_heads

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.vision.config.grid

    @property
    def patches(self) -> int:
        return self.vision.config.num_patches


class PatchMap(NamedTuple):
    """One number per patch, and its figure."""

    grid: Tensor
    """(H/P, W/P)."""
    figure: Image.Image


class ClassPrediction(NamedTuple):
    """The answer of a trained classifier."""

    top: list[tuple[str, float]]
    """(label, probability), at most `TOP`, most probable first."""
    classes: int
    rollout: PatchMap


def prepare(vision: VisionTransformer, preprocess: Preprocess, image: ImageSource | None) -> PreparedImage:
    """Preprocess an image for a vision encoder.

    Args:
        vision: the encoder.
        preprocess: its preprocessing.
        image: None raises "no_image".

    Raises:
        PageError: not a readable image.
    """
    if image is None:
        raise PageError("no_image")
    try:
        pixels = preprocess.pixels(image)
    except vlm.ImageError as error:
        raise PageError(error.reason) from error
    return PreparedImage(vision, preprocess.normalize(pixels)[None], image_seen(pixels))


def prepare_for(embedder: vlm.Embedder, image: ImageSource | None) -> PreparedImage:
    """Preprocess an image for the image encoder of a model.

    Raises:
        PageError: not a readable image, or another library computes the model, so that its layers are not ours.
    """
    if isinstance(embedder.model, vlm.ExternalModel):
        raise PageError("external_model", name=embedder.name)
    return prepare(embedder.model.vision, embedder.preprocess, image)


def attention(prepared: PreparedImage, block: int, head: int, patch: int = 0) -> PatchMap:
    """Attention weights of one patch in one head of one block.  Book eq. (7).

    Args:
        prepared: the image.
        block: from 1.
        head: from 1.
        patch: from 1; 0: the vector of the whole image.

    Raises:
        PageError: a number out of range.
    """
    for name, number, first, last in (
        ("block", block, 1, prepared.blocks),
        ("head", head, 1, prepared.heads),
        ("patch", patch, 0, prepared.patches),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or not first <= number <= last:
            raise PageError(f"no_such_{name}", number=str(number)[:20], first=first, last=last)
    if patch == 0:
        grid = attention_read(prepared.vision, prepared.images)[block - 1, 0, head - 1]
    else:
        row = patch - 1 + prepared.vision.config.num_prefix_tokens
        weights = attention_maps(prepared.vision, prepared.images)  # (L, 1, h, N, N)
        grid = patch_grid(prepared.vision.config, weights[block - 1, 0, head - 1, row])
    return PatchMap(grid, overlay(prepared.image, grid, SIDE))


def rollout(prepared: PreparedImage) -> PatchMap:
    """Attention rollout over all blocks.  Abnar and Zuidema 2020."""
    grid = rollout_map(prepared.vision, prepared.images)[0]
    return PatchMap(grid, overlay(prepared.image, grid, SIDE))


def relevance(prepared: PreparedImage, embedder: vlm.Embedder, text: str) -> PatchMap:
    """Computes how much each patch raises (red) or lowers (blue) the cosine similarity with a text."""
    assert not isinstance(embedder.model, vlm.ExternalModel)
    score = text_score(embedder.model.vision_proj, class_embeddings(embedder, [text])[0])
    grid = relevance_map(prepared.vision, prepared.images, score)[0]
    top = grid.abs().max().clamp_min(torch.finfo(grid.dtype).tiny)
    return PatchMap(grid, tint(prepared.image, grid / top, SIDE))


def predict(classifier: vlm.ViTClassifier, image: ImageSource | None) -> ClassPrediction:
    """The most probable classes of a trained classifier, and the attention rollout."""
    assert classifier.preprocess is not None
    prepared = prepare(classifier.vision, classifier.preprocess, image)
    with torch.inference_mode():
        probabilities = classifier(prepared.images)[0].softmax(-1)
    best = probabilities.topk(min(TOP, len(classifier.labels)))
    top = [(classifier.labels[place], p) for place, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return ClassPrediction(top, len(classifier.labels), rollout(prepared))
