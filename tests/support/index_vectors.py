"""Embeddings put into an index without images."""

from typing import Any

import numpy as np

from vlm.index.embedding_index import EmbeddingIndex
from vlm.index.records import Content, Record


def add_vectors(index: EmbeddingIndex, names: list[str], vectors: np.ndarray) -> None:
    """Of files that need not exist."""
    contents = [Content(digest=name.encode(), size=1, width=8, height=8, taken=None) for name in names]
    records = [Record(path=c.digest.decode(), size=1, mtime=1, digest=c.digest, content=c) for c in contents]
    store = index._store  # pyright: ignore[reportPrivateUsage]
    model = store.model(index.embedder.fingerprint, "tiny", index.embedder.embed_dim)
    store.add(model, records, {c.digest: vector for c, vector in zip(contents, vectors, strict=True)})


def image_record(path: str, **known: Any) -> Record:
    """Of 9 bytes, 40 x 50 pixels, no date, of a file of the same size."""
    kinds: dict[str, Any] = {"digest": path.encode(), "size": 9, "width": 40, "height": 50, "taken": None}
    content = Content(**{key: known.get(key, kinds[key]) for key in kinds})
    return Record(path=path, size=content.size, mtime=known.get("mtime", 1), digest=content.digest, content=content)
