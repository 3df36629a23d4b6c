"""WebDataset shards as img2dataset writes them: 00000.tar holds key.jpg, key.txt, key.json.

The headers are read once; from then on an image is a place in a file, so that tars have an order that depends on the
recipe alone, as anything else.  Nothing is unpacked to disk.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from vlm.images.open import MAX_BYTES, ImageSource
from vlm.training.data.formats.arrow_cache import generated
from vlm.training.data.formats.columns import Columns
from vlm.training.data.formats.shards import Range, ReadAhead, ShardFile, Shards, names_below
from vlm.training.data.formats.splits import splits_of_files
from vlm.training.data.formats.table import Table, with_splits
from vlm.training.data.formats.tar_headers import read_headers
from vlm.training.data.rows import BrokenSample, Captions, ColumnNames

RUN_BYTES = 4 << 20  # of neighbouring images that are read together
LOCAL_BYTES = 8 << 30  # of shards on this machine: less stays in the page cache, and any order is as good
_SHORTEST, _LONGEST = 8, 256  # samples of such a run


class Tars(Table):
    """A `Table` of the shards' members."""

    def __init__(self, name: str, rows: Any, columns: Columns, shards: Shards):
        self._places = rows.select_columns(["shard", "offset", "size"]).with_format("arrow")
        super().__init__(name, rows, columns)
        self.shards, self._ahead = shards, ReadAhead(shards)

    @property
    def run_length(self) -> int:
        size = sum(file.size for file in self.shards.files)
        if not self.shards.remote and size <= LOCAL_BYTES:
            return 1
        fitting = RUN_BYTES * len(self) // max(1, size)
        return min(_LONGEST, max(_SHORTEST, 1 << max(0, fitting.bit_length() - 1)))

    def read_ahead(self, index: Sequence[int]) -> None:
        rows = [self._row_numbers(number)[0] for number in index]
        places = self._places[rows].to_pydict() if rows else {"shard": [], "offset": [], "size": []}
        self._ahead.plan([
            Range(shard, offset, offset + size)
            for shard, offset, size in zip(*places.values(), strict=True)
            if 0 < size <= MAX_BYTES
        ])  # fmt: skip

    def image(self, index: int) -> ImageSource:
        number = self._row_numbers(index)[0]
        self._raise_problem(index, self._row(self._image, number))
        shard, offset, size = self._row(self._places, number).values()
        path = self.shards.files[shard].name
        if size < 0:
            raise BrokenSample(
                self.uid(index), "unreadable", f"{path}: Invalid size of this image in its header, {size}"
            )
        if size > MAX_BYTES:
            raise BrokenSample(self.uid(index), "too many bytes", f"{size:,}; the limit is {MAX_BYTES:,}")
        try:
            data = self._ahead.get(Range(shard, offset, offset + size))
        except OSError as error:
            raise BrokenSample(self.uid(index), "unreadable", f"{path}: {error.strerror}") from error
        if len(data) < size:
            raise BrokenSample(self.uid(index), "truncated", f"{path} ends within this image")
        return data

    def _identity(self, row: int) -> str:
        return "{shard} {offset}".format(**self._row(self._places, row))

    def _of_row(self, row: Mapping[str, Any]) -> Captions:
        found: Captions = {}
        for which, part in enumerate(("captions", "keywords")):
            for item in row[part]:
                found.setdefault(item["language"], ([], []))[which].append(item["text"])
        if not found and (labels := self._labels(row)):
            found[""] = ([label.replace("_", " ") for label in labels], [])
        return found


def open_tars(name: str, shards: Sequence[ShardFile], splits: Sequence[str], named: ColumnNames) -> Tars:
    """Open one tar or several.

    Args:
        name: of the data set, for messages.
        shards: the files, all local or all at URLs of one store.  Their names may give splits: train-00000.tar.
        splits: only these; empty takes all.
        named: keys of the .json members that would not be recognised.

    Raises:
        DataError: a shard is packed, or has none of the splits; a URL cannot be read.
    """
    from datasets import Features, List, Value

    text, number = Value("string"), Value("int64")
    texts = List({"language": text, "text": text})
    features = {"uid": text, "shard": number, "offset": number, "size": number, "label": List(text), "split": text,
                "problem_reason": text, "problem_detail": text, "captions": texts, "keywords": texts}  # fmt: skip
    chosen = {role: [names] if isinstance(names, str) else list(names) for role, names in named.items()}
    below = names_below(shards)
    of_files = splits_of_files([PurePosixPath(path) for path in below])
    rows = generated(
        name, read_headers, Features(features), shards=[tuple(shard) for shard in shards], names=below,
        splits=of_files, named=chosen,
    )  # fmt: skip
    columns = Columns(captions={"": ["captions"]}, keywords={"": ["keywords"]}, uid="uid", label="label",
                      split="split" if any(of_files) else None)  # fmt: skip
    return Tars(name, with_splits(name, rows, columns.split, splits), columns, Shards(shards))
