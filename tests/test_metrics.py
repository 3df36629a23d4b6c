import math
from itertools import permutations

import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from vlm.metrics import chance_recall_at_k, recall_at_k, top_k_accuracy


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


def test_bad_input_is_one_clear_line():
    scores, correct = random_problem(5)
    with pytest.raises(ValueError, match="2 of 30 queries have no correct item"):
        recall_at_k(scores, correct & (torch.arange(30) > 1)[:, None], 1)
    with pytest.raises(ValueError, match="1 of 30 queries have NaN scores"):
        recall_at_k(torch.where(torch.arange(30)[:, None] == 3, torch.nan, scores), correct, 1)
    with pytest.raises(ValueError, match="k must be 1 or more, got 0"):
        recall_at_k(scores, correct, 0)
    with pytest.raises(ValueError, match="correct bool"):
        recall_at_k(scores, correct.long(), 1)
    with pytest.raises(ValueError, match=r"targets \(3,\) must be"):
        top_k_accuracy(torch.zeros(2, 4), torch.zeros(3, dtype=torch.long))
