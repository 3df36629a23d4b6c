"""The measurement of `vlm report`: how good and how well calibrated a classifier is, as numbers and as figures."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.errors import CheckpointError

if TYPE_CHECKING:
    from vlm.images.preprocess import Preprocess
    from vlm.inspect.drawing import Language
    from vlm.training.data.labelled import Answers, ClassSet, Labelled


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
    language: "Language" = "en",
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
    from vlm.checkpoint.load import load_classifier
    from vlm.training.data.labelled import ask, classes_of_classifier, open_labelled
    from vlm.training.measure.report_numbers import fit_temperature

    opened = load_classifier(classifier)
    preprocess = opened.preprocess
    if preprocess is None:
        raise CheckpointError(f"{classifier} came without preprocessing settings, so it cannot read images.")
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
    answers: "Answers",
    temperature: float,
    data: "Labelled",
    preprocess: "Preprocess",
    classes: "ClassSet",
    *,
    language: "Language",
    wrong: int,
) -> dict[str, Any]:
    """All files of the report, and metrics.json as it is on disk.  `answers` are the logits for `data`."""
    from vlm.inspect.drawing import image_seen
    from vlm.metrics import reliability
    from vlm.training.measure.report_figures import Mistake, draw_confusion, draw_mistakes, draw_reliability, letters
    from vlm.training.measure.report_numbers import card_part, most_wrong, numbers

    logits, targets = answers.outputs, answers.targets
    measured = numbers(logits, targets, temperature, classes, language)
    found: dict[str, Any] = source | {"left_out": answers.left_out} | measured
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card_part(found), encoding="utf-8")

    pen = letters(language)
    names = pen.writable(classes.words(language))
    draw_confusion(found["confusion"], names, pen, out / "confusion.png")
    before, after = logits.softmax(1), (logits / temperature).softmax(1)
    errors = found["expected_calibration_error"], found["with_temperature"]["expected_calibration_error"]
    draw_reliability(reliability(before, targets), reliability(after, targets), errors, pen, out / "reliability.png")
    certainty, said = before.max(1)
    mistakes = [
        Mistake(
            image_seen(preprocess.pixels(data.rows.image(answers.index[place]))),
            names[int(targets[place])],
            names[int(said[place])],
            float(certainty[place]),
        )
        for place in most_wrong(before, targets, wrong)
    ]
    draw_mistakes(mistakes, pen, out / "most-wrong.png")
    return found


def summary(found: dict[str, Any], out: Path) -> str:
    lines = [
        f"{name.replace('_', '-' if name.startswith('top') else ' '):<20} {found[name]['value']:.3f}"
        f"   chance {found[name]['chance']:.3f}"
        for name in ("top_1", "top_5", "balanced_accuracy")
        if name in found
    ]
    after = found["with_temperature"]["expected_calibration_error"]
    lines.append(
        f"{'calibration error':<20} {found['expected_calibration_error']:.3f}   {after:.3f} at temperature "
        f"{found['temperature']:.3f} fitted on {found['temperature_fitted_on']}"
    )
    lines.append(f"{found['n']} images of {found['split']}; all of it in {out}")
    return "\n".join(lines)
