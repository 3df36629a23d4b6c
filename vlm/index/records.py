"""Rows of an index: image contents, and the files that hold them."""

from dataclasses import dataclass
from typing import NamedTuple

# Reasons of access say nothing about the bytes of a file: they are reported and never stored.
ACCESS_REASONS = frozenset({"missing", "not a file", "outside the folder", "unreadable"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The bytes of an image file, whatever its name."""

    digest: bytes  # sha256
    size: int  # bytes
    width: int  # pixels, upright
    height: int
    taken: str | None  # from EXIF, local time of the camera, "2024-05-01 12:00:00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A file: its content (or the digest of a content that is stored already), or the reason why it is no image."""

    path: str
    size: int  # bytes
    mtime: int  # ns
    digest: bytes | None = None
    content: Content | None = None
    reason: str | None = None
    detail: str | None = None
    reader: str | None = None  # version of the reader that refused it


class FileState(NamedTuple):
    """State of a path in the index.  The database says True and False as 1 and 0."""

    size: int
    mtime: int
    reader: str | None
    refused: bool
    embedded: bool  # by the model that was asked about
    missing: bool


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of a search result."""

    row: int  # of the vectors
    path: str
    taken: str  # EXIF, else the date of the file


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model that has vectors in an index."""

    fingerprint: str
    name: str
    source: str | None  # what `vlm.load` opens it by; None: indexes made before it was stored
