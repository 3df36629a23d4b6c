"""The names of classes, written the same way whoever wrote them."""

import unicodedata
from typing import Any

from vlm.training.data.formats.cells import items_of, texts_of

_MISSING = frozenset({"nan", "NaN", "null", "NULL", "<NA>", "N/A", "#N/A"})  # as programs write "no value"


def labels_of(value: Any) -> list[str]:
    """The classes of a cell: one, several (a list, or the print of one), or none."""
    if isinstance(value, str) and items_of(value.strip()) is None:
        label = label_name(value)  # a class may well be called None
        return [label] if label and label not in _MISSING else []
    if isinstance(value, bool):
        return [str(value)]
    return list(dict.fromkeys(label for text in texts_of(value) if (label := label_name(text))))


def label_name(text: str) -> str:
    """NFC, no spaces around: a folder's name on macOS is NFD, the same in a table NFC."""
    return unicodedata.normalize("NFC", text).strip()
