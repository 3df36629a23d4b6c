"""Text-image retrieval of a CLIP on a data set, in each language, with chance beside every number.

A text query is the first caption of a concept, and every image of that concept is correct; an image query is one image,
and the texts of its concept are correct.  Recall@k: any correct item among the first k; median rank: of the first
correct item; mAP and nDCG: of all correct items.  Equal scores count as the mean over every order of them, so chance is
the value of a model that gives every pair the same score.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from vlm.embedder import Embedder
from vlm.errors import DataError
from vlm.metrics import Ranking, chance_ranking, embedding_hits, rank_queries
from vlm.training.data.pairs import Pairs, open_pairs
from vlm.training.engine.distributed import SINGLE_PROCESS, Processes
from vlm.training.measure.measurement import Measurement

_log = logging.getLogger(__name__)


def evaluate_pairs(embedder: Embedder, data: str, splits: Sequence[str] = ()) -> list[Measurement]:
    """Measure retrieval on any data set of image-text pairs.

    Args:
        embedder: the model.
        data: what `open_rows` reads.
        splits: they are measured together; empty takes all samples.

    Returns:
        Every metric in both directions and in each language.  Unusable samples are left out and logged.

    Raises:
        DataError: no sample can be used.
    """
    pairs, broken = open_pairs(data, embedder.preprocess, tuple(splits)).sound()
    if broken:
        _log.warning("%d samples left out; the first: %s", len(broken), broken[0])
    if not len(pairs):
        raise DataError(f"{data} has no sample that can be used; the first: {broken[0]}")
    return measure_retrieval(embedder, pairs, embed_all_images(embedder, pairs), "+".join(splits) or "all")


def measure_retrieval(
    embedder: Embedder,
    pairs: Pairs,
    images: Tensor,
    split: str,
    label: str = "",
    processes: Processes = SINGLE_PROCESS,
) -> list[Measurement]:
    """Measure every metric in both directions and in each language of the pairs.

    Args:
        embedder: embeds the texts.
        pairs: n images with their texts.
        images: embeddings of the images, (n, E).
        split: name of the split, for the results.
        label: added to the names of the tasks.
        processes: share the text embedding.
    """
    measured = []
    for language in pairs.languages:
        texts, correct = concept_texts(pairs, language)  # (Q, G)
        scores = _embed_texts(embedder, texts, processes).cpu() @ images.T  # (Q, G)
        described = correct.any(0)
        for direction, s, c in (
            ("text->image", scores, correct),
            ("image->text", scores.T[described], correct.T[described]),
        ):
            values, chance = _averages(rank_queries(s, c)), _averages(chance_ranking(c))
            measured += [
                Measurement(split, f"{direction} {name}{label}", language, value, chance[name], len(s))
                for name, value in values.items()
            ]
    return measured


def _averages(ranking: Ranking) -> dict[str, float]:
    """Means over the queries by name; the median of the ranks."""
    return {
        **{f"R@{k}": float(hits.mean()) for k, hits in ranking.recall.items()},
        "median rank": float(ranking.first.quantile(0.5)),
        "mAP": float(ranking.average_precision.mean()),
        "nDCG": float(ranking.ndcg.mean()),
    }


def retrieval_recall(
    embedder: Embedder, pairs: Pairs, processes: Processes = SINGLE_PROCESS, ks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """Text-to-image recall, for the progress line of a training run; the processes share all of the work.

    Args:
        embedder: the model, on this process's device.
        pairs: what to measure on.
        processes: all must call this.
        ks: the values of k.

    Returns:
        "val R@k language" -> recall@k, 0..1.
    """
    images, groups = _embed_images(embedder, pairs, processes), pairs.groups.to(processes.device)
    found = {}
    for language in pairs.languages:
        texts, asked = texts_and_groups(pairs, language)
        queries, asked = _embed_texts(embedder, texts, processes), asked.to(processes.device)

        def hits(share: range, queries: Tensor = queries, asked: Tensor = asked) -> Tensor:
            own = slice(share.start, share.stop)
            return embedding_hits(queries[own], images, asked[own], groups, ks)

        recall = processes.map(hits, len(texts)).mean(0)
        found |= {f"val R@{k} {language}": value for k, value in zip(ks, recall.tolist(), strict=True)}
    return found


def embed_all_images(
    embedder: Embedder, pairs: Pairs, processes: Processes = SINGLE_PROCESS, batch_size: int = 128
) -> Tensor:
    """Embeddings of all images, (n, E), on the CPU; the processes share the work."""
    return _embed_images(embedder, pairs, processes, batch_size).cpu()


def _embed_images(embedder: Embedder, pairs: Pairs, processes: Processes, batch_size: int = 128) -> Tensor:
    """(n, E), on the device of the processes."""
    dtype = embedder.model.logit_scale.dtype

    def embed(share: range) -> Tensor:
        parts = torch.tensor(share).split(batch_size)
        pixels = (embedder.preprocess.normalize(pairs.images(part.tolist())).to(dtype) for part in parts)
        return torch.cat([embedder.embed_pixels(part) for part in pixels]).to(processes.device)

    return processes.map(embed, len(pairs))


def _embed_texts(embedder: Embedder, texts: Sequence[str], processes: Processes) -> Tensor:
    """(Q, E), on the device of the processes."""
    return processes.map(lambda share: embedder.embed_texts([texts[i] for i in share]).to(processes.device), len(texts))


def concept_texts(pairs: Pairs, language: str) -> tuple[list[str], Tensor]:
    """The text queries of a language, Q texts, and which images each is true of, (Q, G) bool."""
    texts, groups = texts_and_groups(pairs, language)
    return texts, groups[:, None] == pairs.groups[None, :]


def texts_and_groups(pairs: Pairs, language: str) -> tuple[list[str], Tensor]:
    """The text queries of a language, Q texts, and the group of images that each is true of, (Q,).

    A concept gives its first caption; an image without a concept gives all its captions.
    """
    texts: list[str] = []
    groups: list[int] = []
    begun: set[int] = set()
    for index, (group, captions) in enumerate(zip(pairs.groups.tolist(), pairs.texts(language), strict=True)):
        if captions and group not in begun:
            begun.add(group)
            own = captions if pairs.rows.group(index) == pairs.uids[index] else captions[:1]
            texts += own
            groups += [group] * len(own)
    return texts, torch.tensor(groups)
