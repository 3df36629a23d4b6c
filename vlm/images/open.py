"""Image files -> RGB images, within limits (`open_image`)."""

import io
import os
import stat
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from vlm.errors import ImageError
from vlm.images.signatures import sniff

MAX_PIXELS = 89_478_485  # Pillow's own line, Image.MAX_IMAGE_PIXELS: 256 MiB of RGB
MAX_BYTES = 64 * 2**20


@runtime_checkable
class Readable(Protocol):
    """A binary stream: an open file, an upload, `io.BytesIO`."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""
        ...


ImageSource = str | os.PathLike[str] | bytes | Readable | Image.Image | np.ndarray
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
UPRIGHT = {  # EXIF orientation -> what sets it right
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ON_ITS_SIDE = (5, 6, 7, 8)


def open_image(source: ImageSource) -> Image.Image:
    """Any image -> RGB, upright, transparency on white, first frame of an animation, or `ImageError`.

    `source`: a path, a file's bytes, a binary stream, a PIL image, or uint8 (H, W, 3) or (H, W).  Files of more than
    `MAX_BYTES` are not read, images of more than `MAX_PIXELS` not decoded.
    """
    return to_rgb(open_header(source))


def read_image_size(source: ImageSource) -> tuple[int, int]:
    """(width, height) that the header promises, nothing decoded or turned upright, or `ImageError`."""
    return open_header(source).image.size


class OpenedImage(NamedTuple):
    """An image whose header has been read and is within the limits; nothing is decoded yet."""

    image: Image.Image
    name: str
    data: bytes | None  # the file, where there is one


def open_header(source: ImageSource, name: str = "<bytes>") -> OpenedImage:
    """Read an image's header and check the limits; no pixel is decoded.  `name`: of bytes, for messages."""
    match source:
        case Image.Image():
            return _check_pixels(OpenedImage(source, "<image>", None))
        case np.ndarray():
            return _check_pixels(OpenedImage(_from_array(source), "<array>", None))
        case str() | os.PathLike():
            name = os.fsdecode(source)
            return _read_header(read_bytes(name), name)
        case bytes():
            return _read_header(source, name)
        case Readable():
            return _read_header(read_stream(source), "<stream>")
    wanted = "wanted a path, bytes, a binary file, a PIL image or a uint8 array"
    raise ImageError(f"<{type(source).__name__}>", "not an image", wanted)


def read_bytes(name: str) -> bytes:
    """The bytes of an image file, or `ImageError`."""
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
        raise ImageError(name, "missing", "there is no such file") from error
    except OSError as error:
        raise ImageError(name, "unreadable", error.strerror or str(error)) from error
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(name, "missing", f"no file can have this name ({error})") from error


def read_stream(stream: Readable) -> bytes:
    """The bytes of a stream, or `ImageError`."""
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
    kind = sniff(data)
    if kind is None:
        raise ImageError(name, "not an image", f"its first bytes are those of no image format: {data[:8]!r}")
    if kind not in FORMATS or (kind in ("AVIF", "WEBP") and not features.check(kind.lower())):
        raise ImageError(name, "unsupported format", f"this is {kind}; save it as JPEG or PNG")
    try:
        image = Image.open(io.BytesIO(data), formats=(kind,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(name, "too many pixels", f"the limit is {MAX_PIXELS:,}; make it smaller first") from error
    except UnidentifiedImageError as error:
        raise ImageError(name, "damaged", f"begins like {kind}, but its header cannot be read") from error
    except Exception as error:
        raise _broken(name, error) from error
    return _check_pixels(OpenedImage(image, name, data))


def _check_pixels(opened: OpenedImage) -> OpenedImage:
    (width, height), name = opened.image.size, opened.name
    if width * height > MAX_PIXELS:
        came = f"{width} x {height} pixels; the limit is {MAX_PIXELS:,}; make it smaller first"
        raise ImageError(name, "too many pixels", came)
    if width * height == 0:
        raise ImageError(name, "not an image", f"{width} x {height} pixels")
    return opened


def to_rgb(opened: OpenedImage) -> Image.Image:
    """Decode an opened image: RGB, upright, transparency on white."""
    image, name, _ = opened
    try:
        image.load()
        return _upright(_flatten(image, name), orientation_of(image))
    except ImageError:
        raise
    except Exception as error:
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> ImageError:
    """On broken bytes Pillow's decoders raise almost anything."""
    reason = "truncated" if "truncated" in str(error) else "damaged"
    return ImageError(name, reason, f"{str(error) or type(error).__name__}; get a whole copy")


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block does not make a broken image
        return 1


def upright(image: Image.Image) -> Image.Image:
    """A decoded image, turned as its EXIF orientation says."""
    return _upright(image, orientation_of(image))


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation not in UPRIGHT:
        return image
    turned = image.transpose(UPRIGHT[orientation])
    turned.info.clear()  # the tag is in there: a second opening would turn it again
    return turned


def _flatten(image: Image.Image, name: str) -> Image.Image:
    """Any colour mode -> RGB on white."""
    if image.mode.startswith("I;16"):  # Pillow would clip at 255
        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        detail = f"colour mode {image.mode} has no agreed way to RGB; save it with 8 bits per channel"
        raise ImageError(name, "unsupported format", detail)
    if image.has_transparency_data:
        rgba, white = image.convert("RGBA"), Image.new("RGB", image.size, (255, 255, 255))
        white.paste(rgba, mask=rgba)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _too_many_bytes(name: str) -> ImageError:
    return ImageError(name, "too many bytes", f"more than {MAX_BYTES // 2**20} MiB; make it smaller first")
