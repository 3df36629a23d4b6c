"""The evaluation of a CLIP on picture-words and icon-words: retrieval and zero-shot classification by their splits."""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from pyarrow.parquet import read_table  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from vlm.embedder import Embedder
from vlm.errors import DataError
from vlm.metrics import top_k_accuracy
from vlm.training.data.pairs import Pairs, open_pairs
from vlm.training.measure.measurement import Measurement
from vlm.training.measure.retrieval import embed_all_images, measure_retrieval
from vlm.zero_shot import ZeroShotClassifier

PICTURE_WORDS = Path(__file__).parents[1] / "picture_words"
ICON_WORDS = Path(__file__).parents[1] / "icon_words"
VALIDATION = ("val_style", "val_concept", "val_both", "val_icon_style", "val_icon_concept")
TEST = (
    "test_style", "test_concept", "test_both", "test_oca_artist", "test_photo_gc", "test_icon_style",
    "test_icon_concept",
)  # fmt: skip


def evaluate_drawings(embedder: Embedder, splits: Sequence[str] = VALIDATION) -> list[Measurement]:
    """Measure retrieval and zero-shot classification on splits of picture-words and icon-words.

    Args:
        embedder: the model.
        splits: names of validation or test splits.

    Returns:
        All measurements, split by split.

    Raises:
        DataError: the data is not installed here, or has no such split.
    """
    measured = []
    for split in splits:
        pairs = open_unseen(embedder, (split,))
        images = embed_all_images(embedder, pairs)
        measured += measure_retrieval(embedder, pairs, images, split)
        plain = [i for i, subgroup in enumerate(pairs.rows.column("subgroup")) if "flag" not in (subgroup or "")]
        if len(plain) < len(pairs):
            measured += measure_retrieval(embedder, pairs.select(plain), images[plain], split, ", no flags")
        novel = novel_words(pairs)
        if any(novel) and not all(novel):
            for wanted, label in ((True, ", words never trained on"), (False, ", only words trained on")):
                part = [i for i, flag in enumerate(novel) if flag is wanted]
                measured += measure_retrieval(embedder, pairs.select(part), images[part], split, label)
        measured += measure_classification(embedder, pairs, images, split)
    return measured


def data_of_split(split: str) -> Path:
    """The folder of the data set that has a split: icon-words for the names with "icon", else picture-words."""
    return ICON_WORDS if "icon" in split else PICTURE_WORDS


def open_unseen(embedder: Embedder, splits: Sequence[str]) -> Pairs:
    """Open splits of one data set, without the images whose pixels also occur in the training data.

    Args:
        embedder: its preprocessing reads the images.
        splits: validation splits, or test splits, of picture-words or of icon-words.

    Raises:
        DataError: the data is not installed here.
    """
    folder = data_of_split(splits[0])
    path = folder / f"{'test' if splits[0].startswith('test') else 'validation'}.parquet"
    if not path.is_file():
        raise DataError(
            f"There is no {path}: picture-words and icon-words are part of the repository, not of the installed "
            "package. Measure on data of your own (vlm evaluate MODEL --data DATA), or use a checkout."
        )
    pairs = open_pairs(path, embedder.preprocess, tuple(splits))
    return pairs.select(_unseen(pairs))


def novel_words(pairs: Pairs) -> list[bool]:
    """Whether the first English caption of each image has a word that no training text of either data set has."""
    known = _training_words()
    first = [own[0] if own else "" for own in pairs.texts("en")]
    return [not known.issuperset(_words(caption)) for caption in first]


@cache
def _training_words() -> frozenset[str]:
    columns = ["captions_en", "keywords_en"]
    tables = [read_table(folder / "train.parquet", columns=columns) for folder in (PICTURE_WORDS, ICON_WORDS)]
    texts = (text for table in tables for name in columns for own in table[name].to_pylist() for text in own or ())
    return frozenset(word for text in texts for word in _words(text))


def _words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def measure_classification(embedder: Embedder, pairs: Pairs, images: Tensor, split: str) -> list[Measurement]:
    """Measure zero-shot top-1 of each class set, on the images of this split that have one of its classes.

    Args:
        embedder: embeds the class names.
        pairs: n images.
        images: their embeddings, (n, E).
        split: name of the split, for the results.
    """
    measured = []
    sets = json.loads((data_of_split(split) / "classes.json").read_text(encoding="utf-8"))
    for name, classes in sets.items():
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
