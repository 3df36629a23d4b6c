"""Image files without their metadata, where damaged or oversized metadata keeps Pillow from the pixels."""

import struct

_PNG_KEPT = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"eXIf", b"iCCP", b"sRGB"}
_JPEG_KEPT = (0xE0, 0xEE)  # JFIF, and Adobe's: how colours are coded


def without_metadata(data: bytes, kind: str) -> bytes | None:
    """The same image without texts and the like; None where nothing can be left out.

    Args:
        data: a whole file.
        kind: its format, as `sniff` says.
    """
    try:
        smaller = {"PNG": _png, "JPEG": _jpeg}[kind](data)
    except (KeyError, struct.error, IndexError):
        return None
    return smaller if len(smaller) < len(data) else None


def _png(data: bytes) -> bytes:
    """Removes tEXt, zTXt, iTXt and other chunks that do not change the pixels."""
    kept, at = [data[:8]], 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind in _PNG_KEPT:
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(kept)


def _jpeg(data: bytes) -> bytes:
    """Removes comments and application segments."""
    kept, at = [data[:2]], 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:  # up to the start of the scan
        marker = data[at + 1]
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker in _JPEG_KEPT:
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    return b"".join(kept) + data[at:]
