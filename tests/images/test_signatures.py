"""Each format is told by files that others wrote, or by the first bytes its specification gives."""

import io

import pytest
from PIL import Image, features

from vlm.images.signatures import sniff


def written(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (40, 30)).save(file, kind)
    return file.getvalue()


FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PDF"]
if features.check("avif"):
    FORMATS.append("AVIF")


@pytest.mark.parametrize("kind", FORMATS)
def test_what_pillow_writes_is_what_it_says(kind: str):
    assert sniff(written(kind)) == kind


def test_tiff_may_begin_with_the_high_byte():
    data = written("TIFF", "I;16B")
    assert data.startswith(b"MM")
    assert sniff(data) == "TIFF"


HEADS: dict[str, list[bytes]] = {
    "AVIF": [b"\0\0\0\x20ftypavif\0\0\0\0mif1", b"\0\0\0\x1cftypavis\0\0\0\0avis"],  # AV1 Image File Format 6
    "HEIC": [  # ISO/IEC 23008-12, annex B: HEVC in heic, heix, heim; any codec in mif1
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"\0\0\0\x18ftypheix\0\0\0\0mif1heix",
        b"\0\0\0\x18ftypmif1\0\0\0\0heicmif1",
    ],
    "PSD": [b"8BPS\0\x01\0\0\0\0\0\0\0\x03"],
    "JPEG XL": [b"\xff\x0a\xfa\x7f\x01", b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a"],  # ISO/IEC 18181-2: bare, in a container
    "WEBP": [b"RIFF\x24\0\0\0WEBPVP8 "],
    "GIF": [b"GIF87a\x28\0\x1e\0", b"GIF89a\x28\0\x1e\0"],
    "TIFF": [b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"],
    "JPEG": [b"\xff\xd8\xff\xe0\0\x10JFIF", b"\xff\xd8\xff\xe1\0\x10Exif", b"\xff\xd8\xff\xdb\0\x43"],
}


@pytest.mark.parametrize(("kind", "head"), [(kind, head) for kind, heads in HEADS.items() for head in heads])
def test_the_first_bytes_are_those_of_the_specification(kind: str, head: bytes):
    assert sniff(head) == kind
    assert sniff(b"\n" + head) is None  # not one byte further on
    assert sniff(head[1:]) is None


@pytest.mark.parametrize(
    "data", [b"", b"G", b"hello", b"RIFF\x24\0\0\0WAVEfmt ", b"\0\0\0\x18ftypmp42", b"<html><body>"]
)
def test_what_is_no_image_is_none(data: bytes):
    assert sniff(data) is None


def test_a_drawing_in_svg_may_begin_with_a_comment():
    assert sniff(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == "SVG"
    assert sniff(b'<?xml version="1.0"?>\n<!-- made by hand -->\n<SVG width="9">') == "SVG"
    assert sniff(b"<!-- " + b"x" * 5000 + b" --><svg>") is None  # who reads on would read a page that has one
