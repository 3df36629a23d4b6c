"""Heads on frozen features that are computed once: linear probe, few-shot, zero-shot.

Probes are scikit-learn's logistic regression on standardised features.  Its C is the best on the split that chooses;
for few-shot the best on average over the draws, so few-shot has seen a whole validation set too.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from vlm.checkpoint.load import load_classifier
from vlm.embedder import Embedder
from vlm.metrics import balanced_accuracy, top_k_accuracy
from vlm.models.vision import ViTClassifier
from vlm.training.data.labelled import Answers, ClassSet, Labelled, ask
from vlm.zero_shot import zero_shot_head

STRENGTHS = tuple(10.0**power for power in range(-5, 3))  # C, from strong to weak regularisation


class Row(NamedTuple):
    """One measured line of the table."""

    method: str
    split: str
    top_1: float  # mean over the draws
    spread: float  # standard deviation over the draws, NaN where there was one
    balanced: float  # mean recall of the classes
    chance: float
    n: int  # images
    note: str

    def plain(self) -> dict[str, Any]:
        """For JSON, which has no NaN."""
        return self._asdict() | {"spread": None if math.isnan(self.spread) else self.spread}


class Probe:
    """Frozen features of one model, computed once, and the heads that are tried on them."""

    def __init__(
        self, model: Embedder | ViTClassifier, classes: ClassSet, train: Labelled, measured: Mapping[str, Labelled]
    ):
        """`measured`: split -> its images; the first split chooses, and every split is scored."""
        self.model, self.classes = model, classes
        self.vision = (model.model if isinstance(model, Embedder) else model).vision
        preprocess = model.preprocess
        if preprocess is None:
            raise ValueError("The model came without preprocessing settings, so it cannot read images.")
        self.train = ask(self.vision, preprocess, train, what="features: train")
        self.splits = {
            split: ask(self.vision, preprocess, data, what=f"features: {split}") for split, data in measured.items()
        }
        self.choose = next(iter(self.splits.values()))

    def zero_shot(self) -> list[Row]:
        """By the classes' names in each language; none for a model without texts."""
        if not isinstance(self.model, Embedder):
            return []
        rows = []
        for language, names in (self.classes.names or {"names": self.classes.keys}).items():
            rows += self.rows(f"zero-shot, {language}", [zero_shot_head(self.model, names)], "default templates")
        return rows

    def few_shot(self, shots: Sequence[int], draws: int) -> list[Row]:
        """k images per class, drawn several times."""
        rows = []
        for count in shots:
            chosen = [draw(self.train.targets, len(self.classes.keys), count, seed) for seed in range(draws)]
            parts = [(self.train.outputs[index], self.train.targets[index]) for index in chosen]
            heads, strength = self._best(parts)
            rows += self.rows(f"few-shot, {count} per class", heads, f"C {strength:g}, {draws} draws")
        return rows

    def fit_linear(self) -> tuple[nn.Linear, float]:
        """The linear probe on all training images, and its C."""
        heads, strength = self._best([(self.train.outputs, self.train.targets)])
        return heads[0], strength

    def _best(self, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[nn.Linear], float]:
        """One head per training set, all of the C that is best on average on the split that chooses."""
        classes = len(self.classes.keys)
        found: list[tuple[float, float, list[nn.Linear]]] = []
        for strength in STRENGTHS:
            heads = [as_linear(fit(features, targets, strength), classes) for features, targets in parts]
            found.append((sum(_score(head, self.choose)[0] for head in heads), strength, heads))
        _, strength, heads = max(found, key=lambda entry: entry[0])
        return heads, strength

    def rows(self, method: str, heads: Sequence[nn.Linear], note: str) -> list[Row]:
        """The mean over the heads, on every split."""
        scored = {split: [_score(head, answers) for head in heads] for split, answers in self.splits.items()}
        return [_row(method, split, scores, self.splits[split], self.classes, note) for split, scores in scored.items()]

    def classifier(self, head: nn.Linear, labels: Sequence[str]) -> ViTClassifier:
        """The frozen image tower and a linear head, as one model."""
        preprocess = self.model.parts()[1] if isinstance(self.model, Embedder) else self.model.preprocess
        classifier = ViTClassifier(self.vision.config, len(labels), labels=labels, preprocess=preprocess)
        classifier.vision.load_state_dict(self.vision.state_dict())
        classifier.head.load_state_dict(head.state_dict())
        return classifier.eval()


def fit(features: Tensor, targets: Tensor, strength: float) -> Pipeline:
    """scikit-learn's logistic regression on standardised features (n, D), targets (n,); `strength` is its C."""
    regression = LogisticRegression(C=strength, max_iter=5000)
    return make_pipeline(StandardScaler(), regression).fit(features.double().numpy(), targets.numpy())


def as_linear(fitted: Pipeline, num_classes: int) -> nn.Linear:
    """The same function of raw features (D) as one layer: its softmax is the pipeline's predict_proba."""
    scaler: Any = fitted[0]
    regression: Any = fitted[-1]
    if len(regression.classes_) != num_classes:
        raise ValueError(f"Training images show {len(regression.classes_)} of {num_classes} classes; wanted all.")
    weight, bias = regression.coef_ / scaler.scale_, regression.intercept_
    bias = bias - weight @ scaler.mean_
    if num_classes == 2:  # scikit-learn keeps the one row that speaks for the second class
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    head = nn.Linear(weight.shape[1], num_classes)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
    return head


def draw(targets: Tensor, num_classes: int, count: int, seed: int) -> Tensor:
    """Which images, `count` of each class, class by class; others for another seed."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for number in range(num_classes):
        of_class = (targets == number).nonzero().flatten()
        if len(of_class) < count:
            raise ValueError(f"Class {number} has {len(of_class)} training images; few-shot wanted {count} of each.")
        chosen.append(of_class[torch.randperm(len(of_class), generator=generator)[:count]])
    return torch.cat(chosen)


def classifier_rows(folder: str, classes: ClassSet, measured: Mapping[str, Labelled]) -> list[Row]:
    """A trained classifier on the same images; its labels may be the classes' keys or names, in any order."""
    classifier = load_classifier(folder)
    if classifier.preprocess is None:
        raise ValueError(f"{folder} came without preprocessing settings, so it cannot read images.")
    own = classes.in_order_of(classifier.labels)
    order = [own.keys.index(key) for key in classes.keys]
    rows = []
    for split, data in measured.items():
        answers = ask(classifier, classifier.preprocess, data, what=f"{folder}: {split}")
        scores = _measure(answers.outputs[:, order], answers.targets)
        rows.append(_row(f"classifier {Path(folder).name}", split, [scores], answers, classes, ""))
    return rows


@torch.no_grad()
def _score(head: nn.Linear, answers: Answers) -> tuple[float, float]:
    return _measure(head(answers.outputs), answers.targets)


def _measure(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    return top_k_accuracy(logits, targets), balanced_accuracy(logits, targets)


def _row(
    method: str, split: str, scores: Sequence[tuple[float, float]], answers: Answers, classes: ClassSet, note: str
) -> Row:
    top_1, balanced = np.array(scores).T
    spread = float(top_1.std(ddof=1)) if len(scores) > 1 else math.nan
    chance = 1 / len(classes.keys)
    return Row(method, split, float(top_1.mean()), spread, float(balanced.mean()), chance, len(answers.targets), note)


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'method':<28} {'split':<12} {'top-1':>6} {'spread':>7} {'balanced':>9} {'chance':>7} {'n':>6}  how"]
    for r in rows:
        spread = "" if math.isnan(r.spread) else f"{r.spread:.3f}"
        numbers = f"{r.top_1:6.3f} {spread:>7} {r.balanced:9.3f} {r.chance:7.3f} {r.n:6d}"
        lines.append(f"{r.method:<28} {r.split:<12} {numbers}  {r.note}")
    return "\n".join(lines)
