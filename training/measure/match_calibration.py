"""Calibration of a CLIP's similarities: the probability that an image matches a text, fitted on validation pairs.

The concepts of the validation splits of picture-words, and of those of icon-words, are shuffled and divided in two
halves.  Each half is a gallery; the first captions of its concepts are the queries, in each language.  The best 10
images of each query give pairs (cosine, correct or not), and their logistic regression (Platt 1999) gives P =
sigmoid(scale cos + bias).  That holds for the hits that a search shows, not for all pairs.  Its reliability is measured
on the half that it was not fitted to, each way.  The stored numbers are fitted to both halves.  Test splits are never
read.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vlm.calibration import Calibration
from vlm.checkpoint.load import load
from vlm.checkpoint.save import save_calibration
from vlm.embedder import Embedder
from vlm.errors import DataError
from vlm.metrics import calibration_bins, calibration_error
from vlm.training.data.pairs import Pairs
from vlm.training.measure.drawings import VALIDATION, data_of_split, open_unseen
from vlm.training.measure.retrieval import concept_texts, embed_all_images

SHOWN = 10  # K, images that a search shows
BINS = 10
DATA = "picture-words and icon-words"
HEADING = "## How probable a match is"


class QueryHits(NamedTuple):
    """The best hits of Q queries in a gallery."""

    language: str
    cosines: Tensor  # (Q, K)
    correct: Tensor  # (Q, K) bool
    best_wrong: Tensor  # (Q,), highest cosine of an image that is not correct
    half: Tensor  # (Q,) bool, the half of the concepts


class MatchReliability(NamedTuple):
    """Reliability of the calibration, on queries that it was not fitted to."""

    language: str
    queries: int
    shown: float  # mean probability of the images shown
    true: float  # share of the images shown that is correct
    ece: float  # expected calibration error (Guo et al. 2017) over all images shown
    brier: float  # mean squared error of the probabilities
    brier_constant: float  # the same where every probability is `true`
    first: float  # mean probability of the first image
    first_true: float  # share of first images that is correct
    refused: float  # share of the queries that get "no good match"; all have a correct image in the gallery
    refused_right: float  # the same of queries whose first image is correct
    refused_without: float  # the same after all correct images are taken out of the gallery


def calibrate_folder(folder: Path, device: str = "auto", dtype: str = "auto") -> str:
    """Calibrate the model in `folder`, write calibration and card into it, and return the card's section."""
    calibration, found = calibrate(load(folder, device=device, dtype=dtype))
    readme = folder / "README.md"
    card = readme.read_text(encoding="utf-8").split(f"\n{HEADING}\n")[0].rstrip() + "\n\n"
    save_calibration(folder, calibration, card + section(calibration, found))
    return section(calibration, found)


def calibrate(embedder: Embedder) -> tuple[Calibration, list[MatchReliability]]:
    """Fit the calibration of a model, and measure its reliability in each language."""
    hits = validation_hits(embedder)
    both = fit(hits)
    halves = {half: fit([of_half(one, half) for one in hits]) for half in (True, False)}
    found = []
    for one in hits:
        probabilities = torch.where(
            one.half[:, None], halves[False].probability(one.cosines), halves[True].probability(one.cosines)
        )
        wrong = torch.where(
            one.half, halves[False].probability(one.best_wrong), halves[True].probability(one.best_wrong)
        )
        found.append(match_reliability(one, probabilities, wrong, both.line))
    return both, found


def validation_hits(embedder: Embedder) -> list[QueryHits]:
    """The hits of all queries, one entry for each language."""
    joined: dict[str, QueryHits] = {}
    for _, splits in groupby(VALIDATION, data_of_split):
        for hits in hits_of_halves(embedder, open_unseen(embedder, tuple(splits))):
            before = joined.get(hits.language)
            parts = hits[1:] if before is None else map(torch.cat, zip(before[1:], hits[1:], strict=True))
            joined[hits.language] = QueryHits(hits.language, *parts)
    return list(joined.values())


def hits_of_halves(embedder: Embedder, pairs: Pairs) -> list[QueryHits]:
    """The hits in one data set, one entry for each language.  Each half of the concepts is a gallery of its own."""
    images = embed_all_images(embedder, pairs)
    concepts = sorted(set(pairs.groups.tolist()))
    shuffled = np.random.default_rng(0).permutation(concepts)
    first = set(shuffled[: len(shuffled) // 2].tolist())
    hits = []
    for language in pairs.languages:
        parts = []
        for half in (True, False):
            rows = [i for i, group in enumerate(pairs.groups.tolist()) if (group in first) is half]
            texts, correct = concept_texts(pairs.select(rows), language)
            parts.append(best_hits(embedder.embed_texts(texts) @ images[rows].T, correct, language, half))
        joined = (torch.cat(both) for both in zip(*(part[1:] for part in parts), strict=True))
        hits.append(QueryHits(language, *joined))
    return hits


def best_hits(scores: Tensor, correct: Tensor, language: str, half: bool) -> QueryHits:
    """The best `SHOWN` hits of each query.

    Args:
        scores: cosines (Q, G).
        correct: (Q, G) bool.
        language: of the queries.
        half: the half of the concepts that they are of.
    """
    cosines, places = scores.topk(min(SHOWN, scores.shape[1]))
    best_wrong = scores.masked_fill(correct, -1).amax(1)
    return QueryHits(language, cosines, correct.gather(1, places), best_wrong, torch.full((len(scores),), half))


def of_half(hits: QueryHits, half: bool) -> QueryHits:
    """The hits of the queries of one half."""
    mask = hits.half == half
    return QueryHits(hits.language, *(value[mask] for value in hits[1:]))


def fit(hits: Sequence[QueryHits]) -> Calibration:
    """Fit one calibration to the hits of all languages; those of single languages differ by less than their error."""
    cosines = torch.cat([one.cosines.flatten() for one in hits]).double().numpy()
    correct = torch.cat([one.correct.flatten() for one in hits]).numpy()
    if correct.all() or not correct.any():
        raise DataError(
            f"{correct.sum()} of {len(correct)} validation hits are correct; wanted correct and wrong hits. "
            "This model cannot be calibrated."
        )
    fitted = LogisticRegression(C=1e6, max_iter=1000).fit(cosines[:, None], correct)  # practically no penalty
    scale, bias = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    queries = sum(len(one.cosines) for one in hits)
    return Calibration(scale=scale, bias=bias, data=f"{queries} captions of the validation splits of {DATA}")


def match_reliability(hits: QueryHits, probabilities: Tensor, wrong: Tensor, line: float) -> MatchReliability:
    """Measure how reliable probabilities are.

    Args:
        hits: of Q queries.
        probabilities: of the hits, (Q, K).
        wrong: of the best image that is not correct, (Q,).
        line: where even the first hit has less, a search says "no good match".
    """
    p, y = probabilities.double(), hits.correct.double()
    refused = p[:, 0] < line
    right = hits.correct[:, 0]
    return MatchReliability(
        language=hits.language,
        queries=len(p),
        shown=float(p.mean()),
        true=float(y.mean()),
        ece=calibration_error(calibration_bins(p.flatten(), y.flatten(), BINS)),
        brier=float((p - y).square().mean()),
        brier_constant=float((y.mean() - y).square().mean()),
        first=float(p[:, 0].mean()),
        first_true=float(y[:, 0].mean()),
        refused=float(refused.double().mean()),
        refused_right=float(refused[right].double().mean()),
        refused_without=float((wrong < line).double().mean()),
    )


def section(calibration: Calibration, found: Sequence[MatchReliability]) -> str:
    """The part of the model card about match probabilities, in Markdown.

    Args:
        calibration: fitted to all validation pairs.
        found: its reliability in each language.
    """
    rows = "\n".join(
        f"| {r.language} | {r.queries} | {r.shown:.3f} | {r.true:.3f} | {r.ece:.3f} | {r.brier:.4f} | "
        f"{r.brier_constant:.4f} | {r.first:.2f} | {r.first_true:.2f} | {r.refused:.2f} | {r.refused_right:.2f} | "
        f"{r.refused_without:.2f} |"
        for r in found
    )
    head = [
        "language", "queries", "shown", "correct", "ECE", "Brier", "constant", "first hit", "correct",
        "refused", "refused though right", "refused without a match",
    ]  # fmt: skip
    return f"""{HEADING}

A text and an image match with probability sigmoid({calibration.scale:.2f} cos {calibration.bias:+.2f}), fitted to the
best {SHOWN} hits of {calibration.data}. Where even the best hit has less than {calibration.line:.0%}, a search says "no
good match". Measured on concepts it was not fitted to (two halves, each way): mean probability of the {SHOWN} images
shown and share of them that is correct; ECE, the expected calibration error; Brier, the mean squared error, and that of
one constant probability; the first two numbers for the first hit alone. Refused: share of the queries that get "no good
match" although a correct image is in the gallery; of those whose first hit is correct; and when the correct images are
taken out.

| {" | ".join(head)} |
|{"---|" * len(head)}
{rows}

For a first hit the probability is too low where a correct image is known to be there: its rank is evidence too, and a
cosine does not contain it. These numbers hold for drawings like these, a few correct ones among hundreds.
"""
