"""The measurement of `vlm probe`: linear probe, few-shot and zero-shot on the frozen features of a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vlm.checkpoint.load import load, load_classifier
from vlm.checkpoint.save import save
from vlm.errors import InputError, OtherKind
from vlm.training.data.labelled import classes_of, open_labelled, read_class_set
from vlm.training.measure.heads import Probe, Row, classifier_rows


def probe(
    model: str,
    data: str,
    *,
    classes: str | None = None,
    label: str | None = None,
    train_split: str = "train",
    choose: str | None = None,
    held_out: int | None = None,
    report: str | None = None,
    shots: Sequence[int] = (1, 4, 16),
    draws: int = 5,
    classifiers: Sequence[str] = (),
    language: Literal["en", "ja"] = "en",
    out: str | Path | None = None,
) -> list[Row]:
    """Fit heads on the frozen features of a model and measure them.

    Args:
        model: a CLIP or ViT, as `vlm.load` or `vlm.load_classifier` reads it.
        data: what `open_rows` reads.
        classes: a class set of the data's classes.json; None takes all classes that occur.
        label: column that holds the classes, where `classes` does not say it.
        train_split: the heads are fitted on it.
        choose: the split that chooses the regularisation strength C; give either this or `held_out`.
        held_out: this many training images choose C instead.
        report: one more split to measure.
        shots: images per class of the few-shot rows.
        draws: random draws of few-shot images; their mean and standard deviation are reported.
        classifiers: folders of trained classifiers that get rows in the same table.
        language: of the labels of the classifier written to `out`.
        out: folder for the linear probe as a classifier.

    Returns:
        One row per method and split.

    Raises:
        InputError: both or none of `choose` and `held_out` are given.
    """
    if (choose is None) == (held_out is None):
        raise InputError("Give either choose, the split that chooses C, or held_out, a number of training images.")
    class_set = read_class_set(data, classes) if classes else classes_of(data, train_split, label)
    shown = open_labelled(data, train_split, class_set)
    if choose is not None:
        measured = {choose: open_labelled(data, choose, class_set)}
    else:
        shown, held = shown.hold_out(held_out or 0)
        measured = {"held out": held}
    if report:
        measured[report] = open_labelled(data, report, class_set)
    try:
        opened = load(model)
    except OtherKind:  # a ViT with classes of its own: no zero-shot
        opened = load_classifier(model)
    found = Probe(opened, class_set, shown, measured)
    rows = found.zero_shot() + found.few_shot(shots, draws)
    linear, strength = found.fit_linear()
    rows += found.rows("linear probe", [linear], f"C {strength:g}, {len(found.train.targets)} images")
    for folder in classifiers:
        rows += classifier_rows(folder, class_set, measured)
    if out:
        save(found.classifier(linear, class_set.words(language)), Path(out))
    return rows
