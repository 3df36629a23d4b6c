"""What the buttons do, as functions of images and words.  Nothing here knows of Gradio."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

import vlm
from vlm.demo import inside
from vlm.demo.models import Shelf
from vlm.demo.searching import Collection, Filters, Hit, OwnFolder, Samples, computing
from vlm.demo.texts import NoAnswer
from vlm.images.open import MAX_BYTES
from vlm.index.query import Term, parse_terms
from vlm.serving.embedding_cache import CachedEmbedder
from vlm.zero_shot import label_sentences

MAX_LABELS = 200
MAX_CHARACTERS = 500
MAX_TEMPLATES = 20
MAX_IMAGES = 100
MOST_HITS = 24

UploadedImage = str | Path

_SEPARATORS = re.compile(r"[\n,、，;；]")


class Ranked(NamedTuple):
    label: str
    probability: float
    """Among the labels: softmax, they add up to 1."""
    match: float | None = None
    """On its own, yes or no: sigmoid.  None where the model only compares labels."""


class Row(NamedTuple):
    """One of several images."""

    name: str
    ranking: list[Ranked]
    none_fits: bool
    no: NoAnswer | None
    """Why there is no ranking."""


class Actions:
    """The actions of one model.  It is loaded by the first action that needs it."""

    def __init__(
        self, source: str = "mini", shelf: Shelf | None = None, folder: str | None = None, cache: Path | None = None
    ) -> None:
        self.source = source
        self.shelf = shelf or Shelf()  # the other models of the page
        self._embedder: vlm.Embedder | None = None
        self._zero_shot = lru_cache(maxsize=32)(self._new_zero_shot)
        self._samples = Samples(lambda: self.embedder)
        self.own = None if folder is None else OwnFolder(folder, lambda: self.embedder, cache)
        self.collection: Collection = self._samples if self.own is None else self.own

    @property
    def embedder(self) -> vlm.Embedder:
        """With the vectors of what it saw lately, by the sha256 of each file."""
        with computing:
            if self._embedder is None:
                self._embedder = CachedEmbedder(vlm.load(self.source))
            return self._embedder

    def classify(
        self, image: UploadedImage | None, labels: str | list[str], templates: str | list[str] = ""
    ) -> list[Ranked]:
        """The labels, most probable first.  Labels and templates as typed, or as lists; no templates: by language."""
        if image is None:
            raise NoAnswer("no_image")
        zero_shot = self._zero_shot(read_labels(labels), read_templates(templates))
        data = read_image(image)
        try:
            with computing:
                probabilities = zero_shot([data])[0].tolist()
                cosines = zero_shot.class_embeds @ self.embedder.embed_images([data])[0]  # (M,)
                match = self.embedder.match_probability(cosines)
        except vlm.ImageError as error:
            raise NoAnswer(error.reason) from error
        matches: list[float | None] = [None] * len(probabilities) if match is None else match.tolist()
        ranking = map(Ranked, zero_shot.labels, probabilities, matches)
        return sorted(ranking, key=lambda ranked: -ranked.probability)

    def none_fits(self, ranking: Sequence[Ranked]) -> bool:
        """Whether even the best label is weak, by the line that validation data drew."""
        matches = [ranked.match for ranked in ranking if ranked.match is not None]
        return self.embedder.no_good_match(max(matches, default=None))

    def classify_all(
        self, images: Sequence[tuple[str, UploadedImage]], labels: str | list[str], templates: str | list[str] = ""
    ) -> list[Row]:
        """(name, image) each -> a row each, in their order; a broken image has its reason in its row."""
        if not images:
            raise NoAnswer("no_images")
        if len(images) > MAX_IMAGES:
            raise NoAnswer("too_many_images", count=len(images), most=MAX_IMAGES)
        self._zero_shot(read_labels(labels), read_templates(templates))
        rows: list[Row] = []
        for name, image in images:
            try:
                ranking = self.classify(image, labels, templates)
                rows.append(Row(name, ranking, self.none_fits(ranking), None))
            except NoAnswer as no:
                rows.append(Row(name, [], False, no))
        return rows

    def where(self, image: UploadedImage | None, label: str) -> inside.Look:
        """Where in the image the label is."""
        if image is None:
            raise NoAnswer("no_image")
        label = _fitting(label)
        if not label:
            raise NoAnswer("no_labels")
        data = read_image(image)
        with computing:
            seen = inside.see(self.embedder.model.vision, self.embedder.preprocess, data)
            return inside.relevance(seen, self.embedder, label)

    def search(
        self,
        text: str = "",
        image: UploadedImage | None = None,
        k: int = MOST_HITS,
        filters: Filters | None = None,
    ) -> list[Hit]:
        """The k nearest images, best first.  `text` may be a sum, "red + car - wheel"; an image is one term more."""
        text = _fitting(text)
        terms: list[Term] = list(parse_terms(text)) if text else []
        one_text = text if len(terms) == 1 and image is None else None
        try:
            if image is not None:
                terms.append((1.0, read_image(image)))
            if not terms:
                raise NoAnswer("nothing_to_search")
            if self.own is not None:
                return self.own.search(terms, one_text, k, filters or Filters())
            return self._samples.search(terms, one_text, k, filters or Filters())
        except vlm.ImageError as error:
            raise NoAnswer(error.reason) from error

    def similar(self, key: str, filters: Filters | None = None) -> list[Hit]:
        """Images like one of an earlier answer."""
        return self.search(image=self.collection.like(key), filters=filters)

    def no_good_match(self, hits: Sequence[Hit]) -> bool:
        return bool(hits) and self.embedder.no_good_match(hits[0].probability)

    def gallery_embeds(self) -> Tensor:
        """The samples as this model sees them, (G, E); computed once."""
        return self._samples.embeds()

    def warm_up(self) -> None:
        """Do early what the first visitor would wait for."""
        with computing:
            self.embedder.embed_texts(["warm"])
        if self.own is not None:
            self.own.start()
        else:
            self.gallery_embeds()

    def _new_zero_shot(self, labels: tuple[str, ...], templates: tuple[str, ...] | None) -> vlm.ZeroShotClassifier:
        with computing:
            return vlm.ZeroShotClassifier(self.embedder, labels, templates)


def read_labels(typed: str | list[str]) -> tuple[str, ...]:
    """One label a line, or separated by commas of either language -> labels, or `NoAnswer`."""
    parts = typed if isinstance(typed, list) else _SEPARATORS.split(_text(typed))
    if len(parts) > 100 * MAX_LABELS:
        raise NoAnswer("too_many_labels", count=len(parts), most=MAX_LABELS)
    labels = [label for part in parts if (label := _fitting(part))]
    if not labels:
        raise NoAnswer("no_labels")
    if len(labels) > MAX_LABELS:
        raise NoAnswer("too_many_labels", count=len(labels), most=MAX_LABELS)
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise NoAnswer("labels_twice", labels=", ".join(twice[:5]))
    return tuple(labels)


def read_templates(typed: str | list[str]) -> tuple[str, ...] | None:
    """One sentence a line with {} where the label goes; None, each label's language chooses, where there is none."""
    parts = typed if isinstance(typed, list) else _text(typed).split("\n")
    templates = [template for part in parts if (template := _fitting(part))]
    if len(templates) > MAX_TEMPLATES:
        raise NoAnswer("too_many_templates", count=len(templates), most=MAX_TEMPLATES)
    for template in templates:
        if "{}" not in template:
            raise NoAnswer("no_place_for_label", template=template[:80])
    return tuple(templates) or None


def sentences(label: str, templates: str | list[str] = "") -> list[str]:
    """What the model is asked for a label."""
    return label_sentences(label, read_templates(templates))


def read_image(image: UploadedImage) -> bytes:
    """The file's bytes, by whose sha256 its vector is remembered; what is in them, `vlm.open_image` decides."""
    path = Path(image)
    try:
        if not path.is_file():
            raise NoAnswer("not a file" if path.exists() else "missing")
        if path.stat().st_size > MAX_BYTES:
            raise NoAnswer("too many bytes")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, NoAnswer):
            raise
        raise NoAnswer("unreadable") from error


def read_text(typed: object) -> str:
    """A text that may be empty."""
    return _fitting(typed)


def _text(value: object) -> str:
    if not isinstance(value, str):  # programs send anything
        raise NoAnswer("not_text")
    return value.strip()


def _fitting(value: object) -> str:
    text = _text(value)
    if len(text) > MAX_CHARACTERS:
        raise NoAnswer("text_too_long", count=len(text), most=MAX_CHARACTERS)
    return text
