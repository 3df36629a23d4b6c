"""What a CLIP knows of a data set, in each language, with chance beside every number.

Retrieval: a text query is the first caption of each concept, every image of that concept is correct; an image query
is each image, the correct texts are its concept's.  Recall@k: any correct item among the first k; median rank: of the
first correct one; mAP and nDCG: of all of them.  Equal scores count as the mean over every order of them, so chance is
what a model gets that answers everything alike.  Classification: the class sets of classes.json, restricted to the
split.  A few images whose pixels also occur in the training data are left out.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vlm.embedder import Embedder
from vlm.metrics import Ranking, chance_ranking, embedding_hits, rank_queries, top_k_accuracy
from vlm.training.data.pairs import Pairs, open_pairs
from vlm.training.engine.distributed import SINGLE_PROCESS, Processes
from vlm.zero_shot import ZeroShotClassifier

PICTURE_WORDS = Path(__file__).parents[1] / "picture_words"
VALIDATION = ("val_style", "val_concept", "val_both")


class Row(NamedTuple):
    """One measured number."""

    split: str
    task: str
    language: str
    value: float
    chance: float
    n: int  # queries


def evaluate(embedder: Embedder, splits: Sequence[str]) -> list[Row]:
    """All numbers of the splits of picture-words."""
    rows = []
    for split in splits:
        pairs = open_unseen(embedder, (split,))
        images = embed_all_images(embedder, pairs)
        rows += retrieval_rows(embedder, pairs, images, split, "")
        plain = [i for i, subgroup in enumerate(pairs.rows.column("subgroup")) if "flag" not in (subgroup or "")]
        if len(plain) < len(pairs):
            rows += retrieval_rows(embedder, pairs.select(plain), images[plain], split, ", no flags")
        unknown = [bool(flag) for flag in pairs.rows.column("novel_words")]
        if any(unknown) and not all(unknown):
            for novel, label in ((True, ", words never trained on"), (False, ", only words trained on")):
                half = [i for i, flag in enumerate(unknown) if flag is novel]
                rows += retrieval_rows(embedder, pairs.select(half), images[half], split, label)
        rows += classification_rows(embedder, pairs, images, split)
    return rows


def evaluate_own(embedder: Embedder, data: str, splits: Sequence[str] = ()) -> list[Row]:
    """Retrieval on any pairs, all the splits together; what cannot be used is left out, and said."""
    pairs, broken = open_pairs(data, embedder.preprocess, tuple(splits)).sound()
    if broken:
        print(f"{len(broken)} samples left out; the first: {broken[0]}", file=sys.stderr)
    if not len(pairs):
        raise ValueError(f"{data} has no sample that can be used; the first: {broken[0]}")
    return retrieval_rows(embedder, pairs, embed_all_images(embedder, pairs), "+".join(splits) or "all", "")


def open_unseen(embedder: Embedder, splits: tuple[str, ...]) -> Pairs:
    """Splits of one file of picture-words, without images whose pixels are in the training data too."""
    file = "test" if splits[0].startswith("test") else "validation"
    pairs = open_pairs(PICTURE_WORDS / f"{file}.parquet", embedder.preprocess, splits)
    return pairs.select(_unseen(pairs))


def retrieval_rows(
    embedder: Embedder, pairs: Pairs, images: Tensor, split: str, label: str, processes: Processes = SINGLE_PROCESS
) -> list[Row]:
    rows = []
    for language in pairs.languages:
        texts, correct = concept_texts(pairs, language)  # (Q, G)
        scores = _embed_texts(embedder, texts, processes).cpu() @ images.T  # (Q, G)
        described = correct.any(0)
        for direction, s, c in (
            ("text->image", scores, correct),
            ("image->text", scores.T[described], correct.T[described]),
        ):
            measured, chance = _averages(rank_queries(s, c)), _averages(chance_ranking(c))
            rows += [
                Row(split, f"{direction} {name}{label}", language, value, chance[name], len(s))
                for name, value in measured.items()
            ]
    return rows


def _averages(ranking: Ranking) -> dict[str, float]:
    """Means over the queries, by name; of the rank the median."""
    return {
        **{f"R@{k}": float(hits.mean()) for k, hits in ranking.recall.items()},
        "median rank": float(ranking.first.quantile(0.5)),
        "mAP": float(ranking.average_precision.mean()),
        "nDCG": float(ranking.ndcg.mean()),
    }


def retrieval_recall(
    embedder: Embedder, pairs: Pairs, processes: Processes = SINGLE_PROCESS, ks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """text->image recall, for the progress line of a training run; the processes share all of the work.

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


def classification_rows(embedder: Embedder, pairs: Pairs, images: Tensor, split: str) -> list[Row]:
    """Zero-shot top-1 of each class set, on the images of this split that have one of its classes."""
    rows = []
    for name, classes in json.loads((PICTURE_WORDS / "classes.json").read_text(encoding="utf-8")).items():
        truth = _true_classes(pairs, classes)
        present = {key for key in truth if key is not None}
        if len(present) < 2:
            continue
        keys = [key for key in classes["classes"] if key in present]
        chosen = [i for i, key in enumerate(truth) if key in present]
        targets = torch.tensor([keys.index(truth[i]) for i in chosen])
        for language in ("en", "ja"):
            labels = [classes["classes"][key].get(language) for key in keys]
            if not all(labels):
                continue
            names = [label[0] for label in labels]
            if len(set(names)) < len(names):  # two classes of one name cannot be told apart by it
                continue
            classifier = ZeroShotClassifier(embedder, names)
            accuracy = top_k_accuracy(images[chosen] @ classifier.class_embeds.T, targets)
            rows.append(Row(split, f"top-1 of {len(keys)}, {name}", language, accuracy, 1 / len(keys), len(chosen)))
    return rows


def embed_all_images(
    embedder: Embedder, pairs: Pairs, processes: Processes = SINGLE_PROCESS, batch_size: int = 128
) -> Tensor:
    """(n, E), on the CPU."""
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
    """Q texts and which images each is true of, correct (Q, G)."""
    texts, groups = texts_and_groups(pairs, language)
    return texts, groups[:, None] == pairs.groups[None, :]


def texts_and_groups(pairs: Pairs, language: str) -> tuple[list[str], Tensor]:
    """Q texts and the group of images that each is true of, (Q,).

    Of a concept, the first caption; of an image by itself, all its captions.
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


def table(rows: list[Row]) -> str:
    lines = [f"{'split':<14} {'task':<52} {'':<3} {'value':>7} {'chance':>8} {'n':>5}"]
    lines += [f"{r.split:<14} {r.task:<52} {r.language:<3} {r.value:7.3f} {r.chance:8.4f} {r.n:5d}" for r in rows]
    return "\n".join(lines)


def _true_classes(pairs: Pairs, classes: dict) -> list[str | None]:
    """Each image's class key, None where it has none."""
    if classes["by"] == "uids":
        of_uid = {uid: key for key, value in classes["classes"].items() for uid in value["uids"]}
        return [of_uid.get(uid) for uid in pairs.uids]
    column = pairs.rows.column(classes["by"])
    return [key if key in classes["classes"] else None for key in column]


def _unseen(pairs: Pairs) -> list[int]:
    """Rows whose pixels are not those of a training image (the data has five such)."""
    known = set(json.loads((PICTURE_WORDS / "seen_pixels.json").read_text(encoding="utf-8")))
    return [i for i, uid in enumerate(pairs.uids) if uid not in known]
