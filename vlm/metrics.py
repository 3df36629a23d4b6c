"""How good a ranking is, for queries with any number of correct answers (N:M).

Ties are broken by a fair coin and the expected value is reported, so a model that gives every item the same score gets
exactly chance, never luck of the storage order.
"""

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


def chance_recall_at_k(correct: Tensor, k: int) -> float:
    """What a ranking that knows nothing gets, exactly: the mean of 1 - C(G - c, k) / C(G, k), c correct items each."""
    return recall_at_k(torch.zeros(correct.shape, device=correct.device), correct, k)


def _log_chance_of_no_hit(items: Tensor, correct: Tensor, draws: Tensor) -> Tensor:
    """log of the hypergeometric C(items - correct, draws) / C(items, draws), -inf where a hit is certain."""
    wrong, items, draws = (items - correct).double(), items.double(), draws.double()
    log_chance = _log_choose(wrong, draws) - _log_choose(items, draws)
    return torch.where(correct == 0, 0.0, torch.where(draws > wrong, float("-inf"), log_chance))


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)


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
    empty = (~correct.any(1)).nonzero().flatten().tolist()
    if empty or not len(scores):
        raise ValueError(
            f"{len(empty)} of {len(scores)} queries have no correct item, first {empty[:5]}. Leave them out."
        )
