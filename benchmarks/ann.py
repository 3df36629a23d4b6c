"""Approximate against exact search on vectors of images: recall@10 and queries a second, queries held out.

    python -m benchmarks.image_vectors vectors.npy && python -m benchmarks.ann vectors.npy > benchmarks/ann.md

The index holds images of train.parquet; the queries are images and captions of validation.parquet, which neither
the index nor the search for the number of lists has seen.  Where vectors.npy is not finished, the rest is made: a
vector of it plus the difference of two views of another image, over sqrt(2): the spread that augmentation has.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import vlm
from benchmarks.image_vectors import TRAIN, VALIDATION
from benchmarks.machine import about
from vlm.index.ann import build, load, recall_of
from vlm.index.exact_search import nearest
from vlm.training.data.pairs import Pairs, open_pairs

K, SECONDS = 10, 4.0
RECALL, SPEED = 0.98, 10.0  # what must hold


def stored_vectors(file: Path) -> tuple[np.ndarray, int]:
    """float16 (rows, E), and how many of them are what the model said."""
    vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    real = int(file.with_suffix(".done").read_text())
    whole, draw = np.array(vectors), np.random.default_rng(0)
    for start in range(real, len(whole), 65536):
        count = min(65536, len(whole) - start)
        base, other = draw.integers(0, real, count), draw.integers(0, real // 4, count) * 4  # 4 views of one image
        spread = whole[other].astype(np.float32) - whole[other + draw.integers(1, 4, count)]
        made = whole[base] + spread / 2**0.5
        whole[start : start + count] = made / np.linalg.norm(made, axis=1, keepdims=True)
    return whole, real


def captions(pairs: Pairs) -> list[str]:
    """The first name in every language."""
    return [names[0] for row in range(len(pairs)) for names, _ in pairs.captions(row) if names]


def per_second(search: Callable[[Tensor], object], batches: list[Tensor]) -> float:
    """Queries, median over calls, for about SECONDS."""
    search(batches[0])
    rates: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(rates) < 3:
        batch = batches[len(rates) % len(batches)]
        start = time.perf_counter()
        search(batch)
        rates.append(len(batch) / (time.perf_counter() - start))
    return float(np.median(rates))


def main() -> None:
    embedder = vlm.load("mini")
    vectors, real = stored_vectors(Path(sys.argv[1]))
    known, unseen = open_pairs(TRAIN, embedder.preprocess), open_pairs(VALIDATION, embedder.preprocess)
    with torch.inference_mode():
        pixels = unseen.images(range(len(unseen)))
        images = torch.cat([embedder.embed_pixels(embedder.preprocess.normalize(part)) for part in pixels.split(128)])
    queries = {"images": images, "captions": embedder.embed_texts(captions(unseen))}
    names = captions(known)
    texts = embedder.embed_texts(names[:: len(names) // 500])
    print(about("python -m benchmarks.ann", ["torch", "faiss-cpu"], torch.get_num_threads()))
    made = f", {len(vectors) - real:,} made from them (see benchmarks/ann.py)" if real < len(vectors) else ""
    print(f"{len(vectors):,} vectors of {vectors.shape[1]}: {real:,} embeddings of augmented images{made}.\n")
    start = time.perf_counter()
    built = build(vectors, texts, lambda line: print(f"- {line}", flush=True))
    spent = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ann.safetensors"
        built.save(file)
        size, start = file.stat().st_size / 2**20, time.perf_counter()
        ann = load(file, vectors.shape[1])
        opening = time.perf_counter() - start
    whole = vectors.nbytes / 2**20
    print(f"\nBuilt in {spent:.0f} s, {size:.0f} MiB (the vectors: {whole:.0f}), opens in {opening:.2f} s")
    print(f"\n| held-out queries | recall@{K} | together | exact, a second | approximate | times | |")
    print("|---|---|---|---|---|---|---|")
    for kind, embeds in queries.items():
        recall = recall_of(ann.nearest(vectors, embeds, K)[0], nearest(vectors, embeds, K)[0])
        for together in (1, 64):
            batches = list(embeds.split(together))
            exact = per_second(lambda batch: nearest(vectors, batch, K), batches)
            fast = per_second(lambda batch: ann.nearest(vectors, batch, K), batches)
            verdict = "pass" if recall >= RECALL and fast >= SPEED * exact else "FAIL"
            numbers = f"{recall:.4f} | {together} | {exact:,.0f} | {fast:,.0f} | {fast / exact:.1f} | {verdict}"
            print(f"| {len(embeds):,} {kind} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
