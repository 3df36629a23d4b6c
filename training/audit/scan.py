"""Every sample of a data set looked at once, in worker processes: facts of images, counts of texts.

Of an image 500 bytes are kept, whatever its size, so memory grows with the sample, not with the data set.
"""

import hashlib
import io
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import ftfy.badness
import numpy as np
import regex
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vlm.errors import ImageError
from vlm.images.open import ImageSource, open_image
from vlm.images.signatures import IMAGE_SUFFIXES
from vlm.tokenizers.protocol import Tokenizer
from vlm.training.data.rows import BrokenSample, Joined, Rows, broken_sample
from vlm.training.data.same_images import SIDE, spread_of, thumbnail_of

NO_SPLIT = "no split"  # name of the samples without a split, where others have one
LONGEST = 1024  # ids; longer texts count as this long
FACTS = np.dtype(
    [
        ("index", "i8"),
        ("width", "i4"),
        ("height", "i4"),
        ("file", "u8"),  # digests
        ("pixels", "u8"),
        ("spread", "f4"),  # standard deviation of the levels, of the channel where it is largest
        ("grey", "?"),
        ("transparent", "?"),
        ("animated", "?"),
        ("thumbnail", "f2", (SIDE * SIDE * 3,)),  # less its mean colour, of length 1
    ]
)
Counts = dict[str, Counter[Any]]
_CHUNK = 64  # samples a worker sends at once
_SCRIPTS = {
    name: regex.compile(pattern)
    for name, pattern in {
        "kana": r"[\p{Hiragana}\p{Katakana}]",
        "kanji only": r"\p{Han}",
        "hangul": r"\p{Hangul}",
        "cyrillic": r"\p{Cyrillic}",
        "arabic": r"\p{Arabic}",
        "devanagari": r"\p{Devanagari}",
        "thai": r"\p{Thai}",
        "hebrew": r"\p{Hebrew}",
        "greek": r"\p{Greek}",
        "latin": r"\p{Latin}",
        "other letters": r"\p{L}",
    }.items()
}
_MARKUP = regex.compile(r"</?[a-z]+[^<>]*>|&(?:[a-z]{2,8}|#\d+);|https?://", regex.IGNORECASE)

# values of programs that are no list and no empty cell to a reader: {"text": ...}, (1, 2), tensor(...), b'...', N/A
_PRINTED = regex.compile(
    r"""\{\s*['"].*\}|\(\s*['"\d].*,.*\)|\[\s*['"{(\[].*|(?:tensor|array|Series|DataFrame|OrderedDict)\(.*|b(?:'.*'|".*")
    |<[\w.]+\ (?:object\ at|'[\w.]+').*|(?:n/?a|nil|undefined|\#n/a|\#ref!|-?inf|true|false)""",
    regex.VERBOSE | regex.DOTALL | regex.IGNORECASE,
)


class Doubt(NamedTuple):
    """A sample that somebody should look at."""

    uid: str
    split: str
    what: str
    detail: str


class Seen(NamedTuple):
    """Result of a scan.  `counts`: name -> number of occurrences of each value."""

    rows: Rows
    looked: int  # samples, of the len(rows) there are
    facts: np.ndarray  # FACTS, (n,) of the sound samples
    splits: np.ndarray  # (n,) their split's place in split_names
    split_names: list[str]
    broken: list[BrokenSample]
    counts: Counts
    doubts: list[Doubt]


class Divided(Joined):
    """One or several data sets; what is not divided is a split of its own, named like its file."""

    def uid(self, index: int) -> str:
        return self.parts[0].uid(index) if len(self.parts) == 1 else super().uid(index)

    def split(self, index: int) -> str:
        part, own = self._find(index)
        return part.split(own) or (NO_SPLIT if part.splits() else Path(part.name).stem)


class _Part(NamedTuple):
    facts: np.ndarray
    splits: list[str]
    broken: list[BrokenSample]
    counts: Counts
    doubts: list[Doubt]
    looked: int


def scan(rows: Rows, tokenizer: Tokenizer, *, sample: int, workers: int) -> Seen:
    """At most `sample` samples, drawn at random (always the same ones) where there are more.

    `tokenizer.context_length` is raised: how long a text is counts, not what is left of it.
    """
    tokenizer.context_length = LONGEST
    numbers: Sequence[int] = range(len(rows))
    if sample < len(rows):
        numbers = sorted(random.Random(0).sample(numbers, sample))
    chunks = [numbers[start : start + _CHUNK] for start in range(0, len(numbers), _CHUNK)]
    workers = workers if len(chunks) > 2 * workers else 0  # a process takes longer to start
    loader = DataLoader(_Scanner(rows, tokenizer, chunks), batch_size=None, num_workers=workers, collate_fn=_as_it_is)
    places: dict[str, int] = {}
    facts, splits = [], []
    seen = Seen(rows, len(numbers), np.empty(0, FACTS), np.empty(0, np.int64), [], [], {}, [])
    with tqdm(total=len(numbers), desc="looking", unit="sample") as bar:
        for part in loader:
            facts.append(part.facts)
            splits += [places.setdefault(split, len(places)) for split in part.splits]
            seen.broken.extend(part.broken)
            seen.doubts.extend(part.doubts)
            for name, counts in part.counts.items():
                seen.counts.setdefault(name, Counter()).update(counts)
            bar.update(part.looked)
    return seen._replace(facts=np.concatenate(facts), splits=np.asarray(splits, np.int64), split_names=list(places))


def _as_it_is(part: Any) -> Any:
    return part


class _Scanner(Dataset[_Part]):
    def __init__(self, rows: Rows, tokenizer: Tokenizer, chunks: Sequence[Sequence[int]]):
        self.rows, self.chunks, self.texts = rows, chunks, _Texts(tokenizer)

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> _Part:
        part = _Part(np.empty(0, FACTS), [], [], {}, [], len(self.chunks[number]))
        facts = []
        self.rows.read_ahead(self.chunks[number])
        for index in self.chunks[number]:
            try:
                captions = self.rows.captions(index)
                facts.append((index, *_facts(self.rows.image(index))))
            except ImageError as error:
                part.broken.append(broken_sample(self.rows.uid(index), error))
                continue
            uid, split = self.rows.uid(index), self.rows.split(index)
            part.splits.append(split)
            for label in self.rows.labels(index):
                _count(part.counts, "class", label)
            own = {text for names, _ in captions.values() for text in names}
            concept = self.rows.concept(index)
            _count(part.counts, "captions per image", sum(len(names) for names, _ in captions.values()))
            for text in own:
                _count(part.counts, "caption", text[:200])
                if concept is not None:
                    _count(part.counts, "caption of group", (text[:200], concept))
            for language, (names, keywords) in captions.items():
                _count(part.counts, "keywords", language, len(keywords))
                for text in names or keywords:
                    self.texts.look(text, language, part.counts)
            part.doubts.extend(Doubt(uid, split, what, text[:200]) for text in own for what in _oddities(text, uid))
        return part._replace(facts=np.array(facts, FACTS))


def _count(counts: Counts, name: str, value: Any, times: int = 1) -> None:
    counts.setdefault(name, Counter())[value] += times


class _Texts:
    """Counts of lengths, scripts and of what the tokenizer has no piece for."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    @cached_property
    def partial(self) -> frozenset[int]:
        """Ids that are no letters: a byte of one, or "unknown"."""
        ids = set(range(self.tokenizer.vocab_size)) - {self.tokenizer.eot_id, self.tokenizer.pad_id}
        return frozenset(id for id in ids if {"\ufffd", "⁇"} & set(self.tokenizer.decode([id])))

    def look(self, text: str, language: str, counts: Counts) -> None:
        ids = self.tokenizer.encode(text)
        lost = sum(id in self.partial for id in ids)
        _count(counts, "ids of a text", len(ids))
        _count(counts, "letters of a text", min(len(text), LONGEST))
        _count(counts, "script", (language, script(text)))
        _count(counts, "ids", "lost", lost)
        _count(counts, "ids", "whole", len(ids) - 1 - lost)
        if lost:
            for letter in set(text[:LONGEST]):
                if self._is_lost(letter):
                    _count(counts, "letters without a piece", letter)

    @lru_cache(maxsize=1 << 16)  # noqa: B019  # lives as long as the scan
    def _is_lost(self, letter: str) -> bool:
        return any(id in self.partial for id in self.tokenizer.encode(letter))


def script(text: str) -> str:
    """The first script of the list that has a letter in the text.  A script is not a language: kanji may be Chinese."""
    return next((name for name, pattern in _SCRIPTS.items() if pattern.search(text)), "no letters")


def _oddities(text: str, uid: str) -> Iterator[str]:
    """Returns the oddities of a single caption."""
    name = PurePath(uid.rpartition(": ")[2])
    if PurePath(text).suffix.lower() in IMAGE_SUFFIXES or (text == name.stem and any(map(str.isdigit, text))):
        yield "caption is a file name"
    if "\ufffd" in text or (not text.isascii() and ftfy.badness.is_bad(text)):
        yield "garbled caption"
    if _MARKUP.search(text):
        yield "markup in caption"
    if _PRINTED.match(text.strip()):
        yield "caption is a printed value"


def _facts(source: ImageSource) -> tuple[Any, ...]:
    """All of FACTS but the index; `ImageError`."""
    image = open_image(source)
    levels = np.asarray(image)  # (H, W, 3)
    if isinstance(source, np.ndarray):
        data, transparent, animated = source.tobytes(), False, False
    else:
        data = source if isinstance(source, bytes) else Path(str(source)).read_bytes()
        with Image.open(io.BytesIO(data)) as file:
            transparent = file.has_transparency_data
            animated = file.format in ("GIF", "PNG", "WEBP", "AVIF") and getattr(file, "n_frames", 1) > 1
    grey = bool((levels[..., :1] == levels[..., 1:]).all())
    digests = _digest(data), _digest(levels.tobytes(), image.width)
    return (*image.size, *digests, spread_of(image), grey, transparent, animated, thumbnail_of(image))


def _digest(data: bytes, width: int = 0) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, salt=width.to_bytes(8)).digest())
