"""Files to images, safely (`open_image`); images to pixels, as the source libraries do it (`Preprocess`)."""

import io
import math
import os
import stat
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from vlm.config import PreprocessConfig
from vlm.errors import ImageError
from vlm.images.large_jpegs import decode_jpeg, shrink
from vlm.images.signatures import sniff

MAX_PIXELS = 89_478_485  # Pillow's own line, Image.MAX_IMAGE_PIXELS: 256 MiB of RGB
MAX_BYTES = 64 * 2**20

# Names that say "image".  Some kinds are only ever refused: a search then lists them, instead of passing them over.
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .avif .heic .heif .svg .jxl .psd".split()  # noqa: SIM905
)


@runtime_checkable
class Readable(Protocol):
    """A binary stream: an open file, an upload, `io.BytesIO`."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""
        ...


Decoding = Literal["exact", "scaled"]
ImageSource = str | os.PathLike[str] | bytes | Readable | Image.Image | np.ndarray

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_LARGE = 2**18  # pixels, 512 x 512
_SPARE = 1.6  # how many times as large as the resized image a scaled one is at least
_UPRIGHT = {  # EXIF orientation -> what sets it right
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)


def open_image(source: ImageSource) -> Image.Image:
    """Any image -> RGB, upright, transparency on white, first frame of an animation, or `ImageError`.

    `source`: a path, a file's bytes, a binary stream, a PIL image, or uint8 (H, W, 3) or (H, W).  Files of more than
    `MAX_BYTES` are not read, images of more than `MAX_PIXELS` not decoded.
    """
    return _to_rgb(_open(source))


def read_image_size(source: ImageSource) -> tuple[int, int]:
    """(width, height) that the header promises, nothing decoded or turned upright, or `ImageError`."""
    return _open(source).image.size


class _Opened(NamedTuple):
    """An image whose header has been read and is within the limits; nothing is decoded yet."""

    image: Image.Image
    name: str
    data: bytes | None  # the file, where there is one


def _open(source: ImageSource) -> _Opened:
    match source:
        case Image.Image():
            return _check_pixels(_Opened(source, "<image>", None))
        case np.ndarray():
            return _check_pixels(_Opened(_from_array(source), "<array>", None))
        case str() | os.PathLike():
            name = os.fsdecode(source)
            return _read_header(_read_file(name), name)
        case bytes():
            return _read_header(source, "<bytes>")
        case Readable():
            return _read_header(_read_stream(source), "<stream>")
    wanted = "wanted a path, bytes, a binary file, a PIL image or a uint8 array"
    raise ImageError(f"<{type(source).__name__}>", "not an image", wanted)


class Preprocess:
    """Image -> pixels, as `config` says: those of OpenCLIP, timm and Hugging Face, bit for bit (`tests/`).

    Except large images: they are shrunk by torch, 1 level from Pillow's result at most, in a tenth of its time.
    `decoding` "scaled": JPEG files are decoded at a half, a quarter or an eighth where that is still `_SPARE` times as
    large as needed; about half a level away on average (benchmarks/decoding.md).
    """

    def __init__(self, config: PreprocessConfig, *, decoding: Decoding = "exact") -> None:
        if decoding not in get_args(Decoding):
            raise ValueError(f"decoding is {decoding!r}; it must be one of {', '.join(get_args(Decoding))}.")
        self.config = config
        self.decoding: Decoding = decoding
        self._filter = Image.Resampling[config.interpolation.upper()]
        self._mean = torch.tensor(config.mean).view(3, 1, 1)
        self._std = torch.tensor(config.std).view(3, 1, 1)

    def __call__(self, image: ImageSource) -> Tensor:
        """-> float32 (3, H, W), normalised."""
        return self.normalize(self.pixels(image))

    def pixels(self, image: ImageSource) -> Tensor:
        """-> uint8 (3, H, W), before mean and standard deviation."""
        return self.pixels_and_size(image)[0]

    def pixels_and_size(self, source: ImageSource) -> tuple[Tensor, tuple[int, int]]:
        """-> uint8 (3, H, W), and the (width, height) of the image itself, upright."""
        opened = _open(source)
        if opened.data is not None and isinstance(opened.image, JpegImageFile):
            image, size = self._fit_jpeg(opened, opened.data)
        else:
            whole = _to_rgb(opened)
            image, size = self._fit(whole, whole.size), whole.size
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), size

    def _fit_jpeg(self, opened: _Opened, data: bytes) -> tuple[Image.Image, tuple[int, int]]:
        orientation = _orientation(opened.image)
        width, height = opened.image.size
        size = (height, width) if orientation in _ON_ITS_SIDE else (width, height)
        if self.decoding == "scaled" and (factor := self._factor(size)) > 1:
            opened.image.draft(None, (width // factor, height // factor))  # type: ignore[arg-type]  # None: same colours
        elif opened.image.mode == "RGB" and orientation not in _UPRIGHT and self._is_large(size):
            levels = decode_jpeg(data)
            if levels is not None and levels.shape == (height, width, 3):
                return self._frame(self._shrink(levels, size)), size
        return self._fit(_to_rgb(opened), size), size

    def _factor(self, size: tuple[int, int]) -> int:
        """How many times smaller a JPEG of this (width, height) may be decoded: whole pixels, and enough of them."""
        sides = tuple(zip(size, self._resized(*size), strict=True))
        allowed = (f for f in (8, 4, 2) if all(side % f == 0 and side >= f * _SPARE * new for side, new in sides))
        return next(allowed, 1)

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 0..255, or float 0..1, (..., 3, H, W) -> float32 of the same shape: (x - mean) / std."""
        levels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        return (levels - self._mean.to(levels.device)) / self._std.to(levels.device)

    def _fit(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Resize, then cut or pad.  `size`: (width, height) of the image; `image` may be a smaller version of it."""
        if self._is_band(size):
            return self._fit_band(image, *self._resized(*size))
        if self._is_large(size):
            return self._frame(self._shrink(np.array(image), size))
        return self._frame(image.resize(self._resized(*size), self._filter))

    def _shrink(self, levels: np.ndarray, size: tuple[int, int]) -> Image.Image:
        return Image.fromarray(shrink(levels, self._resized(*size), self.config.interpolation))

    def _frame(self, image: Image.Image) -> Image.Image:
        """Cut or pad around the centre to (H, W)."""
        height, width = self.config.image_shape
        if image.size == (width, height):
            return image
        left, top = self._offset(image.width, width), self._offset(image.height, height)
        if image.width >= width and image.height >= height:
            return image.crop((left, top, left + width, top + height))
        frame = Image.new("RGB", (width, height), (self.config.fill,) * 3)
        frame.paste(image, (-left, -top))
        return frame

    def _is_band(self, size: tuple[int, int]) -> bool:
        """So long that, resized whole, it might not fit in memory."""
        height, width = self.config.image_shape
        return self.config.resize == "crop" and math.prod(self._resized(*size)) > 32 * width * height

    def _is_large(self, size: tuple[int, int]) -> bool:
        """So large that torch's time counts and its rounding does not: all smaller images have Pillow's own bits."""
        width, height = self._resized(*size)
        torch_can = self.config.interpolation in ("bicubic", "bilinear") and not self._is_band(size)
        return torch_can and math.prod(size) >= _LARGE and size[0] >= 2 * width and size[1] >= 2 * height

    def _fit_band(self, image: Image.Image, new_width: int, new_height: int) -> Image.Image:
        """Resized and cut, where only the middle is computed.

        Not for all images: Pillow keeps the box in float32, which moves about 1 value in 3000 by a level.
        """
        height, width = self.config.image_shape
        left, top = self._offset(new_width, width), self._offset(new_height, height)
        across, down = image.width / new_width, image.height / new_height
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return image.resize((width, height), self._filter, box=box)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the whole image after resizing."""
        scaled_height, scaled_width = (math.floor(side / self.config.crop_pct) for side in self.config.image_shape)
        if self.config.resize == "squash":
            return scaled_width, scaled_height
        if self.config.resize == "crop" and scaled_width == scaled_height:  # torchvision.transforms.Resize(side)
            short, long = sorted((width, height))
            new_long = int(scaled_width * long / short)
            return (scaled_width, new_long) if width <= height else (new_long, scaled_width)
        ratios = height / scaled_height, width / scaled_width  # timm's and OpenCLIP's ResizeKeepRatio
        ratio = max(ratios) if self.config.resize == "pad" else min(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _offset(self, side: int, wanted: int) -> int:
        """Where the frame begins in a side of the resized image; negative where the image is smaller."""
        spare = side - wanted
        if spare < 0:
            return -(-spare // 2)
        match self.config.crop_rounding:
            case "even":
                return round(spare / 2)
            case "down":
                return spare // 2
            case "first":
                return 0


def _read_file(name: str) -> bytes:
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


def _read_stream(stream: Readable) -> bytes:
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


def _read_header(data: bytes, name: str) -> _Opened:
    if not data:
        raise ImageError(name, "empty file", "0 bytes; wanted an image")
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(name)
    kind = sniff(data)
    if kind is None:
        raise ImageError(name, "not an image", f"its first bytes are those of no image format: {data[:8]!r}")
    if kind not in _FORMATS or (kind in ("AVIF", "WEBP") and not features.check(kind.lower())):
        raise ImageError(name, "unsupported format", f"this is {kind}; save it as JPEG or PNG")
    try:
        image = Image.open(io.BytesIO(data), formats=(kind,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(name, "too many pixels", f"the limit is {MAX_PIXELS:,}; make it smaller first") from error
    except UnidentifiedImageError as error:
        raise ImageError(name, "damaged", f"begins like {kind}, but its header cannot be read") from error
    except Exception as error:
        raise _broken(name, error) from error
    return _check_pixels(_Opened(image, name, data))


def _check_pixels(opened: _Opened) -> _Opened:
    (width, height), name = opened.image.size, opened.name
    if width * height > MAX_PIXELS:
        came = f"{width} x {height} pixels; the limit is {MAX_PIXELS:,}; make it smaller first"
        raise ImageError(name, "too many pixels", came)
    if width * height == 0:
        raise ImageError(name, "not an image", f"{width} x {height} pixels")
    return opened


def _to_rgb(opened: _Opened) -> Image.Image:
    image, name, _ = opened
    try:
        image.load()
        return _upright(_flatten(image, name), _orientation(image))
    except ImageError:
        raise
    except Exception as error:
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> ImageError:
    """On broken bytes Pillow's decoders raise almost anything."""
    reason = "truncated" if "truncated" in str(error) else "damaged"
    return ImageError(name, reason, f"{str(error) or type(error).__name__}; get a whole copy")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block does not make a broken image
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation not in _UPRIGHT:
        return image
    turned = image.transpose(_UPRIGHT[orientation])
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
