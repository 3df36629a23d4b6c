"""The images to search in: the drawings of the demo (`Samples`), or a folder of one's own (`OwnFolder`)."""

import base64
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock, RLock
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

import vlm
from vlm.demo.gallery import SAMPLES, Sample, sample, samples
from vlm.demo.texts import NoAnswer
from vlm.images.finding import find_images
from vlm.index.query import Term, unit_sum
from vlm.user_folders import cache_folder

THUMBNAIL = 192  # pixels
computing = RLock()  # one computation at a time on the device, whichever page asks
_BATCH = 32  # images between two looks at the queue
_embedding = Lock()  # of the samples, once; taken before `computing`, never after it
_gallery_embeds: dict[str, Tensor] = {}  # fingerprint of a model -> the samples as it sees them, (G, E)


class Hit(NamedTuple):
    """One image of an answer."""

    key: str
    """What a click on it sends: never a path that would be opened unseen."""
    path: Path
    names: dict[str, str]
    """By language."""
    author: str
    license: str
    score: float
    """Cosine similarity, -1 to 1."""
    probability: float | None
    """That it is a match; None where the model cannot say."""


class Progress(NamedTuple):
    done: int
    total: int
    broken: int
    finished: bool
    error: str


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which images a search may find; empty: all."""

    styles: tuple[str, ...] = ()
    """Of the samples: who drew them."""
    name: str = ""
    """Of a folder: part of the path, with * and ?."""
    since: str = ""
    until: str = ""
    min_side: int | None = None


class Collection(Protocol):
    def search(self, terms: list[Term], one_text: str | None, k: int, filters: Filters) -> list[Hit]: ...
    def like(self, key: str) -> Path: ...


class Samples:
    """The drawings in `demo/samples`."""

    def __init__(self, embedder: Callable[[], vlm.Embedder]) -> None:
        self._embedder = embedder
        self._fingerprint: str | None = None

    def like(self, key: str) -> Path:
        return known_sample(key).path

    def embeds(self) -> Tensor:
        """As the model sees them, (G, E); computed once for each model."""
        self._fingerprint = self._fingerprint or self._embedder().fingerprint
        with _embedding:
            if self._fingerprint not in _gallery_embeds:
                _gallery_embeds[self._fingerprint] = torch.cat(list(self._batches()))
        return _gallery_embeds[self._fingerprint]

    def _batches(self) -> Iterator[Tensor]:
        """Between two of them, a visitor who waits is served."""
        images = [one.path for one in samples()]
        for at in range(0, len(images), _BATCH):
            with computing:
                yield self._embedder().embed_images(images[at : at + _BATCH])
            time.sleep(0.002)

    def search(self, terms: list[Term], one_text: str | None, k: int, filters: Filters) -> list[Hit]:
        gallery = self.embeds()
        places = [at for at, one in enumerate(samples()) if not filters.styles or style_of(one) in filters.styles]
        if not places:
            return []
        embedder = self._embedder()
        with computing:
            cosines = gallery[places] @ embed_terms(embedder, terms)
        scores, best = cosines.topk(min(k, len(places)))
        probabilities = None if one_text is None else embedder.match_probability(scores)
        worth = [None] * len(scores) if probabilities is None else probabilities.tolist()
        found = [samples()[places[at]] for at in best.tolist()]
        return [
            Hit(one.file_name, one.path, {"en": one.en, "ja": one.ja}, one.author, one.license, score, probability)
            for one, score, probability in zip(found, scores.tolist(), worth, strict=True)
        ]


class OwnFolder:
    """A folder of the visitor's, indexed while the page is open.  SQLite, and so the index, belongs to one thread."""

    def __init__(self, folder: str | Path, embedder: Callable[[], vlm.Embedder], cache: Path | None = None) -> None:
        self.folder = Path(folder).expanduser().absolute()
        if not self.folder.is_dir():
            raise ValueError(f"There is no folder '{folder}'. Give --folder one that holds images.")
        self._place = (cache or cache_folder() / "demo") / f"{_key(self.folder)}.index"
        self._embedder = embedder
        self._thread = ThreadPoolExecutor(1)
        self._index: vlm.EmbeddingIndex | None = None
        self._paths: dict[str, Path] = {}  # of the hits that were shown
        self._waiting: list[list[Path]] = []
        self.progress = Progress(0, 0, 0, False, "")

    def start(self) -> None:
        """Index in the background; searches come between two batches."""
        self._thread.submit(self._begin)

    def close(self) -> None:
        """What is indexed by now stays; the thread ends."""
        self._waiting.clear()
        self._thread.submit(lambda: self._index and self._index.close()).result()
        self._thread.shutdown()

    def like(self, key: str) -> Path:
        if key not in self._paths:
            raise NoAnswer("missing")
        return self._paths[key]

    def search(self, terms: list[Term], one_text: str | None, k: int, filters: Filters) -> list[Hit]:
        return self._thread.submit(self._search, terms, one_text, k, filters).result()

    def _opened(self) -> vlm.EmbeddingIndex:
        if self._index is None:
            self._place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._index = vlm.EmbeddingIndex.open(self._place, self._embedder())
        return self._index

    def _begin(self) -> None:
        try:
            images = list(find_images(self.folder))
            self._opened()
        except (OSError, ValueError) as error:
            self.progress = self.progress._replace(finished=True, error=" ".join(str(error).split()))
            return
        self.progress = Progress(0, len(images), 0, False, "")
        self._waiting = [images[at : at + _BATCH] for at in range(0, len(images), _BATCH)]
        self._thread.submit(self._go_on)

    def _go_on(self) -> None:
        try:
            if self._waiting:
                batch = self._waiting.pop(0)
                with computing:
                    added = self._opened().add(batch, workers=0)
                done, broken = self.progress.done + len(batch), self.progress.broken + len(added.skipped)
                self.progress = self.progress._replace(done=done, broken=broken)
                self._thread.submit(self._go_on)
            else:
                self._opened().add_folder(self.folder, workers=0)  # what has vanished is no longer found
                self.progress = self.progress._replace(finished=True)
        except (OSError, ValueError) as error:
            self.progress = self.progress._replace(finished=True, error=" ".join(str(error).split()))

    def _search(self, terms: list[Term], one_text: str | None, k: int, filters: Filters) -> list[Hit]:
        try:
            with computing:
                hits = self._opened().search(
                    terms if one_text is None else one_text,
                    k,
                    glob=f"*{filters.name}*" if filters.name else None,
                    since=filters.since or None,
                    until=filters.until or None,
                    min_side=filters.min_side,
                )
        except ValueError as error:
            raise NoAnswer("cannot_search", line=" ".join(str(error).split())[:300]) from error
        self._paths |= {_key(hit.path): hit.path for hit in hits}
        return [
            Hit(
                _key(hit.path), hit.path, dict.fromkeys(("en", "ja"), hit.path.name), "", "", hit.score, hit.probability
            )
            for hit in hits
        ]


def embed_terms(embedder: vlm.Embedder, terms: list[Term]) -> Tensor:
    """A sum of texts and images with their weights -> (E,), unit length."""
    embeds = [
        weight * (embedder.embed_texts([term]) if isinstance(term, str) else embedder.embed_images([term]))[0]
        for weight, term in terms
    ]
    try:
        return unit_sum(embeds)
    except ValueError as error:
        raise NoAnswer("terms_cancel") from error


def known_sample(name: object) -> Sample:
    """The one of that name; no other name is looked up, let alone opened."""
    try:
        return sample(str(name))
    except KeyError:
        raise NoAnswer("missing") from None


def style_of(one: Sample) -> str:
    return one.file_name.split("/")[0]


def styles() -> list[str]:
    """Who drew the samples."""
    return sorted({style_of(one) for one in samples()})


def thumbnail(path: Path) -> str:
    """A small copy in the page itself, without the file's metadata; no file is written.  Empty: cannot be shown."""
    try:
        return _thumbnail(path, path.stat().st_mtime_ns)
    except (OSError, vlm.ImageError):
        return ""


@lru_cache(maxsize=2048)
def _thumbnail(path: Path, mtime: int) -> str:
    if path.is_relative_to(SAMPLES):
        data = path.read_bytes()
    else:
        small = vlm.open_image(path)
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        written = io.BytesIO()
        small.save(written, "WEBP", quality=80)
        data = written.getvalue()
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _key(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
