"""How good and how honest a classifier is, as numbers and as images.

    python -m training.report my-vit training/picture_words --classes emoji_group8 --split val_style --out report
    ... --split test_style --fit-split val_style            a test split: once per released model
    ... --split test --fit-split train --held-out 5000      where validation was held out of the training images

metrics.json     top-1, top-5, balanced accuracy, calibration error before and after temperature, per class, confusion
README.md        the part of a model card
confusion.png, reliability.png, most-wrong.png     in the user's language (--lang)
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.commands.options import positive, user_language

if TYPE_CHECKING:
    from vlm.images.preprocess import Preprocess
    from vlm.inspect.figures import Language
    from vlm.training.data.labelled import Answers, ClassSet, Labelled


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("classifier", help="a folder, or anything else vlm.load_classifier reads")
    parser.add_argument("data", help="what vlm.training.data.rows.open_rows reads")
    parser.add_argument("--split", required=True, help="that is measured")
    parser.add_argument("--fit-split", metavar="SPLIT", help="validation, fits the temperature; default: --split")
    parser.add_argument(
        "--held-out", type=positive, metavar="N", help="of --fit-split: as the recipe of train_vit says"
    )
    parser.add_argument("--classes", metavar="NAME", help="a class set of DATA/classes.json; default: its own labels")
    parser.add_argument("--label", metavar="COLUMN", help="that holds the classes, where --classes does not say it")
    parser.add_argument("--wrong", type=positive, default=24, metavar="N", help="images to show, default %(default)s")
    parser.add_argument("--lang", choices=["en", "ja"], default=user_language(), help="of the words in the images")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="print metrics.json")
    args = parser.parse_args()
    from vlm.checkpoint.folder import load_classifier
    from vlm.training.data.labelled import ask, classes_of_classifier, open_labelled  # torch is slow to import
    from vlm.training.measure.report_numbers import fit_temperature

    try:
        classifier = load_classifier(args.classifier)
        preprocess = classifier.preprocess
        if preprocess is None:
            raise ValueError(f"{args.classifier} came without preprocessing settings, so it cannot read images.")
        classes = classes_of_classifier(classifier.labels, args.data, args.classes, args.label)
        data = open_labelled(args.data, args.split, classes)
        answers = ask(classifier, preprocess, data, what=args.split)
        fitted, fit_split = answers, args.fit_split or args.split
        if args.held_out or fit_split != args.split:
            validation = open_labelled(args.data, fit_split, classes)
            if args.held_out:
                validation, fit_split = validation.hold_out(args.held_out)[1], f"{fit_split}, {args.held_out} held out"
            fitted = ask(classifier, preprocess, validation, what=fit_split)
        source = {
            "classifier": str(args.classifier),
            "data": str(args.data),
            "split": args.split,
            "temperature_fitted_on": fit_split,
        }
        temperature = fit_temperature(fitted.outputs, fitted.targets)
        found = write_report(
            args.out, source, answers, temperature, data, preprocess, classes, language=args.lang, wrong=args.wrong
        )
    except (ValueError, OSError) as error:
        print(f"report: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, ensure_ascii=False, indent=1) if args.json else summary(found, args.out))
    return 0


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
    from vlm.inspect.figures import image_seen
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


if __name__ == "__main__":
    sys.exit(main())
