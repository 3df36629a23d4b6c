"""What a file is, by its first bytes: names lie."""

# Names that say "image".  Some kinds are only ever refused: a search then lists them, instead of passing them over.
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .avif .heic .heif .svg .jxl .psd".split()  # noqa: SIM905
)

_MAGIC: tuple[tuple[int, bytes, str], ...] = (  # offset, bytes, format
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "PSD"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
)


def sniff(data: bytes) -> str | None:
    """The name of the format; None for what begins like no image."""
    for offset, magic, kind in _MAGIC:
        if data.startswith(magic, offset):
            return kind
    return "SVG" if b"<svg" in data[:2048].lower() else None
