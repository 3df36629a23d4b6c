"""What a ViT sees, as images and numbers for the page.  `vlm.inspect` computes and draws it.

People count blocks, heads and patches from 1; patch 0 is the vector that stands for the whole image.
"""

from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

import vlm
from vlm.demo.texts import NoAnswer
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


class Seen(NamedTuple):
    """An image as a model gets it."""

    vision: VisionTransformer
    images: Tensor
    """(1, 3, H, W), normalised."""
    image: Image.Image
    """The same to look at."""

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


class Look(NamedTuple):
    """One map of numbers and its image."""

    grid: Tensor
    """(H/P, W/P)."""
    figure: Image.Image


class Answer(NamedTuple):
    """What a classifier says of an image, and which patches reached its vector."""

    top: list[tuple[str, float]]
    """(label, probability), at most `TOP`, most probable first."""
    classes: int
    rollout: Look


def see(vision: VisionTransformer, preprocess: Preprocess, image: ImageSource | None) -> Seen:
    """`NoAnswer` for what is no image."""
    if image is None:
        raise NoAnswer("no_image")
    try:
        pixels = preprocess.pixels(image)
    except vlm.ImageError as error:
        raise NoAnswer(error.reason) from error
    return Seen(vision, preprocess.normalize(pixels)[None], image_seen(pixels))


def attention(seen: Seen, block: int, head: int, patch: int = 0) -> Look:
    """What patch `patch` reads in one head of one block; patch 0: what the image's vector reads.  Book eq. (7)."""
    for name, number, first, last in (
        ("block", block, 1, seen.blocks),
        ("head", head, 1, seen.heads),
        ("patch", patch, 0, seen.patches),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or not first <= number <= last:
            raise NoAnswer(f"no_such_{name}", number=str(number)[:20], first=first, last=last)
    if patch == 0:
        grid = attention_read(seen.vision, seen.images)[block - 1, 0, head - 1]
    else:
        row = patch - 1 + int(seen.vision.config.class_token)
        maps = attention_maps(seen.vision, seen.images)  # (L, 1, h, N, N)
        grid = patch_grid(seen.vision.config, maps[block - 1, 0, head - 1, row])
    return Look(grid, overlay(seen.image, grid, SIDE))


def rollout(seen: Seen) -> Look:
    """Attention followed through all blocks.  Abnar and Zuidema 2020."""
    grid = rollout_map(seen.vision, seen.images)[0]
    return Look(grid, overlay(seen.image, grid, SIDE))


def relevance(seen: Seen, embedder: vlm.Embedder, text: str) -> Look:
    """Which parts of the image make it more (red) or less (blue) like the text, in units of the cosine."""
    score = text_score(embedder.model.vision_proj, class_embeddings(embedder, [text])[0])
    grid = relevance_map(seen.vision, seen.images, score)[0]
    top = grid.abs().max().clamp_min(torch.finfo(grid.dtype).tiny)
    return Look(grid, tint(seen.image, grid / top, SIDE))


def answer(classifier: vlm.ViTClassifier, image: ImageSource | None) -> Answer:
    """The most probable classes, and where the image's vector got its knowledge from."""
    assert classifier.preprocess is not None
    seen = see(classifier.vision, classifier.preprocess, image)
    with torch.inference_mode():
        probabilities = classifier(seen.images)[0].softmax(-1)
    best = probabilities.topk(min(TOP, len(classifier.labels)))
    top = [(classifier.labels[place], p) for place, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return Answer(top, len(classifier.labels), rollout(seen))
