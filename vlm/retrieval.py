"""Pictures found by words, by pictures, by sums of both: `EmbeddingIndex`.  Search is exact.

Each model (by `Embedder.fingerprint`) has its own vectors in the index.  They are never mixed, and another model leaves
them where they are.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeGuard, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vlm.embedder import Embedder
from vlm.picture_reading import Job, Read, read_batches
from vlm.preprocess import ImageError, ImageSource, Reason, find_images
from vlm.vector_store import Filter, VectorStore

Term = tuple[float, str | ImageSource]
Query = str | ImageSource | Sequence[Term]

_BLOCK = 2048  # vectors that are float32 at a time: they stay in the cache
_ANYTHING = Filter()


@dataclass(frozen=True, slots=True)
class Hit:
    """One picture of an answer."""

    path: Path
    score: float  # cosine
    rank: int  # from 1
    probability: float | None  # that this is a match; None where the model cannot say


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What `add` and `add_folder` did, in files."""

    found: int = 0
    embedded: int = 0  # pictures of which a vector was made
    recognised: int = 0  # renamed, moved, copied or touched: the bytes were known
    unchanged: int = 0  # and so passed over, broken ones too
    vanished: list[Path] = field(default_factory=list[Path])  # not found any more; `prune` forgets them
    skipped: list[ImageError] = field(default_factory=list[ImageError])  # all that are broken, also since earlier


class EmbeddingIndex:
    """A folder of vectors of pictures, kept up to date.  Every change is on disk when its function returns."""

    def __init__(self, store: VectorStore, embedder: Embedder) -> None:
        self.embedder = embedder
        self._store = store
        self._model = store.model(embedder.fingerprint, embedder.name, embedder.embed_dim)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], embedder: Embedder) -> Self:
        """Created if absent."""
        return cls(VectorStore(_absolute(folder)), embedder)

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """A copy of the whole index, all models, in a new folder.  (The index itself needs no saving.)"""
        self._store.save(_absolute(folder))

    def __len__(self) -> int:
        """Files that a search with this model can find."""
        return self._store.count(self._model)

    # ---- what is in it ---------------------------------------------------------------------------------------------

    def add_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        batch_size: int = 64,
        workers: int | None = None,
        progress: bool = False,
    ) -> Added:
        """All pictures below `folder` that are new or changed; what is gone is marked and no longer found.

        Each batch is committed: an interruption loses one at most, and the next call goes on from there.
        `workers` decode, default one per processor.  `progress`: a bar on stderr.
        """
        root = Path(folder).expanduser()
        if "\0" in str(root) or not root.is_dir():
            raise ValueError(f"There is no folder {str(folder)!r}.")
        root = root.resolve()
        found = list(find_images(root))
        unlisted = [path for path in found if path.is_dir() and not path.is_symlink()]
        gone = self._store.present_below(str(root)) - set(map(str, found))
        vanished = sorted(path for path in map(Path, gone) if not any(path.is_relative_to(at) for at in unlisted))
        self._store.mark_missing(map(str, vanished))
        added = self._add(found, batch_size, workers, progress)
        return replace(added, vanished=vanished, skipped=self.broken(root))

    def add(
        self, pictures: Iterable[str | os.PathLike[str]], *, batch_size: int = 64, workers: int | None = None
    ) -> Added:
        """These files."""
        paths = [_absolute(picture) for picture in pictures]
        added = self._add(paths, batch_size, workers, progress=False)
        named = set(map(str, paths))
        return replace(added, skipped=[error for error in self.broken() if error.name in named])

    def delete(self, pictures: Iterable[str | os.PathLike[str]]) -> int:
        """Forget these files -> how many were known.  `prune` then takes their vectors off the disk."""
        return self._store.delete(str(_absolute(picture)) for picture in pictures)

    def prune(self, folder: str | os.PathLike[str] | None = None) -> int:
        """Forget files that have vanished (below `folder`) -> how many, and take what is not needed off the disk."""
        return self._store.prune(None if folder is None else str(_absolute(folder).resolve()))

    def broken(self, folder: str | os.PathLike[str] | None = None) -> list[ImageError]:
        """Files (below `folder`) that are no sound pictures.  They are tried again when they change."""
        below = None if folder is None else str(_absolute(folder).resolve())
        return [ImageError(path, cast(Reason, reason), detail) for path, reason, detail in self._store.broken(below)]

    def _add(self, paths: Sequence[Path], batch_size: int, workers: int | None, progress: bool) -> Added:
        known = cache(partial(self._store.digests_of_size, self._model))  # many files may be of one size
        jobs = [job for path in paths if (job := self._job(str(path), known))]
        workers = (os.cpu_count() or 1) if workers is None else workers
        embedded = broken = 0
        bar = tqdm(total=len(jobs), desc="indexing", unit="picture", disable=not progress, smoothing=0.1)
        with bar:
            for reads in read_batches(jobs, self.embedder.preprocess, batch_size, workers):
                vectors = self._embed(reads)
                self._store.add(self._model, [read.record for read in reads], vectors)
                embedded += len(vectors)
                broken += sum(read.record.reason is not None for read in reads)
                bar.update(len(reads))
        recognised = len(jobs) - embedded - broken
        unchanged = len(paths) - len(jobs)
        return Added(found=len(paths), embedded=embedded, recognised=recognised, unchanged=unchanged)

    def _job(self, path: str, known: Callable[[int], frozenset[bytes]]) -> Job | None:
        """None when there is nothing to do."""
        try:
            info = os.stat(path)
        except OSError:  # `read` says why
            return Job(path=path, size=0, mtime=0, known=frozenset())
        if self._store.is_current(self._model, path, info.st_size, info.st_mtime_ns):
            return None
        return Job(path=path, size=info.st_size, mtime=info.st_mtime_ns, known=known(info.st_size))

    def _embed(self, reads: Sequence[Read]) -> dict[bytes, np.ndarray]:
        """Digest -> vector (E,), of the contents that are new; copies in a batch are one content."""
        new = {read.record.digest: read.pixels for read in reads if read.record.digest and read.pixels is not None}
        new = {digest: pixels for digest, pixels in new.items() if not self._store.has_vector(self._model, digest)}
        if not new:
            return {}
        pixels = torch.from_numpy(np.stack(list(new.values())))  # (B, 3, H, W)
        embeds = self.embedder.embed_pixels(self.embedder.preprocess.normalize(pixels))
        return dict(zip(new, embeds.numpy(), strict=True))

    # ---- search ----------------------------------------------------------------------------------------------------

    def search(
        self,
        query: Query,
        k: int = 10,
        *,
        glob: str | None = None,
        since: str | None = None,
        until: str | None = None,
        min_side: int | None = None,
    ) -> list[Hit]:
        """The K nearest files, best first; equal scores in path order.

        `query`: a text ("赤い + 車 - 人" is a sum of three), a picture (a `Path`, not a string), or (weight, text or
        picture) terms.  `glob`, `since`, `until`, `min_side`: see `vector_store.Filter`.
        """
        if k < 1:
            raise ValueError(f"k is {k}, wanted 1 or more.")
        vector = self.embed_query(query)
        allowed = Filter(glob=glob, since=_iso(since), until=_iso(until), min_side=min_side)
        try:
            found = self._nearest(vector, k, allowed)
        except FileNotFoundError:  # another process pruned at this moment: look at the new vectors
            found = self._nearest(vector, k, allowed)
        probabilities = self._probabilities(query, [score for score, _ in found])
        return [
            Hit(Path(path), score, rank, probability)
            for rank, ((score, path), probability) in enumerate(zip(found, probabilities, strict=True), 1)
        ]

    def embed_query(self, query: Query) -> Tensor:
        """-> (E,), unit length."""
        terms = parse_terms(query) if isinstance(query, str) else query if _is_terms(query) else [(1.0, query)]
        if not terms or any(isinstance(term, str) and not term.strip() for _, term in terms):
            raise ValueError("The query is empty. Give a text or a picture.")
        embeds = [weight * self._embed_term(cast("str | ImageSource", term)) for weight, term in terms]
        total = torch.stack(embeds).sum(0)
        if total.norm() < 1e-6:
            raise ValueError("The terms of the query cancel out, so they point nowhere. Change a weight.")
        return F.normalize(total, dim=0)

    def _embed_term(self, term: str | ImageSource) -> Tensor:
        if isinstance(term, str):
            return self.embedder.embed_texts([term])[0]
        if isinstance(term, os.PathLike):
            row = self._store.row_of(self._model, str(_absolute(term)))
            if row is not None:
                return torch.from_numpy(self._store.vectors(self._model)[row]).float()
        return self.embedder.embed_images([term])[0]

    def _nearest(self, vector: Tensor, k: int, allowed: Filter) -> list[tuple[float, str]]:
        with self._store.reading():
            scores = cosines(self._store.vectors(self._model), vector[None])[0]  # (G,)
            if allowed == _ANYTHING:
                return self._best(scores, None, k, allowed)
            rows = torch.from_numpy(self._store.allowed_rows(self._model, allowed))
            return self._best(scores[rows], rows, k, allowed)

    def _best(self, scores: Tensor, rows: Tensor | None, k: int, allowed: Filter) -> list[tuple[float, str]]:
        """The K best (score, path).  Some rows have no file any more, so it may take a second look, further down."""
        wanted = k
        while True:
            top, at = scores.topk(min(wanted, len(scores)))
            score_of = dict(zip((at if rows is None else rows[at]).tolist(), top.tolist(), strict=True))
            files = self._store.files_at(self._model, list(score_of), allowed)
            if len(files) >= k or wanted >= len(scores):
                return sorted(((score_of[row], path) for row, path in files), key=lambda hit: (-hit[0], hit[1]))[:k]
            wanted *= 4

    def _probabilities(self, query: Query, scores: list[float]) -> Sequence[float | None]:
        """A model trained with a sigmoid says of each pair whether it matches, one trained with a softmax does not."""
        model = self.embedder.model
        if model.logit_bias is None or not isinstance(query, str) or len(parse_terms(query)) > 1:
            return [None] * len(scores)
        logits = torch.tensor(scores) * model.logit_scale.exp().item() + model.logit_bias.item()
        return logits.sigmoid().tolist()

    def duplicates(self, threshold: float = 0.97) -> list[list[Path]]:
        """Groups of files that show the same: equal bytes, or a chain of cosines >= `threshold`.  Time grows as G^2."""
        with self._store.reading():
            rows = self._store.allowed_rows(self._model, _ANYTHING)
            labels = group_near(self._store.vectors(self._model)[rows], threshold)
            files = self._store.files_at(self._model, rows.tolist(), _ANYTHING)
        label_of = dict(zip(rows.tolist(), labels.tolist(), strict=True))
        groups: dict[int, list[Path]] = {}
        for row, path in files:
            groups.setdefault(label_of[row], []).append(Path(path))
        return [paths for paths in groups.values() if len(paths) > 1]


def cosines(vectors: np.ndarray, queries: Tensor) -> Tensor:
    """float16 unit vectors (G, E), mapped from disk or not, and queries (Q, E) -> float32 (Q, G), in blocks."""
    scores = torch.empty(len(queries), len(vectors))
    buffer = torch.empty(_BLOCK, queries.shape[1])  # one for all: getting new memory takes longer than the product
    for start in range(0, len(vectors), _BLOCK):
        stored = torch.from_numpy(vectors[start : start + _BLOCK])
        block = buffer[: len(stored)].copy_(stored)  # (block, E)
        scores[:, start : start + _BLOCK] = (block @ queries.T).T
    return scores


def group_near(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """float16 unit vectors (G, E) -> labels (G,): equal where a chain of cosines >= `threshold` joins two."""
    labels = np.arange(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        block = torch.from_numpy(vectors[start : start + _BLOCK]).float()
        for other in range(start, len(vectors), _BLOCK):
            near = (cosines(vectors[other : other + _BLOCK], block) >= threshold).numpy()
            for row in np.flatnonzero(near.any(1)):
                merged = np.unique(np.append(labels[other : other + _BLOCK][near[row]], labels[start + row]))
                if len(merged) > 1:
                    labels[np.isin(labels, merged)] = merged[0]
    return labels


def parse_terms(text: str) -> list[Term]:
    """One term, or the terms of a sum, "赤い + 車 - 人": only + and - between spaces count, so "T-shirt" is a word."""
    first, *rest = re.split(r"\s+([+-])\s+", text)
    signs = {"+": 1.0, "-": -1.0}
    return [(1.0, first), *((signs[sign], term) for sign, term in zip(rest[::2], rest[1::2], strict=True))]


def _is_terms(query: Query) -> TypeGuard[Sequence[Term]]:
    return isinstance(query, list | tuple)


def _iso(date: str | None) -> str | None:
    if date is not None and not re.fullmatch(r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d)?)?)?)?)?", date):
        raise ValueError(f"{date!r} is not a date. Write 2024, 2024-05, 2024-05-01 or 2024-05-01T12:00.")
    return date


def _absolute(path: str | os.PathLike[str]) -> Path:
    """No "~", no "..", links as they are."""
    name = os.fsdecode(path)
    if "\0" in name:
        raise ValueError(f"No file can have the name {name!r}: it contains a NUL.")
    return Path(os.path.abspath(os.path.expanduser(name)))
