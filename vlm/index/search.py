"""Search among stored vectors: queries to embeddings, embeddings to files, groups of near duplicates."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm.embedder import Embedder
from vlm.errors import CheckpointError, IndexFileError, InputError
from vlm.images.open import ImageSource
from vlm.index.ann import OpenedAnn
from vlm.index.exact_search import nearest
from vlm.index.filters import Filter
from vlm.index.near_duplicates import group_near
from vlm.index.paths import absolute_path
from vlm.index.query import Query, is_one_text, read_query, unit_sum
from vlm.index.vector_files import check_unit_length
from vlm.index.vector_store import VectorStore

EVERYTHING = Filter()


@dataclass(frozen=True, slots=True)
class Hit:
    """One image of a result."""

    path: Path
    score: float  # cosine similarity, -1 to 1
    rank: int  # from 1
    probability: float | None  # that this is a match; None where the model cannot say
    taken: str = ""  # "2024-05-01 12:00:00": EXIF, else the date of the file

    def row(self) -> dict[str, Any]:
        """The fields of `--json` and of the server."""
        about = {"path": str(self.path), "score": self.score, "rank": self.rank, "probability": self.probability}
        return {**about, "taken": self.taken}


class IndexSearch:
    """Answers queries from a store, for one model.

    Args:
        store: where vectors and files are.
        embedder: embeds the queries.
        fingerprint: of the embedder.
    """

    def __init__(self, store: VectorStore, embedder: Embedder, fingerprint: str) -> None:
        self._store = store
        self._embedder = embedder
        self._fingerprint = fingerprint
        self._opened_ann = OpenedAnn()

    @property
    def _model(self) -> int:
        return self._store.find_model(self._fingerprint)

    def search(self, query: Query, k: int, allowed: Filter, exact: bool) -> list[Hit]:
        """Find the K nearest files that pass a filter.

        Args:
            query: see `EmbeddingIndex.search`.
            k: how many, 1 or more.
            allowed: which files may be found.
            exact: ignore an approximate index.
        """
        if k < 1:
            raise InputError(f"k is {k}, wanted 1 or more.")
        vector = self.embed_query(query)
        try:
            found = self._nearest(vector, k, allowed, exact)
        except IndexFileError:  # another process may have pruned at this moment: look at the new vectors
            found = self._nearest(vector, k, allowed, exact)
        probabilities = self._probabilities(query, [score for score, _, _ in found])
        return [
            Hit(Path(path), min(1.0, max(-1.0, score)), rank, probability, taken)  # float16 is off by up to 0.001
            for rank, ((score, path, taken), probability) in enumerate(zip(found, probabilities, strict=True), 1)
        ]

    def embed_query(self, query: Query) -> Tensor:
        """-> (E,), unit length."""
        return unit_sum([weight * self._embed_term(term) for weight, term in read_query(query)])

    def _embed_term(self, term: str | ImageSource) -> Tensor:
        if isinstance(term, str):
            embed = self._embedder.embed_texts([term])[0]
        else:
            path = os.fsdecode(term) if isinstance(term, os.PathLike) else None
            row = None if path is None else self._store.row_of(self._model, str(absolute_path(path)))
            if row is not None:
                return torch.from_numpy(self._store.vectors(self._model)[row]).float()
            embed = self._embedder.embed_images([term])[0]
        length = float(embed.norm())
        if not abs(length - 1) < 0.01:  # NaN too
            raise CheckpointError(
                f"{self._embedder.name} made an embedding of length {length:g}, wanted 1. Its weights are "
                "damaged: get a whole copy."
            )
        return embed

    def _nearest(self, vector: Tensor, k: int, allowed: Filter, exact: bool) -> list[tuple[float, str, str]]:
        """The K best (score, path, date): of an approximate index, if there is one and enough pass the filter."""
        with self._store.reading():
            model = self._model
            if not model:
                return []
            vectors = self._store.vectors(model)
            ann = None if exact else self._opened_ann.at(self._store.ann_file(model), self._embedder.embed_dim)
            if ann is not None:
                hits = self._hits(vectors, *ann.nearest(vectors, vector[None], 4 * k), allowed)
                if len(hits) >= k:
                    return hits[:k]
            rows = None if allowed == EVERYTHING else self._store.allowed_rows(model, allowed)
            wanted = k
            while True:  # some rows have no file any more, so it may take a second look, further down
                hits = self._hits(vectors, *nearest(vectors, vector[None], wanted, rows), allowed)
                if len(hits) >= k or wanted >= (len(vectors) if rows is None else len(rows)):
                    return hits[:k]
                wanted *= 4

    def _hits(self, vectors: np.ndarray, scores: Tensor, rows: Tensor, allowed: Filter) -> list[tuple[float, str, str]]:
        """(1, K) of both -> (score, path, date) of every file that passes the filter, best first, then by path."""
        score_of: dict[int, float] = dict(zip(rows[0].numpy().tolist(), scores[0].numpy().tolist(), strict=True))
        files = self._store.files_at(self._model, list(score_of), allowed)
        check_unit_length(vectors[sorted({found.row for found in files})], self._store.folder)
        hits = [(score_of[found.row], found.path, found.taken) for found in files]
        return sorted(hits, key=lambda hit: -hit[0])  # stable: then by path

    def _probabilities(self, query: Query, scores: list[float]) -> Sequence[float | None]:
        """Match probabilities of one text; None for sums and images, for which no calibration exists."""
        probabilities = self._embedder.match_probability(torch.tensor(scores)) if is_one_text(query) else None
        return [None] * len(scores) if probabilities is None else probabilities.numpy().tolist()

    def duplicates(self, threshold: float, allowed: Filter) -> list[list[Path]]:
        """Groups of files that show the same.

        Args:
            threshold: above 0, at most 1.
            allowed: which files are compared.

        Raises:
            InputError: for a threshold that is no cosine similarity.
        """
        if not 0 < threshold <= 1:
            hint = f" Write {threshold / 100:g}." if 1 < threshold <= 100 else ""
            raise InputError(
                f"The threshold of duplicates is {threshold!r}; it is a cosine similarity above 0, at most 1.{hint}"
            )
        with self._store.reading():
            rows = self._store.allowed_rows(self._model, allowed)
            vectors = self._store.vectors(self._model)[rows]
            check_unit_length(vectors, self._store.folder)
            labels = group_near(vectors, threshold)
            files = self._store.files_at(self._model, rows.tolist(), allowed)
        label_of = dict(zip(rows.tolist(), labels.tolist(), strict=True))
        groups: dict[int, list[Path]] = {}
        for found in files:
            groups.setdefault(label_of[found.row], []).append(Path(found.path))
        return [paths for paths in groups.values() if len(paths) > 1]
