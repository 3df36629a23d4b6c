"""The evaluation of a CLIP on picture-words: retrieval and zero-shot classification by its splits."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlm.embedder import Embedder
from vlm.errors import DataError
from vlm.metrics import top_k_accuracy
from vlm.training.data.pairs import Pairs, open_pairs
from vlm.training.measure.measurement import Measurement
from vlm.training.measure.retrieval import embed_all_images, measure_retrieval
from vlm.zero_shot import ZeroShotClassifier

PICTURE_WORDS = Path(__file__).parents[1] / "picture_words"
VALIDATION = ("val_style", "val_concept", "val_both")


def evaluate_picture_words(embedder: Embedder, splits: Sequence[str] = VALIDATION) -> list[Measurement]:
    """Measure retrieval and zero-shot classification on splits of picture-words.

    Args:
        embedder: the model.
        splits: names of its validation or test splits.

    Returns:
        All measurements, split by split.

    Raises:
        DataError: picture-words is not installed here, or has no such split.
    """
    measured = []
    for split in splits:
        pairs = open_unseen(embedder, (split,))
        images = embed_all_images(embedder, pairs)
        measured += measure_retrieval(embedder, pairs, images, split)
        plain = [i for i, subgroup in enumerate(pairs.rows.column("subgroup")) if "flag" not in (subgroup or "")]
        if len(plain) < len(pairs):
            measured += measure_retrieval(embedder, pairs.select(plain), images[plain], split, ", no flags")
        unknown = [bool(flag) for flag in pairs.rows.column("novel_words")]
        if any(unknown) and not all(unknown):
            for novel, label in ((True, ", words never trained on"), (False, ", only words trained on")):
                half = [i for i, flag in enumerate(unknown) if flag is novel]
                measured += measure_retrieval(embedder, pairs.select(half), images[half], split, label)
        measured += measure_classification(embedder, pairs, images, split)
    return measured


def open_unseen(embedder: Embedder, splits: tuple[str, ...]) -> Pairs:
    """Open splits of one file of picture-words, without the images whose pixels also occur in the training data.

    Args:
        embedder: its preprocessing reads the images.
        splits: validation splits, or test splits.

    Raises:
        DataError: picture-words is not installed here.
    """
    path = PICTURE_WORDS / f"{'test' if splits[0].startswith('test') else 'validation'}.parquet"
    if not path.is_file():
        raise DataError(
            f"There is no {path}: picture-words is part of the repository, not of the installed package. "
            "Measure on data of your own (vlm evaluate MODEL --data DATA), or use a checkout."
        )
    pairs = open_pairs(path, embedder.preprocess, splits)
    return pairs.select(_unseen(pairs))


def measure_classification(embedder: Embedder, pairs: Pairs, images: Tensor, split: str) -> list[Measurement]:
    """Measure zero-shot top-1 of each class set, on the images of this split that have one of its classes.

    Args:
        embedder: embeds the class names.
        pairs: n images.
        images: their embeddings, (n, E).
        split: name of the split, for the results.
    """
    measured = []
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
            if len(set(names)) < len(names):  # zero-shot classification cannot tell two classes of one name apart
                continue
            classifier = ZeroShotClassifier(embedder, names)
            accuracy = top_k_accuracy(images[chosen] @ classifier.class_embeds.T, targets)
            task = f"top-1 of {len(keys)}, {name}"
            measured.append(Measurement(split, task, language, accuracy, 1 / len(keys), len(chosen)))
    return measured


def _true_classes(pairs: Pairs, classes: dict) -> list[str | None]:
    """The class key of each image; None where it has none."""
    if classes["by"] == "uids":
        of_uid = {uid: key for key, value in classes["classes"].items() for uid in value["uids"]}
        return [of_uid.get(uid) for uid in pairs.uids]
    column = pairs.rows.column(classes["by"])
    return [key if key in classes["classes"] else None for key in column]


def _unseen(pairs: Pairs) -> list[int]:
    """Rows whose pixels are not those of a training image (the data has five such rows)."""
    known = set(json.loads((PICTURE_WORDS / "seen_pixels.json").read_text(encoding="utf-8")))
    return [i for i, uid in enumerate(pairs.uids) if uid not in known]
