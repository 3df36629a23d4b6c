"""The format of an image file, by its first bytes and, where a format has none of its own, by its name."""

import re
import struct
import zlib
from pathlib import PurePath

_RAW = """
    .3fr .arw .cr2 .cr3 .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srf .srw
    .x3f
"""
_OTHERS = """
    .jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .avif .avifs .heic .heics .heif .hif .jp2 .j2k
    .j2c .jpc .jpx .jpf .ppm .pgm .pbm .pnm .tga .ico .psd .svg .svgz .jxl
"""
RAW_SUFFIXES = frozenset(_RAW.split())  # camera raw files: most begin like TIFF
# All suffixes of images.  Some formats are always refused: a search lists them instead of leaving them out silently.
IMAGE_SUFFIXES = RAW_SUFFIXES | frozenset(_OTHERS.split())

_MAGIC: tuple[tuple[int, bytes, str], ...] = (  # offset, bytes, format
    (0, b"\xff\xd8\xff", "JPEG"),  # MPO too: its first image is a JPEG
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),  # APNG too
    (8, b"WEBP", "WEBP"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (8, b"CR\x02", "RAW"),  # Canon CR2, before TIFF
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),  # BigTIFF
    (0, b"MM\0+", "TIFF"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"),  # a bare codestream
    (0, b"8BPS", "PSD"),
    (0, b"%PDF", "PDF"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (0, b"FUJIFILMCCD-RAW", "RAW"),
    (4, b"ftypcrx ", "RAW"),  # Canon CR3
    (0, b"IIRO", "RAW"),  # Olympus
    (0, b"IIRS", "RAW"),
    (0, b"MMOR", "RAW"),
    (0, b"IIU\0", "RAW"),  # Panasonic
    (0, b"FOVb", "RAW"),  # Sigma
    (0, b"\0MRM", "RAW"),  # Minolta
)
_HEVC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}  # ISO/IEC 23008-12, annex B
_FIRST_ELEMENT = re.compile(
    r"(?:\ufeff|\xef\xbb\xbf)?"  # a byte order mark
    r"(?:\s|(?><\?.*?\?>)|(?><!--.*?-->)|(?><!DOCTYPE[^\[>]*(?:\[.*?\]\s*)?>))*+"
    r"<([\w.:-]+)[\s/>]",
    re.S | re.I,
)
_BITMAP_HEADERS = {12, 40, 52, 56, 64, 108, 124}  # sizes of BITMAPCOREHEADER, BITMAPINFOHEADER and its successors


def sniff(data: bytes, name: str = "") -> str | None:
    """Find the format of an image file.

    Args:
        data: the file, or at least its first 2048 bytes (its last 18 tell a TGA without a name).
        name: the file's name.  Camera raw files that begin like TIFF, and TGA, are known by their suffix.

    Returns:
        Pillow's name of the format, or HEIC, RAW, JPEG XL, PDF, SVG; None for what begins like no image.
    """
    kind = _by_first_bytes(data)
    suffix = PurePath(name).suffix.lower()
    if kind == "TIFF" and suffix in RAW_SUFFIXES:
        return "RAW"
    if kind is None and suffix in (".svg", ".svgz"):
        return "SVG"
    if kind is None and (data[-18:-2] == b"TRUEVISION-XFILE" or (suffix == ".tga" and _is_targa(data))):
        return "TGA"
    return kind


def _by_first_bytes(data: bytes) -> str | None:
    for offset, magic, kind in _MAGIC:
        if data.startswith(magic, offset):
            return kind
    if data[4:8] == b"ftyp":
        return _by_brands(data)
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3] in b" \t\r\n#" and len(data) > 3:
        return "PPM"
    if data[:4] == b"\0\0\1\0" and data[4:6] != b"\0\0" and data[9:10] == b"\0":
        return "ICO"
    if _is_bitmap_without_file_header(data):
        return "DIB"
    return "SVG" if _is_svg(data) else None


def _is_svg(data: bytes) -> bool:
    """The root element is <svg>, with or without a prefix; comments and a document type may come before it."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = zlib.decompressobj(wbits=31).decompress(data[:2048], 2048)
        except zlib.error:
            return False
    start = data[:2048]
    text = start.decode("utf-16", "ignore") if start[:2] in (b"\xff\xfe", b"\xfe\xff") else start.decode("latin-1")
    found = _FIRST_ELEMENT.match(text)
    return found is not None and found[1].rpartition(":")[2].lower() == "svg"


def _by_brands(data: bytes) -> str | None:
    """An ISO base media file says in its first box which kinds of reader it is for."""
    size = min(struct.unpack(">I", data[:4])[0], len(data), 1024)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, size - 3, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIC" if brands & _HEVC_BRANDS or brands & {b"mif1", b"msf1"} else None


def _is_bitmap_without_file_header(data: bytes) -> bool:
    if len(data) < 16:
        return False
    (size,) = struct.unpack("<I", data[:4])
    planes, bits = struct.unpack("<HH", data[8:12] if size == 12 else data[12:16])
    return size in _BITMAP_HEADERS and planes == 1 and bits in (1, 4, 8, 16, 24, 32)


def _is_targa(data: bytes) -> bool:
    """A header that makes sense: TGA has no magic bytes."""
    return len(data) > 18 and data[1] in (0, 1) and data[2] in (1, 2, 3, 9, 10, 11) and data[16] in (8, 15, 16, 24, 32)
