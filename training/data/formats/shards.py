"""Bytes of shards, local files or objects at a URL that `fsspec` knows (s3://, gs://, hf://), read in large blocks."""

import hashlib
import io
import os
import posixpath
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from vlm.errors import DataError
from vlm.training.data.formats.arrow_cache import stamp

BLOCK_BYTES = 16 << 20  # of one read at most, unless one member is larger
GAP_BYTES = 512 << 10  # that are read, and dropped, rather than asked around
AHEAD_BYTES = 64 << 20  # of members that a process holds at most, beside the gaps
SCAN_BYTES = 4 << 20  # of one read while the headers of a remote shard are read
ATTEMPTS = 5  # to read from a URL
FIRST_WAIT = 0.5  # seconds before the second attempt; each later wait is twice as long

_VERSION = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created", "md5Hash", "blob_id", "oid")


class Range(NamedTuple):
    """Bytes start .. end - 1 of a shard."""

    shard: int  # its number
    start: int
    end: int


class ShardFile(NamedTuple):
    """A shard as it was when it was found: what was read from it is good as long as all three stay."""

    name: str  # absolute path or URL
    size: int  # bytes
    version: int | str  # time of change, or what the store says in its place


def is_url(source: str) -> bool:
    """Returns True for s3://bucket/name and its like, False for file:///name: a path is written alone."""
    return "://" in source and not source.startswith("file:")


def local_shard(path: Path) -> ShardFile:
    return ShardFile(*stamp(path))


def remote_shards(source: str, names: Sequence[str]) -> list[ShardFile]:
    """Find the shards at a URL.

    Args:
        source: as the user wrote it, for messages.
        names: URLs of files, of folders, or with * and ?.

    Raises:
        DataError: there is no such store or file, or it cannot be reached.
    """
    try:
        return [shard for name in names for shard in _listed(name)]
    except ImportError as error:
        raise DataError(f"{source} needs a package that is not installed ({error}). Install it with pip.") from error
    except FileNotFoundError as error:
        raise DataError(f"There is no data {source} ({error}). Check the URL.") from error
    except Exception as error:  # of any kind: botocore's errors, for one, are no OSError
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{source} cannot be listed ({why}). Check the URL and the access to it.") from error


def _listed(url: str) -> list[ShardFile]:
    from fsspec.core import url_to_fs

    store, path = url_to_fs(url)
    if any(sign in path for sign in "*?["):
        found = store.glob(path, detail=True)
    elif store.isdir(path):
        found = {info["name"]: info for info in store.ls(path, detail=True) if info["name"].endswith(".tar")}
    else:
        found = {path: store.info(path)}
    return [ShardFile(store.unstrip_protocol(name), int(found[name]["size"]), _version(found[name]))
            for name in sorted(found)]  # fmt: skip


def _version(info: Mapping[str, Any]) -> str:
    known = {key: str(info[key]) for key in _VERSION if info.get(key)}
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def names_below(shards: Sequence[ShardFile]) -> list[str]:
    """Names of the shards, without the folder that all are in."""
    if is_url(shards[0].name):
        above = posixpath.commonprefix([posixpath.dirname(shard.name) + "/" for shard in shards])
        return [shard.name[above.rindex("/") + 1 :] for shard in shards]
    above = os.path.commonpath([os.path.dirname(shard.name) for shard in shards])
    return [os.path.relpath(shard.name, above) for shard in shards]


class Shards:
    """Reads ranges of shards that are all local, or all at URLs of one store."""

    def __init__(self, files: Sequence[ShardFile]):
        self.files = list(files)
        self.remote = is_url(self.files[0].name)

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range; fewer where a shard ends before it.

        Raises:
            OSError: a local file cannot be read.
            DataError: a URL cannot be read, after `ATTEMPTS`.
        """
        if self.remote:
            return self._fetch(ranges)
        found: list[bytes] = []
        for shard, own in groupby(ranges, lambda part: part.shard):
            with open(self.files[shard].name, "rb") as file:
                for _, start, end in own:
                    file.seek(start)
                    found.append(file.read(end - start))
        return found

    def _fetch(self, ranges: Sequence[Range]) -> list[bytes]:
        """All at once where the store can, and again what failed."""
        from fsspec.core import url_to_fs

        found: dict[int, bytes] = {}
        missing = list(range(len(ranges)))
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
            store, _ = url_to_fs(self.files[0].name)  # of this process: a worker must not use its parent's connections
            paths = [store._strip_protocol(self.files[ranges[number].shard].name) for number in missing]
            starts, ends = ([ranges[number][at] for number in missing] for at in (1, 2))
            answers = store.cat_ranges(paths, starts, ends, on_error="return")
            failed: dict[int, Exception] = {}
            for number, answer in zip(missing, answers, strict=True):
                if isinstance(answer, Exception):
                    failed[number] = answer
                else:
                    found[number] = bytes(answer)
            final = [
                number for number, error in failed.items() if isinstance(error, FileNotFoundError | PermissionError)
            ]
            missing = list(failed)
            if not missing or final:
                break
        if missing:
            number = final[0] if final else missing[0]
            error, tries = failed[number], "" if final else f" after {ATTEMPTS} attempts"
            why = " ".join(str(error).split()) or type(error).__name__
            name = self.files[ranges[number].shard].name
            raise DataError(f"{name} cannot be read{tries} ({why}). Check the store, then start again.") from error
        return [found[number] for number in range(len(ranges))]


class BlockFile(io.RawIOBase):
    """A shard as a binary file that is read from front to back in blocks of `SCAN_BYTES`."""

    def __init__(self, shards: Shards, number: int):
        self._shards, self._number = shards, number
        self._size = shards.files[number].size
        self._place, self._begin, self._block = 0, 0, b""

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        """At most `size` bytes, all that are left for -1."""
        end = self._size if size is None or size < 0 else min(self._size, self._place + size)
        if end <= self._place:
            return b""
        if not self._begin <= self._place <= end <= self._begin + len(self._block):
            last = min(self._size, max(end, self._place + SCAN_BYTES))
            (self._block,) = self._shards.read([Range(self._number, self._place, last)])
            self._begin = self._place
        found = self._block[self._place - self._begin : end - self._begin]
        self._place += len(found)
        return found


def blocks_of(places: Iterable[Range], gap: int, largest: int) -> list[Range]:
    """The reads that hold all places, in the order in which they lie.

    Args:
        places: what is wanted.
        gap: bytes between two places that are read along.
        largest: bytes of a read; a single place may be larger.
    """
    blocks: list[Range] = []
    for shard, start, end in sorted(set(places)):
        if blocks and blocks[-1].shard == shard:
            last = blocks[-1]
            if start - last.end <= gap and max(end, last.end) - last.start <= largest:
                blocks[-1] = last._replace(end=max(end, last.end))
                continue
        blocks.append(Range(shard, start, end))
    return blocks


class ReadAhead:
    """Members of shards that will be asked for soon, read together.

    Those of a plan are read in groups of at most `AHEAD_BYTES`, in the order of the plan; inside of a group in the
    order in which they lie in the shards, in blocks of at most `block_bytes`.
    """

    def __init__(self, shards: Shards, block_bytes: int = BLOCK_BYTES):
        self.shards, self.block_bytes = shards, block_bytes
        self._groups: list[list[Range]] = []
        self._group_of: dict[Range, int] = {}
        self._held: dict[Range, bytes] = {}

    def plan(self, places: Sequence[Range]) -> None:
        """Forget what was planned before, and read these when the first of them is asked for."""
        self._groups, self._group_of, self._held = [], {}, {}
        room = 0
        for place in places:
            if place in self._group_of:
                continue
            size = place.end - place.start
            if room < size or not self._groups:
                self._groups.append([])
                room = max(AHEAD_BYTES, size)
            room -= size
            self._groups[-1].append(place)
            self._group_of[place] = len(self._groups) - 1

    def get(self, place: Range) -> bytes:
        """The bytes of a place, planned or not; errors as `Shards.read` has them."""
        if (group := self._group_of.get(place)) is not None:
            places = self._groups[group]
            for own in places:
                del self._group_of[own]
            self._held = self._read(places)
        found = self._held.get(place)
        return self.shards.read([place])[0] if found is None else found

    def _read(self, places: Sequence[Range]) -> dict[Range, bytes]:
        blocks = blocks_of(places, min(GAP_BYTES, self.block_bytes // 4), self.block_bytes)
        try:
            data = self.shards.read(blocks)
        except OSError:  # of a local file: the members are then read one by one, and those of the others are there
            return {}
        held: dict[Range, bytes] = {}
        number = 0
        for place in sorted(places):
            while blocks[number].shard != place.shard or blocks[number].end < place.end:
                number += 1
            start = place.start - blocks[number].start
            held[place] = data[number][start : start + place.end - place.start]
        return held
