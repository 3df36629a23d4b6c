"""The measurement of `vlm probe`: heads on the frozen features of a model, in one table with chance."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vlm.checkpoint.backbone import Backbone, load_backbone
from vlm.checkpoint.load import load, load_classifier
from vlm.checkpoint.save import save
from vlm.embedder import Embedder
from vlm.errors import CheckpointError, InputError, OtherKind
from vlm.metrics import balanced_accuracy, top_k_accuracy
from vlm.models.external import ExternalModel
from vlm.models.vision import VisionTransformer, ViTClassifier
from vlm.training.data.labelled import Answers, ClassSet, Labelled, ask, classes_of, open_labelled, read_class_set
from vlm.training.data.rows import ColumnNames
from vlm.training.measure.classifier_metrics import fit_temperature
from vlm.training.measure.heads import choose_heads, draw_shots, nearest_neighbours, shots_that_fit
from vlm.user_folders import check_output
from vlm.zero_shot import class_embeddings, zero_shot_head

_log = logging.getLogger(__name__)
_NO_CLASSIFIER = (
    "--out writes a classifier with layers of this library, and an external model has none. Leave --out out, or probe "
    "a native model."
)
Scores = Callable[[Tensor], Tensor]  # features (n, D) -> scores (n, M)


class ProbeResult(NamedTuple):
    """One line of the table."""

    method: str
    split: str
    top_1: float  # mean over the draws
    spread: float  # standard deviation over the draws, NaN where there was one
    balanced: float  # mean recall of the classes
    chance: float
    n: int  # images
    note: str

    def plain(self) -> dict[str, Any]:
        """Converts values for JSON, which has no NaN."""
        return self._asdict() | {"spread": None if math.isnan(self.spread) else self.spread}


def probe(
    model: str,
    data: str,
    *,
    trust_remote_code: bool = False,
    classes: str | None = None,
    label: str | None = None,
    columns: ColumnNames | None = None,
    root: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    train_split: str = "train",
    choose: str | None = None,
    held_out: int | float | None = None,
    report: str | None = None,
    shots: Sequence[int] = (1, 4, 16),
    draws: int = 5,
    neighbours: int = 20,
    classifiers: Sequence[str] = (),
    language: Literal["en", "ja"] = "en",
    out: str | Path | None = None,
) -> list[ProbeResult]:
    """Fit heads on the frozen features of a model and measure them.

    Args:
        model: a CLIP or ViT, as `vlm.load` or `vlm.load_classifier` reads it.
        data: what `open_rows` reads.
        trust_remote_code: run Python code that comes with the model, where it needs such code.
        classes: a class set of the data's classes.json; None takes all classes that occur.
        label: column that holds the classes, where `classes` does not say it.
        columns, root: as `open_rows` has them.
        device, dtype: of the models, as `vlm.load` has them.
        train_split: the heads are fitted on it.
        choose: the split that chooses the regularisation strength C; give either this or `held_out`.
        held_out: this many training images, or below 1 such a share, choose C instead.
        report: one more split to measure.
        shots: images per class of the few-shot rows; those that a class does not have are left out and logged.
        draws: random draws of few-shot images; their mean and standard deviation are reported.
        neighbours: k of the k-NN row; 0 leaves it out.
        classifiers: folders of trained classifiers that get rows in the same table.
        language: of the labels of the classifier written to `out`.
        out: folder for the linear probe as a classifier, its probabilities calibrated on the split that chooses.

    Returns:
        One row per method and split.

    Raises:
        InputError: both or none of `choose` and `held_out` are given, or `out` is given and the model is external.
    """
    if (choose is None) == (held_out is None):
        raise InputError("Give either choose, the split that chooses C, or held_out, a number of training images.")
    if out is not None:
        check_output(out, [data])
    class_set = (
        read_class_set(data, classes) if classes else classes_of(data, train_split, label, columns=columns, root=root)
    )
    shown = open_labelled(data, train_split, class_set, columns=columns, root=root)
    if choose is not None:
        measured = {choose: open_labelled(data, choose, class_set, columns=columns, root=root)}
    else:
        shown, held = shown.hold_out(held_out or 0)
        measured = {"held out": held}
    if report:
        measured[report] = open_labelled(data, report, class_set, columns=columns, root=root)
    names = class_set.words(language)
    shots, left_out = shots_that_fit(shown.targets, names, shots)
    for line in left_out:
        _log.warning("%s", line)
    opened = open_model(model, device, dtype, trust_remote_code=trust_remote_code)
    if out and isinstance(opened, Embedder) and isinstance(opened.model, ExternalModel):
        raise InputError(_NO_CLASSIFIER)
    found = FrozenFeatures(opened, class_set, shown, measured)
    results = found.zero_shot() + found.few_shot(shots, draws)
    if neighbours:
        results += found.k_nearest(neighbours)
    linear, c = found.fit_linear()
    results += found.measure("linear probe", [linear], f"C {c:g}, {len(found.train.targets)} images")
    for folder in classifiers:
        results += measure_classifier(folder, class_set, measured, device, dtype)
    if out:
        save(found.classifier(linear, names), Path(out))
    return results


def open_model(
    source: str, device: str = "auto", dtype: str = "auto", *, trust_remote_code: bool = False
) -> Embedder | Backbone:
    """A CLIP, or a ViT with or without a head, which has no zero-shot rows."""
    try:
        return load(source, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    except OtherKind:
        return load_backbone(source, device=device, dtype=dtype)


class FrozenFeatures:
    """The features of one model, computed once, and the heads that are fitted to them."""

    def __init__(
        self,
        model: Embedder | Backbone | ViTClassifier,
        classes: ClassSet,
        train: Labelled,
        measured: Mapping[str, Labelled],
    ):
        """Compute the features of all images.

        Args:
            model: its image encoder gives the features.
            classes: M classes.
            train: images that heads are fitted to.
            measured: split -> its images.  The first split chooses C; every split is measured.

        Raises:
            CheckpointError: the model does not say how it reads images.
        """
        self.model, self.classes = model, classes
        self.encoder = _image_encoder(model)
        preprocess = model.parts()[1] if isinstance(model, Embedder) else model.preprocess
        if preprocess is None:
            raise CheckpointError(
                "The model came without preprocessing settings, so it cannot read images. Convert it with its config."
            )
        self.train = ask(self.encoder, preprocess, train, what="features: train")
        self.splits = {
            split: ask(self.encoder, preprocess, data, what=f"features: {split}") for split, data in measured.items()
        }
        self.choose = next(iter(self.splits.values()))

    def zero_shot(self) -> list[ProbeResult]:
        """Zero-shot classification by the class names in each language; empty for a model without texts."""
        if not isinstance(self.model, Embedder):
            return []
        results = []
        for language in self.classes.names or ("names",):
            names = self.classes.words(language)
            results += self.measure(f"zero-shot, {language}", [_zero_shot(self.model, names)], "default templates")
        return results

    def few_shot(self, shots: Sequence[int], draws: int) -> list[ProbeResult]:
        """Logistic regression on a few images of each class.

        Args:
            shots: images of each class; every class must have so many.
            draws: random draws; the results are their mean and standard deviation.
        """
        results = []
        for count in shots:
            chosen = [draw_shots(self.train.targets, len(self.classes.keys), count, seed) for seed in range(draws)]
            heads, c = self._choose([(self.train.outputs[index], self.train.targets[index]) for index in chosen])
            results += self.measure(f"few-shot, {count} per class", heads, f"C {c:g}, {draws} draws")
        return results

    def k_nearest(self, k: int) -> list[ProbeResult]:
        """Weighted k-NN classification by cosine similarity, without any fitting."""
        train, count = self.train, len(self.classes.keys)

        def scores(features: Tensor) -> Tensor:
            return nearest_neighbours(train.outputs, train.targets, features, count, k=k)

        return self.measure("k-NN", [scores], f"k {k}, {len(train.targets)} images")

    def fit_linear(self) -> tuple[nn.Linear, float]:
        """The linear probe on all training images, and its C."""
        heads, c = self._choose([(self.train.outputs, self.train.targets)])
        return heads[0], c

    def _choose(self, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[nn.Linear], float]:
        return choose_heads(parts, self.choose.outputs, self.choose.targets, len(self.classes.keys))

    def measure(self, method: str, heads: Sequence[Scores], note: str) -> list[ProbeResult]:
        """Measure heads on every split.

        Args:
            method: name of the row.
            heads: one for each draw; the results are their mean.
            note: how they were made.
        """
        results = []
        with torch.no_grad():
            for split, answers in self.splits.items():
                scored = [_accuracies(head(answers.outputs), answers.targets) for head in heads]
                results.append(_result(method, split, scored, answers, self.classes, note))
        return results

    @torch.no_grad()
    def classifier(self, head: nn.Linear, labels: Sequence[str]) -> ViTClassifier:
        """The image encoder and a linear head as one model, with calibrated probabilities.

        Args:
            head: D -> M.
            labels: of the M classes.

        Returns:
            A classifier whose logits are divided by the temperature that fits the split that chooses.

        Raises:
            InputError: the model is external, so its image encoder has no form of ours.
        """
        if not isinstance(self.encoder, VisionTransformer):
            raise InputError(_NO_CLASSIFIER)
        preprocess = self.model.parts()[1] if isinstance(self.model, Embedder) else self.model.preprocess
        classifier = ViTClassifier(self.encoder.config, len(labels), labels=labels, preprocess=preprocess)
        classifier.vision.load_state_dict(self.encoder.state_dict())
        temperature = fit_temperature(head(self.choose.outputs), self.choose.targets).value
        classifier.head.load_state_dict({name: weight / temperature for name, weight in head.state_dict().items()})
        return classifier.eval()


def _image_encoder(model: Embedder | Backbone | ViTClassifier) -> nn.Module:
    """Returns what computes the features: the ViT without projection; of an external model its whole image encoder."""
    if isinstance(model, Embedder) and isinstance(model.model, ExternalModel):
        return _JointSpace(model.model)
    return model.model.vision if isinstance(model, Embedder) else model.vision


class _JointSpace(nn.Module):
    """Images (B, C, H, W) -> embeddings (B, E) of an external model."""

    def __init__(self, model: ExternalModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images)


@torch.no_grad()
def _zero_shot(embedder: Embedder, labels: Sequence[str]) -> Scores:
    if not isinstance(embedder.model, ExternalModel):
        return zero_shot_head(embedder, labels)
    model, embeds = embedder.model, class_embeddings(embedder, labels)  # (M, E)
    return lambda features: model.logits(features, embeds)


def measure_classifier(
    folder: str, classes: ClassSet, measured: Mapping[str, Labelled], device: str = "auto", dtype: str = "auto"
) -> list[ProbeResult]:
    """Measure a trained classifier on the same images.

    Args:
        folder: what `vlm.load_classifier` reads; its labels are the classes' keys or names, in any order.
        classes: M classes.
        measured: split -> its images.

    Raises:
        CheckpointError: the classifier does not say how it reads images.
    """
    classifier = load_classifier(folder, device=device, dtype=dtype)
    if classifier.preprocess is None:
        raise CheckpointError(
            f"{folder} came without preprocessing settings, so it cannot read images. Convert it with its config."
        )
    own = classes.in_order_of(classifier.labels)
    order = [own.keys.index(key) for key in classes.keys]
    results = []
    for split, data in measured.items():
        answers = ask(classifier, classifier.preprocess, data, what=f"{folder}: {split}")
        scored = _accuracies(answers.outputs[:, order], answers.targets)
        results.append(_result(f"classifier {Path(folder).name}", split, [scored], answers, classes, ""))
    return results


def _accuracies(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    return top_k_accuracy(logits, targets), balanced_accuracy(logits, targets)


def _result(
    method: str, split: str, scored: Sequence[tuple[float, float]], answers: Answers, classes: ClassSet, note: str
) -> ProbeResult:
    top_1, balanced = np.array(scored).T
    spread = float(top_1.std(ddof=1)) if len(scored) > 1 else math.nan
    n, chance = len(answers.targets), 1 / len(classes.keys)
    return ProbeResult(method, split, float(top_1.mean()), spread, float(balanced.mean()), chance, n, note)


def probe_table(results: Sequence[ProbeResult]) -> str:
    """The results as columns of text."""
    lines = [f"{'method':<28} {'split':<12} {'top-1':>6} {'spread':>7} {'balanced':>9} {'chance':>7} {'n':>6}  how"]
    for r in results:
        spread = "" if math.isnan(r.spread) else f"{r.spread:.3f}"
        numbers = f"{r.top_1:6.3f} {spread:>7} {r.balanced:9.3f} {r.chance:7.3f} {r.n:6d}"
        lines.append(f"{r.method:<28} {r.split:<12} {numbers}  {r.note}")
    return "\n".join(lines)
