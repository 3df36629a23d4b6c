"""The names of classes, written the same way whoever wrote them."""

import unicodedata
from typing import Any

from vlm.training.data.formats.cells import texts_of


def labels_of(value: Any) -> list[str]:
    """The classes of a cell: one, several (a list, or the print of one), or none."""
    if isinstance(value, str) and not value.lstrip().startswith(("[", "array(")):
        return [label] if (label := label_name(value)) else []  # a class may well be called None
    if isinstance(value, bool):
        return [str(value)]
    return list(dict.fromkeys(label for text in texts_of(value) if (label := label_name(text))))


def label_name(text: str) -> str:
    """NFC, no spaces around: a folder's name on macOS is NFD, the same in a table NFC."""
    return unicodedata.normalize("NFC", text).strip()
