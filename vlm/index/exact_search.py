"""The K nearest of all stored vectors, exactly, about as fast as memory can be read."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1024  # vectors that are float32 at a time: they stay in the cache
_SLICE = 65536  # vectors that a thread scores at a time
_ERROR = 0.001  # of a score between unit vectors when query and result are rounded to float16: twice 2^-11 at most
_MANY = 65536  # candidates that are not worth picking out


def nearest(vectors: np.ndarray, queries: Tensor, k: int, rows: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """float16 unit vectors (G, E), mapped from disk or not, and unit queries (Q, E) -> scores and rows, both (Q, K).

    Scores are float32 cosines, best first; K is `k`, or all there are.  Only `rows` (ascending) count.
    """
    count = len(vectors) if rows is None else len(rows)
    k = min(k, count)
    if k and len(queries) == 1:  # not worth a matrix product
        scores, found = _nearest_one(vectors, queries[0], k, rows)
    else:
        scores, found = _nearest_many(vectors, queries, k, rows)
    return scores, found if rows is None else torch.from_numpy(rows)[found]


def cosines(vectors: np.ndarray, queries: Tensor) -> Tensor:
    """All of them, float32 (Q, G)."""
    scores = torch.empty(len(vectors), len(queries))
    for start, block in _products(vectors, queries, None):
        scores[start : start + len(block)] = block
    return scores.T


def _nearest_many(vectors: np.ndarray, queries: Tensor, k: int, rows: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """Block by block: only a block that holds something better than the K-th best so far is looked at closely."""
    best = torch.full((len(queries), k), -torch.inf)  # (Q, K), sorted
    found = torch.zeros(len(queries), k, dtype=torch.int64)
    if not k:
        return best, found
    for start, block in _products(vectors, queries, rows):  # (block, Q)
        news = (block.amax(0) > best[:, -1]).nonzero()[:, 0]
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
    """Half precision leaves few candidates, float32 decides.

    PyTorch's float16 dot product adds up in float32 and reads nothing twice, but it rounds query and score to float16.
    Two scores can thus be wrong by `_ERROR` each: whatever is within twice that of the K-th best is a candidate, and
    none of the K best is missed.  Should a processor round more than that, which the candidates show, or should too
    many be alike, everything is done in float32.
    """
    rounded = query.half()
    count = len(vectors) if rows is None else len(rows)
    coarse = torch.empty(count, dtype=torch.float16)

    def score(start: int) -> None:
        part = torch.from_numpy(_part(vectors, rows, start, start + _SLICE))
        torch.mv(part, rounded, out=coarse[start : start + len(part)])

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(score, range(0, count, _SLICE)))
    scores = coarse.float()
    candidates = (scores >= scores.topk(k).values[-1] - 2 * _ERROR).nonzero()[:, 0]
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
