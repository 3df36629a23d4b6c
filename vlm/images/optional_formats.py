"""Formats that need another package: HEIC through pillow-heif, camera raw files through rawpy."""

import io

from PIL import Image

from vlm.errors import ImageError

_ORIENTATION = {3: 3, 5: 8, 6: 6}  # LibRaw's flip -> EXIF orientation


def open_heic(data: bytes, name: str) -> Image.Image:
    """The header of an HEIC file, upright.

    Raises:
        ImageError: pillow-heif is not installed, or cannot read the file.
    """
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        detail = "this is HEIC; install vlm's extra heic (pillow-heif), or save it as JPEG"
        raise ImageError(name, "unsupported format", detail) from error
    return HeifImageFile(io.BytesIO(data))


def raw_preview(data: bytes, name: str) -> tuple[bytes | Image.Image, int]:
    """The largest preview in a camera raw file: a JPEG file or an image, and its EXIF orientation.

    Raises:
        ImageError: rawpy is not installed, or the file has no preview.
    """
    try:
        import rawpy
    except ImportError as error:
        detail = "this is a camera raw file; install vlm's extra raw (rawpy), or save it as JPEG"
        raise ImageError(name, "unsupported format", detail) from error
    try:
        with rawpy.imread(io.BytesIO(data)) as opened:
            preview, flip = opened.extract_thumb(), opened.sizes.flip
    except rawpy.LibRawError as error:
        detail = f"this is a camera raw file without a readable preview ({error}); save it as JPEG"
        raise ImageError(name, "unsupported format", detail) from error
    if isinstance(preview.data, bytes):
        return preview.data, _ORIENTATION.get(flip, 1)
    return Image.fromarray(preview.data), _ORIENTATION.get(flip, 1)
