"""Headers of tar shards -> rows of a table: keys, places of images, captions and labels.

Shards are read in parallel, each from front to back; members of other kinds (a pickle) are never opened.
"""

import json
import os
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

from vlm.errors import DataError, ImageReason
from vlm.images.signatures import IMAGE_SUFFIXES
from vlm.training.data.formats.cells import texts_of
from vlm.training.data.formats.columns import CAPTION, KEYWORDS, LABEL, by_language
from vlm.training.data.formats.encodings import is_plain_text, likely_encoding
from vlm.training.data.formats.labels import labels_of
from vlm.training.data.formats.shards import BlockFile, ShardFile, Shards, is_url

PARALLEL_BYTES = 1 << 30  # of local shards: less is read sooner than processes start
_THREADS = 16  # for shards at URLs, where waiting is most of it
_TEXT_BYTES = 1 << 20  # of one .txt or .json: more is no caption
_TEXTS = ("txt", "json", "cls")
_PACKED = {b"\x1f\x8b": ("gzip", "gunzip"), b"BZh": ("bzip2", "bunzip2"), b"\xfd7zXZ": ("xz", "unxz"),
           b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"), b"PK\x03\x04": ("zip", "unzip")}  # fmt: skip


@dataclass(kw_only=True)
class _Sample:
    """Members of one key, while the headers are read."""

    key: str
    image: tuple[int, int] | None = None  # offset and size
    captions: dict[str, list[str]] = field(default_factory=dict)  # language -> texts
    keywords: dict[str, list[str]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    endings: list[str] = field(default_factory=list)
    problem: tuple[ImageReason, str] | None = None

    @property
    def complete(self) -> bool:
        """Returns True if no member elsewhere in the tar can be missing."""
        return self.problem is not None or (self.image is not None and any(ending in _TEXTS for ending in self.endings))

    def take(self, other: "_Sample") -> None:
        """The members of the same key from another place in the tar."""
        self.image = self.image or other.image
        for language, texts in other.captions.items():
            _append(self.captions, language, texts)
        for language, texts in other.keywords.items():
            _append(self.keywords, language, texts)
        self.labels = self.labels or other.labels
        self.endings += other.endings
        self.problem = self.problem or other.problem


def read_headers(
    shards: Sequence[ShardFile],
    names: Sequence[str],
    splits: Sequence[str],
    named: dict[str, list[str]],
    version: int,
) -> Iterator[dict[str, Any]]:
    """The rows of all shards, shard by shard.

    Args:
        shards: the files.
        names: of the shards, for uids.
        splits: of the shards, "" where a name says none.
        named: keys of the .json members that would not be recognised, by what they are.
        version: of this reader, for the cache.
    """
    jobs = [(ShardFile(*shard), number, names[number], named) for number, shard in enumerate(shards)]
    for (_, number, _, _), rows in zip(jobs, _in_parallel(jobs), strict=True):
        yield from (row | {"split": splits[number]} for row in rows)


_Job = tuple[ShardFile, int, str, dict[str, list[str]]]


def _in_parallel(jobs: Sequence[_Job]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each shard, in order; a few shards are read ahead of need."""
    files = [job[0] for job in jobs]
    workers = min(len(jobs), os.cpu_count() or 1)
    pool: Executor
    if is_url(files[0].name) and len(jobs) > 1:
        workers = min(len(jobs), _THREADS)
        pool = ThreadPoolExecutor(workers)
    elif workers > 1 and sum(file.size for file in files) >= PARALLEL_BYTES:
        pool = ProcessPoolExecutor(workers)
    else:
        yield from (_rows_of_shard(*job) for job in jobs)
        return
    with pool:
        waiting: deque[Future[list[dict[str, Any]]]] = deque()
        try:
            for job in jobs:
                if len(waiting) == 2 * workers:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(_rows_of_shard, *job))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _rows_of_shard(shard: ShardFile, number: int, name: str, named: dict[str, list[str]]) -> list[dict[str, Any]]:
    problem = _Problem()
    rows = [_row(number, f"{name}/{sample.key}", sample) for sample in _joined(_samples(shard, problem, named))]
    if problem.reason:  # a sample that is always broken, so that the shard is on the list
        detail = f"{problem.detail}; {len(rows)} samples were found before"
        rows.append(_row(number, name, _Sample(key=name, problem=(problem.reason, detail))))
    return rows


def _joined(samples: Iterator[_Sample]) -> Iterator[_Sample]:
    """Samples whose members stand apart (all images, then all texts) put together; those that stay incomplete last."""
    waiting: dict[str, _Sample] = {}
    for sample in samples:
        if sample.complete:
            yield sample
            continue
        other = waiting.get(sample.key)
        if other is None or set(other.endings) & set(sample.endings):
            if other is not None:
                yield waiting.pop(sample.key)
            waiting[sample.key] = sample
            continue
        other.take(sample)
        if other.complete:
            yield waiting.pop(sample.key)
    yield from waiting.values()


def _row(shard: int, uid: str, sample: _Sample) -> dict[str, Any]:
    reason, detail = sample.problem or (None, None)
    if sample.image is None and not reason:
        endings = ", ".join(sample.endings)
        reason, detail = "missing", f"no image among its members ({endings})"
    offset, size = sample.image or (0, 0)
    return {
        "uid": _printable(uid), "shard": shard, "offset": offset, "size": size, "label": sample.labels,
        "problem_reason": reason, "problem_detail": detail,
        "captions": _pairs(sample.captions), "keywords": _pairs(sample.keywords),
    }  # fmt: skip


def _pairs(texts: dict[str, list[str]]) -> list[dict[str, str]]:
    return [{"language": language, "text": _printable(text)} for language, own in texts.items() for text in own]


def _printable(text: str) -> str:
    """Names in tars may be any bytes."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass
class _Problem:
    """Reason why reading a shard ended early."""

    reason: ImageReason | None = None
    detail: str = ""


def _samples(shard: ShardFile, problem: _Problem, named: dict[str, list[str]]) -> Iterator[_Sample]:
    """Neighbours of one key are a sample (WebDataset's rule)."""
    current: _Sample | None = None
    with _opened(shard) as file:
        head = file.read(6)
        for begin, (packer, unpack) in _PACKED.items():
            if head.startswith(begin):
                raise DataError(
                    f"{shard.name} is packed with {packer}. Unpack it ({unpack}): its parts are read in random order."
                )
        file.seek(0)
        for member in _members(shard.name, file, shard.size, problem):
            key, ending = _key_and_ending(member.name)
            if not key or member.isdir():
                continue
            if current is None or current.key != key or ending in current.endings:
                if current is not None:
                    yield current
                current = _Sample(key=key)
            current.endings.append(ending)
            _add(current, member, ending, file, shard.size, named)
    if current is not None:
        yield current


def _opened(shard: ShardFile) -> IO[bytes]:
    return BlockFile(Shards([shard]), 0) if is_url(shard.name) else open(shard.name, "rb")  # type: ignore[return-value]


def _key_and_ending(name: str) -> tuple[str, str]:
    """a/1.jpg -> a/1, jpg; photo.v2.jpg -> photo.v2, jpg; but 1.seg.png -> 1, seg.png, as WebDataset has it."""
    folder, _, last = name.rpartition("/")
    key, _, ending = last.partition(".")
    if "." in ending:
        begin, _, final = last.rpartition(".")
        middle = ending.rpartition(".")[0]
        if _is_ours(final) and not middle.isalpha():  # a word between the dots names a kind of member
            key, ending = begin, final
    return (f"{folder}/{key}" if folder else key) if key and ending else "", ending.lower()


def _is_ours(ending: str) -> bool:
    return ending.lower() in _TEXTS or f".{ending.lower()}" in IMAGE_SUFFIXES


def _members(path: str, file: IO[bytes], size: int, problem: _Problem) -> Iterator[tarfile.TarInfo]:
    """Headers up to the end, or to what makes one unreadable."""
    name = os.path.basename(path)
    end = -1
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None and member.offset > end:
                end = member.offset
                yield member
                tar.members.clear()  # it would keep all  # pyright: ignore[reportAttributeAccessIssue]
            file.seek(tar.offset)
            mark = file.read(512)
            if mark != bytes(512):
                cut = len(mark) < 512
                problem.reason = "truncated" if cut else "damaged"
                problem.detail = f"{name} ends without its end mark" if cut else f"no header at byte {tar.offset:,}"
    except tarfile.TarError as error:
        whole = "unexpected end" not in str(error)
        problem.reason = "damaged" if whole else "truncated"
        problem.detail = (
            f"{name} is no tar file ({error})" if whole else f"{name} ends after {size:,} bytes, in a member"
        )
    except DataError:
        raise
    except (OSError, ValueError, OverflowError) as error:
        problem.reason, problem.detail = "damaged", f"{name} cannot be read on ({error})"


def _add(
    sample: _Sample, member: tarfile.TarInfo, ending: str, file: IO[bytes], size: int, named: dict[str, list[str]]
) -> None:
    image = f".{ending}" in IMAGE_SUFFIXES
    if not image and ending not in _TEXTS:
        return
    parts = PurePosixPath(member.name).parts
    if ".." in parts or member.name.startswith("/"):
        sample.problem = ("outside the folder", f"{member.name} leads out of the tar")
    elif not member.isreg() or member.issparse():
        sample.problem = ("not a file", f"{member.name} is a link or a device")
    elif member.offset_data + member.size > size:
        sample.problem = ("truncated", f"the tar ends within {member.name}")
    elif image:
        sample.image = sample.image or (member.offset_data, member.size)
    elif member.size > _TEXT_BYTES:
        sample.problem = ("bad row", f"{member.name} has {member.size:,} bytes; wanted a caption")
    else:
        try:
            file.seek(member.offset_data)
            _add_text(sample, ending, file.read(member.size), named)
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
            sample.problem = ("bad row", _why(member.name, error))


def _why(name: str, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"{name} is not UTF-8: it looks like {likely_encoding(error.object)}"
    return f"{name} cannot be read ({error})"


def _add_text(sample: _Sample, ending: str, data: bytes, named: dict[str, list[str]]) -> None:
    text = data.decode("utf-8-sig").strip()
    if not is_plain_text(data):
        raise UnicodeDecodeError("utf-8", data, 0, 1, "another encoding")
    if ending == "txt":
        _append(sample.captions, "", texts_of(text))
    elif ending == "cls":
        sample.labels = labels_of(text)
    else:
        row = json.loads(text)
        if not isinstance(row, dict):
            raise ValueError(f"a JSON {type(row).__name__}, wanted an object")
        of_row = str(row.get("language") or row.get("lang") or "")
        for role, known, into in (("caption", CAPTION, sample.captions), ("keywords", KEYWORDS, sample.keywords)):
            for language, names in by_language(role, known, [*row], named).items():
                _append(
                    into, language or of_row, [text for name in names if name in row for text in texts_of(row[name])]
                )
        for name in named.get("label", LABEL):
            if row.get(name) is not None:
                sample.labels = labels_of(row[name])
                break


def _append(into: dict[str, list[str]], language: str, texts: Sequence[str]) -> None:
    """In the order they come, each once: img2dataset writes the caption into .txt and .json."""
    own = into.setdefault(language, [])
    own.extend(text for text in texts if text.strip() and text not in own)
