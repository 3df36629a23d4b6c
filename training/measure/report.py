"""The measurement of `vlm report`: accuracy and calibration of a classifier, as numbers and as figures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vlm.checkpoint.load import load_classifier
from vlm.errors import DataError, InputError
from vlm.images.preprocess import Preprocess
from vlm.inspect.drawing import Language, image_seen
from vlm.metrics import reliability
from vlm.models.vision import ViTClassifier
from vlm.training.data.labelled import Answers, ClassSet, Labelled, ask, classes_of_classifier, open_labelled
from vlm.training.data.rows import ColumnNames
from vlm.training.data.sources import open_rows
from vlm.training.data.targets import open_classifier_data, open_multi_label, open_values
from vlm.training.measure.classifier_figures import (
    SHOWN,
    Letters,
    Mistake,
    draw_confusion,
    draw_mistakes,
    draw_reliability,
    letters,
)
from vlm.training.measure.classifier_metrics import (
    WHOLE_CONFUSION,
    Temperature,
    card_section,
    classifier_metrics,
    confusion_matrix,
    fit_temperature,
    most_confused,
    most_wrong,
)
from vlm.training.measure.multi_label import (
    multi_label_metrics,
    multi_label_section,
    regression_metrics,
    regression_section,
)
from vlm.training.measure.run_recipe import hold_out_by, recipe_of_run
from vlm.user_folders import check_output

OUTPUTS = ("metrics.json", "README.md", "confusion.png", "reliability.png", "most-wrong.png")


def report(
    classifier: str,
    data: str | None,
    out: Path,
    *,
    split: str | None = None,
    fit_split: str | None = None,
    held_out: int | float | None = None,
    classes: str | None = None,
    label: str | None = None,
    columns: ColumnNames | None = None,
    root: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    wrong: int = 24,
    language: Language = "en",
) -> dict[str, Any]:
    """Measure a classifier and write the report.

    Args:
        classifier: what `vlm.load_classifier` reads.
        data: what `open_rows` reads; None takes the data of the run in the classifier's folder.
        out: folder for the report.
        split: is measured, "" is all of the data.  None measures the images that the run validated on: its held-out
            part, or its validation split.
        fit_split: fits the temperature; None is what is measured.
        held_out: only this many images of `fit_split` fit it, those that a recipe's `held_out` keeps from training.
        classes: a class set of the data's classes.json; None takes the classifier's own labels.
        label: column that holds the classes, where `classes` does not say it.
        columns, root: as `open_rows` has them; None, on the data of the run, takes what its recipe says.
        device, dtype: of the classifier, as `vlm.load` has them.
        wrong: mistakes to draw.
        language: of the words in the figures.

    Returns:
        What metrics.json holds.

    Raises:
        CheckpointError: the classifier came without preprocessing settings.
        InputError: nothing says what to measure.
    """
    opened = load_classifier(classifier, device=device, dtype=dtype)
    opened.prepare()
    measured = _open_measured(opened, classifier, data, split, classes, label, columns, root)
    check_output(out, [measured.data], OUTPUTS, OUTPUTS[0])
    shown = measured.split or "all"
    answers = ask(opened, opened.prepare(), measured.images, what=shown)
    source = {"classifier": str(classifier), "data": measured.data, "split": shown}
    if measured.classes is None or opened.problem != "single_label":
        return _write_numbers(out, source, opened, answers)
    fitted, fitted_on = answers, shown
    if held_out or fit_split not in (None, measured.split):
        part = measured.split if fit_split is None else fit_split
        validation = open_labelled(measured.data, part, measured.classes, columns=measured.columns, root=measured.root)
        fitted_on = part or "all"
        if held_out:
            by = hold_out_by(classifier, measured.data)
            validation, fitted_on = validation.hold_out(held_out, by)[1], f"{fitted_on}, {held_out} held out"
        fitted = ask(opened, opened.prepare(), validation, what=fitted_on)
    source |= {"temperature_fitted_on": fitted_on}
    temperature = fit_temperature(fitted.outputs, fitted.targets)
    return write_report(
        out,
        source,
        answers,
        temperature,
        measured.images,
        opened.prepare(),
        measured.classes,
        language=language,
        wrong=wrong,
    )


def evaluate_classifier(
    classifier: ViTClassifier,
    data: str,
    *,
    splits: Sequence[str] = (),
    label: str | None = None,
    columns: ColumnNames | None = None,
    root: str | Path | None = None,
) -> dict[str, Any]:
    """The numbers of the report, nothing written.

    Args:
        classifier: its labels are the classes of the data.
        data: what `open_rows` reads.
        splits: are measured together; empty takes all samples.
        label: column that holds the labels, or the numbers of a regression.
        columns, root: as `open_rows` has them.
    """
    split = "+".join(splits) or "all"
    named = dict(columns or {}) | ({"label": label} if label else {})
    if classifier.problem == "single_label":
        class_set = classes_of_classifier(classifier.labels, data, None, label)
        images = open_labelled(data, tuple(splits), class_set, columns=named, root=root)
        answers = ask(classifier, classifier.prepare(), images, what=split)
        temperature = fit_temperature(answers.outputs, answers.targets)
        numbers = classifier_metrics(answers.outputs, answers.targets, temperature, class_set.keys, classifier.labels)
    else:
        rows = open_rows(data, tuple(splits), named, root)
        if classifier.problem == "regression":
            images = open_values(rows, named)
        else:
            images = open_multi_label(rows, ClassSet(keys=classifier.labels), named)
        answers = ask(classifier, classifier.prepare(), images, what=split)
        numbers = _numbers(classifier, answers)
    return {"data": data, "split": split, "left_out": answers.left_out} | numbers


def _numbers(classifier: ViTClassifier, answers: Answers) -> dict[str, Any]:
    """Measures a multi-label or a regression model."""
    if classifier.problem == "regression":
        return regression_metrics(answers.outputs, answers.targets, classifier.labels)
    return multi_label_metrics(answers.outputs.sigmoid(), answers.targets, classifier.labels, classifier.thresholds)


class _Measured(NamedTuple):
    """The images of a report."""

    data: str
    split: str
    images: Labelled
    classes: ClassSet | None  # None for regression
    columns: ColumnNames | None = None
    root: str | Path | None = None


def _open_measured(
    opened: ViTClassifier,
    folder: str,
    data: str | None,
    split: str | None,
    classes: str | None,
    label: str | None,
    columns: ColumnNames | None,
    root: str | Path | None,
) -> _Measured:
    recipe = recipe_of_run(folder)
    if split is None:
        if recipe is None or data not in (None, recipe.data.train):
            raise InputError(
                f"Nothing says which part of {data or 'the data'} to measure. Name it with --split, or write "
                "--split '' for all of it."
            )
        found = open_classifier_data(recipe.data, recipe.loss.problem)
        if tuple(found.labels) != opened.labels:
            raise DataError(
                f"The classes of {recipe.data.train} have changed since the training: {_some(found.labels)}, and the "
                f"classifier has {_some(opened.labels)}. Measure the data it was trained on."
            )
        return _Measured(recipe.data.train, found.validation_name, found.validation, found.classes,
                         recipe.data.columns, recipe.data.root)  # fmt: skip
    if data is None:
        if recipe is None:
            raise InputError(f"{folder} does not say what it was trained on. Name the data.")
        data = recipe.data.train
    if recipe is not None and data == recipe.data.train:
        columns, root = columns or recipe.data.columns, root or recipe.data.root
    if label:
        columns = dict(columns or {}) | {"label": label}
    if opened.problem == "single_label":
        class_set = classes_of_classifier(opened.labels, data, classes, label)
        images = open_labelled(data, split, class_set, columns=columns, root=root)
        return _Measured(data, split, images, class_set, columns, root)
    rows = open_rows(data, [split] if split else [], columns, root)
    if opened.problem == "regression":
        return _Measured(data, split, open_values(rows, dict(columns or {})), None)
    class_set = ClassSet(keys=opened.labels)
    return _Measured(data, split, open_multi_label(rows, class_set, dict(columns or {})), class_set)


def _write_numbers(out: Path, source: dict[str, str], opened: ViTClassifier, answers: Answers) -> dict[str, Any]:
    """metrics.json and README.md of a multi-label or a regression model."""
    section = regression_section if opened.problem == "regression" else multi_label_section
    left_out = {"left_out": answers.left_out, "problem": opened.problem}
    found: dict[str, Any] = source | left_out | _numbers(opened, answers)
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(section(found), encoding="utf-8")
    return found


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")


def write_report(
    out: Path,
    source: dict[str, str],
    answers: Answers,
    temperature: Temperature,
    data: Labelled,
    preprocess: Preprocess,
    classes: ClassSet,
    *,
    language: Language,
    wrong: int,
) -> dict[str, Any]:
    """Write all files of the report.

    Args:
        out: folder for the report.
        source: what was measured: "classifier", "data", "split" and "temperature_fitted_on".
        answers: logits of the images of `data`.
        temperature: fitted to validation images.
        data: the images that were measured.
        preprocess: of the classifier; it draws the images of the mistakes.
        classes: M classes in the order of the logits.
        language: of the words in the figures.
        wrong: mistakes to draw.

    Returns:
        What metrics.json holds.
    """
    logits, targets, names = answers.outputs, answers.targets, classes.words(language)
    measured = classifier_metrics(logits, targets, temperature, classes.keys, names)
    found: dict[str, Any] = source | {"left_out": answers.left_out} | measured
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card_section(found), encoding="utf-8")

    pen = letters(language)
    written = pen.writable(names)
    _draw_confusion(logits, targets, written, pen, out / "confusion.png")
    before, after = logits.softmax(1), (logits / temperature.value).softmax(1)
    errors = found["expected_calibration_error"], found["with_temperature"]["expected_calibration_error"]
    draw_reliability(reliability(before, targets), reliability(after, targets), errors, pen, out / "reliability.png")
    certainty, said = before.max(1)
    mistakes = [
        Mistake(
            image_seen(preprocess.pixels(data.rows.image(answers.index[place]))),
            written[int(targets[place])],
            written[int(said[place])],
            float(certainty[place]),
        )
        for place in most_wrong(before, targets, wrong)
    ]
    draw_mistakes(mistakes, pen, out / "most-wrong.png")
    return found


def _draw_confusion(logits: Tensor, targets: Tensor, names: list[str], pen: Letters, path: Path) -> None:
    """The whole matrix, or the classes with most errors where they are too many to draw."""
    every = list(range(logits.shape[1]))
    shown = every if len(every) <= WHOLE_CONFUSION else most_confused(logits, targets, SHOWN) or every[:SHOWN]
    draw_confusion(confusion_matrix(logits, targets, shown).tolist(), [names[i] for i in shown], pen, path)


def summary(found: dict[str, Any], out: Path) -> str:
    """The main numbers of metrics.json as lines of text."""
    if "labels" in found:
        lines = [f"{'mAP':<20} {found['mAP']['value']:.3f}   chance {found['mAP']['chance']:.3f}"]
        return "\n".join([*lines, f"{found['n']} images of {found['split']}; all of it in {out}"])
    if "values" in found:
        lines = [
            f"{row['name']:<20} MAE {row['MAE']:.4g}   of the mean {row['MAE_of_the_mean']:.4g}"
            for row in found["values"]
        ]
        return "\n".join([*lines, f"{found['n']} images of {found['split']}; all of it in {out}"])
    lines = [
        f"{name.replace('_', '-' if name.startswith('top') else ' '):<20} {found[name]['value']:.3f}"
        f"   chance {found[name]['chance']:.3f}"
        for name in ("top_1", "top_5", "balanced_accuracy")
        if name in found
    ]
    after = found["with_temperature"]["expected_calibration_error"]
    temperature = Temperature(found["temperature"], found["temperature_at_limit"])
    lines.append(
        f"{'calibration error':<20} {found['expected_calibration_error']:.3f}   {after:.3f} at temperature "
        f"{temperature} fitted on {found['temperature_fitted_on']}"
    )
    lines.append(f"{found['n']} images of {found['split']}; all of it in {out}")
    return "\n".join(lines)
