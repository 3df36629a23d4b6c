"""Recognises queries without any word of the bundled model's training data.

A text of words that it has not seen still gets an embedding, and some image is always near it.  `mini_words.json` holds
the words of its training data (`python -m benchmarks.demo_words --write`).
"""

import json
import re
import unicodedata
from functools import cache
from pathlib import Path

WORDS_FILE = Path(__file__).parent / "mini_words.json"
_ENGLISH = re.compile(r"[a-z]{2,}")
_JAPANESE = re.compile(r"[\u3041-\u30ff\u31f0-\u31ff\u3400-\u9fff々]+")
_PARTICLES = re.compile(r"[のとがをにはでへもやな]")  # hiragana that joins words
_SMALL = frozenset(
    ["an", "and", "as", "at", "by", "for", "from", "in", "is", "it", "its", "of", "on", "or", "the", "to", "with"]
)


def is_known(text: str) -> bool:
    """Returns True if a text has a word of the training data; a text without letters counts as known."""
    english, japanese = english_words(text), japanese_words(text)
    if not english and not japanese:
        return True
    known = _known()
    if any(word in known["en"] or word.removesuffix("s") in known["en"] for word in english):
        return True
    return any(part in known["ja"] for word in japanese for part in _parts(word))


def english_words(text: str) -> set[str]:
    """Words of two or more letters, in lower case, without articles and prepositions."""
    return set(_ENGLISH.findall(unicodedata.normalize("NFKC", text).lower())) - _SMALL


def japanese_words(text: str) -> set[str]:
    """Runs of kana and kanji, and what stands between particles."""
    runs = _JAPANESE.findall(unicodedata.normalize("NFKC", text))
    return {word for run in runs for word in (run, *_PARTICLES.split(run)) if word}


def _parts(word: str) -> set[str]:
    """All parts of two or more letters, and single kanji."""
    parts = {word[start:end] for start in range(len(word)) for end in range(start + 2, len(word) + 1)}
    return parts | {letter for letter in word if letter >= "\u3400"} | {word}


@cache
def _known() -> dict[str, frozenset[str]]:
    words = json.loads(WORDS_FILE.read_text(encoding="utf-8"))
    return {language: frozenset(words[language]) for language in ("en", "ja")}
