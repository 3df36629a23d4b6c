"""Parses input: labels, templates, texts and image bytes, or a `PageError`."""

import re
import unicodedata
from pathlib import Path

import regex

from vlm.demo.page.texts import PageError
from vlm.images.open import MAX_BYTES

MAX_LABELS = 200
MAX_CHARACTERS = 500
MAX_TEMPLATES = 20

ImageFile = str | Path

_SEPARATORS = re.compile(r"[\n\r\v\f\t\x85\u2028\u2029,;|、､，；｜،؛]")
_SLASHES = re.compile(r"[/／]")
_MIDDLE_DOTS = re.compile(r"[・･]")
_KATAKANA = re.compile(r"[\u30a1-\u30fa\u30fc\u30fd\uff66-\uff9f]+")
_JAPANESE_WORD = re.compile(r"[\u3041-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff65-\uff9f々]+")
_UNSEEN = regex.compile(r"\p{Default_Ignorable_Code_Point}")  # zero-width spaces, joiners, directions, soft hyphens ...
_REMOVED = regex.compile(  # joiners, variation selectors and tags belong to emoji and to some scripts
    r"[\p{Default_Ignorable_Code_Point}--[\u200c\u200d\ufe00-\ufe0f\U000e0020-\U000e007f]]", regex.V1
)
_JOINERS = "\u200c\u200d"


def read_labels(typed: str | list[str]) -> tuple[str, ...]:
    """Labels as typed or as a list -> distinct labels in their order.

    Line breaks, tabs, commas, semicolons and | separate labels.  A text without any of these is split at slashes, or
    at spaces and middle dots if all its words are Japanese: "red apple" is one label, "犬 猫" are two.  Middle dots
    between katakana alone are part of a name: "コーヒー・カップ" is one label.  Labels that differ only in invisible
    characters or in Unicode composition are one label.

    Raises:
        PageError: no label, too many labels, a label that is too long or no text.
    """
    parts = typed if isinstance(typed, list) else _split_labels(_text(typed))
    if len(parts) > 100 * MAX_LABELS:
        raise PageError("too_many_labels", count=len(parts), most=MAX_LABELS)
    labels: dict[str, str] = {}
    for part in parts:
        if label := read_text(part):
            labels.setdefault(unicodedata.normalize("NFKC", _UNSEEN.sub("", label)), label)
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
    text = unicodedata.normalize("NFC", _REMOVED.sub("", _text(typed))).strip().strip(_JOINERS).strip()
    if len(text) > MAX_CHARACTERS:
        raise PageError("text_too_long", count=len(text), most=MAX_CHARACTERS)
    visible = any(unicodedata.category(letter)[0] not in "CZ" for letter in _UNSEEN.sub("", text))
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
    if not all(_JAPANESE_WORD.fullmatch(_UNSEEN.sub("", word)) for word in words):
        return [text]
    return [part for word in words for part in _split_middle_dots(word)]


def _split_middle_dots(word: str) -> list[str]:
    parts = _MIDDLE_DOTS.split(word)
    return [word] if all(_KATAKANA.fullmatch(part) for part in parts) else parts


def _text(value: object) -> str:
    if not isinstance(value, str):  # programs send any type
        raise PageError("not_text")
    return value.strip()
