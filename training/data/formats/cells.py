"""The value of one cell -> texts.  A list may be written as JSON, Python, numpy or pandas print it."""

import ast
import json
import math
import re
from typing import Any

EMPTY = frozenset(
    {"nan", "NaN", "-nan", "null", "NULL", "None", "<NA>", "NaT", "N/A", "n/a", "#N/A", "#NA"}
)  # what programs write for "no value"
_BEGINS = re.compile(r"""(?:array\(\s*)?\[\s*(?:[bu]?['"]|\]|-?\d|(?:nan|NaN|null|None|NA|<NA>)\s*[,\]\s])""")
_PYTHON = re.compile(
    r"""[({]\s*[bu]?['"]|\[\s*[\[({]|frozenset\(|\(\s*\)$|\{\s*\}$"""
)  # tuple, set, dict, list of lists
_UNQUOTED = re.compile(r"\[[^\[\]]*,[^\[\]]*\]")
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>[bu]?'(?:[^'\\]|\\.)*'|[bu]?"(?:[^"\\]|\\.)*")
      | (?P<empty>nan|NaN|null|None|<NA>|NA)(?![\w.])
      | (?P<number>-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)(?![\w.])
      | (?P<comma>,)
    )\s*""",
    re.VERBOSE | re.DOTALL,
)


class CellError(ValueError):
    """A cell that is neither text nor a list of texts; `str()` says why."""


def texts_of(value: Any) -> list[str]:
    """All texts of a cell, blank and missing ones left out; numbers become text.

    Args:
        value: a text, a number, a list of these, or a text that is the print of such a list:
            `["x", null]` (JSON), `['x', None]` (Python), `['x' 'y']` (numpy).

    Raises:
        CellError: the cell looks like a list and cannot be read as one, or holds something else.
    """
    if isinstance(value, str):
        text = value.strip()
        if not text or text in EMPTY:
            return []
        if _BEGINS.match(text):
            return _printed_list(text)
        if _UNQUOTED.fullmatch(text):
            raise CellError(f"looks like a list without quotes: {_short(text)}; write it as JSON")
        printed = _printed_object(text) if _PYTHON.match(text) else None
        return [value] if printed is None else texts_of(printed)
    if isinstance(value, (list, tuple)):
        found = [_text(item) for item in value]
        return [text for text in found if text.strip()]
    if value is None or isinstance(value, (bool, int, float)):
        text = _text(value)
        return [text] if text else []
    raise CellError(f"a cell holds {_short(value)}; wanted a text or a list of texts")


def single_of(value: Any) -> str | None:
    """The text of a cell that holds one; numbers become text; None: empty, a list or an object."""
    if isinstance(value, (dict, list, tuple)):
        return None
    return _text(value) or None


def _text(item: Any) -> str:
    """ "" for what is missing."""
    if isinstance(item, str):
        return item
    if item is None or (isinstance(item, float) and math.isnan(item)):
        return ""
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, (int, float)):
        return str(item)
    raise CellError(f"a list holds {_short(item)}; wanted texts")


def _printed_object(text: str) -> list[Any] | None:
    """The items of a tuple or set as Python printed it, in that order; None where it is a plain text.

    Raises:
        CellError: a dictionary, or a list of lists.
    """
    try:
        node = ast.parse(text.replace("\n", " "), mode="eval").body
    except (SyntaxError, ValueError):
        return None  # ("Hello") she said
    if isinstance(node, ast.Call) and len(node.args) == 1:  # frozenset({...})
        node = node.args[0]
    if isinstance(node, ast.Dict) or (
        isinstance(node, ast.List)
        and any(isinstance(item, (ast.List, ast.Tuple, ast.Dict, ast.Set)) for item in node.elts)
    ):
        raise CellError(f"a cell holds {_short(text)}; wanted a text or a list of texts")
    if not isinstance(node, (ast.Tuple, ast.Set, ast.List)):
        return None
    try:
        return [ast.literal_eval(item) for item in node.elts]
    except ValueError:
        return None


def _printed_list(text: str) -> list[str]:
    """The items of a list as a program printed it."""
    inside, end = _inside(text)
    if end is None:
        raise CellError(f"begins like a list and does not end: {_short(text)}")
    if end.strip() and not {"'", '"'} & set(inside):
        return [text]  # "[2023] a photo" is a caption
    if end.strip(" )") and not re.fullmatch(r",?\s*dtype=[\w<.'\"]+\s*\)?", end.strip()):
        raise CellError(f"begins like a list and goes on behind it: {_short(text)}")
    found: list[str] = []
    place, comma = 0, True  # where a comma or nothing stands, an item may follow
    while place < len(inside):
        token = _TOKEN.match(inside, place)
        if token is None:
            rest = inside[place:].strip()
            if not rest:
                break
            shortened = rest.startswith("...")
            raise CellError(
                f"a list that numpy has shortened ({_short(text)}): write the table with to_json or json.dumps"
                if shortened
                else f"looks like a list and is none: {_short(text)}"
            )
        place = token.end()
        if token["comma"]:
            if comma and found:
                raise CellError(f"looks like a list and is none: {_short(text)}")
            comma = True
            continue
        comma = False
        if token["empty"]:
            continue
        item = _literal(token["text"]) if token["text"] else token["number"]
        if item.strip():
            found.append(item)
    return found


def _inside(text: str) -> tuple[str, str | None]:
    """(what stands between the brackets, what follows them); None: the list does not end."""
    begin = text.index("[") + 1
    quote, place = "", begin
    while place < len(text):
        letter = text[place]
        if quote:
            if letter == "\\":
                place += 1
            elif letter == quote:
                quote = ""
        elif letter in "'\"":
            quote = letter
        elif letter == "]":
            return text[begin:place], text[place + 1 :]
        place += 1
    return text[begin:], None


def _literal(quoted: str) -> str:
    """A quoted text of JSON or Python; line breaks inside are kept."""
    if quoted.startswith('"'):
        try:
            return json.loads(quoted, strict=False)
        except ValueError:
            pass  # Python's escapes
    try:
        value = ast.literal_eval(quoted.replace("\n", "\\n").replace("\r", "\\r"))
    except (ValueError, SyntaxError) as error:
        raise CellError(f"a quoted text cannot be read: {_short(quoted)}") from error
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return ascii(text[:60] + ("..." if len(text) > 60 else "")) if not text.isprintable() else text[:60]
