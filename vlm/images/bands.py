"""Images with any number of channels: arrays, .npy files, TIFFs of many bands, other images as 1, 3 or 4 channels."""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from vlm.errors import ImageError, MissingPackageError
from vlm.images.open import MAX_PIXELS, ImageSource, Readable, open_header, read_bytes, read_stream, to_rgb, upright
from vlm.images.signatures import sniff

_NPY = b"\x93NUMPY"
_DTYPES = ("uint8", "uint16", "float32", "float64")


def open_bands(source: ImageSource, channels: int) -> np.ndarray:
    """Read an image as levels from 0 to 1.

    Args:
        source: an array (H, W, C) or (H, W) of uint8, uint16 or floats from 0 to 1; a .npy file or a TIFF with such an
            array; any image file or PIL image, for 1 channel (luminance), 3 (RGB on white) or 4 (RGB and opacity).
        channels: C, as many as the model reads.

    Returns:
        float32 (H, W, C), 0..1; all 16 bits of 16-bit images.

    Raises:
        ImageError: the image cannot be read, or has another number of channels.
    """
    if isinstance(source, np.ndarray):
        return _levels(source, "<array>", channels)
    if isinstance(source, Image.Image):
        return _of_pillow(source, channels)
    data, name = _data(source)
    if data.startswith(_NPY):
        return _levels(_read_npy(data, name), name, channels)
    if sniff(data) == "TIFF" and (array := _read_tiff(data, name)) is not None:
        return _levels(array, name, channels)
    return _of_pillow(data, channels, name)


def _data(source: ImageSource) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, "<bytes>"
    if isinstance(source, Readable):
        return read_stream(source), "<stream>"
    name = str(Path(source))  # type: ignore[arg-type]
    return read_bytes(name), name


def _of_pillow(source: ImageSource, channels: int, name: str = "<image>") -> np.ndarray:
    opened = open_header(source, name) if isinstance(source, bytes) else open_header(source)
    if channels == 1 and opened.image.mode.startswith("I;16"):
        opened.image.load()
        return _levels(np.asarray(upright(opened)).astype(np.uint16), opened.name, 1)
    match channels:
        case 1:
            return _levels(np.asarray(to_rgb(opened).convert("L")), opened.name, 1)
        case 3:
            return _levels(np.asarray(to_rgb(opened)), opened.name, 3)
        case 4:
            to_rgb(opened)  # decodes, and says what is wrong with a broken file
            return _levels(np.asarray(upright(opened).convert("RGBA")), opened.name, 4)
        case _:
            raise ImageError(
                opened.name,
                "unsupported format",
                f"this is an image of {len(opened.image.getbands())} channels, and the model reads {channels}; "
                "store a .npy file or a TIFF with that many",
            )


def _read_npy(data: bytes, name: str) -> np.ndarray:
    """An array, after its header has been checked."""
    try:
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        if math.prod(shape) * dtype.itemsize > len(data):
            raise ImageError(name, "truncated", f"the header promises {shape} {dtype}; get a whole copy")
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(name, "damaged", f"this .npy file cannot be read ({error}); save it again") from error


def _read_tiff(data: bytes, name: str) -> np.ndarray | None:
    """The array of a TIFF of 16 bits or of other than 1, 3 and 4 bands; None where Pillow reads the file as well."""
    try:
        import tifffile
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{name}: a TIFF of many bands or 16 bits needs the package tifffile. Install: pip install tifffile"
        ) from error
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            if math.prod(series.shape) > MAX_PIXELS * 16:
                raise ImageError(name, "too many pixels", f"it is {series.shape}; make it smaller first")
            array, axes = series.asarray(), series.axes
    except ImageError:
        raise
    except Exception as error:  # tifffile's readers raise almost anything on broken files
        raise ImageError(name, "damaged", f"this TIFF cannot be read ({error}); save it again") from error
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] in (3, 4):
        return None
    if array.ndim == 3 and axes[0] not in "YX":  # bands first
        array = np.moveaxis(array, 0, -1)
    return array


def _levels(array: np.ndarray, name: str, channels: int) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.dtype.name not in _DTYPES:
        wanted = f"wanted (H, W, C) of {', '.join(_DTYPES)}"
        raise ImageError(name, "not an image", f"got {array.dtype} {array.shape}; {wanted}")
    if array.shape[2] != channels:
        raise ImageError(
            name,
            "unsupported format",
            f"it has {array.shape[2]} channels, and the model reads {channels}; store as many as the model reads",
        )
    height, width = array.shape[:2]
    if not 0 < height * width <= MAX_PIXELS:
        raise ImageError(name, "too many pixels", f"{width} x {height} pixels; the limit is {MAX_PIXELS:,}")
    highest = {"uint8": 255, "uint16": 65535}.get(array.dtype.name, 1)
    levels = array.astype(np.float32) / highest
    if not bool(np.isfinite(levels).all()):
        raise ImageError(name, "damaged", "it has levels that are not finite; wanted 0 to 1")
    return levels
