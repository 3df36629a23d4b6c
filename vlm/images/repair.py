"""Image files without their metadata, where damaged or oversized metadata keeps Pillow from the pixels."""

import struct
from collections.abc import Iterator

_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"})
_PNG_COLOURS = frozenset({b"eXIf", b"iCCP"})  # how the image is turned, and its colour profile
_JPEG_COLOURS = frozenset({0xE0, 0xEE})  # JFIF, and Adobe's: how colours are coded
_ADOBE = frozenset({0xEE})


def without_metadata(data: bytes, kind: str) -> Iterator[bytes]:
    """The same image without texts and the like, then without anything but its pixels.

    Args:
        data: a whole file.
        kind: its format, as `sniff` says.
    """
    last = len(data)
    for level in range(3):
        try:
            match kind:
                case "PNG":
                    smaller = _png(data, _PNG_PIXELS | (_PNG_COLOURS if level == 0 else frozenset()))
                case "JPEG":
                    smaller = _jpeg(data, (_JPEG_COLOURS, _ADOBE, frozenset[int]())[level])
                case _:
                    return
        except (struct.error, IndexError):
            return
        if len(smaller) < last:
            last = len(smaller)
            yield smaller


def _png(data: bytes, wanted: frozenset[bytes]) -> bytes:
    """Removes all chunks but those of some kinds."""
    kept, at = [data[:8]], 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind in wanted:
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(kept)


def _jpeg(data: bytes, wanted: frozenset[int]) -> bytes:
    """Removes comments and application segments but those of some kinds."""
    kept, at = [data[:2]], 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:  # up to the start of the scan
        marker = data[at + 1]
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker in wanted:
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    return b"".join(kept) + data[at:]
