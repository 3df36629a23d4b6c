"""What people type into a search box: a text, or a sum of texts with signs and weights."""

import re
import unicodedata
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.images.open import ImageSource

Term = tuple[float, str | ImageSource]
Query = str | ImageSource | Sequence[Term]

MAX_CHARACTERS = 10_000  # of a query

_SIGNS = {"+": 1.0, "＋": 1.0, "-": -1.0, "－": -1.0, "−": -1.0}
_SIGN = "[+＋\\-－−]"
_WEIGHTED = re.compile(r"(\d+(?:[.．]\d+)?)\s*[*＊×]\s*(\S.*)", re.DOTALL)


def read_query(query: Query) -> Sequence[Term]:
    """ValueError for what cannot be meant."""
    if isinstance(query, str):
        _check(query)
        query = parse_terms(query)
    terms = query if isinstance(query, Sequence) and not isinstance(query, bytes) else [(1.0, query)]
    for _, term in terms or [(1.0, "")]:
        if isinstance(term, str):
            _check(term)
    return terms


def unit_sum(embeds: Sequence[Tensor]) -> Tensor:
    """The sum of weighted (E,) embeds -> (E,), unit length.  ValueError where they cancel out."""
    total = torch.stack(list(embeds)).sum(0)
    if total.norm() < 1e-6:
        raise ValueError("The terms of the query cancel out, so they point nowhere. Change a weight.")
    return F.normalize(total, dim=0)


def is_one_text(query: Query) -> bool:
    """Not an image, not a sum."""
    return isinstance(query, str) and len(parse_terms(query)) == 1


def parse_terms(text: str) -> list[tuple[float, str]]:
    """ "赤い + 0.5*車 - 人" -> (1, 赤い), (0.5, 車), (-1, 人); a text that is no sum stays as it is.

    Only signs between spaces count, so "T-shirt", "赤い+車" and "-5 degrees" are words.  Full-width signs are signs.
    """
    first, *rest = re.split(rf"\s+({_SIGN})\s+", text.lstrip())
    if not rest:
        return [(1.0, text)]
    leading = re.match(rf"({_SIGN})\s+", first)
    signs = [leading[1] if leading else "+", *rest[::2]]
    terms = [first[leading.end() :] if leading else first, *rest[1::2]]
    return [_weighted(_SIGNS[sign], term) for sign, term in zip(signs, terms, strict=True)]


def _weighted(sign: float, term: str) -> tuple[float, str]:
    match = _WEIGHTED.fullmatch(term)
    return (sign * float(unicodedata.normalize("NFKC", match[1])), match[2]) if match else (sign, term)


def _check(text: str) -> None:
    if not text.strip():
        raise ValueError("The query is empty. Give a text or an image.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"The query has {len(text):,} characters, at most {MAX_CHARACTERS:,} are read. Shorten it.")
    if "\0" in text:
        raise ValueError("The query contains a NUL, which no text does. Take it out.")
