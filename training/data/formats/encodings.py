"""Recognises text encodings."""

from collections.abc import Sequence
from pathlib import Path

from vlm.errors import DataError


def check_encoding(path: Path, data: bytes, *, whole: bool) -> None:
    """`DataError` where half of the lines or more are not UTF-8: the file is of another encoding, which is named.

    Args:
        path: for the message.
        data: the beginning of the file.
        whole: whether `data` is all of it; else its last line may be cut.
    """
    if looks_like_utf16(data):
        raise _not_utf8(path, "UTF-16", "UTF-16")
    lines = (data if whole else data[: data.rfind(b"\n") + 1]).splitlines()
    wrong = [line for line in lines if not decodes(line, "utf-8")]
    if len(wrong) * 2 >= len(lines) > 0:  # fewer are bad rows of a sound file
        if all(decodes(line, "cp932") for line in wrong):
            raise _not_utf8(path, "Shift-JIS", "CP932")
        raise DataError(f"{path} is not UTF-8 (a line has the bytes {wrong[0][:20]!r}). Save it as UTF-8.")


def likely_encoding(data: bytes) -> str:
    """Guesses the encoding of bytes that are not UTF-8: UTF-16, Shift-JIS or Latin-1."""
    if looks_like_utf16(data):
        return "UTF-16"
    if decodes(data, "cp932") and any("\u3040" <= letter <= "\u9fff" for letter in data.decode("cp932")):
        return "Shift-JIS"
    return "Latin-1"


def looks_like_utf16(data: bytes) -> bool:
    """A byte order mark, or a zero in every second byte."""
    head = data[:200]
    return data.startswith((b"\xff\xfe", b"\xfe\xff")) or head.count(0) > len(head) // 4


def decodes(data: bytes, encoding: str) -> bool:
    """Returns True if the bytes are text in this encoding."""
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def encodes(value: str | Sequence[str] | None) -> bool:
    """Returns True if a text read with surrogateescape was UTF-8."""
    try:
        "".join(value or "").encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(path: Path, seen: str, name: str) -> DataError:
    return DataError(f"{path} is {seen}, wanted UTF-8. Convert it: iconv -f {name} -t UTF-8 {path} > utf8{path.suffix}")
