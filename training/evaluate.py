"""What a CLIP knows of a data set, in each language, with chance beside every number.

    python -m training.evaluate mini                        the validation splits of picture-words
    python -m training.evaluate mini --split val_style      one split, for tuning
    python -m training.evaluate mini --split test_style     test splits only by name: once per released model

Retrieval: a text query is the first caption of each concept, every picture of that concept is correct; a picture query
is each picture, the correct texts are its concept's.  Classification: the class sets of classes.json, restricted to the
split.  A few pictures whose pixels also occur in the training data are left out.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from training.data import ParquetPairs
from training.distributed import Processes
from vlm.embedder import Embedder
from vlm.metrics import chance_recall_at_k, recall_at_k, top_k_accuracy
from vlm.zero_shot import ZeroShotClassifier

PICTURE_WORDS = Path(__file__).parent / "picture_words"
VALIDATION = ("val_style", "val_concept", "val_both")
ALONE = Processes(rank=0, size=1, device=torch.device("cpu"))


class Row(NamedTuple):
    """One measured number."""

    split: str
    task: str
    language: str
    value: float
    chance: float
    n: int  # queries


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="mini, a model folder, or anything else vlm.load reads")
    parser.add_argument(
        "--split", nargs="+", default=list(VALIDATION), metavar="SPLIT", help="default: the three of validation"
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    arguments = parser.parse_args()
    from vlm.checkpoint import load

    try:
        rows = evaluate(load(arguments.model), arguments.split)
    except ValueError as error:
        print(f"evaluate: error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps([row._asdict() for row in rows], ensure_ascii=False, indent=1))
    else:
        print(table(rows))
    return 0


def evaluate(embedder: Embedder, splits: Sequence[str]) -> list[Row]:
    """All numbers of the splits of picture-words."""
    rows = []
    for split in splits:
        file = "test" if split.startswith("test") else "validation"
        pairs = ParquetPairs(PICTURE_WORDS / f"{file}.parquet", embedder.preprocess, (split,))
        pairs = pairs.select(_unseen(pairs))
        images = embed_pictures(embedder, pairs)
        rows += retrieval_rows(embedder, pairs, images, split, "")
        plain = [i for i, subgroup in enumerate(pairs.rows["subgroup"]) if "flag" not in (subgroup or "")]
        if len(plain) < len(pairs):
            rows += retrieval_rows(embedder, pairs.select(plain), images[plain], split, ", no flags")
        unknown = [bool(flag) for flag in pairs.rows["novel_words"]]
        if any(unknown) and not all(unknown):
            for novel, label in ((True, ", words never trained on"), (False, ", only words trained on")):
                half = [i for i, flag in enumerate(unknown) if flag is novel]
                rows += retrieval_rows(embedder, pairs.select(half), images[half], split, label)
        rows += classification_rows(embedder, pairs, images, split)
    return rows


def retrieval_rows(
    embedder: Embedder, pairs: ParquetPairs, images: Tensor, split: str, label: str, peers: Processes = ALONE
) -> list[Row]:
    rows = []
    for language in pairs.languages:
        texts, correct = concept_texts(pairs, language)  # (Q, G)
        if not texts:
            continue
        scores = _embed_texts(embedder, texts, peers) @ images.T  # (Q, G)
        described = correct.any(0)
        for direction, s, c in (
            ("text->image", scores, correct),
            ("image->text", scores.T[described], correct.T[described]),
        ):
            rows += [
                Row(
                    split, f"{direction} R@{k}{label}", language, recall_at_k(s, c, k), chance_recall_at_k(c, k), len(s)
                )
                for k in (1, 5, 10)
            ]
    return rows


def retrieval_recall(embedder: Embedder, pairs: ParquetPairs, peers: Processes = ALONE) -> dict[str, float]:
    """text->image recall by name, for the progress line of a training run; the processes share the embedding."""
    rows = retrieval_rows(embedder, pairs, embed_pictures(embedder, pairs, peers), "", "", peers)
    return {f"val R@{k} {row.language}": row.value for row in rows for k in (1, 5) if row.task == f"text->image R@{k}"}


def classification_rows(embedder: Embedder, pairs: ParquetPairs, images: Tensor, split: str) -> list[Row]:
    """Zero-shot top-1 of each class set, on the pictures of this split that have one of its classes."""
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


def embed_pictures(embedder: Embedder, pairs: ParquetPairs, peers: Processes = ALONE, batch_size: int = 128) -> Tensor:
    """(n, E)."""
    dtype = embedder.model.logit_scale.dtype

    def embed(share: range) -> Tensor:
        parts = torch.tensor(share).split(batch_size)
        pixels = (embedder.preprocess.normalize(pairs.pictures(part)).to(dtype) for part in parts)
        return torch.cat([embedder.embed_pixels(part) for part in pixels]).to(peers.device)

    return peers.map(embed, len(pairs)).cpu()


def _embed_texts(embedder: Embedder, texts: Sequence[str], peers: Processes) -> Tensor:
    """(Q, E)."""
    return peers.map(lambda share: embedder.embed_texts([texts[i] for i in share]).to(peers.device), len(texts)).cpu()


def concept_texts(pairs: ParquetPairs, language: str) -> tuple[list[str], Tensor]:
    """The first caption of each concept, and which pictures show it: Q texts, correct (Q, G)."""
    texts: dict[int, str] = {}
    for group, captions in zip(pairs.groups.tolist(), pairs.texts[f"captions_{language}"], strict=True):
        if captions:
            texts.setdefault(group, captions[0])
    return list(texts.values()), torch.tensor(list(texts))[:, None] == pairs.groups[None, :]


def table(rows: list[Row]) -> str:
    lines = [f"{'split':<14} {'task':<52} {'':<3} {'value':>6} {'chance':>7} {'n':>5}"]
    lines += [f"{r.split:<14} {r.task:<52} {r.language:<3} {r.value:6.3f} {r.chance:7.4f} {r.n:5d}" for r in rows]
    return "\n".join(lines)


def _true_classes(pairs: ParquetPairs, classes: dict) -> list[str | None]:
    """Each picture's class key, None where it has none."""
    if classes["by"] == "uids":
        of_uid = {uid: key for key, value in classes["classes"].items() for uid in value["uids"]}
        return [of_uid.get(uid) for uid in pairs.uids]
    column = pairs.rows[classes["by"]]
    return [key if key in classes["classes"] else None for key in column]


def _unseen(pairs: ParquetPairs) -> list[int]:
    """Rows whose pixels are not those of a training picture (the data has five such)."""
    known = set(json.loads((PICTURE_WORDS / "seen_pixels.json").read_text(encoding="utf-8")))
    return [i for i, uid in enumerate(pairs.uids) if uid not in known]


if __name__ == "__main__":
    sys.exit(main())
