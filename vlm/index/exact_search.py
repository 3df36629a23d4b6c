"""Exact search for the K nearest of all stored vectors, about as fast as memory can be read."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1024  # vectors that are float32 at a time: they stay in the cache
_SLICE = 65536  # vectors that a thread scores at a time
_ERROR = 0.001  # of a score between unit vectors when query and result are rounded to float16: twice 2^-11 at most
_MANY = 65536  # candidates; with more, scoring everything is faster


def nearest(vectors: np.ndarray, queries: Tensor, k: int, rows: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """Find the K stored vectors nearest to each query.

    Args:
        vectors: float16 unit vectors (G, E), mapped from disk or not.
        queries: unit vectors (Q, E).
        k: how many; fewer are returned where there are fewer.
        rows: the rows that may be found, ascending; None: all.

    Returns:
        float32 cosine similarities, best first, and rows, both (Q, K).  Damaged vectors, which are not finite, come
        before all others.
    """
    count = len(vectors) if rows is None else len(rows)
    k = min(k, count)
    if k and len(queries) == 1:  # a matrix product would be slower
        scores, found = _nearest_one(vectors, queries[0], k, rows)
    else:
        scores, found = _nearest_many(vectors, queries, k, rows)
    return scores, found if rows is None else torch.from_numpy(rows)[found]


def cosines(vectors: np.ndarray, queries: Tensor) -> Tensor:
    """Cosine similarities of all queries (Q, E) with all vectors (G, E), float32 (Q, G)."""
    scores = torch.empty(len(vectors), len(queries))
    for start, block in _products(vectors, queries, None):
        scores[start : start + len(block)] = block
    return scores.T


def _nearest_many(vectors: np.ndarray, queries: Tensor, k: int, rows: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """Go block by block; a block is sorted only if it holds a score above the K-th best so far."""
    best = torch.full((len(queries), k), -torch.inf)  # (Q, K), sorted
    found = torch.zeros(len(queries), k, dtype=torch.int64)
    if not k:
        return best, found
    for start, block in _products(vectors, queries, rows):  # (block, Q)
        news = (~(block.amax(0) <= best[:, -1])).nonzero()[:, 0]  # NaN, of a damaged vector, counts as best
        if not len(news):
            continue
        scores, at = block[:, news].T.topk(min(k, len(block)))
        merged, order = torch.cat([best[news], scores], 1).topk(k)
        best[news], found[news] = merged, torch.cat([found[news], at + start], 1).gather(1, order)
    return best, found


def _products(vectors: np.ndarray, queries: Tensor, rows: np.ndarray | None) -> Iterator[tuple[int, Tensor]]:
    """(start, float32 (block, Q)); the next block is written over this one."""
    count = len(vectors) if rows is None else len(rows)
    transposed = queries.T.contiguous()  # (E, Q)
    buffer = torch.empty(_BLOCK, queries.shape[1])  # one for all: getting new memory takes longer than the product
    products = torch.empty(_BLOCK, len(queries))
    for start in range(0, count, _BLOCK):
        stored = torch.from_numpy(_part(vectors, rows, start, start + _BLOCK))
        block = buffer[: len(stored)].copy_(stored)  # (block, E)
        yield start, torch.mm(block, transposed, out=products[: len(stored)])


def _nearest_one(vectors: np.ndarray, query: Tensor, k: int, rows: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """Select candidates in half precision and score them in float32.

    PyTorch's float16 dot product adds up in float32 and reads nothing twice, but it rounds query and score to float16.
    Two scores can thus be wrong by `_ERROR` each: every vector within twice that of the K-th best is a candidate, and
    none of the K best is missed.  If the candidates show that this processor rounds more, or if there are too many of
    them, everything is computed in float32.
    """
    rounded = query.half()
    count = len(vectors) if rows is None else len(rows)
    coarse = torch.empty(count, dtype=torch.float16)

    def score_part(start: int) -> None:
        part = torch.from_numpy(_part(vectors, rows, start, start + _SLICE))
        torch.mv(part, rounded, out=coarse[start : start + len(part)])

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(score_part, range(0, count, _SLICE)))
    scores = coarse.float()
    best = scores.topk(k).values
    if not best[0] < torch.inf:  # damaged vectors
        return _nearest_many(vectors, query[None], k, rows)
    candidates = (scores >= best[-1] - 2 * _ERROR).nonzero()[:, 0]
    if len(candidates) > _MANY:
        return _nearest_many(vectors, query[None], k, rows)
    picked = candidates if rows is None else torch.from_numpy(rows)[candidates]
    exact = torch.from_numpy(vectors[picked.numpy()]).float() @ query
    if (exact - scores[candidates]).abs().max() > _ERROR:
        return _nearest_many(vectors, query[None], k, rows)
    best, order = exact.topk(k)
    return best[None], candidates[order][None]


def _part(vectors: np.ndarray, rows: np.ndarray | None, start: int, stop: int) -> np.ndarray:
    return vectors[start:stop] if rows is None else vectors[rows[start:stop]]
