"""Text-image retrieval of a CLIP on a data set, in each language, with chance beside every number.

A text query is the first caption of a concept, and every image of that concept is correct; without concepts each text
is one query, and every image that has it is correct.  An image query is one image, and its texts are correct.
Recall@k: any correct item among the first k; median rank: of the first correct item; mAP and nDCG: of all correct
items.  Equal scores count as the mean over every order of them, so chance is the value of a model that gives every pair
the same score.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlm.embedder import Embedder
from vlm.errors import DataError
from vlm.metrics import Ranking, chance_ranking, embedding_hits, rank_queries
from vlm.training.data.pairs import Pairs, open_pairs
from vlm.training.data.rows import ColumnNames, plain_text
from vlm.training.engine.distributed import SINGLE_PROCESS, Processes
from vlm.training.measure.measurement import Measurement

_log = logging.getLogger(__name__)


def evaluate_pairs(
    embedder: Embedder,
    data: str,
    splits: Sequence[str] = (),
    *,
    columns: ColumnNames | None = None,
    root: Path | None = None,
) -> list[Measurement]:
    """Measure retrieval on any data set of image-text pairs.

    Args:
        embedder: the model.
        data: what `open_rows` reads.
        splits: they are measured together; empty takes all samples.
        columns, root: as `open_rows` has them.

    Returns:
        Every metric in both directions and in each language.  Unusable samples are left out and logged.

    Raises:
        DataError: no sample can be used.
    """
    pairs, broken = open_pairs(data, embedder.preprocess, tuple(splits), columns, root=root).sound()
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


RECALL_AT = (1, 5)  # k of the progress line


def recall_names(pairs: Pairs) -> list[str]:
    """Names of the numbers that `retrieval_recall` measures."""
    return [f"val R@{k} {language}" for language in pairs.languages for k in RECALL_AT]


def retrieval_recall(
    embedder: Embedder, pairs: Pairs, processes: Processes = SINGLE_PROCESS, ks: Sequence[int] = RECALL_AT
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
    images = _embed_images(embedder, pairs, processes)
    found = {}
    for language in pairs.languages:
        texts, right = queries_of(pairs, language)
        queries = _embed_texts(embedder, texts, processes)
        hits = _hits(queries, images, right, ks)
        recall = processes.map(hits, len(texts)).mean(0)
        found |= {f"val R@{k} {language}": value for k, value in zip(ks, recall.tolist(), strict=True)}
    return found


def _hits(
    queries: Tensor, images: Tensor, right: Sequence[Sequence[int]], ks: Sequence[int]
) -> Callable[[range], Tensor]:
    """(queries, ks) hits of a share of the queries; `right`: the images each query is true of."""
    if (groups := _as_groups(right, len(images))) is not None:
        asked, of_images = (part.to(images.device) for part in groups)

        def grouped(share: range) -> Tensor:
            own = slice(share.start, share.stop)
            return embedding_hits(queries[own], images, asked[own], of_images, ks)

        return grouped

    def ranked(share: range) -> Tensor:
        correct = torch.zeros(len(share), len(images), dtype=torch.bool)
        for row, query in enumerate(share):
            correct[row, list(right[query])] = True
        scores = (queries[share.start : share.stop] @ images.T).cpu()
        found = rank_queries(scores, correct, ks).recall
        return torch.stack([found[k] for k in ks], 1).to(images.device)

    return ranked


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
    texts, found = queries_of(pairs, language)
    correct = torch.zeros(len(texts), len(pairs), dtype=torch.bool)
    for query, images in enumerate(found):
        correct[query, images] = True
    return texts, correct


def queries_of(pairs: Pairs, language: str) -> tuple[list[str], list[list[int]]]:
    """The text queries of a language and the images that each is true of.

    A concept gives its first caption, and it is true of all images of the concept; an image without a concept gives
    all its captions.  Texts that are the same after NFKC and but for spaces are one query, true of the images of each.
    """
    texts: dict[str, str] = {}  # plain text -> as it was written first
    found: dict[str, set[int]] = {}
    of_text: dict[str, set[int]] = {}  # images that have the text among their captions
    of_concept: dict[str, set[int]] = {}
    named: dict[str, set[str]] = {}  # plain text -> concepts whose first caption it is
    begun: set[str] = set()
    for index, captions in enumerate(pairs.texts(language)):
        concept = pairs.rows.concept(index)
        if concept is not None:
            of_concept.setdefault(concept, set()).add(index)
        for number, caption in enumerate(captions):
            plain = plain_text(caption)
            of_text.setdefault(plain, set()).add(index)
            if concept is None or (number == 0 and concept not in begun):
                texts.setdefault(plain, caption)
                if concept is not None:
                    named.setdefault(plain, set()).add(concept)
        if captions and concept is not None:
            begun.add(concept)
    for plain in texts:
        found[plain] = of_text[plain].union(*(of_concept[concept] for concept in named.get(plain, ())))
    return list(texts.values()), [sorted(found[plain]) for plain in texts]


def _as_groups(found: Sequence[Sequence[int]], count: int) -> tuple[Tensor, Tensor] | None:
    """(the group of each query, the group of each image) where queries have the same images or none in common."""
    of_image, of_query, sizes = [-1] * count, [], []
    for images in found:
        own = {of_image[image] for image in images}
        if own == {-1}:
            for image in images:
                of_image[image] = len(sizes)
            own = {len(sizes)}
            sizes.append(len(images))
        group = own.pop()
        if own or group < 0 or sizes[group] != len(images):
            return None
        of_query.append(group)
    return torch.tensor(of_query, dtype=torch.long), torch.tensor(of_image, dtype=torch.long)
