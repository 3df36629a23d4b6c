"""Search in a collection of images: the interface of both collections, and the bundled samples."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

import vlm
from vlm.demo.models.compute_lock import compute_lock
from vlm.demo.page.texts import PageError
from vlm.demo.search.samples import Sample, sample, samples
from vlm.index.query import Term, unit_sum

BATCH = 32  # images embedded before a waiting visitor gets a turn
_sample_embeds_lock = Lock()  # taken before `compute_lock`, never after it
_fingerprints: WeakKeyDictionary[vlm.Embedder, str] = WeakKeyDictionary()
_sample_embeds: dict[str, Tensor] = {}  # fingerprint of a model -> embeddings of the samples, (G, E)


class SearchResult(NamedTuple):
    """One image that a search found."""

    key: str
    """Identifies the image in a later request; not a path, so that no path of a visitor is opened."""
    path: Path
    names: dict[str, str]
    """By language."""
    author: str
    license: str
    score: float
    """Cosine similarity, -1 to 1."""
    probability: float | None
    """Calibrated probability of a match; None for a model without calibration."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Filters of a search; an empty field does not restrict."""

    styles: tuple[str, ...] = ()
    """Sets of drawings; samples only."""
    name: str = ""
    """Part of the path, with * and ?; folders only, like the fields below."""
    since: str = ""
    until: str = ""
    min_side: int | None = None


class ImageCollection(Protocol):
    """Images that can be searched."""

    def search(self, terms: list[Term], one_text: str | None, k: int, filters: Filters) -> list[SearchResult]:
        """The K images nearest to a weighted sum of terms, best first.

        Args:
            terms: (weight, text or image bytes or path) each.
            one_text: the query if it is a single text: only then is a match probability calibrated.
            k: at most so many results.
            filters: which images may be found.
        """
        ...

    def path(self, key: str) -> Path:
        """The image that a search result named by `key`.

        Raises:
            PageError: the key is unknown.
        """
        ...


class SampleCollection:
    """The drawings in `demo/samples`."""

    def __init__(self, embedder: Callable[[], vlm.Embedder]) -> None:
        self._embedder = embedder

    def path(self, key: str) -> Path:
        return known_sample(key).path

    def embeds(self, embedder: vlm.Embedder | None = None) -> Tensor:
        """Embeddings of all samples, (G, E); computed once for each model.

        Args:
            embedder: the model; default: that of the page.
        """
        embedder = embedder or self._embedder()
        for _ in embed_samples(embedder):
            pass
        return _sample_embeds[_fingerprint(embedder)]

    def search(self, terms: list[Term], one_text: str | None, k: int, filters: Filters) -> list[SearchResult]:
        embedder = self._embedder()  # the same for both embeddings, even if the page is switched meanwhile
        gallery = self.embeds(embedder)
        places = [at for at, one in enumerate(samples()) if not filters.styles or one.style in filters.styles]
        if not places:
            return []
        with compute_lock:
            cosines = gallery[places] @ embed_terms(embedder, terms)
        scores, best = cosines.topk(min(k, len(places)))
        calibrated = None if one_text is None else embedder.match_probability(scores)
        probabilities = [None] * len(scores) if calibrated is None else calibrated.tolist()
        found = [samples()[places[at]] for at in best.tolist()]
        return [
            SearchResult(
                one.file_name, one.path, {"en": one.en, "ja": one.ja}, one.author, one.license, score, probability
            )
            for one, score, probability in zip(found, scores.tolist(), probabilities, strict=True)
        ]


def embed_samples(embedder: vlm.Embedder) -> Iterator[int]:
    """Embed all samples in batches, and yield the number of those that are done.

    A waiting visitor is served between two batches; at once if this model embedded them before.
    """
    fingerprint, images = _fingerprint(embedder), [one.path for one in samples()]
    with _sample_embeds_lock:
        if fingerprint in _sample_embeds:
            return
        batches: list[Tensor] = []
        for start in range(0, len(images), BATCH):
            with compute_lock:
                batches.append(embedder.embed_images(images[start : start + BATCH]))
            yield min(start + BATCH, len(images))
            time.sleep(0.002)
        _sample_embeds[fingerprint] = torch.cat(batches)


def _fingerprint(embedder: vlm.Embedder) -> str:
    """Computed once for each model: it reads all weights."""
    if embedder not in _fingerprints:
        _fingerprints[embedder] = embedder.fingerprint
    return _fingerprints[embedder]


def embed_terms(embedder: vlm.Embedder, terms: list[Term]) -> Tensor:
    """Weighted sum of the embeddings of texts and images, normalised: (E,), unit length.

    Raises:
        PageError: the terms cancel each other out.
    """
    embeds = [
        weight * (embedder.embed_texts([term]) if isinstance(term, str) else embedder.embed_images([term]))[0]
        for weight, term in terms
    ]
    try:
        return unit_sum(embeds)
    except ValueError as error:
        raise PageError("terms_cancel") from error


def known_sample(name: object) -> Sample:
    """The sample of that name; `PageError` for any other name, which is not opened."""
    try:
        return sample(str(name))
    except KeyError:
        raise PageError("missing") from None
