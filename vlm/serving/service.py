"""What `vlm serve` answers, HTTP aside: search, classify, embed, for many callers at once.

The bytes of a request are all that is read on its behalf: no field is a path or an address on this machine.  Images
are decoded by a few threads.  One thread computes, and the index is its own; what comes at the same time is embedded in
one batch, and everything else goes through the functions that the commands use, so the answers are theirs.
"""

import asyncio
import io
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm.embedder import Embedder
from vlm.errors import ImageError
from vlm.images.open import read_image_size
from vlm.index.embedding_index import EmbeddingIndex, Query
from vlm.index.query import parse_terms
from vlm.serving.api_types import ClassifyAsked, EmbedAsked, SearchAsked, UploadedImage
from vlm.serving.batching import Batcher
from vlm.serving.embedding_cache import CachedEmbedder, digest_of
from vlm.zero_shot import ZeroShotClassifier, label_sentences, ranked

MAX_PIXELS = 40_000_000  # of one image
MAX_SENTENCES = 10_000  # labels x templates

Result = TypeVar("Result")
Row = dict[str, Any]


class Service:
    """A model, perhaps an index, and the threads that work for all requests.  `close` it."""

    def __init__(self, embedder: Embedder, index: Path | None = None, *, max_pixels: int = MAX_PIXELS) -> None:
        self._embedder = CachedEmbedder(embedder)
        self._fingerprint = embedder.fingerprint
        self._folder = index
        self._max_pixels = max_pixels
        self._computing = ThreadPoolExecutor(1, "vlm-compute")
        self._decoding = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "vlm-decode")
        self._texts: Batcher[str, Tensor] = Batcher(self._embed_texts, self._computing, size=256)
        self._images: Batcher[tuple[bytes, Tensor], Tensor] = Batcher(self._embed_images, self._computing)
        self._index: EmbeddingIndex | None = None
        if index is not None:  # SQLite belongs to the thread that opened it
            self._index = self._computing.submit(EmbeddingIndex.open, index, self._embedder).result()

    def close(self) -> None:
        """After what is being computed."""
        if self._index is not None:
            self._computing.submit(self._index.close).result()
        self._computing.shutdown()
        self._decoding.shutdown()

    # ---- what is asked ---------------------------------------------------------------------------------------------

    async def search(self, asked: SearchAsked) -> tuple[list[Row], bool]:
        """As `vlm search --json`; and whether even the best is no good match."""
        if self._index is None:
            raise ValueError("This server has no index to search. Start it with one: vlm serve --index FOLDER")
        terms = parse_terms(asked.text) if asked.text is not None else []
        images = [asked.image] if asked.image else []
        for term in asked.terms or []:
            terms += [(term.weight, term.text)] if term.text is not None else []
            images += [term.image] if term.image else []
        await asyncio.gather(self.embed_texts([text for _, text in terms]), self.embed_all_images(images, "image"))
        return await self._compute(self._search, self._index, asked)

    def _search(self, index: EmbeddingIndex, asked: SearchAsked) -> tuple[list[Row], bool]:
        query, since, until = _query(asked), asked.since, asked.until
        hits = index.search(query, asked.k, glob=asked.glob, since=since, until=until, min_side=asked.min_side)
        if not hits and not len(index):
            raise ValueError("The index has no images for this model. Run vlm index with it first.")
        return [hit.row() for hit in hits], bool(hits) and self._embedder.no_good_match(hits[0].probability)

    async def classify(self, asked: ClassifyAsked) -> list[Row]:
        """As `vlm classify --json`."""
        sentences = [sentence for label in asked.labels for sentence in label_sentences(label, asked.templates)]
        if len(sentences) > MAX_SENTENCES:
            raise ValueError(
                f"labels x templates is {len(sentences):,}, at most {MAX_SENTENCES:,}. Send fewer of either."
            )
        await asyncio.gather(self.embed_texts(sentences), self.embed_all_images(asked.images))
        return await self._compute(self._classify, asked)

    def _classify(self, asked: ClassifyAsked) -> list[Row]:
        zero_shot = ZeroShotClassifier(self._embedder, asked.labels, asked.templates)
        probabilities = zero_shot([image.data for image in asked.images])  # (B, M)
        return [
            {"path": name, "label": label, "score": score, "rank": rank}
            for name, row in zip(_names(asked.images), probabilities, strict=True)
            for rank, (label, score) in enumerate(ranked(zero_shot.labels, row, asked.k or len(zero_shot.labels)), 1)
        ]

    async def embed(self, asked: EmbedAsked) -> Row:
        """Unit vectors."""
        texts, images = await asyncio.gather(self.embed_texts(asked.texts), self.embed_all_images(asked.images))
        vectors = {"texts": texts.numpy().tolist(), "images": images.numpy().tolist()}
        return {"model": self._embedder.name, "fingerprint": self._fingerprint, **vectors}

    async def health(self) -> Row:
        """Draws an image that nobody has seen, sends it the way of all images, and looks at the vector."""
        file, start = io.BytesIO(), time.perf_counter()
        Image.fromarray(np.random.default_rng().integers(0, 256, (32, 32, 3), np.uint8)).save(file, "PNG")
        vector = (await self.embed_all_images([UploadedImage(file.getvalue())]))[0]
        length = vector.square().sum().sqrt().item()
        if not abs(length - 1) < 1e-3:  # NaN too
            raise RuntimeError(f"{self._embedder.name} made a vector of length {length}, wanted 1.")
        return {
            "status": "ok",
            "model": self._embedder.name,
            "fingerprint": self._fingerprint,
            "embed_dim": self._embedder.embed_dim,
            "device": str(self._embedder.device),
            "indexed": None if self._index is None else await self._compute(len, self._index),
            "milliseconds": round(1000 * (time.perf_counter() - start), 1),
        }

    # ---- batches ---------------------------------------------------------------------------------------------------

    async def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """-> (B, E), in batches with the texts of others."""
        return _stack(await self._texts(texts), self._embedder.embed_dim)

    async def embed_all_images(self, images: Sequence[UploadedImage], field: str = "images") -> Tensor:
        """-> (B, E), in batches with the images of others."""
        loop, names = asyncio.get_running_loop(), _names(images, field)
        decoding = [
            loop.run_in_executor(self._decoding, self._decode, image.data, name)
            for image, name in zip(images, names, strict=True)
        ]
        return _stack(await self._images(await asyncio.gather(*decoding)), self._embedder.embed_dim)

    def _decode(self, file: bytes, name: str) -> tuple[bytes, Tensor]:
        """-> digest, pixels (3, H, W)."""
        try:
            width, height = read_image_size(file)
            if width * height > self._max_pixels:
                detail = f"{width} x {height} pixels; the limit is {self._max_pixels:,}; make it smaller first"
                raise ImageError(name, "too many pixels", detail)
            return digest_of(file), self._embedder.preprocess(file)
        except ImageError as error:
            raise ImageError(name, error.reason, error.detail) from error

    def _embed_texts(self, texts: list[str]) -> Sequence[Tensor]:
        return self._embedder.embed_texts(texts).unbind()

    def _embed_images(self, files: list[tuple[bytes, Tensor]]) -> Sequence[Tensor]:
        digests, pixels = zip(*files, strict=True)
        return self._embedder.embed_decoded(digests, pixels).unbind()

    async def _compute(self, function: Callable[..., Result], *given: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._computing, function, *given)


def _query(asked: SearchAsked) -> Query:
    if asked.text is not None:
        return asked.text
    if asked.image is not None:
        return asked.image.data
    return [(t.weight, t.image.data if t.image else t.text or "") for t in asked.terms or []]


def _names(images: Sequence[UploadedImage], field: str = "images") -> list[str]:
    return [image.name or f"{field}[{place}]" for place, image in enumerate(images)]


def _stack(vectors: list[Tensor], embed_dim: int) -> Tensor:
    return torch.stack(vectors) if vectors else torch.empty(0, embed_dim)
