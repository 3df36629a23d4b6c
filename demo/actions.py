"""Computations of the page as functions of images and texts, without Gradio."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

import vlm
from vlm.demo.inputs import ImageFile, read_image, read_labels, read_templates, read_text
from vlm.demo.models import inspection
from vlm.demo.models.compute_lock import compute_lock
from vlm.demo.models.registry import ModelRegistry
from vlm.demo.page.texts import PageError
from vlm.demo.search.folder import FolderCollection
from vlm.demo.search.known_words import is_known
from vlm.demo.search.retrieval import Filters, ImageCollection, SampleCollection, SearchResult, embed_samples
from vlm.demo.search.samples import samples
from vlm.errors import VlmError
from vlm.index.query import Term, parse_terms
from vlm.interop.names.installed import usual_backend
from vlm.serving.embedding_cache import CachedEmbedder
from vlm.zero_shot import label_sentences

MAX_IMAGES = 100
MAX_RESULTS = 24


class ScoredLabel(NamedTuple):
    """A label and its scores for one image."""

    label: str
    probability: float
    """Softmax over all labels: they add up to 1."""
    match: float | None = None
    """Sigmoid, this label alone.  None for a model that only compares labels."""
    similarity: float = 0.0
    """Cosine with the image."""
    place: int = 0
    """Among the labels as they were given."""


class ImageRanking(NamedTuple):
    """The ranking of one of several images."""

    name: str
    ranking: list[ScoredLabel]
    none_fits: bool
    error: PageError | None
    """Why there is no ranking."""


class PageActions:
    """The actions of the page with one model, which is loaded by the first action that needs it.

    Args:
        source: what `vlm.load` opens.
        registry: the other models of the page.
        folder: images to search instead of the samples.
        cache: folder for the index of `folder`; default: the user's cache folder.
        device, dtype: of the model, as `vlm.load` has them.
    """

    def __init__(
        self,
        source: str = "mini",
        registry: ModelRegistry | None = None,
        folder: str | None = None,
        cache: Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        *,
        trust_remote_code: bool = False,
    ) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self._trusted = source if trust_remote_code else None  # the code of no other model is run
        self.registry = registry or ModelRegistry()
        self._embedder: vlm.Embedder | None = None
        self._zero_shot = lru_cache(maxsize=32)(self._new_zero_shot)
        self._samples = SampleCollection(lambda: self.embedder)
        self.folder = None if folder is None else FolderCollection(folder, lambda: self.embedder, cache)
        self.collection: ImageCollection = self._samples if self.folder is None else self.folder

    @property
    def embedder(self) -> vlm.Embedder:
        """The model, with a cache of recent embeddings (by sha256 of each file)."""
        with compute_lock:
            if self._embedder is None:
                self._embedder = self._open(self.source)
            return self._embedder

    def classify(
        self, image: ImageFile | None, labels: str | list[str], templates: str | list[str] = ""
    ) -> list[ScoredLabel]:
        """Rank labels for an image, most probable first.

        Args:
            image: file.
            labels: as typed, or a list.
            templates: as typed, or a list; none: the defaults of each label's language.

        Raises:
            PageError: the image or the labels cannot be used.
        """
        if image is None:
            raise PageError("no_image")
        names, sentences = read_labels(labels), read_templates(templates)
        data = read_image(image)
        try:
            with compute_lock:  # one model for all of it, even if the page is switched meanwhile
                zero_shot = self._zero_shot(names, sentences)
                probabilities = zero_shot([data])[0].tolist()
                cosines = zero_shot.class_embeds @ self.embedder.embed_images([data])[0]  # (M,)
                match = self.embedder.match_probability(cosines)
        except vlm.ImageError as error:
            raise PageError(error.reason) from error
        matches: list[float | None] = [None] * len(probabilities) if match is None else match.tolist()
        places = range(len(probabilities))
        ranking = map(ScoredLabel, zero_shot.labels, probabilities, matches, cosines.tolist(), places)
        return sorted(ranking, key=lambda scored: -scored.probability)

    def none_fits(self, ranking: Sequence[ScoredLabel]) -> bool:
        """Returns True if even the best match probability is below the calibrated threshold."""
        matches = [scored.match for scored in ranking if scored.match is not None]
        return self.embedder.no_good_match(max(matches, default=None))

    def classify_all(
        self, images: Sequence[tuple[str, ImageFile]], labels: str | list[str], templates: str | list[str] = ""
    ) -> list[ImageRanking]:
        """Rank labels for several images, in their order; an unreadable image has its error in its row.

        Args:
            images: (name, file) each.
            labels: as for `classify`.
            templates: as for `classify`.

        Raises:
            PageError: no image, too many images, or labels that cannot be used.
        """
        if not images:
            raise PageError("no_images")
        if len(images) > MAX_IMAGES:
            raise PageError("too_many_images", count=len(images), most=MAX_IMAGES)
        self._zero_shot(read_labels(labels), read_templates(templates))
        rows: list[ImageRanking] = []
        for name, image in images:
            try:
                ranking = self.classify(image, labels, templates)
                rows.append(ImageRanking(name, ranking, self.none_fits(ranking), None))
            except PageError as error:
                rows.append(ImageRanking(name, [], False, error))
        return rows

    def locate(self, image: ImageFile | None, label: str) -> inspection.PatchMap:
        """Computes how much each patch raises or lowers the similarity of an image with a label."""
        if image is None:
            raise PageError("no_image")
        label = read_text(label)
        if not label:
            raise PageError("no_labels")
        data = read_image(image)
        with compute_lock:
            prepared = inspection.prepare_for(self.embedder, data)
            return inspection.relevance(prepared, self.embedder, label)

    def search(
        self,
        text: str = "",
        image: ImageFile | None = None,
        k: int = MAX_RESULTS,
        filters: Filters | None = None,
    ) -> list[SearchResult]:
        """The K nearest images, best first.

        Args:
            text: a text or a sum of texts, "red + car - wheel".
            image: a file; one more term of the sum.
            k: at most so many results.
            filters: which images may be found; default: all.

        Raises:
            PageError: nothing to search for, or an image that cannot be used.
        """
        text = read_text(text)
        terms: list[Term] = list(parse_terms(text)) if text else []
        one_text = text if len(terms) == 1 and image is None else None
        try:
            if image is not None:
                terms.append((1.0, read_image(image)))
            if not terms:
                raise PageError("nothing_to_search")
            return self.collection.search(terms, one_text, k, filters or Filters())
        except vlm.ImageError as error:
            raise PageError(error.reason) from error

    def similar(self, key: str, filters: Filters | None = None) -> list[SearchResult]:
        """Images like one that a search found, given its key."""
        return self.search(image=self.collection.path(key), filters=filters)

    def no_good_match(self, results: Sequence[SearchResult]) -> bool:
        """Returns True if even the best result is below the calibrated threshold."""
        return bool(results) and self.embedder.no_good_match(results[0].probability)

    def unknown(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts of which the bundled model has seen no word; of another model nothing is known."""
        return [text for text in texts if self.source == "mini" and not is_known(text)]

    def unknown_terms(self, text: str) -> list[str]:
        """The same for the terms of a query that has been answered."""
        text = read_text(text)
        return self.unknown([term for _, term in parse_terms(text)]) if text else []

    def sample_embeds(self) -> Tensor:
        """Embeddings of the samples, (G, E); computed once."""
        return self._samples.embeds()

    def switch(self, source: str) -> Iterator[tuple[int, int]]:
        """Switch the page to another model: load it, embed the images to be searched, then use it everywhere.

        Args:
            source: what `vlm.load` opens.

        Yields:
            Samples embedded so far, and their number.

        Raises:
            PageError: the model cannot be opened; the page keeps its model.
        """
        try:
            embedder = self._open(source)
        except VlmError as error:
            raise PageError("cannot_open_model", line=" ".join(str(error).split())[:400]) from error
        if self.folder is None:
            for done in embed_samples(embedder):
                yield done, len(samples())
        with compute_lock:
            self.source, self._embedder = source, embedder
            self._zero_shot.cache_clear()
        if self.folder is not None:
            self.folder.restart()

    def warm_up(self) -> None:
        """Load the model and embed the images to be searched, before the first visitor needs them."""
        with compute_lock:
            self.embedder.embed_texts(["warm"])
        if self.folder is not None:
            self.folder.start()
        else:
            self.sample_embeds()

    def _open(self, source: str) -> CachedEmbedder:
        plain = self.device in ("auto", "cpu") and self.dtype == "auto"
        return CachedEmbedder(
            vlm.load(
                source,
                device=self.device,
                dtype=self.dtype,
                backend=usual_backend(source) if plain else "torch",
                trust_remote_code=source == self._trusted,
            )
        )

    def _new_zero_shot(self, labels: tuple[str, ...], templates: tuple[str, ...] | None) -> vlm.ZeroShotClassifier:
        with compute_lock:
            return vlm.ZeroShotClassifier(self.embedder, labels, templates)


def label_prompts(label: str, templates: str | list[str] = "") -> list[str]:
    """The sentences that represent a label."""
    return label_sentences(label, read_templates(templates))
