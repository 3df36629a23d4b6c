"""Recognises text encodings."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vlm.errors import DataError


class _Script(NamedTuple):
    """An encoding and the letters that nearly all of a text has that is in it."""

    codec: str
    letters: re.Pattern[str]
    run: int  # bytes above 127 that stand together somewhere: single ones are accents of Latin letters


_KANA = r"\u3040-\u30ff\u4e00-\u9fff\u3000-\u303f\uff01-\uff5e"
_SCRIPTS = {  # in the order they are tried
    "Shift-JIS": _Script("cp932", re.compile(rf"[{_KANA}]*[\u3040-\u30ff\u4e00-\u9fff][{_KANA}]*"), 2),
    "EUC-JP": _Script("euc_jp", re.compile(rf"[{_KANA}]*[\u3040-\u30ff][{_KANA}]*"), 4),
    "EUC-KR": _Script("euc_kr", re.compile(r"[\uac00-\ud7af\u3000-\u303f]+"), 4),
    "GB2312": _Script("gb2312", re.compile(r"[\u4e00-\u9fff\u3000-\u303f\uff01-\uff5e]+"), 4),
    "Windows-1251": _Script("cp1251", re.compile(r"[\u0400-\u04ff\u2010-\u203a«»№]+"), 3),
}
ICONV = {  # as iconv calls them
    "UTF-32": "UTF-32", "UTF-16": "UTF-16", "ISO-2022-JP": "ISO-2022-JP", "Shift-JIS": "CP932", "EUC-JP": "EUC-JP",
    "EUC-KR": "EUC-KR", "GB2312": "GB18030", "Windows-1251": "CP1251", "Latin-1": "LATIN1",
}  # fmt: skip


def check_encoding(path: Path, data: bytes, *, whole: bool) -> None:
    """`DataError` where half of the lines or more are not UTF-8: the file is of another encoding, which is named.

    Args:
        path: for the message.
        data: the beginning of the file.
        whole: whether `data` is all of it; else its last line may be cut.
    """
    if not is_plain_text(data):
        raise _not_utf8(path, likely_encoding(data))
    lines = (data if whole else data[: data.rfind(b"\n") + 1]).splitlines()
    wrong = [line for line in lines if not decodes(line, "utf-8")]
    if len(wrong) * 2 >= len(lines) > 0:  # fewer are bad rows of a sound file
        if (seen := likely_encoding(b"\n".join(wrong))) != "Latin-1":
            raise _not_utf8(path, seen)
        raise DataError(
            f"{path} is not UTF-8 (a line has the bytes {wrong[0][:20]!r}). Save it as UTF-8; if it is Latin-1: "
            f"iconv -f {ICONV[seen]} -t UTF-8 {path} > utf8{path.suffix}"
        )


def likely_encoding(data: bytes) -> str:
    """Guesses the encoding of bytes that are not UTF-8, one of `ICONV`; Latin-1 where nothing speaks for another."""
    if looks_like_utf16(data):
        wide = data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")) or data[:200].count(0) > len(data[:200]) * 0.6
        return "UTF-32" if wide else "UTF-16"
    if _ISO_2022.search(data):
        return "ISO-2022-JP"
    longest = max(map(len, re.findall(rb"[\x80-\xff]+", data)), default=0)
    for name, (codec, letters, run) in _SCRIPTS.items():
        if longest >= run and decodes(data, codec):
            foreign = "".join(re.findall(r"[^\0-\x7f]+", data.decode(codec)))
            if letters.fullmatch(foreign):
                return name
    return "Latin-1"


def is_plain_text(data: bytes) -> bool:
    """Returns False for bytes that may be UTF-8 and yet are text of another encoding: UTF-16, ISO-2022-JP."""
    return not looks_like_utf16(data) and _ISO_2022.search(data) is None


_ISO_2022 = re.compile(rb"\x1b[$(][@BJ]")


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


def _not_utf8(path: Path, seen: str) -> DataError:
    return DataError(
        f"{path} is {seen}, wanted UTF-8. Convert it: iconv -f {ICONV[seen]} -t UTF-8 {path} > utf8{path.suffix}"
    )
