"""A data set before any image is decoded: what every format offers (`Rows`), parts and sums of data sets."""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

from vlm.errors import DataError, ImageError
from vlm.images.open import ImageSource

# language, "" where it is unknown -> (captions, keywords); at least one of them holds something
Captions = dict[str, tuple[list[str], list[str]]]
# what a column is -> its name or names: {"image": "filepath", "caption": ["title", "alt"]}
ColumnNames = Mapping[str, str | Sequence[str]]


class BrokenSample(ImageError, DataError):
    """A sample of a data set that cannot be used, because of its image, its caption or its row.

    `str()` is one line that names it.
    """

    @property
    def uid(self) -> str:
        """The sample's name, as `Rows.uid` gives it."""
        return self.name


class Rows(Protocol):
    """Samples numbered from 0, in an order that is the same at every opening."""

    @property
    def name(self) -> str:
        """The source, for messages."""
        ...

    @property
    def fingerprint(self) -> str:
        """Another one when the data set is another one: the key of what is kept of it."""
        ...

    def __len__(self) -> int: ...

    def uid(self, index: int) -> str:
        """A name that stays the same and is unique in this data set."""
        ...

    def image(self, index: int) -> ImageSource:
        """Bytes, a path or a uint8 array, not decoded; `BrokenSample` where there is none to read."""
        ...

    def captions(self, index: int) -> Captions:
        """`BrokenSample` where there is not one."""
        ...

    def label(self, index: int) -> str | None:
        """Name of the class, where the data set has classes."""
        ...

    def group(self, index: int) -> str:
        """Samples of one group show the same thing: its concept, else its class, else the sample's uid."""
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

    def captions(self, index: int) -> Captions:
        return self.rows.captions(int(self.index[index]))

    def label(self, index: int) -> str | None:
        return self.rows.label(int(self.index[index]))

    def group(self, index: int) -> str:
        return self.rows.group(int(self.index[index]))

    def split(self, index: int) -> str:
        return self.rows.split(int(self.index[index]))

    def splits(self) -> list[str]:
        return sorted({self.split(index) for index in range(len(self))} - {""})

    def column(self, name: str) -> list[Any]:
        values = self.rows.column(name)
        return [values[i] for i in self.index]


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

    def captions(self, index: int) -> Captions:
        part, own = self._find(index)
        return part.captions(own)

    def label(self, index: int) -> str | None:
        part, own = self._find(index)
        return part.label(own)

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


def class_names(rows: Rows) -> list[str]:
    """All classes, sorted; `DataError` where samples have none."""
    names = {rows.label(index) for index in range(len(rows))}
    if None in names or not names:
        raise DataError(f"{rows.name} has samples without a class. Wanted a folder per class, or a column label.")
    return sorted(name for name in names if name is not None)
