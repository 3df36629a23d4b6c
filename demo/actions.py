"""What the buttons do, as functions of pictures and words.  Nothing here knows of Gradio."""

import re
from collections import Counter
from functools import cached_property, lru_cache
from threading import RLock
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import vlm
from demo.gallery import Sample, samples
from demo.texts import english
from vlm.preprocess import ImageSource

MAX_LABELS = 200
MAX_CHARACTERS = 500

_SEPARATORS = re.compile(r"[\n,、，;；]")
_gallery_embeds: dict[str, Tensor] = {}  # fingerprint of a model -> the gallery as it sees it, (G, E)


class NoAnswer(ValueError):
    """Something the user can put right.  `key` and `values` name the line of `texts.json` that says it."""

    def __init__(self, key: str, **values: object) -> None:
        super().__init__(english(key, **values))
        self.key, self.values = key, values


class Ranked(NamedTuple):
    label: str
    probability: float


class Hit(NamedTuple):
    sample: Sample
    score: float
    """Cosine similarity, -1 to 1."""


class Actions:
    """The actions of one model.  It is loaded by the first action that needs it."""

    def __init__(self, source: str = "mini") -> None:
        self.source = source
        self._embedder: vlm.Embedder | None = None
        self._lock = RLock()
        self._zero_shot = lru_cache(maxsize=32)(self._new_zero_shot)

    @property
    def embedder(self) -> vlm.Embedder:
        with self._lock:
            self._embedder = self._embedder or vlm.load(self.source)
            return self._embedder

    def classify(self, picture: ImageSource | None, labels: str | list[str]) -> list[Ranked]:
        """The labels, most probable first; the probabilities add up to 1.  Labels as typed, or as a list."""
        if picture is None:
            raise NoAnswer("no_picture")
        names = read_labels(labels)
        image = _open(picture)
        probabilities = self._zero_shot(names)([image])[0].tolist()
        return sorted(map(Ranked, names, probabilities), key=lambda ranked: -ranked.probability)

    def search(self, text: str = "", picture: ImageSource | None = None, k: int = 24) -> list[Hit]:
        """The k nearest pictures of the gallery, nearest first; text and picture together count half each."""
        text = _fitting(text)
        queries: list[Tensor] = []
        if text:
            queries.append(self.embedder.embed_texts([text]))
        if picture is not None:
            queries.append(self.embedder.embed_images([_open(picture)]))
        if not queries:
            raise NoAnswer("nothing_to_search")
        query = F.normalize(torch.cat(queries).sum(0), dim=0)  # (E,)
        scores, places = (self.gallery_embeds() @ query).topk(min(k, len(samples())))
        return [Hit(samples()[place], score) for place, score in zip(places.tolist(), scores.tolist(), strict=True)]

    def gallery_embeds(self) -> Tensor:
        """The gallery as this model sees it, (G, E); computed once."""
        with self._lock:
            if self._fingerprint not in _gallery_embeds:
                _gallery_embeds[self._fingerprint] = self.embedder.embed_images(one.path for one in samples())
            return _gallery_embeds[self._fingerprint]

    def warm_up(self) -> None:
        """Do early what the first visitor would wait for."""
        self.embedder.embed_texts(["warm"])
        self.gallery_embeds()

    @cached_property
    def _fingerprint(self) -> str:
        return self.embedder.fingerprint

    def _new_zero_shot(self, labels: tuple[str, ...]) -> vlm.ZeroShotClassifier:
        return vlm.ZeroShotClassifier(self.embedder, labels)


def read_labels(typed: str | list[str]) -> tuple[str, ...]:
    """One label a line, or separated by commas of either language -> labels, or `NoAnswer`."""
    parts = typed if isinstance(typed, list) else _SEPARATORS.split(_text(typed))
    labels = [label for part in parts if (label := _fitting(part))]
    if not labels:
        raise NoAnswer("no_labels")
    if len(labels) > MAX_LABELS:
        raise NoAnswer("too_many_labels", count=len(labels), most=MAX_LABELS)
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise NoAnswer("labels_twice", labels=", ".join(twice[:5]))
    return tuple(labels)


def _text(value: object) -> str:
    if not isinstance(value, str):  # programs send anything
        raise NoAnswer("not_text")
    return value.strip()


def _fitting(value: object) -> str:
    text = _text(value)
    if len(text) > MAX_CHARACTERS:
        raise NoAnswer("text_too_long", count=len(text), most=MAX_CHARACTERS)
    return text


def _open(picture: ImageSource) -> Image.Image:
    try:
        return vlm.open_image(picture)
    except vlm.ImageError as error:
        raise NoAnswer(error.reason) from error
