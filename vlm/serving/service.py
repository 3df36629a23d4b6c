"""The answers of `vlm serve` without HTTP: search, classify and embed, for many callers at once.

No field of a request is a path or an address on this machine: only the bytes of the request are read.  A few threads
decode images, one thread computes.  Requests that come together are embedded in one batch; everything else goes through
the functions that the commands use, so the answers are the same.
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
from vlm.errors import ImageError, InputError
from vlm.images.open import read_image_size
from vlm.images.signatures import sniff
from vlm.index.embedding_index import EmbeddingIndex
from vlm.index.query import Query, parse_terms
from vlm.serving.api_types import ClassifyRequest, EmbedRequest, SearchRequest, UploadedImage
from vlm.serving.batching import Batcher
from vlm.serving.embedding_cache import CachedEmbedder, digest_of
from vlm.zero_shot import ZeroShotClassifier, label_sentences, ranked

MAX_PIXELS = 40_000_000  # of one image
MAX_SENTENCES = 10_000  # labels x templates

Result = TypeVar("Result")
Row = dict[str, Any]


class Service:
    """A model, an index if there is one, and the threads that work for all requests.

    Args:
        embedder: the model.
        index: folder of the index, None: no search.
        max_pixels: of one image.
    """

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
        if index is not None:
            try:
                self._index = EmbeddingIndex.open(index, self._embedder)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Wait for what is being computed, then close the index."""
        self._computing.shutdown()
        self._decoding.shutdown()
        if self._index is not None:
            self._index.close()

    # ---- requests ---------------------------------------------------------------------------------------------------

    async def search(self, request: SearchRequest) -> tuple[list[Row], bool]:
        """Rows of `vlm search --json`; and whether even the best is no good match."""
        if self._index is None:
            raise InputError("This server has no index to search. Start it with one: vlm serve --index FOLDER")
        terms = parse_terms(request.text) if request.text is not None else []
        images = [request.image] if request.image else []
        for term in request.terms or []:
            terms += [(term.weight, term.text)] if term.text is not None else []
            images += [term.image] if term.image else []
        await asyncio.gather(self.embed_texts([text for _, text in terms]), self.embed_all_images(images, "image"))
        return await self._compute(self._search, self._index, request)

    def _search(self, index: EmbeddingIndex, request: SearchRequest) -> tuple[list[Row], bool]:
        query, since, until = _query(request), request.since, request.until
        hits = index.search(query, request.k, glob=request.glob, since=since, until=until, min_side=request.min_side)
        if not hits and not len(index):
            raise InputError("The index has no images for this model. Run vlm index with it first.")
        return [hit.row() for hit in hits], bool(hits) and self._embedder.no_good_match(hits[0].probability)

    async def classify(self, request: ClassifyRequest) -> list[Row]:
        """Rows of `vlm classify --json`."""
        sentences = [sentence for label in request.labels for sentence in label_sentences(label, request.templates)]
        if len(sentences) > MAX_SENTENCES:
            raise InputError(
                f"labels x templates is {len(sentences):,}, at most {MAX_SENTENCES:,}. Send fewer of either."
            )
        await asyncio.gather(self.embed_texts(sentences), self.embed_all_images(request.images))
        return await self._compute(self._classify, request)

    def _classify(self, request: ClassifyRequest) -> list[Row]:
        zero_shot = ZeroShotClassifier(self._embedder, request.labels, request.templates)
        probabilities = zero_shot([image.data for image in request.images])  # (B, M)
        return [
            {"path": name, "label": label, "score": score, "rank": rank}
            for name, row in zip(_names(request.images), probabilities, strict=True)
            for rank, (label, score) in enumerate(ranked(zero_shot.labels, row, request.k or len(zero_shot.labels)), 1)
        ]

    async def embed(self, request: EmbedRequest) -> Row:
        """Unit vectors."""
        texts, images = await asyncio.gather(self.embed_texts(request.texts), self.embed_all_images(request.images))
        vectors = {"texts": texts.numpy().tolist(), "images": images.numpy().tolist()}
        return {"model": self._embedder.name, "fingerprint": self._fingerprint, **vectors}

    def health(self) -> Row:
        """Returns the model's name; raises `IndexFileError` if the index's vectors are missing."""
        if self._index is not None:
            self._index.check_files()
        return {
            "status": "ok",
            "model": self._embedder.name,
            "fingerprint": self._fingerprint,
            "embed_dim": self._embedder.embed_dim,
            "device": str(self._embedder.device),
        }

    async def readiness(self) -> Row:
        """Draws a new image, embeds it as every image is, and checks the length of the embedding."""
        file, start = io.BytesIO(), time.perf_counter()
        Image.fromarray(np.random.default_rng().integers(0, 256, (32, 32, 3), np.uint8)).save(file, "PNG")
        vector = (await self.embed_all_images([UploadedImage(file.getvalue())]))[0]
        length = vector.square().sum().sqrt().item()
        if not abs(length - 1) < 1e-3:  # NaN too
            raise RuntimeError(f"{self._embedder.name} made a vector of length {length}, wanted 1.")
        return {
            **self.health(),
            "indexed": None if self._index is None else await self._compute(len, self._index),
            "milliseconds": round(1000 * (time.perf_counter() - start), 1),
        }

    # ---- batches ---------------------------------------------------------------------------------------------------

    async def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """-> (B, E); texts of concurrent requests share batches."""
        return _stack(await self._texts(texts), self._embedder.embed_dim)

    async def embed_all_images(self, images: Sequence[UploadedImage], field: str = "images") -> Tensor:
        """-> (B, E); images of concurrent requests share batches.  `field` names them in errors."""
        loop, names = asyncio.get_running_loop(), _names(images, field)
        decoding = [
            loop.run_in_executor(self._decoding, self._decode, image.data, name)
            for image, name in zip(images, names, strict=True)
        ]
        return _stack(await self._images(await asyncio.gather(*decoding)), self._embedder.embed_dim)

    def _decode(self, file: bytes, name: str) -> tuple[bytes, Tensor]:
        """-> digest, pixels (3, H, W)."""
        try:
            if sniff(file) == "SVG":  # no limit on its size bounds the time that it takes
                raise ImageError(name, "unsupported format", "this is SVG, which a server does not draw; send a PNG")
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


def _query(request: SearchRequest) -> Query:
    if request.text is not None:
        return request.text
    if request.image is not None:
        return request.image.data
    return [(t.weight, t.image.data if t.image else t.text or "") for t in request.terms or []]


def _names(images: Sequence[UploadedImage], field: str = "images") -> list[str]:
    return [image.name or f"{field}[{place}]" for place, image in enumerate(images)]


def _stack(vectors: list[Tensor], embed_dim: int) -> Tensor:
    return torch.stack(vectors) if vectors else torch.empty(0, embed_dim)
