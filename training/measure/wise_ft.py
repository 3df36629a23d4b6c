"""The measurement of `vlm wise-ft`: a classifier before and after fine-tuning, interpolated weight by weight.

WiSE-FT, Wortsman et al. 2022.
"""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from vlm.checkpoint.load import load, load_classifier
from vlm.checkpoint.save import save
from vlm.errors import CheckpointError, InputError
from vlm.metrics import top_k_accuracy
from vlm.models.vision import ViTClassifier
from vlm.training.data.labelled import Labelled, ask, classes_of_classifier, open_labelled
from vlm.training.data.rows import ColumnNames
from vlm.training.measure.run_recipe import hold_out_by
from vlm.user_folders import check_output
from vlm.zero_shot import classifier_from_names


class Point(NamedTuple):
    """The accuracy of one mixture."""

    alpha: float
    top_1: float
    n: int  # images


def wise_ft(
    start: str,
    end: str,
    data: str,
    *,
    choose: str,
    zero_shot: bool = False,
    templates: Sequence[str] | None = None,
    classes: str | None = None,
    label: str | None = None,
    columns: ColumnNames | None = None,
    root: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    held_out: int | float | None = None,
    steps: int = 10,
    out: str | Path | None = None,
) -> tuple[list[Point], Point]:
    """Measure every mixture of two classifiers and, with `out`, write the best.

    Args:
        start: the classifier before fine-tuning; with `zero_shot` a CLIP.
        end: the classifier after it.
        data: what `open_rows` reads.
        choose: the split that chooses alpha.
        zero_shot: `start` is a CLIP, and the start is its zero-shot classifier of the labels of `end`.
        templates: sentences of that classifier; None chooses them by language.
        classes: a class set of the data's classes.json; None takes the labels of `end`.
        label: column that holds the classes, where `classes` does not say it.
        columns, root: as `open_rows` has them.
        device, dtype: of the models, as `vlm.load` has them.
        held_out: only this many images of `choose` choose, those that a recipe's `held_out` keeps from training.
        steps: alpha goes from 0 to 1 in so many steps.
        out: folder for the classifier of the best alpha.

    Returns:
        The points of the curve and the best of them; of equals the one nearest to `start`.
    """
    if out is not None:
        check_output(out, [data])
    after = load_classifier(end, device=device, dtype=dtype)
    before = (
        classifier_from_names(load(start, device=device, dtype=dtype), after.labels, templates)
        if zero_shot
        else load_classifier(start, device=device, dtype=dtype)
    )
    class_set = classes_of_classifier(after.labels, data, classes, label)
    images = open_labelled(data, choose, class_set, columns=columns, root=root)
    if held_out:
        images = images.hold_out(held_out, hold_out_by(end, data))[1]
    points = curve(before, after, images, [step / steps for step in range(steps + 1)])
    best = max(points, key=lambda point: point.top_1)  # of equals the first
    if out:
        save(interpolate(before, after, best.alpha), Path(out), _card(start, end, choose, points, best))
    return points, best


def interpolate(start: ViTClassifier, end: ViTClassifier, alpha: float) -> ViTClassifier:
    """A classifier with the weights (1 - alpha) start + alpha end; alpha 0 and 1 give the two ends bit for bit.

    Args:
        start: before fine-tuning.
        end: after fine-tuning.
        alpha: 0 to 1.

    Raises:
        InputError: alpha is out of range.
        CheckpointError: the two are not the same kind of model for the same labels and images.
    """
    _check_alike(start, end)
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must be between 0 (before) and 1 (after), got {alpha}.")
    before, after = start.state_dict(), end.state_dict()
    if alpha == 0:
        mixed = before  # a sum with 0 would lose the sign of -0.0
    elif alpha == 1:
        mixed = after
    else:
        mixed = {name: torch.lerp(before[name], after[name], alpha) for name in after}
    model = copy.deepcopy(end)
    model.load_state_dict(mixed)
    return model.eval()


def curve(start: ViTClassifier, end: ViTClassifier, data: Labelled, alphas: Sequence[float]) -> list[Point]:
    """Measure top-1 of mixtures on the same images.

    Args:
        start: before fine-tuning.
        end: after fine-tuning.
        data: the images.
        alphas: shares of `end`.

    Raises:
        CheckpointError: `end` does not say how it reads images.
    """
    if end.preprocess is None:
        raise CheckpointError(
            "The classifier came without preprocessing settings, so it cannot read images. Convert it with its config."
        )
    points = []
    for alpha in alphas:
        answers = ask(interpolate(start, end, alpha), end.preprocess, data, what=f"alpha {alpha:.2f}")
        points.append(Point(alpha, top_k_accuracy(answers.outputs, answers.targets), len(answers.targets)))
    return points


def _check_alike(start: ViTClassifier, end: ViTClassifier) -> None:
    if start.labels != end.labels:
        raise CheckpointError(
            f"START has labels {', '.join(start.labels)}, END {', '.join(end.labels)}: wanted the same."
        )
    if type(start.head) is not type(end.head):
        raise CheckpointError(
            f"START has a {type(start.head).__name__} head, END a {type(end.head).__name__}: wanted the same kind."
        )
    settings = [dataclasses.replace(model.vision.config, dropout=0.0, drop_path=0.0) for model in (start, end)]
    preprocess = [  # `exact` may differ: it moves pixels by 1 level at most
        dataclasses.replace(model.preprocess.config, exact=False) if model.preprocess else None
        for model in (start, end)
    ]
    for one, other, what in ((*settings, "architectures"), (*preprocess, "preprocessing")):
        if one != other:
            theirs = {} if other is None else other.to_dict()
            ours = {} if one is None else one.to_dict()
            differing = [f"{name} {ours.get(name)} and {theirs.get(name)}" for name in ours.keys() | theirs.keys()
                         if ours.get(name) != theirs.get(name)]  # fmt: skip
            raise CheckpointError(f"START and END have different {what}: {'; '.join(sorted(differing))}.")


def _card(start: str, end: str, choose: str, points: Sequence[Point], best: Point) -> str:
    lines = "\n".join(f"| {point.alpha:.2f} | {point.top_1:.4f} |" for point in points)
    return f"""---
library_name: vlm
pipeline_tag: image-classification
---

# A classifier between {start} and {end}

Every weight is {1 - best.alpha:g} times that before and {best.alpha:g} times that after fine-tuning (WiSE-FT, Wortsman
et al. 2022). alpha was chosen on `{choose}`, {best.n} images, so the best of these numbers is a little too good:

| alpha | top-1 |
|---|---|
{lines}
"""
