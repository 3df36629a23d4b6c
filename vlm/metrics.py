"""How good a ranking is, for queries with any number of correct answers (N:M); and how honest a probability.

Ties are broken by a fair coin and the expected value is reported, so a model that gives every item the same score gets
exactly chance, never luck of the storage order.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor


def top_k_accuracy(logits: Tensor, targets: Tensor, k: int = 1) -> float:
    """Share of rows whose true class is among the k highest logits, 0..1; logits (B, M), targets (B,) class numbers."""
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} must be (B, M) and targets {tuple(targets.shape)} must be (B,)."
        )
    return recall_at_k(logits, F.one_hot(targets, logits.shape[1]).bool(), k)


def recall_at_k(scores: Tensor, correct: Tensor, k: int) -> float:
    """Share of queries with any correct item among the k best, 0..1; scores (Q, G), correct (Q, G) bool.

    A query that has no correct item is an error: leave it out before, and say so.
    """
    _check(scores, correct, k)
    k = min(k, scores.shape[1])
    edge = scores.topk(k, dim=1).values[:, -1:]  # (Q, 1), the k-th best score
    above, tied = scores > edge, scores == edge
    sure = (above & correct).any(1)
    missed = _log_chance_of_no_hit(tied.sum(1), (tied & correct).sum(1), k - above.sum(1)).exp()
    return float(torch.where(sure, 1.0, 1 - missed).mean())


def mean_average_precision(scores: Tensor, correct: Tensor) -> float:
    """Mean over queries of the mean precision at each correct item, 0..1; scores (Q, G), correct (Q, G) bool."""
    ties = _rank(scores, correct)
    within = ties.place - ties.before - 1  # of this place in its group of ties, from 0
    others = within * (ties.found - 1) / (ties.items - 1).clamp(min=1)  # correct ones there that come earlier
    precision = (ties.found_before + others + 1) / ties.place
    found = ties.found / ties.items  # that this place is correct
    return float(((found * precision).sum(1) / correct.sum(1)).mean())


def ndcg(scores: Tensor, correct: Tensor, k: int | None = None) -> float:
    """Normalised discounted cumulative gain of the k best (None: all), 0..1, gain 1: Jarvelin and Kekalainen 2002."""
    _check(scores, correct, 1 if k is None else k)
    ties = _rank(scores, correct)
    discount = 1 / (ties.place + 1).log2()
    discount[scores.shape[1] if k is None else k :] = 0
    best = discount.cumsum(0)[correct.sum(1) - 1]  # (Q,), all correct items first
    return float((((ties.found / ties.items) * discount).sum(1) / best).mean())


def median_rank(scores: Tensor, correct: Tensor) -> float:
    """Median over queries of the rank, from 1, of the first correct item."""
    ties = _rank(scores, correct)
    first = ties.before + (ties.items + 1) / (ties.found + 1)  # r of n shuffled: the first is at (n + 1) / (r + 1)
    at = (ties.found > 0).int().argmax(1, keepdim=True)
    return float(first.gather(1, at).quantile(0.5))


class _Ties(NamedTuple):
    """A ranking, place by place: (Q, G) but `place`.  Equal scores are a group; any order in it is as probable."""

    place: Tensor  # (G,), from 1
    before: Tensor  # items of higher score
    items: Tensor  # in the group of this place, itself among them
    found_before: Tensor  # correct items of higher score
    found: Tensor  # correct items in the group


def _rank(scores: Tensor, correct: Tensor) -> _Ties:
    """McSherry and Najork 2008: expected values under ties need no more than the groups."""
    _check(scores, correct, 1)
    ordered, order = scores.sort(1, descending=True)
    hits = F.pad(correct.gather(1, order).double().cumsum(1), (1, 0))  # (Q, G + 1), among the first 0..G
    place = torch.arange(1, scores.shape[1] + 1, dtype=torch.float64, device=scores.device)
    new = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 1), value=True)  # (Q, G + 1), a group begins here, or the end is
    before = torch.where(new[:, :-1], place - 1, 0).cummax(1).values
    last = torch.where(new[:, 1:], place, torch.inf).flip(1).cummin(1).values.flip(1)
    found_before = hits.gather(1, before.long())
    return _Ties(place, before, last - before, found_before, hits.gather(1, last.long()) - found_before)


def chance_recall_at_k(correct: Tensor, k: int) -> float:
    """What a ranking that knows nothing gets, exactly: the mean of 1 - C(G - c, k) / C(G, k), c correct items each."""
    return recall_at_k(torch.zeros(correct.shape, device=correct.device), correct, k)


def balanced_accuracy(logits: Tensor, targets: Tensor) -> float:
    """Mean over the classes that occur of the share of their rows that is right, 0..1; logits (B, M), targets (B,)."""
    right, classes = (logits.argmax(1) == targets).double(), cast(Tensor, targets.unique())
    return float(torch.stack([right[targets == number].mean() for number in classes]).mean())


@dataclass(frozen=True)
class Reliability:
    """Answers sorted by their probability into equal bins (0, 1/b], (1/b, 2/b], ...; NaN where a bin is empty."""

    count: Tensor  # (b,), answers
    confidence: Tensor  # (b,), their mean probability
    accuracy: Tensor  # (b,), share of them that is right


def reliability(probabilities: Tensor, targets: Tensor, bins: int = 15) -> Reliability:
    """A classifier's answers, the most probable class each; probabilities (n, M), targets (n,).  Guo et al. 2017."""
    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1] or not len(targets):
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} must be (n, M) and targets {tuple(targets.shape)} (n,), n > 0."
        )
    if not torch.allclose(probabilities.sum(1), torch.ones(()).to(probabilities), atol=1e-3):
        raise ValueError("probabilities must sum to 1 in each row: give softmax(logits).")
    confidence, answers = probabilities.double().max(1)
    return calibration_bins(confidence, answers == targets, bins)


def calibration_bins(confidence: Tensor, right: Tensor, bins: int) -> Reliability:
    """Any claims with a probability (n,), and which of them are right (n,)."""
    confidence = confidence.double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    place = torch.bucketize(confidence, edges[1:-1])  # (n,)
    count, sure, true = (
        torch.zeros_like(edges[1:]).index_add(0, place, values)
        for values in (torch.ones_like(confidence), confidence, right.double())
    )
    return Reliability(count, sure / count, true / count)


def expected_calibration_error(probabilities: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Mean distance between how sure and how right, 0..1: sum of count/n |accuracy - confidence|.

    Guo et al. 2017, equation (3).
    """
    return calibration_error(reliability(probabilities, targets, bins))


def calibration_error(found: Reliability) -> float:
    """Sum over the bins of count/n |accuracy - confidence|, 0..1."""
    return float((found.count / found.count.sum() * (found.accuracy - found.confidence).abs()).nansum())


def _log_chance_of_no_hit(items: Tensor, correct: Tensor, draws: Tensor) -> Tensor:
    """log of the hypergeometric C(items - correct, draws) / C(items, draws), -inf where a hit is certain."""
    wrong, items, draws = (items - correct).double(), items.double(), draws.double()
    log_chance = _log_falling(wrong, draws) - _log_falling(items, draws)
    return torch.where(draws > wrong, float("-inf"), log_chance)


def _log_falling(n: Tensor, k: Tensor) -> Tensor:
    """log of n (n - 1) ... (n - k + 1), which is C(n, k) k!."""
    return torch.lgamma(n + 1) - torch.lgamma(n - k + 1)


def _check(scores: Tensor, correct: Tensor, k: int) -> None:
    if scores.ndim != 2 or correct.shape != scores.shape or correct.dtype != torch.bool:
        raise ValueError(
            f"scores {tuple(scores.shape)} and correct {tuple(correct.shape)} {correct.dtype}: "
            "both must be (Q, G), correct bool."
        )
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}.")
    if scores.isnan().any():
        raise ValueError(f"{int(scores.isnan().any(1).sum())} of {len(scores)} queries have NaN scores.")
    empty = (~correct.any(1)).nonzero().flatten()
    if len(empty) or not len(scores):
        raise ValueError(
            f"{len(empty)} of {len(scores)} queries have no correct item, first {empty[:5].tolist()}. Leave them out."
        )
