"""Queries: a text, an image, or a sum of both with signs and weights."""

import math
import re
import unicodedata
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.errors import InputError
from vlm.images.open import ImageSource

Term = tuple[float, str | ImageSource]
Query = str | ImageSource | Sequence[Term]

MAX_CHARACTERS = 10_000  # of a query
MAX_WEIGHT = 100.0  # of a term, either sign

_PLUS, _MINUS = "+＋﹢", "-－﹣−‐‑‒–"  # the last four: hyphens and the dashes that some keyboards make of them
_WEIGHTED = re.compile(
    rf"([{_PLUS}{re.escape(_MINUS)}]?)((?:\d+(?:[.．]\d*)?|[.．]\d+)(?:[eEｅＥ][+-]?\d+)?|nan|inf(?:inity)?)\s*[*＊×]\s*(\S.*)",
    re.DOTALL | re.IGNORECASE,
)
_ATTACHED_MINUS = re.compile(rf"(?:^|\s)[{re.escape(_MINUS)}](?=[^\W\d_])")


def read_query(query: Query) -> Sequence[Term]:
    """A query as weighted terms.

    Args:
        query: a text (a sum where signs stand between spaces), an image, or terms: (weight, text or image).

    Returns:
        (weight, text or image) of each term.

    Raises:
        InputError: for an empty, too long or unbalanced query and for weights beyond `MAX_WEIGHT`.
    """
    if isinstance(query, str):
        _check_text(query)
        query = parse_terms(query)
    terms: Sequence[Term] = query if isinstance(query, Sequence) and not isinstance(query, bytes) else [(1.0, query)]
    for weight, term in terms or [(1.0, "")]:
        _check_weight(weight)
        if isinstance(term, str):
            _check_text(term)
    return terms


def unit_sum(embeds: Sequence[Tensor]) -> Tensor:
    """The sum of weighted embeddings (E,) -> (E,), unit length.

    Raises:
        InputError: if the terms cancel out.
    """
    stacked = torch.stack(list(embeds))
    total = stacked.sum(0)
    if not total.norm() > 1e-6 * stacked.norm(dim=1).max():
        raise InputError("The terms of the query cancel out, so their sum has no direction. Change a weight.")
    return F.normalize(total, dim=0)


def is_one_text(query: Query) -> bool:
    """Returns True if a query is one text: neither an image nor a sum."""
    return isinstance(query, str) and len(parse_terms(query)) == 1


def parse_terms(text: str) -> list[tuple[float, str]]:
    """ "赤い + 0.5*車 - 人" -> (1, 赤い), (0.5, 車), (-1, 人); a text that is no sum stays as it is.

    Only signs between spaces count, so "T-shirt", "赤い+車" and "-5 degrees" are words, and those of weights: "-2*車".
    Full-width signs and short dashes are signs.

    Raises:
        InputError: for a sign without a term, a sum of minus terms only, and a weight beyond `MAX_WEIGHT`.
    """
    first, *rest = re.split(rf"(?:^|(?<=\s))([{re.escape(_PLUS + _MINUS)}])(?=\s|$)", text)
    if not rest and not _subtracts(text):
        return [(1.0, text)]
    pairs = [*zip(rest[::2], rest[1::2], strict=True)]
    empty = [sign for sign, term in pairs if not term.strip()]
    if empty:
        raise InputError(
            f"No term stands behind the sign {empty[0]!r} of the query {_short(text)}. Write a term, or take it out."
        )
    terms = [_weighted(1.0, first.strip())] if first.strip() else []
    terms += [_weighted(-1.0 if sign in _MINUS else 1.0, term.strip()) for sign, term in pairs]
    if not any(weight > 0 for weight, _ in terms):
        if all(weight == 0 for weight, _ in terms):
            raise InputError(f"All terms of the query {_short(text)} have the weight 0. Give one a weight above 0.")
        raise InputError(
            f"The query {_short(text)} only subtracts. A minus needs something to subtract from: beach - people."
        )
    return terms


def has_attached_minus(text: str) -> bool:
    """Returns True if a minus precedes a word without a space, which makes it part of the word: "beach -people"."""
    return _ATTACHED_MINUS.search(text) is not None


def _weighted(sign: float, term: str) -> tuple[float, str]:
    match = _WEIGHTED.fullmatch(term)
    if match is None:
        if _WEIGHTED.fullmatch(f"{term}x"):
            raise InputError(f"No term stands behind the weight {_short(term)}. Write a term, or take it out.")
        return sign, term
    weight = sign * float(unicodedata.normalize("NFKC", match[2]))
    if match[1] and match[1] in _MINUS:
        weight = -weight
    _check_weight(weight)
    return weight, match[3]


def _subtracts(text: str) -> bool:
    """Returns True for one term with a weight below 0: "-1*people"."""
    match = _WEIGHTED.fullmatch(text.strip())
    return match is not None and match[1] != "" and match[1] in _MINUS


def _check_weight(weight: float) -> None:
    if not (math.isfinite(weight) and abs(weight) <= MAX_WEIGHT):
        raise InputError(f"The weight of a term is {weight:.6g}; it must be from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}.")


def _check_text(text: str) -> None:
    if not text.strip():
        raise InputError("The query is empty. Give a text or an image.")
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"The query has {len(text):,} characters, at most {MAX_CHARACTERS:,} are read. Shorten it.")
    if "\0" in text:
        raise InputError("The query contains a NUL, which no text does. Take it out.")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
