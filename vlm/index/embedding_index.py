"""Images found by words, by images, by sums of both: `EmbeddingIndex`.  Search is exact, unless `build_ann` was
asked for.

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
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vlm.embedder import Embedder
from vlm.errors import ImageError, ImageReason
from vlm.images.finding import survey
from vlm.images.open import ImageSource
from vlm.index import embedding_files
from vlm.index.ann import Ann, OpenedAnn, build
from vlm.index.exact_search import nearest
from vlm.index.image_reading import Job, Read, read_batches
from vlm.index.near_duplicates import group_near
from vlm.index.query import Query, is_one_text, read_query, unit_sum
from vlm.index.vector_store import Filter, Record, VectorStore

_ANYTHING = Filter()


@dataclass(frozen=True, slots=True)
class Hit:
    """One image of an answer."""

    path: Path
    score: float  # cosine
    rank: int  # from 1
    probability: float | None  # that this is a match; None where the model cannot say

    def row(self) -> dict[str, Any]:
        """As commands and the server give it."""
        return {"path": str(self.path), "score": self.score, "rank": self.rank, "probability": self.probability}


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What `add` and `add_folder` did, in files."""

    found: int = 0
    embedded: int = 0  # images of which a vector was made
    recognised: int = 0  # renamed, moved, copied or touched: the bytes were known
    unchanged: int = 0  # and so passed over, broken ones too
    vanished: list[Path] = field(default_factory=list[Path])  # not found any more; `prune` forgets them
    skipped: list[ImageError] = field(default_factory=list[ImageError])  # all that are broken, also since earlier


class EmbeddingIndex:
    """A folder of vectors of images, kept up to date.  Every change is on disk when its function returns."""

    def __init__(self, store: VectorStore, embedder: Embedder) -> None:
        self.embedder = embedder
        self._store = store
        self._fingerprint = embedder.fingerprint
        self._model = store.model(self._fingerprint, embedder.name, embedder.embed_dim)
        self._opened_ann = OpenedAnn()

    @classmethod
    def open(cls, folder: str | os.PathLike[str], embedder: Embedder) -> Self:
        """Created if absent."""
        return cls(VectorStore(_absolute(folder)), embedder)

    def close(self) -> None:
        """Let go of the files; what was added is on disk already."""
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
        batch_size: int = 32,
        workers: int | None = None,
        progress: bool = False,
    ) -> Added:
        """All images below `folder` that are new or changed; what is gone is marked and no longer found.

        Each batch is committed: an interruption loses one at most, and the next call goes on from there.
        `workers` decode, default one per processor.  `progress`: a bar on stderr.
        """
        root = Path(folder).expanduser()
        if "\0" in str(root) or not root.is_dir():
            raise ValueError(f"There is no folder {str(folder)!r}.")
        root = root.resolve()
        found, outside = survey(root)
        unlisted = [path for path in found if path.is_dir() and not path.is_symlink()]
        gone = self._store.present_below(str(root)) - set(map(str, found))
        vanished = sorted(path for path in map(Path, gone) if not any(path.is_relative_to(at) for at in unlisted))
        self._store.mark_missing(map(str, vanished))
        added = self._add(found, batch_size, workers, progress)
        skipped = [*self.broken(root), *outside]
        return replace(added, found=added.found + len(outside), vanished=vanished, skipped=skipped)

    def add(
        self, images: Iterable[str | os.PathLike[str]], *, batch_size: int = 32, workers: int | None = None
    ) -> Added:
        """These files."""
        paths = [_absolute(image) for image in images]
        added = self._add(paths, batch_size, workers, progress=False)
        named = set(map(str, paths))
        return replace(added, skipped=[error for error in self.broken() if error.name in named])

    def delete(self, images: Iterable[str | os.PathLike[str]]) -> int:
        """Forget these files -> how many were known.  `prune` then takes their vectors off the disk."""
        return self._store.delete(str(_absolute(image)) for image in images)

    def prune(self, folder: str | os.PathLike[str] | None = None) -> int:
        """Forget files that have vanished (below `folder`) -> how many, and take what is not needed off the disk."""
        return self._store.prune(None if folder is None else str(_absolute(folder).resolve()))

    def add_embeddings(self, folder: str | os.PathLike[str]) -> int:
        """Vectors that were made elsewhere, in a layout of `embedding_files` -> how many files were named."""
        folder, count = _absolute(folder), 0
        named = embedding_files.names_its_model(folder)
        for records, vectors in embedding_files.read(folder, self._fingerprint, self.embedder.embed_dim):
            if not named and not count:
                self._check_same_model(records, vectors)
            digests = [record.digest for record in records if record.digest]
            self._store.add(self._model, records, dict(zip(digests, vectors, strict=True)))
            count += len(records)
        return count

    def _check_same_model(self, records: Sequence[Record], vectors: np.ndarray) -> None:
        """Files that do not say which model made them: the first image that is here as well does."""
        for record, vector in zip(records, vectors, strict=True):
            if os.path.isfile(record.path):
                cosine = float(self.embedder.embed_images([Path(record.path)])[0] @ torch.from_numpy(vector))
                if cosine < 0.9:
                    raise ValueError(
                        f"The vector of '{record.path}' is {cosine:.2f} like the one that {self.embedder.name} makes, "
                        "wanted 0.9 or more. Give --model the one that made it."
                    )
                return

    def save_embeddings(self, folder: str | os.PathLike[str]) -> int:
        """All files that can be found, with their vectors, in clip-retrieval's layout -> how many."""
        with self._store.reading():
            vectors = self._store.vectors(self._model)
            rows = ((record, vectors[row]) for row, record in self._store.shown(self._model))
            return embedding_files.write(_absolute(folder), rows, self._fingerprint, self.embedder.embed_dim)

    def build_ann(self, say: Callable[[str], None] = print) -> Ann:
        """An approximate index of all vectors there are now, kept until `prune` moves them; `say` hears of progress.

        It is measured with vectors of the index and with names of files as texts: `Ann.recall`.
        """
        file, vectors = self._store.ann_file(self._model), self._store.vectors(self._model)
        texts = None
        if self.embedder.parts()[0] is not None:
            some = np.linspace(0, len(vectors) - 1, 500).astype(int).tolist()
            names = {Path(path).stem for _, path in self._store.files_at(self._model, some, _ANYTHING)}
            texts = self.embedder.embed_texts(sorted(names))
        built = build(vectors, texts, say)
        self._store.put_ann(self._model, file, built.save)
        return built

    def _ann(self) -> Ann | None:
        return self._opened_ann.at(self._store.ann_file(self._model), self.embedder.embed_dim)

    def broken(self, folder: str | os.PathLike[str] | None = None) -> list[ImageError]:
        """Files (below `folder`) that are no sound images.  They are tried again when they change."""
        below = None if folder is None else str(_absolute(folder).resolve())
        return [
            ImageError(path, cast(ImageReason, reason), detail) for path, reason, detail in self._store.broken(below)
        ]

    def _add(self, paths: Sequence[Path], batch_size: int, workers: int | None, progress: bool) -> Added:
        known = cache(partial(self._store.digests_of_size, self._model))  # many files may be of one size
        jobs = [job for path in paths if (job := self._job(str(path), known))]
        workers = (os.cpu_count() or 1) if workers is None else workers
        embedded = broken = 0
        bar = tqdm(total=len(jobs), desc="indexing", unit="image", disable=not (progress and jobs), smoothing=0.1)
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
        exact: bool = False,
    ) -> list[Hit]:
        """The K nearest files, best first; equal scores in path order.

        `query`: a text ("赤い + 0.5*車 - 人" is a sum), an image (a `Path`, not a string), or terms: (weight, text or
        image).  `glob`, `since`, `until`, `min_side`: see `vector_store.Filter`.  `exact`: even where
        there is an approximate index.
        """
        if k < 1:
            raise ValueError(f"k is {k}, wanted 1 or more.")
        vector = self.embed_query(query)
        allowed = Filter(glob=_pattern(glob), since=_iso(since), until=_iso(until), min_side=_pixels(min_side))
        try:
            found = self._nearest(vector, k, allowed, exact)
        except FileNotFoundError:  # another process pruned at this moment: look at the new vectors
            found = self._nearest(vector, k, allowed, exact)
        probabilities = self._probabilities(query, [score for score, _ in found])
        return [
            Hit(Path(path), score, rank, probability)
            for rank, ((score, path), probability) in enumerate(zip(found, probabilities, strict=True), 1)
        ]

    def embed_query(self, query: Query) -> Tensor:
        """-> (E,), unit length."""
        return unit_sum([weight * self._embed_term(term) for weight, term in read_query(query)])

    def _embed_term(self, term: str | ImageSource) -> Tensor:
        if isinstance(term, str):
            return self.embedder.embed_texts([term])[0]
        if isinstance(term, os.PathLike):
            row = self._store.row_of(self._model, str(_absolute(term)))
            if row is not None:
                return torch.from_numpy(self._store.vectors(self._model)[row]).float()
        return self.embedder.embed_images([term])[0]

    def _nearest(self, vector: Tensor, k: int, allowed: Filter, exact: bool) -> list[tuple[float, str]]:
        """The K best (score, path): of an approximate index, if there is one and the filter passes enough of it."""
        with self._store.reading():
            vectors = self._store.vectors(self._model)
            ann = None if exact else self._ann()
            if ann is not None:
                hits = self._hits(*ann.nearest(vectors, vector[None], 4 * k), allowed)
                if len(hits) >= k:
                    return hits[:k]
            rows = None if allowed == _ANYTHING else self._store.allowed_rows(self._model, allowed)
            wanted = k
            while True:  # some rows have no file any more, so it may take a second look, further down
                hits = self._hits(*nearest(vectors, vector[None], wanted, rows), allowed)
                if len(hits) >= k or wanted >= (len(vectors) if rows is None else len(rows)):
                    return hits[:k]
                wanted *= 4

    def _hits(self, scores: Tensor, rows: Tensor, allowed: Filter) -> list[tuple[float, str]]:
        """(1, K) of both -> (score, path) of every file there that passes the filter, best first, then by path."""
        score_of: dict[int, float] = dict(zip(rows[0].numpy().tolist(), scores[0].numpy().tolist(), strict=True))
        files = self._store.files_at(self._model, list(score_of), allowed)
        return sorted(((score_of[row], path) for row, path in files), key=lambda hit: -hit[0])  # stable: then by path

    def _probabilities(self, query: Query, scores: list[float]) -> Sequence[float | None]:
        """Of one text; no validation data says what the cosine of a sum or of two images is worth."""
        probabilities = self.embedder.match_probability(torch.tensor(scores)) if is_one_text(query) else None
        return [None] * len(scores) if probabilities is None else probabilities.numpy().tolist()

    def duplicates(self, threshold: float = 0.97) -> list[list[Path]]:
        """Groups of files that show the same: equal bytes, or a chain of cosines >= `threshold`."""
        with self._store.reading():
            rows = self._store.allowed_rows(self._model, _ANYTHING)
            labels = group_near(self._store.vectors(self._model)[rows], threshold)
            files = self._store.files_at(self._model, rows.tolist(), _ANYTHING)
        label_of = dict(zip(rows.tolist(), labels.tolist(), strict=True))
        groups: dict[int, list[Path]] = {}
        for row, path in files:
            groups.setdefault(label_of[row], []).append(Path(path))
        return [paths for paths in groups.values() if len(paths) > 1]


def _iso(date: str | None) -> str | None:
    form = r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d)?)?)?)?)?"
    if date is not None and not re.fullmatch(form, date, re.ASCII):
        raise ValueError(f"{date[:40]!r} is not a date. Write 2024, 2024-05, 2024-05-01 or 2024-05-01T12:00.")
    return date


def _pattern(glob: str | None) -> str | None:
    if glob is not None and (len(glob) > 1000 or "\0" in glob):
        raise ValueError(
            f"The pattern {glob[:40]!r}... of {len(glob):,} characters can be of no path: it is too long or has a NUL."
        )
    return glob


def _pixels(side: int | None) -> int | None:
    if side is not None and not 0 < side < 2**31:
        raise ValueError(f"min_side is {side}, wanted a number of pixels.")
    return side


def _absolute(path: str | os.PathLike[str]) -> Path:
    """No "~", no "..", links as they are."""
    name = os.fsdecode(path)
    if "\0" in name:
        raise ValueError(f"No file can have the name {name!r}: it contains a NUL.")
    return Path(os.path.abspath(os.path.expanduser(name)))
