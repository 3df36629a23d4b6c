"""A data set before any image is decoded: what every format offers (`Rows`), parts and sums of data sets."""

import hashlib
import json
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, islice
from typing import Any, Literal, NamedTuple, Protocol

from vlm.errors import DataError, ImageError
from vlm.images.open import ImageSource
from vlm.training.data.near_miss import near_miss

# language, "" where it is unknown -> (captions, keywords); at least one of them holds something
Captions = dict[str, tuple[list[str], list[str]]]
# what a column is -> its name or names: {"image": "filepath", "caption": ["title", "alt"]}
ColumnNames = Mapping[str, str | Sequence[str]]
_BLOCK = 256  # samples


class Remark(NamedTuple):
    """Something a reader noticed about a data set as a whole."""

    kind: Literal["repeated ids", "links"]
    text: str  # one line


class BrokenSample(ImageError, DataError):
    """A sample of a data set that cannot be used, because of its image, its caption or its row.

    `str()` is one line that names it.
    """

    @property
    def uid(self) -> str:
        """The sample's name, as `Rows.uid` gives it."""
        return self.name


def broken_sample(uid: str, error: ImageError) -> BrokenSample:
    """Describes the error of a sample's image; for a missing file, the file its name may mean."""
    if isinstance(error, BrokenSample):
        return error
    return BrokenSample(uid, error.reason, near_miss(error.name) if error.reason == "missing" else error.detail)


class Rows(Protocol):
    """Samples numbered from 0, in an order that is the same at every opening."""

    @property
    def name(self) -> str:
        """The source, for messages."""
        ...

    @property
    def fingerprint(self) -> str:
        """Cache key; changes when the data changes."""
        ...

    def __len__(self) -> int: ...

    def uid(self, index: int) -> str:
        """A name that stays the same and is unique in this data set."""
        ...

    def image(self, index: int) -> ImageSource:
        """Bytes, a path or a uint8 array, not decoded; `BrokenSample` where there is none to read."""
        ...

    @property
    def run_length(self) -> int:
        """Neighbouring samples that are best read together; 1 where any order is as good."""
        ...

    def read_ahead(self, index: Sequence[int]) -> None:
        """Prepare to read the images of these samples, which will be asked for in this order."""
        ...

    def captions(self, index: int) -> Captions:
        """`BrokenSample` where there is not one."""
        ...

    def labels(self, index: int) -> list[str]:
        """Names of its classes: none, one or several; `BrokenSample` where they cannot be read."""
        ...

    def concept(self, index: int) -> str | None:
        """Returns the concept of an image, if the data set has a column concept."""
        ...

    def group(self, index: int) -> str:
        """Samples of one group are no negatives of each other: those of one concept, else those with the same texts."""
        ...

    def split(self, index: int) -> str:
        """ "train", "validation", ...; "" where the data set is not divided."""
        ...

    def splits(self) -> list[str]:
        """All splits there are, sorted."""
        ...

    def column(self, name: str) -> list[Any]:
        """Returns a column of the table, one value a sample; raises `DataError` if there is none."""
        ...

    def remarks(self) -> list[Remark]:
        """Returns remarks about the data set as a whole: repeated ids, skipped links."""
        ...


class Selected:
    """Some of the samples of `rows`, in the order of `index`."""

    def __init__(self, rows: Rows, index: Sequence[int]):
        self.rows, self.index = rows, index
        self.name = rows.name

    @property
    def fingerprint(self) -> str:
        return f"{self.rows.fingerprint} {hashlib.sha256(repr(list(self.index)).encode()).hexdigest()}"

    def __len__(self) -> int:
        return len(self.index)

    def uid(self, index: int) -> str:
        return self.rows.uid(int(self.index[index]))

    def image(self, index: int) -> ImageSource:
        return self.rows.image(int(self.index[index]))

    @property
    def run_length(self) -> int:
        return self.rows.run_length

    def read_ahead(self, index: Sequence[int]) -> None:
        self.rows.read_ahead([int(self.index[number]) for number in index])

    def captions(self, index: int) -> Captions:
        return self.rows.captions(int(self.index[index]))

    def labels(self, index: int) -> list[str]:
        return self.rows.labels(int(self.index[index]))

    def concept(self, index: int) -> str | None:
        return self.rows.concept(int(self.index[index]))

    def group(self, index: int) -> str:
        return self.rows.group(int(self.index[index]))

    def split(self, index: int) -> str:
        return self.rows.split(int(self.index[index]))

    def splits(self) -> list[str]:
        return sorted({self.split(index) for index in range(len(self))} - {""})

    def column(self, name: str) -> list[Any]:
        values = self.rows.column(name)
        return [values[i] for i in self.index]

    def remarks(self) -> list[Remark]:
        return self.rows.remarks()


class OfSplit(Selected):
    """All samples of `rows`, as the split that the name of their file gives."""

    def __init__(self, rows: Rows, split: str):
        super().__init__(rows, range(len(rows)))
        self._split = split

    @property
    def fingerprint(self) -> str:
        return self.rows.fingerprint

    def split(self, index: int) -> str:
        return self._split

    def splits(self) -> list[str]:
        return [self._split]


class Renamed(Selected):
    """All samples of `rows`, with other names for some classes."""

    def __init__(self, rows: Rows, names: Mapping[str, str]):
        super().__init__(rows, range(len(rows)))
        self.names = names

    @property
    def fingerprint(self) -> str:
        return f"{self.rows.fingerprint} renamed {sorted(self.names.items())}"

    def labels(self, index: int) -> list[str]:
        return [self.names.get(label, label) for label in super().labels(index)]


class Joined:
    """Several data sets, one after the other."""

    def __init__(self, parts: Sequence[Rows]):
        self.parts = parts
        self.name = " + ".join(part.name for part in parts)
        self._ends = list(accumulate(len(part) for part in parts))

    @property
    def fingerprint(self) -> str:
        return " + ".join(part.fingerprint for part in self.parts)

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[Rows, int]:
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number] - len(self.parts[number]))

    def uid(self, index: int) -> str:
        part, own = self._find(index)
        return f"{part.name}: {part.uid(own)}"

    def image(self, index: int) -> ImageSource:
        part, own = self._find(index)
        return part.image(own)

    @property
    def run_length(self) -> int:
        return max(part.run_length for part in self.parts)

    def read_ahead(self, index: Sequence[int]) -> None:
        own: dict[int, list[int]] = {number: [] for number in range(len(self.parts))}
        for place in index:
            number = bisect_right(self._ends, place)
            own[number].append(place - (self._ends[number] - len(self.parts[number])))
        for number, part in enumerate(self.parts):
            part.read_ahead(own[number])

    def captions(self, index: int) -> Captions:
        part, own = self._find(index)
        return part.captions(own)

    def labels(self, index: int) -> list[str]:
        part, own = self._find(index)
        return part.labels(own)

    def concept(self, index: int) -> str | None:
        part, own = self._find(index)
        return part.concept(own)

    def group(self, index: int) -> str:
        part, own = self._find(index)
        return part.group(own)

    def split(self, index: int) -> str:
        part, own = self._find(index)
        return part.split(own)

    def splits(self) -> list[str]:
        return sorted({split for part in self.parts for split in part.splits()})

    def column(self, name: str) -> list[Any]:
        return [value for part in self.parts for value in part.column(name)]

    def remarks(self) -> list[Remark]:
        return [remark for part in self.parts for remark in part.remarks()]


def in_blocks(rows: Rows, index: Iterable[int]) -> Iterator[int]:
    """These numbers one after the other; the images of some hundreds at a time are read together."""
    remaining = iter(index)
    while block := list(islice(remaining, _BLOCK)):
        rows.read_ahead(block)
        yield from block


def class_names(rows: Rows) -> list[str]:
    """All classes, sorted; `DataError` where no sample has one.  Samples whose classes cannot be read do not count."""
    names: set[str] = set()
    for index in range(len(rows)):
        with suppress(BrokenSample):
            names.update(rows.labels(index))
    if not names:
        raise DataError(f"{rows.name} has samples without a class. Wanted a folder per class, or a column label.")
    return sorted(names)


def plain_text(text: str) -> str:
    """NFKC, one space between words: what counts as the same text."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def text_group(rows: Rows, index: int) -> str:
    """Name of the group of samples that have the same texts as this one, in any order and language."""
    try:
        texts = {plain_text(text) for names, words in rows.captions(index).values() for text in names or words}
    except BrokenSample:
        return rows.uid(index)
    return "\n".join(sorted(texts))


def content_hash(rows: Rows) -> str:
    """16 hex digits of a data set: how many samples, and name, texts and classes of 1,000 of them."""
    digest = hashlib.sha256(str(len(rows)).encode())
    step = max(1, len(rows) // 1000)
    for index in range(0, len(rows), step):
        digest.update(json.dumps([rows.uid(index), text_group(rows, index)]).encode())
    return digest.hexdigest()[:16]
