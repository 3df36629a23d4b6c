"""The value of one cell -> texts.  A list may be written as JSON, Python, numpy or pandas print it."""

import ast
import json
import math
import re
from typing import Any

# what programs write for "no value", in any case: pandas, Excel, MySQL
EMPTY = frozenset(
    {"nan", "-nan", "null", "none", "na", "<na>", "nat", "n/a", "#n/a", "#na", "#n/a n/a", "\\n", "1.#qnan", "-1.#qnan",
     "1.#ind", "-1.#ind"}
)  # fmt: skip
_MISSING = r"(?:(?:np|numpy|pd|pandas|math|float)\.)?(?:nan|NaN|NAN|null|NULL|None|NaT|NA|<NA>)"
_BEGINS = re.compile(
    rf"""(?:[A-Za-z_][\w.]*\(\s*)?\[\s*(?:[bu]?['"“‘]|\]|-?\d|\.\.\.|(?:np|numpy)\.\w+\(|{_MISSING}\s*[,\]\s])"""
)
_PYTHON = re.compile(  # tuple, set, dict, list of lists
    r"""[({]\s*[bu]?['"]|[\[({]\s*[\[({]|(?:frozen)?set\(|\(\s*\)$|\{\s*\}$"""
)
_UNQUOTED = re.compile(r"""\[[^\[\]]*,[^\[\]]*\]|\[\s*(?:\\['"]|&quot;|&\#39;).*\]""")
_CLOSES = re.compile(r",?\s*(?:\w+=[\w<.'\"\[\]]+\s*,?\s*)*\)")  # array([...], dtype=object)
_WRAPPED = re.compile(r"(?:np|numpy)\.\w+\(((?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^()'\"]*))\)")  # np.str_('a')
_TOKEN = re.compile(
    rf"""\s*(?:
        (?P<text>[bu]?'(?:[^'\\]|\\.)*'|[bu]?"(?:[^"\\]|\\.)*"|“[^”]*”|‘[^’]*’)
      | (?P<empty>{_MISSING})(?![\w.])
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
        if not text or text.lower() in EMPTY:
            return []
        printed = items_of(text)
        return [value] if printed is None else texts_of(printed)
    if isinstance(value, (list, tuple)):
        found = [_text(item) for item in value]
        return [text for text in found if text.strip()]
    if value is None or isinstance(value, (bool, int, float)):
        text = _text(value)
        return [text] if text else []
    raise CellError(f"a cell holds {_short(value)}; wanted a text or a list of texts")


def items_of(text: str) -> list[Any] | None:
    """The items of a list, tuple or set that a program printed; None where a text is just a text.

    Raises:
        CellError: the text looks like a list and cannot be read as one.
    """
    if text.startswith('"') and text.endswith('"') and text[1:].lstrip().startswith(("[", "(", "{")):
        text = _unquoted(text)
    if _BEGINS.match(text):
        return _printed_list(_WRAPPED.sub(r"\1", text))
    if _UNQUOTED.fullmatch(text):
        raise CellError(f"looks like a list without quotes: {_short(text)}; write it as JSON")
    return _printed_object(text) if _PYTHON.match(text) else None


def _unquoted(text: str) -> str:
    """The list in a text that was written as JSON once more; the text itself where it is none."""
    try:
        return str(json.loads(text, strict=False)).strip()
    except ValueError:
        return text


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
    if isinstance(node, ast.Call) and len(node.args) < 2:  # frozenset({...}), set()
        node = node.args[0] if node.args else ast.Set([])
    if isinstance(node, ast.Dict) or (
        isinstance(node, (ast.List, ast.Tuple))
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
    if end.strip() and not _CLOSES.fullmatch(end.strip()):
        if re.match(r"\[\s*[\d.]", text) and not {"'", '"'} & set(inside):
            return [text]  # "[2023] a photo" is a caption
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


_QUOTES = {"'": "'", '"': '"', "“": "”", "‘": "’"}  # as they open -> as they close


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
        elif letter in _QUOTES:
            quote = _QUOTES[letter]
        elif letter == "]":
            return text[begin:place], text[place + 1 :]
        place += 1
    return text[begin:], None


def _literal(quoted: str) -> str:
    """A quoted text of JSON or Python, or between typographic quotes; line breaks inside are kept."""
    if quoted[0] in "“‘":
        return quoted[1:-1]
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
