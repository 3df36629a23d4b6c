"""Every word of the page, in English and Japanese: `texts.json`.

The page holds both languages and the browser shows one, so that switching needs no answer from the server.
"""

import html
import json
from pathlib import Path

from vlm.errors import InputError

TEXTS: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "texts.json").read_text(encoding="utf-8"))
LANGUAGES = ("en", "ja")


class PageError(InputError):
    """An error that the visitor can correct, shown in the language of the page.

    Args:
        key: its line in texts.json.
        values: fill the placeholders of the line.
    """

    def __init__(self, key: str, **values: object) -> None:
        super().__init__(english(key, **values))
        self.key, self.values = key, values


def english(key: str, **values: object) -> str:
    """The English text of a key."""
    return TEXTS[key]["en"].format(**values)


def both(key: str, **values: object) -> str:
    """HTML with the text of a key in both languages; values are escaped."""
    return bilingual({language: TEXTS[key][language].format(**values) for language in LANGUAGES})


def bilingual(text: dict[str, str]) -> str:
    """{"en": ..., "ja": ...} -> HTML with both; `style.css` hides the other language."""
    return "".join(f'<span class="said" lang="{language}">{escape(text[language])}</span>' for language in LANGUAGES)


def name_attributes(key: str, **values: object) -> str:
    """HTML attributes that name a part for screen readers; language.js keeps aria-label in the page's language."""
    names = {language: escape(TEXTS[key][language].format(**values)) for language in LANGUAGES}
    return f'aria-label="{names["en"]}" data-name-en="{names["en"]}" data-name-ja="{names["ja"]}"'


def with_texts(key: str, inner: dict[str, str], **values: object) -> str:
    """HTML of a key in both languages whose placeholders are filled with other texts.

    Args:
        key: the outer text.
        inner: placeholder -> key of the text that fills it.
        values: fill the other placeholders, in both languages alike.
    """
    filled = {
        language: TEXTS[key][language].format(
            **{name: TEXTS[other][language] for name, other in inner.items()}, **values
        )
        for language in LANGUAGES
    }
    return bilingual(filled)


def escape(text: str) -> str:
    """Escape HTML, and the placeholders of Gradio's HTML templates."""
    return html.escape(text).replace("$", "&#36;").replace("{", "&#123;").replace("`", "&#96;")
