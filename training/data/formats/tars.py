"""WebDataset shards as img2dataset writes them: 00000.tar holds key.jpg, key.txt, key.json.

The headers are read once; from then on an image is a place in a file, so that tars have the same random order as
anything else.  Nothing is unpacked to disk, and members of other kinds (a pickle) are never opened.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from vlm.errors import ImageReason
from vlm.images.open import MAX_BYTES, ImageSource
from vlm.images.signatures import IMAGE_SUFFIXES
from vlm.training.data.formats.columns import CAPTION, KEYWORDS, Columns, by_language
from vlm.training.data.formats.table import Table, generated, stamp, texts_of, with_splits
from vlm.training.data.rows import BrokenSample, Captions, ColumnNames

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # key, ending: WebDataset splits at the first dot of the file's name
_TEXT_BYTES = 1 << 20  # of one .txt or .json: more is no caption


@dataclass(kw_only=True)
class _Sample:
    """Members of one key, while the headers are read."""

    key: str
    image: tuple[int, int] | None = None  # offset and size
    captions: dict[str, list[str]] = field(default_factory=dict)  # language -> texts
    keywords: dict[str, list[str]] = field(default_factory=dict)
    label: str | None = None
    endings: list[str] = field(default_factory=list)
    problem: tuple[ImageReason, str] | None = None


class Tars(Table):
    """A `Table` of the shards' members."""

    def __init__(self, name: str, rows: Any, columns: Columns, shards: Sequence[Path]):
        super().__init__(name, rows, columns)
        self.shards = list(shards)
        self._places = rows.select_columns(["shard", "offset", "size"]).with_format("arrow")

    def image(self, index: int) -> ImageSource:
        self._raise_problem(index, self._row(self._image, index))
        shard, offset, size = self._row(self._places, index).values()
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

    def _of_row(self, row: Mapping[str, Any]) -> Captions:
        found: Captions = {}
        for which, part in enumerate(("captions", "keywords")):
            for item in row[part]:
                found.setdefault(item["language"], ([], []))[which].append(item["text"])
        if not found and row["label"]:
            found[""] = ([row["label"].replace("_", " ")], [])
        return found


def open_tars(name: str, shards: Sequence[Path], splits: Sequence[str], named: ColumnNames) -> Tars:
    from datasets import Features, List, Value

    text, number = Value("string"), Value("int64")
    texts = List({"language": text, "text": text})
    features = {"uid": text, "shard": number, "offset": number, "size": number, "label": text, "problem_reason": text,
                "problem_detail": text, "captions": texts, "keywords": texts}  # fmt: skip
    chosen = {role: [names] if isinstance(names, str) else list(names) for role, names in named.items()}
    rows = generated(name, _read, Features(features), shards=[stamp(shard) for shard in shards], named=chosen)
    columns = Columns(captions={"": ["captions"]}, keywords={"": ["keywords"]}, uid="uid", label="label")
    return Tars(name, with_splits(name, rows, None, splits), columns, shards)


def _read(
    shards: Sequence[tuple[str, int, int]], named: dict[str, list[str]], version: int
) -> Iterator[dict[str, Any]]:
    for number, (path, size, _) in enumerate(shards):
        name = os.path.basename(path)
        count = 0
        problem = _Problem()
        for sample in _samples(path, size, problem, named):
            count += 1
            yield _row(number, f"{name}/{sample.key}", sample)
        if problem.reason:  # a sample that is always broken, so that the shard is on the list
            detail = f"{problem.detail}; {count} samples were found before"
            yield _row(number, name, _Sample(key=name, problem=(problem.reason, detail)))


def _row(shard: int, uid: str, sample: _Sample) -> dict[str, Any]:
    reason, detail = sample.problem or (None, None)
    if sample.image is None and not reason:
        endings = ", ".join(sample.endings)
        reason, detail = "missing", f"no image among its members ({endings})"
    offset, size = sample.image or (0, 0)
    return {
        "uid": _printable(uid), "shard": shard, "offset": offset, "size": size, "label": sample.label,
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
            parts = _NAME.fullmatch(member.name)
            if parts is None or member.isdir():
                continue
            key, ending = parts.groups()
            if current is None or current.key != key or ending.lower() in current.endings:
                if current is not None:
                    yield current
                current = _Sample(key=key)
            current.endings.append(ending.lower())
            _add(current, member, ending.lower(), file, size, named)
    if current is not None:
        yield current


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
    if not image and ending not in ("txt", "json", "cls"):
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
            sample.problem = ("bad row", f"{member.name} cannot be read ({error})")


def _add_text(sample: _Sample, ending: str, data: bytes, named: dict[str, list[str]]) -> None:
    text = data.decode("utf-8-sig").strip()
    if ending == "txt":
        _append(sample.captions, "", [text])
    elif ending == "cls":
        sample.label = text
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
        if isinstance(row.get("label"), (str, int)):
            sample.label = str(row["label"])


def _append(into: dict[str, list[str]], language: str, texts: Sequence[str]) -> None:
    """In the order they come, each once: img2dataset writes the caption into .txt and .json."""
    own = into.setdefault(language, [])
    own.extend(text for text in texts if text.strip() and text not in own)
