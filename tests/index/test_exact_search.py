import numpy as np
import pytest
import torch
from torch import Tensor

from vlm.index import exact_search
from vlm.index.exact_search import cosines, nearest


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "_SLICE", 3000)  # several threads, the last with less than the others


def unit(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)


def brute(vectors: np.ndarray, queries: Tensor) -> Tensor:
    """By the definition, in float64, (Q, G)."""
    return queries.double() @ torch.from_numpy(vectors).double().T


def check(vectors: np.ndarray, queries: Tensor, k: int, rows: np.ndarray | None = None) -> None:
    """The K best scores, in order, and every row has the score it is said to have."""
    scores, found = nearest(vectors, queries, k, rows)
    all_scores = brute(vectors, queries)
    allowed = torch.arange(len(vectors)) if rows is None else torch.from_numpy(rows)
    best = all_scores[:, allowed].sort(descending=True).values[:, :k]
    assert scores.shape == found.shape == (len(queries), min(k, len(allowed)))
    torch.testing.assert_close(scores.double(), best, atol=1e-6, rtol=0)
    torch.testing.assert_close(scores.double(), all_scores.gather(1, found), atol=1e-6, rtol=0)
    assert all(len(set(row)) == len(row) and set(row) <= set(allowed.tolist()) for row in found.tolist())


def test_cosines_in_blocks_are_the_whole_product():
    vectors = unit(9000, 16, 0).half().numpy()
    queries = unit(3, 16, 1)
    torch.testing.assert_close(cosines(vectors, queries).double(), brute(vectors, queries), atol=1e-6, rtol=0)


@pytest.mark.parametrize("queries", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 7, 2048, 20_001])
def test_the_nearest_are_those_of_the_whole_product(count: int, queries: int):
    check(unit(count, 32, 0).half().numpy(), unit(queries, 32, 1), 10)


@pytest.mark.parametrize("queries", [1, 3])
def test_only_the_rows_that_count_are_found(queries: int):
    rows = np.arange(5, 20_000, 7)
    check(unit(20_000, 32, 0).half().numpy(), unit(queries, 32, 1), 10, rows)
    for few in (0, 1, 3):
        check(unit(20_000, 32, 0).half().numpy(), unit(queries, 32, 1), 10, rows[:few])
    check(unit(20_000, 32, 0).half().numpy(), unit(queries, 32, 1), 0, rows)


def test_scores_that_float16_cannot_tell_apart_are_ordered_exactly():
    """Scores near 1 are 0.0005 apart in float16; these are 0.00001 apart and less."""
    query = unit(1, 256, 0)
    vectors = torch.nn.functional.normalize(query + 0.001 * unit(5000, 256, 1), dim=1).half().numpy()
    assert len(set((torch.from_numpy(vectors) @ query[0].half()).tolist())) < 50
    check(vectors, query, 10)


def test_rounding_by_a_thousandth_costs_none_of_the_best(monkeypatch: pytest.MonkeyPatch):
    """As much as the search allows for: half of the rows up, half of them down."""
    query = unit(1, 64, 0)
    vectors = torch.nn.functional.normalize(query + 2 * unit(1, 64, 2) + 0.003 * unit(5000, 64, 1), dim=1)

    def rough(part: Tensor, query: Tensor, *, out: Tensor) -> None:
        out.copy_(part.float() @ query.float() + 0.0007 * (-1.0) ** torch.arange(len(out)))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "mv", rough)
        check(vectors.half().numpy(), query, 10)


def test_a_processor_that_rounds_more_is_found_out(monkeypatch: pytest.MonkeyPatch):
    vectors, query = unit(20_000, 32, 0).half().numpy(), unit(1, 32, 1)

    def rough(part: Tensor, query: Tensor, *, out: Tensor) -> None:
        out.copy_(part.float() @ query.float()).add_(torch.linspace(-0.02, 0.02, len(out)))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "mv", rough)
        check(vectors, query, 10)


def test_when_nearly_all_are_alike_the_answer_is_still_exact(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exact_search, "_MANY", 100)
    query = unit(1, 64, 0)
    check(torch.nn.functional.normalize(query + 0.001 * unit(5000, 64, 1), dim=1).half().numpy(), query, 10)
