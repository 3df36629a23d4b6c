import math
import statistics
from collections.abc import Callable
from functools import partial
from itertools import permutations

import pytest
import torch
from sklearn.metrics import average_precision_score, ndcg_score, recall_score, top_k_accuracy_score

from vlm.errors import InputError
from vlm.metrics import (
    balanced_accuracy,
    calibration_error,
    chance_ranking,
    chance_recall_at_k,
    embedding_hits,
    expected_calibration_error,
    mean_average_precision,
    median_rank,
    ndcg,
    rank_queries,
    recall_at_k,
    reliability,
    top_k_accuracy,
)


def random_problem(seed: int, queries: int = 30, gallery: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(queries, gallery, generator=generator)
    correct = torch.rand(queries, gallery, generator=generator) < 0.2
    correct[torch.arange(queries), torch.randint(gallery, (queries,), generator=generator)] = True
    return scores, correct


@pytest.mark.parametrize("k", [1, 3, 12, 50])
def test_recall_without_ties_counts_queries_with_a_correct_item_among_the_first_k(k: int):
    scores, correct = random_problem(0)
    ranking = scores.argsort(descending=True)[:, :k]
    assert recall_at_k(scores, correct, k) == pytest.approx(correct.gather(1, ranking).any(1).float().mean().item())


def test_ties_count_as_the_mean_over_every_order_of_the_gallery():
    scores = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]])
    correct = torch.tensor([[False, True, False, True, True]])
    for k in range(1, 6):
        hits = []
        for order in permutations(range(5)):
            first = scores[0, list(order)].argsort(descending=True, stable=True)[:k]
            hits.append(correct[0, list(order)][first].any().item())
        assert recall_at_k(scores, correct, k) == pytest.approx(sum(hits) / len(hits), abs=1e-12)


def test_order_of_the_gallery_does_not_matter_even_with_ties():
    scores, correct = random_problem(1)
    scores = scores.round()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    assert recall_at_k(scores, correct, 4) == pytest.approx(recall_at_k(scores[:, order], correct[:, order], 4))


def test_chance_is_the_hypergeometric_of_the_textbook():
    correct = torch.zeros(2, 20, dtype=torch.bool)
    correct[0, :1] = correct[1, :5] = True
    expected = [1 - math.comb(20 - c, 4) / math.comb(20, 4) for c in (1, 5)]
    assert chance_recall_at_k(correct, 4) == pytest.approx(sum(expected) / 2, abs=1e-12)
    assert chance_recall_at_k(correct, 20) == 1.0


def test_chance_of_one_correct_item_is_k_over_the_gallery_however_large():
    assert chance_recall_at_k(torch.eye(547, dtype=torch.bool), 1) == pytest.approx(1 / 547, rel=1e-9)


def test_random_scores_come_near_chance():
    scores, correct = random_problem(3, queries=20_000)
    assert recall_at_k(scores, correct, 3) == pytest.approx(chance_recall_at_k(correct, 3), abs=0.015)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_accuracy_is_that_of_scikit_learn(k: int):
    generator = torch.Generator().manual_seed(4)
    logits, targets = torch.randn(50, 7, generator=generator), torch.randint(7, (50,), generator=generator)
    expected = top_k_accuracy_score(targets.numpy(), logits.numpy(), k=k, labels=range(7))
    assert top_k_accuracy(logits, targets, k) == pytest.approx(expected)


def test_a_model_that_answers_everything_alike_gets_chance_not_luck():
    assert top_k_accuracy(torch.zeros(10, 4), torch.zeros(10, dtype=torch.long)) == pytest.approx(0.25)


def embedding_problem(seed: int, queries: int = 40, gallery: int = 60, groups: int = 15) -> list[torch.Tensor]:
    """Small whole numbers: many scores are equal, in float32 exactly.  Every query's group is in the gallery."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(-1, 2, (n, 5), generator=generator).float() for n in (queries, gallery))
    of_y = torch.cat([torch.arange(groups), torch.randint(groups, (gallery - groups,), generator=generator)])
    of_x = torch.randint(groups, (queries,), generator=generator)
    return [x, y, of_x * 7 - 3, of_y[torch.randperm(gallery, generator=generator)] * 7 - 3]


@pytest.mark.parametrize("block_rows", [1, 7, 1000])
def test_hits_from_embeddings_are_the_recall_of_the_score_matrix(block_rows, monkeypatch):
    x, y, of_x, of_y = embedding_problem(0)
    monkeypatch.setattr("vlm.metrics._BLOCK_BYTES", block_rows * 4 * len(y))
    hits, correct = embedding_hits(x, y, of_x, of_y, (1, 4, 60, 99)), of_x[:, None] == of_y[None, :]
    assert ((hits > 0) & (hits < 1)).any()  # there are ties
    for column, k in enumerate((1, 4, 60, 99)):
        assert hits[:, column].mean().item() == pytest.approx(recall_at_k(x @ y.T, correct, k), abs=1e-12)


def test_hits_from_embeddings_name_what_does_not_fit():
    x, y, of_x, of_y = embedding_problem(1)
    with pytest.raises(InputError, match=r"1.*40 queries"):
        embedding_hits(x, y, torch.where(torch.arange(40) == 3, 1, of_x), of_y)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(InputError, match="1 of 40 queries are not finite"):
            embedding_hits(torch.where(torch.arange(40)[:, None] == 3, bad, x), y, of_x, of_y)
        with pytest.raises(InputError, match=r"1.*60 gallery"):
            embedding_hits(x, torch.where(torch.arange(60)[:, None] == 3, bad, y), of_x, of_y)
    for wrong in ((x[:, 1:], y, of_x, of_y), (x, y, of_x[1:], of_y), (x, y, of_x, of_y[1:])):
        with pytest.raises(InputError, match="must be"):
            embedding_hits(*wrong)
    with pytest.raises(InputError, match="k must be 1 or more, got 0"):
        embedding_hits(x, y, of_x, of_y, (0, 1))


def test_one_sort_gives_every_metric():
    scores, correct = random_problem(9)
    for some in (scores, scores.round()):
        found = rank_queries(some, correct)
        assert {k: hits.mean().item() for k, hits in found.recall.items()} == pytest.approx(
            {k: recall_at_k(some, correct, k) for k in (1, 5, 10)}
        )
        assert found.first.quantile(0.5).item() == median_rank(some, correct)
        assert found.average_precision.mean().item() == pytest.approx(mean_average_precision(some, correct), rel=1e-12)
        assert found.ndcg.mean().item() == pytest.approx(ndcg(some, correct), rel=1e-12)


def test_chance_is_the_ranking_of_equal_scores():
    scores, correct = random_problem(10)
    found, truth = chance_ranking(correct), rank_queries(torch.zeros_like(scores), correct)
    for ours, theirs in zip(
        (*found.recall.values(), found.first, found.average_precision, found.ndcg),
        (*truth.recall.values(), truth.first, truth.average_precision, truth.ndcg),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_bad_input_is_one_clear_line():
    scores, correct = random_problem(5)
    with pytest.raises(ValueError, match=r"7.*30 queries.*\[2, 3, 4, 5, 6\]"):
        recall_at_k(scores, correct & ((torch.arange(30) < 2) | (torch.arange(30) > 8))[:, None], 1)
    with pytest.raises(ValueError, match=r"0.*0 queries"):
        recall_at_k(scores[:0], correct[:0], 1)
    for rows in (torch.arange(30)[:, None] == 3, (torch.arange(30)[:, None] == 3) & (torch.arange(12) == 5)):
        with pytest.raises(ValueError, match=r"^1 of 30 queries have NaN scores"):
            recall_at_k(torch.where(rows, torch.nan, scores), correct, 1)
    with pytest.raises(ValueError, match="k must be 1 or more, got 0"):
        recall_at_k(scores, correct, 0)
    for wrong in (correct.long(), correct[:, 1:], correct[1:]):
        with pytest.raises(ValueError, match=r"\(30, 12\).*correct "):
            recall_at_k(scores, wrong, 1)
    with pytest.raises(ValueError, match=r"both must be \(Q, G\)"):
        recall_at_k(scores[None], correct[None], 1)
    for logits, targets in (((2, 4), (3,)), ((3, 4, 2), (3,)), ((3,), (3,)), ((3, 4), (3, 1))):
        with pytest.raises(ValueError, match=r"\(.*\).*targets \(3,.*\).*\(B,\)"):
            top_k_accuracy(torch.zeros(logits), torch.zeros(targets, dtype=torch.long))


def two_classes(sure: list[float], right: list[bool]) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers "class 0" with these probabilities; the targets make them right or wrong."""
    first = torch.tensor(sure, dtype=torch.float64)
    return torch.stack([first, 1 - first], 1), torch.tensor([0 if hit else 1 for hit in right])


@pytest.mark.parametrize(
    ("sure", "right", "bins", "expected"),
    [
        ([0.8] * 5, [True] * 4 + [False], 10, 0.0),  # as often right as sure
        ([1.0] * 4, [False] * 4, 10, 1.0),  # sure and always wrong
        ([0.9, 0.9, 0.6, 0.6], [True, False, True, True], 10, (0.4 + 0.4) / 2),
        ([0.75, 0.65], [False, True], 2, abs(0.5 - 0.7)),  # one bin: over- and underconfidence cancel
        ([0.75, 0.65], [False, True], 10, (0.75 + 0.35) / 2),  # two bins: they do not
    ],
)
def test_calibration_error_of_cases_done_by_hand(sure: list[float], right: list[bool], bins: int, expected: float):
    assert expected_calibration_error(*two_classes(sure, right), bins=bins) == pytest.approx(expected, abs=1e-12)


def test_a_probability_on_an_edge_belongs_to_the_bin_below():
    """Guo et al. 2017: bin b is ((b - 1) / B, b / B]."""
    found = reliability(*two_classes([0.5, 0.75, 0.75 + 1e-9, 1.0], [True] * 4), bins=4)
    assert found.count.tolist() == [0, 1, 1, 2]


def test_calibration_error_is_the_sum_over_the_bins_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(500, 6, generator=generator)).double().softmax(1)
    targets = torch.randint(6, (500,), generator=generator)
    expected, answers = 0.0, list(zip(probabilities.tolist(), targets.tolist(), strict=True))
    for b in range(1, 16):
        inside = [(max(p), p.index(max(p)) == t) for p, t in answers if (b - 1) / 15 < max(p) <= b / 15]
        if inside:
            confidence, accuracy = (sum(part) / len(inside) for part in zip(*inside, strict=True))
            expected += len(inside) / 500 * abs(accuracy - confidence)
    assert expected_calibration_error(probabilities, targets) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_wants_probabilities_not_logits():
    with pytest.raises(ValueError, match="must sum to 1"):
        expected_calibration_error(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
    for shape, targets in (((0, 3), 0), ((4, 3), 3), ((4, 3, 2), 4), ((4,), 4)):
        with pytest.raises(ValueError, match=rf"must be \(n, M\) and targets \({targets},\) \(n,\), n > 0"):
            expected_calibration_error(torch.empty(shape), torch.zeros(targets, dtype=torch.long))


def test_the_reliability_of_the_error_is_what_reliability_says():
    """The same number of bins unless told; each answer in one of them."""
    generator = torch.Generator().manual_seed(2)
    answers = torch.randn(300, 4, generator=generator).softmax(1), torch.randint(4, (300,), generator=generator)
    assert calibration_error(reliability(*answers)) == expected_calibration_error(*answers)
    assert calibration_error(reliability(*answers, bins=7)) == expected_calibration_error(*answers, bins=7)
    assert (len(reliability(*answers, bins=7).count), reliability(*answers, bins=7).count.sum().item()) == (7, 300)


def test_balanced_accuracy_is_that_of_scikit_learn_and_knows_only_classes_that_occur():
    generator = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(200, 4, generator=generator), torch.randint(4, (200,), generator=generator) ** 2 // 3
    expected = recall_score(targets, logits.argmax(1), labels=targets.unique(), average="macro")
    assert balanced_accuracy(logits, targets) == pytest.approx(expected, abs=1e-12)
    only_first = torch.zeros(200, dtype=torch.long)
    assert balanced_accuracy(logits, only_first) == pytest.approx(top_k_accuracy(logits, only_first), abs=1e-6)


METRICS = {"map": mean_average_precision, "ndcg": ndcg, "ndcg@5": partial(ndcg, k=5)}


@pytest.mark.long  # ranx compiles itself first
@pytest.mark.filterwarnings("ignore:.*unsafe cast")  # its own, in bold where colours are on
@pytest.mark.parametrize("name", METRICS)
def test_without_ties_map_and_ndcg_are_those_of_ranx(name: str):
    scores, correct = random_problem(6)
    assert METRICS[name](scores, correct) == pytest.approx(of_ranx(scores, correct, name), abs=1e-9)


@pytest.mark.parametrize("queries", [30, 4])
def test_without_ties_map_and_ndcg_are_those_of_scikit_learn(queries: int):
    scores, correct = random_problem(6, queries)
    pairs = list(zip(correct.numpy(), scores.numpy(), strict=True))
    precisions = [average_precision_score(*pair) for pair in pairs]
    assert mean_average_precision(scores, correct) == pytest.approx(sum(precisions) / len(pairs), abs=1e-9)
    for k in (None, 1, 5):
        assert ndcg(scores, correct, k) == pytest.approx(ndcg_score(correct.numpy(), scores.numpy(), k=k), abs=1e-9)
    with pytest.raises(ValueError, match="k must be 1 or more, got 0"):
        ndcg(scores, correct, 0)


def of_ranx(scores: torch.Tensor, correct: torch.Tensor, name: str) -> float:
    import ranx

    queries = {f"q{q}": {f"g{g}": 1 for g in row.nonzero()[:, 0].tolist()} for q, row in enumerate(correct)}
    ranked = {f"q{q}": {f"g{g}": score for g, score in enumerate(row.tolist())} for q, row in enumerate(scores)}
    value = ranx.evaluate(ranx.Qrels(queries), ranx.Run(ranked), name)
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize("queries", [31, 30, 4, 1])
def test_without_ties_the_median_rank_is_that_of_the_first_correct_item(queries: int):
    scores, correct = random_problem(7, queries)
    ranks = [row[hits].max().le(row).sum().item() for row, hits in zip(scores, correct, strict=True)]
    assert median_rank(scores, correct) == statistics.median(ranks)


@pytest.mark.parametrize("hits", [(1, 3, 4), (4, 5), (0, 1, 2, 3)])
@pytest.mark.parametrize("metric", [mean_average_precision, ndcg, partial(ndcg, k=2), median_rank])
def test_under_ties_every_metric_is_the_mean_over_every_order(
    metric: Callable[[torch.Tensor, torch.Tensor], float], hits: tuple[int, ...]
):
    scores = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0, 0.0]])
    correct = torch.zeros(1, 6, dtype=torch.bool)
    correct[0, list(hits)] = True
    values = []
    for order in map(list, permutations(range(6))):
        distinct = scores[:, order] - torch.arange(6) * 1e-3  # the earlier, the better
        values.append(metric(distinct, correct[:, order]))
    assert metric(scores, correct) == pytest.approx(sum(values) / len(values), abs=1e-9)


@pytest.mark.parametrize("metric", [mean_average_precision, ndcg, median_rank])
def test_a_perfect_ranking_scores_1(metric: Callable[[torch.Tensor, torch.Tensor], float]):
    scores, correct = random_problem(8)
    assert metric(scores + 100 * correct, correct) == pytest.approx(1, abs=1e-12)
