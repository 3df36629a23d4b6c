"""Groups of vectors that are nearly the same, among hundreds of thousands.

All pairs are compared, most of them by an upper bound of their cosine similarity.
"""

from typing import cast

import numpy as np
import torch
from torch import Tensor

_BLOCK = 2048  # vectors compared with as many others at a time
_SAMPLE = 2048  # vectors that say which coordinates matter, and how many
_FALSE_POSITIVES = 1 / (8 * _BLOCK)  # share of pairs that may pass the bound and then fail: a row in eight of a block
_ROUNDING = 1e-4  # more than float32 is wrong by


def group_near(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Label the connected components of the graph of high cosine similarities.  Exact; time grows as G^2.

    Args:
        vectors: float16 unit vectors (G, E).
        threshold: cosine similarity from which two vectors are joined.

    Returns:
        Labels (G,): equal where a chain of similarities >= `threshold` joins two vectors.
    """
    folded = fold(vectors, threshold)  # (G, m + 1)
    parents = np.arange(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        for other in range(start, len(vectors), _BLOCK):
            bounds = folded[start : start + _BLOCK] @ folded[other : other + _BLOCK].T  # (block, block)
            if start == other:
                bounds.fill_diagonal_(-torch.inf)
            rows = (bounds.amax(1) >= threshold - _ROUNDING).nonzero()[:, 0].numpy() + start
            if len(rows):
                near = _float(vectors[rows]) @ _float(vectors[other : other + _BLOCK]).T >= threshold
                for row, columns in zip(rows, near.numpy(), strict=True):
                    _join(parents, np.append(np.flatnonzero(columns) + other, row))
    while (parents[parents] != parents).any():
        parents = parents[parents]
    return parents


def fold(vectors: np.ndarray, threshold: float) -> Tensor:
    """Shorten vectors so that dot products are upper bounds of the cosine similarities.

    Args:
        vectors: float16 unit vectors (G, E).
        threshold: m is as small as lets few pairs reach it that do not reach it in truth.

    Returns:
        float32 (G, m + 1).

    In an orthonormal basis x.y is the product of the first m coordinates plus that of the rest, and the rest is
    |rest of x| |rest of y| at most (Cauchy-Schwarz).  The basis is that of the principal components, so the rest is
    small.
    """
    picked = np.linspace(0, len(vectors) - 1, min(len(vectors), _SAMPLE)).astype(np.int64)
    sample = _float(vectors[picked])
    basis = cast(Tensor, torch.linalg.eigh(sample.T @ sample).eigenvectors).flip(1)  # (E, E), the most important first
    true, m = (sample @ sample.T >= threshold).sum(), 16
    while m < basis.shape[1]:
        folded = _folded(sample, basis[:, :m])
        if (folded @ folded.T >= threshold - _ROUNDING).sum() - true <= _FALSE_POSITIVES * len(sample) ** 2:
            break
        m *= 2
    return torch.cat([_folded(_float(block), basis[:, :m]) for block in _blocks(vectors)])


def _folded(vectors: Tensor, basis: Tensor) -> Tensor:
    first = vectors @ basis  # (G, m)
    rest = (vectors.square().sum(1) - first.square().sum(1)).clamp(min=0).sqrt()
    return torch.cat([first, rest[:, None]], 1)


def _blocks(vectors: np.ndarray) -> list[np.ndarray]:
    return [vectors[start : start + _BLOCK] for start in range(0, len(vectors) or 1, _BLOCK)]


def _join(parents: np.ndarray, items: np.ndarray) -> None:
    """Union of the sets of `items`.  A parent is never larger than its child, so every root is the smallest member."""
    roots = items
    while (parents[roots] != roots).any():
        roots = parents[roots]
    parents[roots] = parents[items] = roots.min()


def _float(vectors: np.ndarray) -> Tensor:
    return torch.from_numpy(vectors).float()
