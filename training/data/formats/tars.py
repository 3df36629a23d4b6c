"""WebDataset shards as img2dataset writes them: 00000.tar holds key.jpg, key.txt, key.json.

The headers are read once; from then on an image is a place in a file, so that tars have the same random order as
anything else.  Nothing is unpacked to disk, and members of other kinds (a pickle) are never opened.
"""

import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from vlm.errors import DataError, ImageReason
from vlm.images.open import MAX_BYTES, ImageSource
from vlm.images.signatures import IMAGE_SUFFIXES
from vlm.training.data.formats.arrow_cache import generated, stamp
from vlm.training.data.formats.cells import texts_of
from vlm.training.data.formats.columns import CAPTION, KEYWORDS, LABEL, Columns, by_language
from vlm.training.data.formats.encodings import is_plain_text, likely_encoding
from vlm.training.data.formats.labels import labels_of
from vlm.training.data.formats.splits import splits_of_files
from vlm.training.data.formats.table import Table, with_splits
from vlm.training.data.rows import BrokenSample, Captions, ColumnNames

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


class Tars(Table):
    """A `Table` of the shards' members."""

    def __init__(self, name: str, rows: Any, columns: Columns, shards: Sequence[Path]):
        self._places = rows.select_columns(["shard", "offset", "size"]).with_format("arrow")
        super().__init__(name, rows, columns)
        self.shards = list(shards)

    def image(self, index: int) -> ImageSource:
        number = self._row_numbers(index)[0]
        self._raise_problem(index, self._row(self._image, number))
        shard, offset, size = self._row(self._places, number).values()
        path = self.shards[shard]
        if size > MAX_BYTES:
            raise BrokenSample(self.uid(index), "too many bytes", f"{size:,}; the limit is {MAX_BYTES:,}")
        try:
            with path.open("rb") as file:
                data = os.pread(file.fileno(), size, offset)
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


def open_tars(name: str, shards: Sequence[Path], splits: Sequence[str], named: ColumnNames) -> Tars:
    """Open one tar or several.

    Args:
        name: of the data set, for messages.
        shards: the files.  Their names may give splits: train-00000.tar.
        splits: only these; empty takes all.
        named: keys of the .json members that would not be recognised.

    Raises:
        DataError: a shard is packed, or has none of the splits.
    """
    from datasets import Features, List, Value

    for shard in shards:
        with shard.open("rb") as file:
            head = file.read(6)
        for begin, (packer, unpack) in _PACKED.items():
            if head.startswith(begin):
                raise DataError(
                    f"{shard} is packed with {packer}. Unpack it ({unpack}): its parts are read in random order."
                )
    text, number = Value("string"), Value("int64")
    texts = List({"language": text, "text": text})
    features = {"uid": text, "shard": number, "offset": number, "size": number, "label": List(text), "split": text,
                "problem_reason": text, "problem_detail": text, "captions": texts, "keywords": texts}  # fmt: skip
    chosen = {role: [names] if isinstance(names, str) else list(names) for role, names in named.items()}
    above = Path(os.path.commonpath([shard.parent for shard in shards]))
    below = [shard.relative_to(above) for shard in shards]
    of_files = splits_of_files(below)
    rows = generated(
        name, _read, Features(features), shards=[stamp(shard) for shard in shards], names=[str(path) for path in below],
        splits=of_files, named=chosen,
    )  # fmt: skip
    columns = Columns(captions={"": ["captions"]}, keywords={"": ["keywords"]}, uid="uid", label="label",
                      split="split" if any(of_files) else None)  # fmt: skip
    return Tars(name, with_splits(name, rows, columns.split, splits), columns, shards)


def _read(
    shards: Sequence[tuple[str, int, int]],
    names: Sequence[str],
    splits: Sequence[str],
    named: dict[str, list[str]],
    version: int,
) -> Iterator[dict[str, Any]]:
    for number, ((path, size, _), name, split) in enumerate(zip(shards, names, splits, strict=True)):
        count = 0
        problem = _Problem()
        for sample in _joined(_samples(path, size, problem, named)):
            count += 1
            yield _row(number, f"{name}/{sample.key}", sample) | {"split": split}
        if problem.reason:  # a sample that is always broken, so that the shard is on the list
            detail = f"{problem.detail}; {count} samples were found before"
            sample = _Sample(key=name, problem=(problem.reason, detail))
            yield _row(number, name, sample) | {"split": split}


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


def _samples(path: str, size: int, problem: _Problem, named: dict[str, list[str]]) -> Iterator[_Sample]:
    """Neighbours of one key are a sample (WebDataset's rule)."""
    current: _Sample | None = None
    with open(path, "rb") as file:
        for member in _members(path, file, size, problem):
            key, ending = _key_and_ending(member.name)
            if not key or member.isdir():
                continue
            if current is None or current.key != key or ending in current.endings:
                if current is not None:
                    yield current
                current = _Sample(key=key)
            current.endings.append(ending)
            _add(current, member, ending, file, size, named)
    if current is not None:
        yield current


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


def _members(path: str, file: BinaryIO, size: int, problem: _Problem) -> Iterator[tarfile.TarInfo]:
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
    except (OSError, ValueError, OverflowError) as error:
        problem.reason, problem.detail = "damaged", f"{name} cannot be read on ({error})"


def _add(
    sample: _Sample, member: tarfile.TarInfo, ending: str, file: BinaryIO, size: int, named: dict[str, list[str]]
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
            _add_text(sample, ending, os.pread(file.fileno(), member.size, member.offset_data), named)
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
