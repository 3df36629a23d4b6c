"""Image files -> RGB images, within limits (`open_image`)."""

import contextlib
import io
import os
import stat
import warnings
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError, features

from vlm.errors import ImageError
from vlm.images.colour import apply, flatten, srgb_transform
from vlm.images.optional_formats import open_heic, raw_preview
from vlm.images.repair import without_metadata
from vlm.images.signatures import sniff
from vlm.images.svg import open_svg

MAX_PIXELS = 89_478_485  # Pillow's own limit, Image.MAX_IMAGE_PIXELS: 256 MiB of RGB
MAX_BYTES = 64 * 2**20
_FORMATS = {  # format -> the optional part of Pillow that reads it
    "JPEG": None, "PNG": None, "WEBP": "webp", "GIF": None, "BMP": None, "DIB": None, "TIFF": None, "AVIF": "avif",
    "JPEG2000": "jpg_2000", "PPM": None, "TGA": None, "ICO": None, "PSD": None,
}  # fmt: skip
_DNG_VERSION = 50706  # the TIFF tag that makes a camera raw file
_MERGED_IMAGE = 1057  # the Photoshop resource that says whether the file holds the merged image
UPRIGHT = {  # EXIF orientation -> the transposition that makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ON_ITS_SIDE = (5, 6, 7, 8)

# Pillow warns of damaged metadata without the file's name.  Unusable images are an ImageError, which has it.
warnings.filterwarnings("ignore", module=r"PIL\.")


@runtime_checkable
class Readable(Protocol):
    """A binary stream: an open file, an upload, `io.BytesIO`."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""
        ...


ImageSource = str | os.PathLike[str] | bytes | Readable | Image.Image | np.ndarray


def open_image(source: ImageSource, *, to_srgb: bool = False) -> Image.Image:
    """Open any image as RGB, upright, transparency on white, the first frame of an animation.

    Args:
        source: a path, a file's bytes, a binary stream, a PIL image, or uint8 (H, W, 3) or (H, W).
        to_srgb: convert an image with an embedded colour profile to sRGB, as viewers do.  A model does so where its
            `PreprocessConfig.to_srgb` says it.

    Returns:
        A PIL image of mode RGB.

    Raises:
        ImageError: the image cannot be used.  Files of more than `MAX_BYTES` are not read, images of more than
            `MAX_PIXELS` not decoded.
    """
    image, transform = decode(open_header(source), to_srgb=to_srgb)
    return apply(transform, image)


def read_image_size(source: ImageSource) -> tuple[int, int]:
    """(width, height) as the header says, before it is turned upright; nothing is decoded.  May raise `ImageError`."""
    return open_header(source).image.size


class OpenedImage(NamedTuple):
    """An image whose header has been read and is within the limits; nothing is decoded yet."""

    image: Image.Image
    name: str
    data: bytes | None = None  # the file, where there is one
    turned: int | None = None  # the EXIF orientation, where the file holds it outside of the image


def open_header(source: ImageSource, name: str = "<bytes>") -> OpenedImage:
    """Read an image's header and check the limits; no pixel is decoded.

    Args:
        source: as in `open_image`.
        name: of a file given as bytes; camera raw files that begin like TIFF are known by their suffix.

    Raises:
        ImageError: the image cannot be used.
    """
    match source:
        case Image.Image():
            return _check_pixels(OpenedImage(source, "<image>"))
        case np.ndarray():
            return _check_pixels(OpenedImage(_from_array(source), "<array>"))
        case str() | os.PathLike():
            path = os.fsdecode(source)
            return _read_header(read_bytes(path), path)
        case bytes():
            return _read_header(source, name)
        case Readable():
            return _read_header(read_stream(source), "<stream>")
    wanted = "wanted a path, bytes, a binary file, a PIL image or a uint8 array"
    raise ImageError(f"<{type(source).__name__}>", "not an image", wanted)


def decode(opened: OpenedImage, *, to_srgb: bool = False) -> tuple[Image.Image, ImageCms.ImageCmsTransform | None]:
    """Decode an opened image.

    Args:
        opened: from `open_header`.
        to_srgb: see `open_image`.

    Returns:
        The image: RGB, upright, transparency on white; and the colour conversion that is still to be applied, which
        takes less time after the image was made smaller.

    Raises:
        ImageError: the pixels cannot be decoded.
    """
    opened, image = _loaded(opened)
    try:
        transform = srgb_transform(image) if to_srgb else None
        return _upright(flatten(image, opened.name, to_srgb=to_srgb), orientation_of(opened)), transform
    except ImageError:
        raise
    except Exception as error:
        raise _broken(opened.name, error) from error


def to_rgb(opened: OpenedImage) -> Image.Image:
    """Decode an opened image: RGB, upright, transparency on white.  May raise `ImageError`."""
    return decode(opened)[0]


def upright(opened: OpenedImage) -> Image.Image:
    """The decoded image in its own mode, turned as its EXIF orientation says."""
    return _upright(opened.image, orientation_of(opened))


def orientation_of(opened: OpenedImage) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none, or none that can be read."""
    if opened.turned is not None:
        return opened.turned
    try:
        return opened.image.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata is no damaged image
        return 1


def _loaded(opened: OpenedImage) -> tuple[OpenedImage, Image.Image]:
    """The pixels; where metadata is in the way, without it."""
    try:
        opened.image.load()
        return opened, opened.image
    except ImageError:
        raise
    except Exception as error:
        kind = opened.image.format
        for smaller in without_metadata(opened.data, kind) if opened.data is not None and kind is not None else ():
            with contextlib.suppress(Exception):  # the pixels are damaged too
                image = Image.open(io.BytesIO(smaller), formats=(str(kind),))
                image.load()
                return OpenedImage(image, opened.name, smaller, opened.turned), image
        raise _broken(opened.name, error) from error


def read_bytes(name: str) -> bytes:
    """The bytes of an image file.  May raise `ImageError`."""
    try:
        info = os.stat(name)
        if not stat.S_ISREG(info.st_mode):  # asked before opening: a pipe would block
            kind = "a folder" if stat.S_ISDIR(info.st_mode) else "a device, pipe or socket"
            raise ImageError(name, "not a file", f"this is {kind}; wanted an image file")
        if info.st_size > MAX_BYTES:
            raise _too_many_bytes(name)
        with open(name, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ImageError(name, "missing", "there is no such file; check the path") from error
    except OSError as error:
        raise ImageError(name, "unreadable", error.strerror or str(error)) from error
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(name, "missing", f"no file can have this name ({error})") from error


def read_stream(stream: Readable) -> bytes:
    """The bytes of a stream with an image file.  May raise `ImageError`."""
    try:
        data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: already closed
        raise ImageError("<stream>", "unreadable", str(error)) from error
    if isinstance(data, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
        return data
    raise ImageError(
        "<stream>", "not an image", f"read {type(data).__name__}, wanted bytes; open the file in mode 'rb'"
    )


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        came = f"{array.dtype} {array.shape}"
        raise ImageError("<array>", "not an image", f"got {came}, wanted uint8 (H, W, 3) or (H, W)")
    return Image.fromarray(array)


def _read_header(data: bytes, name: str) -> OpenedImage:
    if not data:
        raise ImageError(name, "empty file", "0 bytes; wanted an image")
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(name)
    kind = sniff(data, name)
    if kind is None:
        raise ImageError(name, "not an image", f"its first bytes are those of no image format: {data[:8]!r}")
    if kind == "RAW":
        return _open_preview(data, name)
    if kind not in ("HEIC", "SVG") and (kind not in _FORMATS or not _installed(kind)):
        raise ImageError(name, "unsupported format", f"this is {kind}; save it as JPEG or PNG")
    try:
        match kind:
            case "HEIC":
                image = open_heic(data, name)
            case "SVG":
                image = open_svg(data, name, lambda inner: _open_inside(inner, name))
            case _:
                image = _open_by_pillow(data, kind)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(name, "too many pixels", f"the limit is {MAX_PIXELS:,}; make it smaller first") from error
    except UnidentifiedImageError as error:
        raise ImageError(name, "damaged", f"begins like {kind}, but its header cannot be read") from error
    except Exception as error:
        raise _broken(name, error) from error
    if kind == "TIFF" and _DNG_VERSION in getattr(image, "tag_v2", ()):
        return _open_preview(data, name)
    if kind == "PSD":
        _check_merged(image, name)
    return _check_pixels(OpenedImage(image, name, data))


def _installed(kind: str) -> bool:
    part = _FORMATS[kind]
    return part is None or bool(features.check(part))


def _open_by_pillow(data: bytes, kind: str) -> Image.Image:
    if kind == "AVIF" and data[8:12] not in (b"avif", b"avis", b"mif1", b"msf1"):  # Pillow looks at the first brand
        data = data[:8] + b"avif" + data[12:]
    try:
        return Image.open(io.BytesIO(data), formats=(kind,))
    except Exception:
        for smaller in without_metadata(data, kind):
            with contextlib.suppress(Exception):  # the header is damaged too
                return Image.open(io.BytesIO(smaller), formats=(kind,))
        raise


def _open_inside(data: bytes, name: str) -> Image.Image:
    """The header of a raster image inside of a drawing."""
    kind = sniff(data)
    if kind not in ("PNG", "JPEG", "GIF", "WEBP"):
        raise ImageError(name, "damaged", f"an image in it is {kind or 'of no known format'}; save it again")
    return _check_pixels(OpenedImage(_open_by_pillow(data, kind), name)).image


def _open_preview(data: bytes, name: str) -> OpenedImage:
    """The preview in a camera raw file.  Its own orientation counts, else the camera's."""
    preview, turned = raw_preview(data, name)
    if not isinstance(preview, bytes):
        return _check_pixels(OpenedImage(preview, name, turned=turned))
    opened = _read_header(preview, name if sniff(preview, name) != "RAW" else f"{name}.jpg")
    return opened if orientation_of(opened) != 1 else opened._replace(turned=turned)


def _check_merged(image: Image.Image, name: str) -> None:
    """A Photoshop file saved without its merged image would show as one colour."""
    resources: list[tuple[int, bytes, bytes]] = getattr(image, "resources", [])
    if any(number == _MERGED_IMAGE and content[4:5] == b"\0" for number, _, content in resources):
        detail = "a PSD without its merged image; save it with 'maximize compatibility', or as PNG"
        raise ImageError(name, "unsupported format", detail)


def _check_pixels(opened: OpenedImage) -> OpenedImage:
    (width, height), name = opened.image.size, opened.name
    if width * height > MAX_PIXELS:
        came = f"{width} x {height} pixels; the limit is {MAX_PIXELS:,}; make it smaller first"
        raise ImageError(name, "too many pixels", came)
    if width * height == 0:
        raise ImageError(name, "not an image", f"{width} x {height} pixels")
    return opened


def _broken(name: str, error: Exception) -> ImageError:
    """Converts an exception of a decoder to an `ImageError`: on damaged bytes Pillow raises almost anything."""
    reason = "truncated" if "truncated" in str(error) else "damaged"
    return ImageError(name, reason, f"{str(error) or type(error).__name__}; get a whole copy")


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation not in UPRIGHT:
        return image
    turned = image.transpose(UPRIGHT[orientation])
    turned.info.clear()  # it holds the orientation: opening it again would turn it again
    return turned


def _too_many_bytes(name: str) -> ImageError:
    return ImageError(name, "too many bytes", f"more than {MAX_BYTES // 2**20} MiB; make it smaller first")
