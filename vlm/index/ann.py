"""Approximate search for millions of vectors: FAISS finds candidates, the stored float16 vectors score them.

FAISS keeps 4 bits for every 2 numbers of a vector, in lists around centroids (IVF, PQ fast scan; Jegou et al. 2011).
A search looks into the nearest lists, takes the best candidates by those codes and scores them exactly.  The number of
lists is measured when the index is built: as few as give the wanted recall against exact search.

On disk the index is plain arrays (safetensors) from which FAISS's lists are filled.  FAISS's own files are never read:
its reader trusts the sizes in them.  Row r of the arrays is row r of the vectors, so a vector that is added later is
searched exactly until the next build.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlm import atomic
from vlm.errors import IndexFileError, InputError, missing_package
from vlm.index.exact_search import nearest

if TYPE_CHECKING:
    import faiss

TARGET = 0.993  # recall@10 that a build looks for, of the harder kind of query; unseen ones come out a little lower
_CANDIDATES = 400  # scored exactly, or 4 K
_TOP = 10
_BLOCK = 65536
_TRAIN_PER_LIST = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Ann:
    """Codes of the first `rows` vectors of an index."""

    centroids: np.ndarray  # float32 (lists, E)
    codebooks: np.ndarray  # float32 (E / 2, 16, 2)
    lists: np.ndarray  # int32 (rows,)
    codes: np.ndarray  # uint8 (rows, E / 4 rounded up)
    probes: int  # lists that a search looks into
    recall: dict[str, float]  # @10 against exact search, by kind of query
    index: "faiss.IndexIVFPQFastScan"

    @property
    def rows(self) -> int:
        """Number of vectors that have codes."""
        return len(self.lists)

    def nearest(self, vectors: np.ndarray, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores and rows of the K nearest, as `exact_search.nearest` returns them.

        Args:
            vectors: float16 unit vectors (G, E); those behind the first `rows` are searched exactly.
            queries: unit vectors (Q, E).
            k: how many.

        Returns:
            Scores and rows, both (Q, K), best first; score -inf and row -1 where no more were found.
        """
        wanted = min(self.rows, max(_CANDIDATES, 4 * k))
        params = _faiss().SearchParametersIVF(nprobe=self.probes)
        _, rows = self.index.search(queries.numpy(), wanted, params=params)  # (Q, wanted)
        picked = torch.from_numpy(vectors[np.maximum(rows, 0)]).float()  # (Q, wanted, E)
        scores = (picked @ queries[:, :, None])[:, :, 0]
        scores[torch.from_numpy(rows < 0)] = -torch.inf
        late, late_rows = nearest(vectors[self.rows :], queries, k)
        scores = torch.cat([scores, late], 1)
        found = torch.cat([torch.from_numpy(rows), late_rows + self.rows], 1)
        best, order = scores.topk(min(k, scores.shape[1]))
        return best, found.gather(1, order)

    def save(self, file: Path) -> None:
        """Write to a file.  The write is atomic: a partial file is never visible."""
        arrays = {"centroids": self.centroids, "codebooks": self.codebooks, "lists": self.lists, "codes": self.codes}
        about = {"probes": str(self.probes), **{f"recall {kind}": str(value) for kind, value in self.recall.items()}}
        with atomic.replacing(file) as new:
            safetensors.numpy.save_file(arrays, new, about)


class OpenedAnn:
    """Keeps the approximate index of a file in memory, and reads it again when the file changes."""

    def __init__(self) -> None:
        self._state: tuple[Path, int] | None = None
        self._ann: Ann | None = None

    def at(self, file: Path, embed_dim: int) -> Ann | None:
        """The index in `file`, None where there is none; read again only when the file has changed."""
        try:
            state = file, file.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        if state != self._state:
            self._ann, self._state = load(file, embed_dim), state
        return self._ann


def load(file: Path, embed_dim: int) -> Ann:
    """Read a file that `Ann.save` wrote.

    Args:
        file: the file.
        embed_dim: E of the vectors.

    Raises:
        IndexFileError: for any other file.
    """
    try:
        with cast(Any, safe_open(file, "numpy")) as opened:  # its stubs have no types
            about: dict[str, str] = opened.metadata() or {}
            arrays = {name: opened.get_tensor(name) for name in ("centroids", "codebooks", "lists", "codes")}
        probes = int(about["probes"])
        recall = {key.removeprefix("recall "): float(about[key]) for key in about if key.startswith("recall ")}
        _check(arrays, probes, embed_dim)
    except (SafetensorError, KeyError, ValueError) as error:
        raise IndexFileError(
            f"'{file}' is no approximate index of this model ({error}). Delete it, or build it again: vlm index --ann"
        ) from error
    return Ann(**arrays, probes=probes, recall=recall, index=_fill(arrays))


def build(vectors: np.ndarray, texts: Tensor | None, say: Callable[[str], None], target: float = TARGET) -> Ann:
    """Build an approximate index.  It takes minutes per million vectors.

    Args:
        vectors: float16 unit vectors (rows, E); a sample of them is used as queries to measure the recall.
        texts: embedded texts (Q, E), further queries: they are harder, because texts lie elsewhere than images.
        say: receives lines of progress.
        target: recall@10 of the harder kind of query.

    Raises:
        InputError: for fewer than 640 vectors.
        MissingPackageError: without FAISS.
    """
    rows, embed_dim = len(vectors), vectors.shape[1]
    if rows < 40 * 16:
        raise InputError(
            f"{rows} vectors are too few for an approximate index, wanted 640. Exact search is fast up to a million."
        )
    lists = min(int(4 * rows**0.5), rows // 40)  # FAISS asks for 39 points per centroid
    faiss, draw = _faiss(), np.random.default_rng(0)
    sample = np.sort(draw.choice(rows, min(rows, lists * _TRAIN_PER_LIST), replace=False))
    training = vectors[sample].astype(np.float32)
    say(f"{lists} lists, from {len(training)} of {rows} vectors")
    clusters = faiss.Kmeans(embed_dim, lists, niter=10, spherical=True, max_points_per_centroid=_TRAIN_PER_LIST, seed=0)
    clusters.train(training)
    quantizer, product = faiss.IndexFlatIP(embed_dim), faiss.ProductQuantizer(embed_dim, _parts(embed_dim), 4)
    quantizer.add(clusters.centroids)
    product.train(training[: 256 * 256])
    arrays = {
        "centroids": clusters.centroids,
        "codebooks": faiss.vector_to_array(product.centroids).reshape(product.M, 16, product.dsub),
        "lists": np.empty(rows, np.int32),
        "codes": np.empty((rows, product.code_size), np.uint8),
    }
    for start in range(0, rows, _BLOCK):
        block = vectors[start : start + _BLOCK].astype(np.float32)
        arrays["lists"][start : start + _BLOCK] = quantizer.search(block, 1)[1][:, 0]
        arrays["codes"][start : start + _BLOCK] = product.compute_codes(block)
    ann = Ann(**arrays, probes=1, recall={}, index=_fill(arrays))
    queries = {"images": torch.from_numpy(vectors[np.sort(draw.choice(rows, min(rows, 500), replace=False))]).float()}
    if texts is not None and len(texts):
        queries["texts"] = texts
    return _tune(ann, vectors, queries, target, say)


def _tune(ann: Ann, vectors: np.ndarray, queries: dict[str, Tensor], target: float, say: Callable[[str], None]) -> Ann:
    """Double the lists that a search looks into until the recall is reached, or half of the lists are."""
    truth = {kind: nearest(vectors, sample, _TOP + 1)[0] for kind, sample in queries.items()}
    probes = 8
    while True:
        ann = replace(ann, probes=min(probes, len(ann.centroids)))
        found = {kind: ann.nearest(vectors, sample, _TOP + 1)[0] for kind, sample in queries.items()}
        left_out = {"images": 1, "texts": 0}  # a vector that is asked for finds itself: that does not count
        recall = {kind: recall_of(found[kind], truth[kind], left_out[kind]) for kind in queries}
        say(f"{ann.probes} lists a query: " + ", ".join(f"recall@10 {value:.4f} ({k})" for k, value in recall.items()))
        ann = replace(ann, recall=recall)
        if min(recall.values()) >= target or probes * 2 > len(ann.centroids) // 2:
            return ann
        probes *= 2


def recall_of(found: Tensor, exact: Tensor, left_out: int = 0) -> float:
    """Share of the 10 best results that were found; equal scores count as found.

    Args:
        found: scores of the search that is measured, (Q, K), best first.
        exact: scores of exact search, (Q, K).
        left_out: how many of the best are not counted: a stored vector finds itself.
    """
    last = min(left_out + _TOP, exact.shape[1])
    within = found[:, left_out:last] >= exact[:, last - 1 : last] - 1e-6
    return within.sum().item() / (len(exact) * (last - left_out))


def _check(arrays: dict[str, np.ndarray], probes: int, embed_dim: int) -> None:
    parts, rows = _parts(embed_dim), len(arrays["lists"])
    wanted = {
        "centroids": (np.float32, (len(arrays["centroids"]), embed_dim)),
        "codebooks": (np.float32, (parts, 16, embed_dim // parts)),
        "lists": (np.int32, (rows,)),
        "codes": (np.uint8, (rows, (parts + 1) // 2)),
    }
    for name, (dtype, shape) in wanted.items():
        if arrays[name].dtype != dtype or arrays[name].shape != shape:
            raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}, wanted {np.dtype(dtype)} {shape}")
    if not 1 <= probes <= len(arrays["centroids"]):
        raise ValueError(f"it has {len(arrays['centroids'])} lists and looks into {probes}")
    if arrays["lists"].min() < 0 or arrays["lists"].max() >= len(arrays["centroids"]):
        raise ValueError("it names lists that it does not have")


def _fill(arrays: dict[str, np.ndarray]) -> "faiss.IndexIVFPQFastScan":
    faiss = _faiss()
    centroids, codebooks = arrays["centroids"], arrays["codebooks"]
    lists, embed_dim = centroids.shape
    quantizer = faiss.IndexFlatIP(embed_dim)
    quantizer.add(centroids)
    plain = faiss.IndexIVFPQ(quantizer, embed_dim, lists, len(codebooks), 4, faiss.METRIC_INNER_PRODUCT)
    plain.by_residual = False
    faiss.copy_array_to_vector(codebooks.ravel(), plain.pq.centroids)
    order = np.argsort(arrays["lists"], kind="stable").astype(np.int64)
    ends = np.cumsum(np.bincount(arrays["lists"], minlength=lists))
    codes = arrays["codes"][order]
    for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if end > start:
            pointers = faiss.swig_ptr(order[start:end]), faiss.swig_ptr(codes[start:end])
            plain.invlists.add_entries(number, int(end - start), *pointers)
    plain.ntotal, plain.is_trained = len(order), True
    fast = faiss.IndexIVFPQFastScan(plain)
    fast.own_fields = False
    fast.referenced_objects = [quantizer, plain]  # alive as long as it is
    return fast


def _parts(embed_dim: int) -> int:
    """Numbers that share a code: two, where E is even."""
    return embed_dim // 2 if embed_dim % 2 == 0 else embed_dim


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise missing_package("an approximate index", "faiss-cpu", "retrieval") from error
    return faiss
