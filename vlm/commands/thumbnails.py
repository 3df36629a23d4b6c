"""Images in the terminal: kitty's protocol, sixel (iTerm2, WezTerm, foot, Konsole), else coloured half cells."""

import sys
import warnings
from pathlib import Path

from vlm.commands.printing import note
from vlm.errors import ImageError, missing_package
from vlm.images.open import open_image

_SIDE = 480  # pixels of the longer side
_COLUMNS = 32  # of the terminal


def print_thumbnail(path: Path) -> None:
    """Print a small copy of an image to stdout; one that cannot be opened is a line on stderr.

    Args:
        path: the image file.

    Raises:
        MissingPackageError: without textual-image.
    """
    try:
        from rich.console import Console
        from textual_image.renderable import Image
    except ImportError as error:
        raise missing_package("--thumbnails", "textual-image", "retrieval") from error
    try:
        image = open_image(path, to_srgb=True)
    except ImageError as error:
        note(str(error))
        return
    image.thumbnail((_SIDE, _SIDE))
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # it uses an old name of Pillow's
        Console(file=sys.stdout).print(Image(image, width=_COLUMNS, height="auto"))
