"""Quality of rankings, for queries with any number of correct items (N:M), and calibration of probabilities.

Equal scores count as the expected value over every order of them, so a model that gives every item the same score gets
exactly chance, whatever the storage order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.errors import InputError
from vlm.models.linear import linear

_BLOCK_BYTES = 64 * 2**20  # of scores held at once


def top_k_accuracy(logits: Tensor, targets: Tensor, k: int = 1) -> float:
    """Share of rows whose true class is among the k highest logits, 0..1; logits (B, M), targets (B,) class numbers."""
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise InputError(
            f"logits {tuple(logits.shape)} must be (B, M) and targets {tuple(targets.shape)} must be (B,)."
        )
    return recall_at_k(logits, F.one_hot(targets, logits.shape[1]).bool(), k)


def recall_at_k(scores: Tensor, correct: Tensor, k: int) -> float:
    """Share of queries with any correct item among the k best, 0..1.

    Args:
        scores: (Q, G), the higher the better.
        correct: (Q, G) bool; every query needs a correct item.
        k: from 1; more than G counts as G.

    Returns:
        The mean over queries of the probability of a hit, ties in random order.

    Raises:
        InputError: the shapes do not fit, scores are NaN, or a query has no correct item.
    """
    _check(scores, correct, k)
    best = scores.masked_fill(~correct, -torch.inf).amax(1, keepdim=True)  # (Q, 1)
    return float(_hits(scores, best, (correct & (scores == best)).sum(1), (k,)).mean())


def embedding_hits(
    queries: Tensor, gallery: Tensor, query_groups: Tensor, gallery_groups: Tensor, ks: Sequence[int] = (1, 5, 10)
) -> Tensor:
    """Probability that each query has a correct item among its k best, from embeddings; its mean is recall@k.

    The similarities exist a block of queries at a time (64 MiB), on the device of the embeddings.

    Args:
        queries: (Q, E), unit vectors.
        gallery: (G, E), unit vectors.
        query_groups: (Q,) integers; the gallery's items of the same group are correct.
        gallery_groups: (G,) integers.
        ks: the values of k, each from 1.

    Returns:
        (Q, len(ks)) float64; 0 or 1 where no scores are equal.

    Raises:
        InputError: the shapes do not fit, a k is below 1, embeddings are not finite, or a query has no correct item.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise InputError(f"queries {tuple(queries.shape)} must be (Q, E) and gallery {tuple(gallery.shape)} (G, E).")
    if query_groups.shape != queries.shape[:1] or gallery_groups.shape != gallery.shape[:1]:
        raise InputError(
            f"query_groups {tuple(query_groups.shape)} must be ({len(queries)},) and gallery_groups "
            f"{tuple(gallery_groups.shape)} must be ({len(gallery)},): one number per row."
        )
    for name, embeds in (("queries", queries), ("gallery items", gallery)):
        if not (sound := embeds.isfinite().all(1)).all():
            raise InputError(f"{int((~sound).sum())} of {len(sound)} {name} are not finite. Look at the model.")
    _check_k(*ks)
    ordered, order = gallery_groups.sort()
    first = torch.searchsorted(ordered, query_groups)
    count = torch.searchsorted(ordered, query_groups, right=True) - first  # (Q,), correct items
    _check_all_found(count > 0)
    parts: list[Tensor] = []
    for rows, scores in _score_blocks(queries, gallery):
        starts, own = first[rows], count[rows]
        row = torch.repeat_interleave(own)  # (P,), the query of each correct pair of the block
        within = torch.arange(len(row), device=row.device) - (own.cumsum(0) - own)[row]
        of_pair = scores[row, order[starts[row] + within]]  # (P,)
        best = scores.new_full((len(scores),), -torch.inf).scatter_reduce_(0, row, of_pair, "amax")
        at_best = torch.zeros_like(own).index_add_(0, row, (of_pair == best[row]).long())
        parts.append(_hits(scores, best[:, None], at_best, ks))
    return torch.cat(parts)


def _score_blocks(queries: Tensor, gallery: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields (rows, queries[rows] gallery^T); each block is computed in tiles, which stay in a CPU's cache."""
    rows = min(max(1, _BLOCK_BYTES // (4 * len(gallery))), len(queries))
    block, tile = queries.new_empty(rows, len(gallery)), 1024 if queries.device.type == "cpu" else len(gallery)
    for start in range(0, len(queries), rows):
        some = queries[start : start + rows]
        for column in range(0, len(gallery), tile):
            block[: len(some), column : column + tile] = linear(some, gallery[column : column + tile])
        yield slice(start, start + rows), block[: len(some)]


def _hits(scores: Tensor, best: Tensor, correct_at_best: Tensor, ks: Sequence[int]) -> Tensor:
    """Probability of a correct item among the k best, (Q, len(ks)) float64, equal scores in random order.

    Above the best correct score all items are wrong, so three counts suffice.

    Args:
        scores: (Q, G).
        best: (Q, 1), the best score of a correct item.
        correct_at_best: (Q,), correct items of that score.
        ks: the values of k.
    """
    above, tied = _count(scores > best), _count(scores == best)  # (Q,)
    hits: list[Tensor] = []
    for k in ks:
        draws = (min(k, scores.shape[1]) - above).clamp(min=0).minimum(tied)
        hits.append(-torch.expm1(_log_chance_of_no_hit(tied, correct_at_best, draws)))
    return torch.stack(hits, 1)


def _count(mask: Tensor) -> Tensor:
    """Number of true values of each row, (Q, G) -> (Q,); numpy counts five times as fast as torch on a CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1))
    return mask.sum(1)


def chance_recall_at_k(correct: Tensor, k: int) -> float:
    """Recall@k of a random ranking: the mean of 1 - C(G - c, k) / C(G, k), c correct items each; correct (Q, G)."""
    _check_k(k)
    count = correct.sum(1)
    _check_all_found(count > 0)
    items = torch.full_like(count, correct.shape[1])
    return float(-torch.expm1(_log_chance_of_no_hit(items, count, items.clamp(max=k))).mean())


@dataclass(frozen=True)
class Ranking:
    """The quality of each query's ranking, (Q,) float64 each.

    recall: by k, the probability of a correct item among the k best.
    first: the rank of the first correct item, from 1.
    average_precision: the mean precision at each correct item.
    ndcg: normalised discounted cumulative gain of the whole ranking, gain 1 (Jarvelin and Kekalainen 2002).
    """

    recall: dict[int, Tensor]
    first: Tensor
    average_precision: Tensor
    ndcg: Tensor


def rank_queries(scores: Tensor, correct: Tensor, ks: Sequence[int] = (1, 5, 10)) -> Ranking:
    """All of a ranking's numbers from one sort of each query's scores.

    Args:
        scores: (Q, G), the higher the better.
        correct: (Q, G) bool; every query needs a correct item.
        ks: the values of k for recall.

    Raises:
        InputError: the shapes do not fit, scores are NaN, or a query has no correct item.
    """
    _check_k(*ks)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    rows = max(1, _BLOCK_BYTES // (16 * scores.shape[-1])) if scores.ndim == 2 else 1
    _check(scores, correct, 1)
    blocks = (cast(tuple[Tensor, ...], matrix.split(rows)) for matrix in (scores, correct))
    for some, right in zip(*blocks, strict=True):
        ties, best = _rank(some, right), some.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        recall = _hits(some, best, (right & (some == best)).sum(1), ks)
        parts.append((recall, _first(ties), _precision(ties, right), _gain(ties, right, None)))
    recall, first, precision, gain = (torch.cat(part) for part in zip(*parts, strict=True))
    return Ranking(dict(zip(ks, recall.unbind(1), strict=True)), first, precision, gain)


def chance_ranking(correct: Tensor, ks: Sequence[int] = (1, 5, 10)) -> Ranking:
    """`rank_queries` of a model that gives every item the same score; computed once per number of correct items.

    Args:
        correct: (Q, G) bool; every query needs a correct item.
        ks: the values of k for recall.

    Raises:
        InputError: a query has no correct item.
    """
    counts, member = cast(tuple[Tensor, Tensor], correct.sum(1).unique(return_inverse=True))
    _check_all_found(correct.any(1))
    example = torch.arange(correct.shape[1], device=correct.device) < counts[:, None]
    found = rank_queries(torch.zeros(example.shape, device=example.device), example, ks)
    recall = {k: value[member] for k, value in found.recall.items()}
    return Ranking(recall, found.first[member], found.average_precision[member], found.ndcg[member])


def mean_average_precision(scores: Tensor, correct: Tensor) -> float:
    """Mean over queries of the mean precision at each correct item, 0..1; scores (Q, G), correct (Q, G) bool."""
    _check(scores, correct, 1)
    return float(_precision(_rank(scores, correct), correct).mean())


def ndcg(scores: Tensor, correct: Tensor, k: int | None = None) -> float:
    """Normalised discounted cumulative gain of the k best (None: all), 0..1, gain 1: Jarvelin and Kekalainen 2002."""
    _check(scores, correct, 1 if k is None else k)
    return float(_gain(_rank(scores, correct), correct, k).mean())


def median_rank(scores: Tensor, correct: Tensor) -> float:
    """Median over queries of the rank, from 1, of the first correct item."""
    _check(scores, correct, 1)
    return float(_first(_rank(scores, correct)).quantile(0.5))


class _Ties(NamedTuple):
    """A ranking, place by place: (Q, G) but `place`.  Equal scores are a group; any order in it is as probable."""

    place: Tensor  # (G,), from 1
    before: Tensor  # items of higher score
    items: Tensor  # in the group of this place, itself among them
    found_before: Tensor  # correct items of higher score
    found: Tensor  # correct items in the group


def _rank(scores: Tensor, correct: Tensor) -> _Ties:
    """The groups of equal scores; expected values need nothing else (McSherry and Najork 2008)."""
    ordered, order = scores.sort(1, descending=True)
    hits = F.pad(correct.gather(1, order).double().cumsum(1), (1, 0))  # (Q, G + 1), among the first 0..G
    place = torch.arange(1, scores.shape[1] + 1, dtype=torch.float64, device=scores.device)
    new = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 1), value=True)  # (Q, G + 1), a group begins here, or the end is
    before = torch.where(new[:, :-1], place - 1, 0).cummax(1).values
    last = torch.where(new[:, 1:], place, torch.inf).flip(1).cummin(1).values.flip(1)
    found_before = hits.gather(1, before.long())
    return _Ties(place, before, last - before, found_before, hits.gather(1, last.long()) - found_before)


def _first(ties: _Ties) -> Tensor:
    """Expected rank of the first correct item, (Q,); of r among n in random order it is (n + 1) / (r + 1)."""
    first = ties.before + (ties.items + 1) / (ties.found + 1)
    at = (ties.found > 0).int().argmax(1, keepdim=True)
    return first.gather(1, at)[:, 0]


def _precision(ties: _Ties, correct: Tensor) -> Tensor:
    """Expected average precision, (Q,)."""
    within = ties.place - ties.before - 1  # of this place in its group of ties, from 0
    others = within * (ties.found - 1) / (ties.items - 1).clamp(min=1)  # correct ones there that come earlier
    precision = (ties.found_before + others + 1) / ties.place
    found = ties.found / ties.items  # probability that this place is correct
    return (found * precision).sum(1) / correct.sum(1)


def _gain(ties: _Ties, correct: Tensor, k: int | None) -> Tensor:
    """Expected normalised discounted cumulative gain of the first k places, (Q,)."""
    discount = 1 / (ties.place + 1).log2()
    discount[correct.shape[1] if k is None else k :] = 0
    ideal = discount.cumsum(0)[correct.sum(1) - 1]  # (Q,), all correct items first
    return ((ties.found / ties.items) * discount).sum(1) / ideal


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
        raise InputError(
            f"probabilities {tuple(probabilities.shape)} must be (n, M) and targets {tuple(targets.shape)} (n,), n > 0."
        )
    if not torch.allclose(probabilities.sum(1), torch.ones(()).to(probabilities), atol=1e-3):
        raise InputError("probabilities must sum to 1 in each row: give softmax(logits).")
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
        raise InputError(
            f"scores {tuple(scores.shape)} and correct {tuple(correct.shape)} {correct.dtype}: "
            "both must be (Q, G), correct bool."
        )
    _check_k(k)
    if scores.isnan().any():
        raise InputError(f"{int(scores.isnan().any(1).sum())} of {len(scores)} queries have NaN scores.")
    _check_all_found(correct.any(1))


def _check_k(*ks: int) -> None:
    if wrong := [k for k in ks if k < 1]:
        raise InputError(f"k must be 1 or more, got {', '.join(map(str, wrong))}.")


def _check_all_found(found: Tensor) -> None:
    empty = (~found).nonzero().flatten()
    if len(empty) or not len(found):
        raise InputError(
            f"{len(empty)} of {len(found)} queries have no correct item, first {empty[:5].tolist()}. Leave them out."
        )
