"""Parses input: labels, templates, texts and image bytes, or a `PageError`."""

import re
import unicodedata
from pathlib import Path

from vlm.demo.page.texts import PageError
from vlm.images.open import MAX_BYTES

MAX_LABELS = 200
MAX_CHARACTERS = 500
MAX_TEMPLATES = 20

ImageFile = str | Path

_SEPARATORS = re.compile(r"[\n\t,;|、，；｜]")
_SLASHES = re.compile(r"[/／]")
_JAPANESE_WORD = re.compile(r"[\u3041-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f々]+")
# zero-width space, word joiner, byte order mark, soft hyphen, bidirectional controls; not the joiner inside emoji
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def read_labels(typed: str | list[str]) -> tuple[str, ...]:
    """Labels as typed or as a list -> distinct labels in their order.

    Line breaks, tabs, commas, semicolons and | separate labels.  A text without any of these is split at slashes, or at
    spaces if all its words are Japanese: "red apple" is one label, "犬 猫" are two.  Labels that differ only in
    invisible characters or in Unicode composition are one label.

    Raises:
        PageError: no label, too many labels, a label that is too long or no text.
    """
    parts = typed if isinstance(typed, list) else _split_labels(_text(typed))
    if len(parts) > 100 * MAX_LABELS:
        raise PageError("too_many_labels", count=len(parts), most=MAX_LABELS)
    labels: dict[str, str] = {}
    for part in parts:
        if label := read_text(part):
            labels.setdefault(unicodedata.normalize("NFKC", label), label)
    if not labels:
        raise PageError("no_labels")
    if len(labels) > MAX_LABELS:
        raise PageError("too_many_labels", count=len(labels), most=MAX_LABELS)
    return tuple(labels.values())


def read_templates(typed: str | list[str]) -> tuple[str, ...] | None:
    """Templates, one a line or as a list, each with {} for the label; None if there are none.

    Raises:
        PageError: too many templates, or one without {}.
    """
    parts = typed if isinstance(typed, list) else _text(typed).split("\n")
    templates = [template for part in parts if (template := read_text(part))]
    if len(templates) > MAX_TEMPLATES:
        raise PageError("too_many_templates", count=len(templates), most=MAX_TEMPLATES)
    for template in templates:
        if "{}" not in template:
            raise PageError("no_place_for_label", template=template[:80])
    return tuple(templates) or None


def read_text(typed: object) -> str:
    """A text that may be empty: without invisible characters, in composed form (NFC), without outer spaces."""
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", _text(typed))).strip()
    if len(text) > MAX_CHARACTERS:
        raise PageError("text_too_long", count=len(text), most=MAX_CHARACTERS)
    visible = any(unicodedata.category(letter)[0] not in "CZ" for letter in text)
    return text if visible else ""


def read_image(image: ImageFile) -> bytes:
    """The bytes of an image file; whether they are an image is decided by `vlm.open_image`.

    Raises:
        PageError: the file is missing, unreadable or too big.
    """
    path = Path(image)
    try:
        if not path.is_file():
            raise PageError("not a file" if path.exists() else "missing")
        if path.stat().st_size > MAX_BYTES:
            raise PageError("too many bytes")
        return path.read_bytes()
    except PageError:
        raise
    except (OSError, ValueError) as error:
        raise PageError("unreadable") from error


def _split_labels(text: str) -> list[str]:
    for separator in (_SEPARATORS, _SLASHES):
        if separator.search(text):
            return separator.split(text)
    words = text.split()
    return words if all(_JAPANESE_WORD.fullmatch(word) for word in words) else [text]


def _text(value: object) -> str:
    if not isinstance(value, str):  # programs send any type
        raise PageError("not_text")
    return value.strip()
