"""Every word of the page, in English and Japanese: `texts.json`.

The page holds both languages and the browser shows one, so that switching needs no answer from the server.
"""

import html
import json
from pathlib import Path

TEXTS: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "texts.json").read_text(encoding="utf-8"))
LANGUAGES = ("en", "ja")


def english(key: str, **values: object) -> str:
    return TEXTS[key]["en"].format(**values)


class NoAnswer(ValueError):
    """Something the user can put right.  `key` and `values` name the line of `texts.json` that says it."""

    def __init__(self, key: str, **values: object) -> None:
        super().__init__(english(key, **values))
        self.key, self.values = key, values


def both(key: str, **values: object) -> str:
    """HTML in both languages; values are escaped."""
    return bilingual({language: TEXTS[key][language].format(**values) for language in LANGUAGES})


def bilingual(text: dict[str, str]) -> str:
    """{"en": ..., "ja": ...} -> HTML of which `style.css` shows the page's language."""
    return "".join(f'<span class="said" lang="{language}">{escape(text[language])}</span>' for language in LANGUAGES)


def escape(text: str) -> str:
    """Nothing in it is HTML, nor a placeholder of Gradio's HTML templates."""
    return html.escape(text).replace("$", "&#36;").replace("{", "&#123;").replace("`", "&#96;")
