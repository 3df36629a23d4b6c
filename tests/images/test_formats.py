"""Every format that people's folders hold: the pixels that were written, or a reason and a remedy."""

import io
import struct
import sys
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin, features

from tests.support.odd_images import four_corners, noise
from vlm.errors import ImageError
from vlm.images.finding import find_images
from vlm.images.open import open_header, open_image
from vlm.images.signatures import sniff

CORNERS = four_corners()


def written(kind: str, image: Image.Image = CORNERS, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_brand(brand: bytes) -> bytes:
    """An AVIF file whose first brand is another one; "avif" stays among the compatible ones."""
    data = written("AVIF", quality=100, subsampling="4:4:4")
    size = struct.unpack(">I", data[:4])[0]
    assert b"avif" in data[16:size]
    return data[:8] + brand + data[12:]


def photoshop(image: Image.Image, *, merged: bool | None = None, lab: bool = False) -> bytes:
    """Adobe Photoshop file format specification, 2019: an uncompressed file without layers."""
    info = struct.pack(">I?", 1, merged) + bytes(8) if merged is not None else b""
    resources = b"8BIM" + struct.pack(">HHI", 1057, 0, len(info)) + info + bytes(len(info) % 2) if info else b""
    levels = np.asarray(image).transpose(2, 0, 1).tobytes()
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, image.height, image.width, 8, 9 if lab else 3)
    return header + struct.pack(">I", 0) + struct.pack(">I", len(resources)) + resources + bytes(4) + bytes(2) + levels


LOSSLESS: dict[str, Callable[[], bytes]] = {
    "a.apng": lambda: written("PNG", save_all=True, append_images=[Image.new("RGB", CORNERS.size)]),
    "big.tiff": lambda: written("TIFF", big_tiff=True),
    "a.ppm": lambda: written("PPM"),
    "text.ppm": lambda: b"P3 64 48 255\n" + " ".join(map(str, np.asarray(CORNERS).ravel().tolist())).encode(),
    "a.jp2": lambda: written("JPEG2000"),
    "a.j2k": lambda: written("JPEG2000", no_jp2=True),
    "a.dib": lambda: written("DIB"),
    "a.tga": lambda: written("TGA"),
    "a.ico": lambda: written("ICO", sizes=[CORNERS.size], bitmap_format="bmp"),
    "a.psd": lambda: photoshop(CORNERS),
    "merged.psd": lambda: photoshop(CORNERS, merged=True),
}


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("suffix", [True, False], ids=["named", "without suffix"])
def test_formats_without_loss_keep_every_pixel(name: str, suffix: bool, tmp_path: Path):
    if name == "a.tga" and not suffix:
        pytest.skip("a TGA without a footer is known by its name alone")
    path = tmp_path / (name if suffix else "image")
    path.write_bytes(LOSSLESS[name]())
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(CORNERS))
    assert list(find_images(tmp_path)) == [path]


def test_a_targa_file_with_a_footer_is_known_by_it():
    data = written("TGA") + struct.pack("<II", 0, 0) + b"TRUEVISION-XFILE.\0"
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(CORNERS))


LOSSY: dict[str, Callable[[], bytes]] = {
    "a.mpo": lambda: written(
        "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))], quality=95, subsampling=0
    ),
    "a.avif": lambda: written("AVIF", quality=100, subsampling="4:4:4"),
    "mif1.avif": lambda: with_brand(b"mif1"),
    "miaf.avif": lambda: with_brand(b"miaf"),
    "msf1.avif": lambda: with_brand(b"msf1"),
}


@pytest.mark.parametrize("name", LOSSY)
def test_formats_with_loss_keep_the_corners(name: str):
    assert np.abs(np.asarray(open_image(LOSSY[name]())).astype(int) - np.asarray(CORNERS)).max() <= 8


def test_heic_is_read_through_pillow_heif():
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(CORNERS).save(file, quality=-1)  # lossless
    assert np.abs(np.asarray(open_image(file.getvalue())).astype(int) - np.asarray(CORNERS)).max() <= 8


def test_heic_without_the_package_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert_refused(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unsupported format", "HEIC", "pillow-heif", "extra heic")


def raw_package(preview: object, flip: int) -> ModuleType:
    """rawpy as far as it is used, with a file that holds this preview."""
    module = types.ModuleType("rawpy")

    class Opened:
        sizes = SimpleNamespace(flip=flip)

        def __enter__(self) -> "Opened":
            return self

        def __exit__(self, *_: object) -> None: ...

        def extract_thumb(self) -> SimpleNamespace:
            if preview is None:
                raise module.LibRawError("no thumbnail")  # type: ignore[attr-defined]
            return SimpleNamespace(data=preview)

    module.LibRawError = type("LibRawError", (Exception,), {})  # type: ignore[attr-defined]
    module.imread = lambda file: Opened()  # type: ignore[attr-defined]
    return module


RAW = {"a.nef": b"MM\0*\0\0\0\x08", "a.cr2": b"II*\0\x10\0\0\0CR\x02\0", "a.raf": b"FUJIFILMCCD-RAW 0201"}


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("as_file", [True, False])
def test_of_a_camera_raw_file_the_preview_is_read(
    name: str, as_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    turned = CORNERS.transpose(Image.Transpose.ROTATE_90)  # the camera stood upright
    preview = written("JPEG", turned, quality=95, subsampling=0) if as_file else np.asarray(turned)
    monkeypatch.setitem(sys.modules, "rawpy", raw_package(preview, flip=6))
    (tmp_path / name).write_bytes(RAW[name])
    assert np.abs(np.asarray(open_image(tmp_path / name)).astype(int) - np.asarray(CORNERS)).max() <= 8
    assert open_header(RAW[name], name).image.size == turned.size


def test_a_dng_is_no_tiff_whose_first_page_is_a_thumbnail(monkeypatch: pytest.MonkeyPatch):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[50706] = b"\x01\x04\0\0"
    tags.tagtype[50706] = 1
    monkeypatch.setitem(sys.modules, "rawpy", raw_package(written("JPEG", quality=95, subsampling=0), flip=0))
    thumbnail = written("TIFF", Image.new("RGB", (4, 3)), tiffinfo=tags)
    assert open_image(thumbnail).size == CORNERS.size


@pytest.mark.parametrize("name", RAW)
def test_a_raw_file_without_the_package_or_a_preview_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / name).write_bytes(RAW[name])
    monkeypatch.setitem(sys.modules, "rawpy", None)
    assert_refused(tmp_path / name, "unsupported format", name, "rawpy", "extra raw")
    monkeypatch.setitem(sys.modules, "rawpy", raw_package(None, 0))
    assert_refused(tmp_path / name, "unsupported format", name, "no thumbnail")


def test_a_photoshop_file_without_its_merged_image_says_how_to_save_it():
    assert_refused(photoshop(CORNERS, merged=False), "unsupported format", "merged", "maximize compatibility")


@pytest.mark.parametrize("kind", ["JPEG XL", "PDF"])
def test_what_is_never_read_names_its_format(kind: str):
    heads = {"JPEG XL": b"\xff\x0a\xfa\x7f", "PDF": b"%PDF-1.7"}
    assert_refused(heads[kind], "unsupported format", kind)


@pytest.mark.parametrize("kind", ["AVIF", "WEBP", "JPEG2000"])
def test_what_this_pillow_lacks_names_its_format(kind: str, monkeypatch: pytest.MonkeyPatch):
    data = written(kind)
    monkeypatch.setattr(features, "check", lambda part: False)
    assert_refused(data, "unsupported format", kind)


def assert_refused(source: bytes | Path, reason: str, *facts: str) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(source)
    assert caught.value.reason == reason
    assert all(fact in str(caught.value) for fact in facts)


# Metadata that is damaged, or too large: the pixels are sound


def png_with(chunk: bytes, content: bytes) -> bytes:
    data = written("PNG")
    new = struct.pack(">I", len(content)) + chunk + content + struct.pack(">I", zlib.crc32(chunk + content))
    return data[:33] + new + data[33:]  # behind IHDR


def jpeg_with(marker: int, content: bytes) -> bytes:
    data = written("JPEG", quality=95, subsampling=0)
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


@pytest.mark.parametrize(
    "data",
    [
        png_with(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000)),
        png_with(b"iTXt", b"Comment\0\x01\0\0\0" + zlib.compress(b"x" * 3_000_000)),
        png_with(b"eXIf", b"not EXIF"),
        png_with(b"pHYs", b"\0"),
        png_with(b"gAMA", b"\0"),
        png_with(b"iCCP", b"x\0\0" + zlib.compress(b"x" * 3_000_000)),
        png_with(b"sRGB", b""),
        jpeg_with(0xE0, b"JFIF"),
        jpeg_with(0xEE, b"Adobe\0d"),
        jpeg_with(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        jpeg_with(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\0\x02\0\0"),
        jpeg_with(0xE2, b"MPF\0not a directory of images"),
    ],
    ids=[
        "png zTXt",
        "png iTXt",
        "png EXIF",
        "png pHYs",
        "png gamma",
        "png profile",
        "png sRGB",
        "jpeg JFIF",
        "jpeg Adobe",
        "jpeg EXIF",
        "jpeg Photoshop",
        "jpeg MPF",
    ],
)
@pytest.mark.filterwarnings("ignore")  # as outside of the tests
def test_trouble_in_the_metadata_is_no_trouble_of_the_pixels(data: bytes):
    assert np.abs(np.asarray(open_image(data)).astype(int) - np.asarray(CORNERS)).max() <= 6


def test_pixels_that_are_damaged_are_still_said_to_be():
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 100)
    data = written("PNG", noise(64, 48), pnginfo=text)
    assert_refused(data[: len(data) // 2], "truncated")


# Names


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x1cftypmiaf\0\0\0\0miafavif", "AVIF"),
        (b"\0\0\0\x18ftypmsf1\0\0\0\0hevc", "HEIC"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "RAW"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", None),
        (b"II+\0\x08\0\0\0", "TIFF"),
        (b"P5\n2 2\n255\n", "PPM"),
        (b"P5x", None),
        (b"Python is no image", None),
        (b"\x28\0\0\0\x02\0\0\0\x02\0\0\0\x01\0\x18\0", "DIB"),
        (b"\x28\0\0\0\x02\0\0\0\x02\0\0\0\x02\0\x18\0", None),
        (b"\0\0\1\0\1\0\x10\x10\0\0", "ICO"),
    ],
)
def test_first_bytes_of_further_formats(data: bytes, kind: str | None):
    assert sniff(data) == kind
