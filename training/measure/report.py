"""The measurement of `vlm report`: accuracy and calibration of a classifier, as numbers and as figures."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.checkpoint.load import load_classifier
from vlm.errors import CheckpointError
from vlm.images.preprocess import Preprocess
from vlm.inspect.drawing import Language, image_seen
from vlm.metrics import reliability
from vlm.training.data.labelled import Answers, ClassSet, Labelled, ask, classes_of_classifier, open_labelled
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


def report(
    classifier: str,
    data: str,
    out: Path,
    *,
    split: str,
    fit_split: str | None = None,
    held_out: int | None = None,
    classes: str | None = None,
    label: str | None = None,
    wrong: int = 24,
    language: Language = "en",
) -> dict[str, Any]:
    """Measure a classifier on a split and write the report.

    Args:
        classifier: what `vlm.load_classifier` reads.
        data: what `open_rows` reads.
        out: folder for the report.
        split: is measured.
        fit_split: fits the temperature; None is `split`.
        held_out: only this many images of `fit_split` fit it, those that a recipe's `held_out` keeps from training.
        classes: a class set of the data's classes.json; None takes the classifier's own labels.
        label: column that holds the classes, where `classes` does not say it.
        wrong: mistakes to draw.
        language: of the words in the figures.

    Returns:
        What metrics.json holds.

    Raises:
        CheckpointError: the classifier came without preprocessing settings.
    """
    opened = load_classifier(classifier)
    preprocess = opened.preprocess
    if preprocess is None:
        raise CheckpointError(
            f"{classifier} came without preprocessing settings, so it cannot read images. Convert it with its config."
        )
    class_set = classes_of_classifier(opened.labels, data, classes, label)
    images = open_labelled(data, split, class_set)
    answers = ask(opened, preprocess, images, what=split)
    fitted, fitted_on = answers, fit_split or split
    if held_out or fitted_on != split:
        validation = open_labelled(data, fitted_on, class_set)
        if held_out:
            validation, fitted_on = validation.hold_out(held_out)[1], f"{fitted_on}, {held_out} held out"
        fitted = ask(opened, preprocess, validation, what=fitted_on)
    source = {"classifier": str(classifier), "data": str(data), "split": split, "temperature_fitted_on": fitted_on}
    temperature = fit_temperature(fitted.outputs, fitted.targets)
    return write_report(
        out, source, answers, temperature, images, preprocess, class_set, language=language, wrong=wrong
    )


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
