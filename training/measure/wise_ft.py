"""Between a classifier before and after fine-tuning, weight by weight (WiSE-FT, Wortsman et al. 2022).

    python -m training.wise_ft START END DATA --choose val_style --out runs/wise
    python -m training.wise_ft mini END DATA --zero-shot --choose val_style --out runs/wise

The second starts from the zero-shot classifier of END's own labels.  alpha is the best on the split of --choose, of
equals the one nearest to START.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vlm.commands.options import positive

if TYPE_CHECKING:
    from vlm.models.vision import ViTClassifier
    from vlm.training.data.labelled import Labelled


class Point(NamedTuple):
    alpha: float
    top_1: float
    n: int


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.wise_ft", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("start", help="the classifier before fine-tuning; with --zero-shot a CLIP")
    parser.add_argument("end", help="the classifier after it")
    parser.add_argument("data", help="what vlm.training.data.rows.open_rows reads")
    parser.add_argument("--zero-shot", action="store_true", help="START is a CLIP, END began as its zero-shot head")
    parser.add_argument("--templates", nargs="+", metavar="SENTENCE", help="of --zero-shot; default: by language")
    parser.add_argument("--classes", metavar="NAME", help="a class set of DATA/classes.json; default: END's labels")
    parser.add_argument("--label", metavar="COLUMN", help="that holds the classes, where --classes does not say it")
    parser.add_argument("--choose", required=True, metavar="SPLIT", help="validation: chooses alpha")
    parser.add_argument("--held-out", type=positive, metavar="N", help="of --choose: as the recipe of train_vit says")
    parser.add_argument("--steps", type=positive, default=10, help="alpha in steps of 1 / STEPS, default %(default)s")
    parser.add_argument("--out", metavar="FOLDER", help="write the classifier of the best alpha")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    args = parser.parse_args()
    from vlm.checkpoint.folder import load, load_classifier, save
    from vlm.training.data.labelled import classes_of_classifier, open_labelled  # torch is slow to import
    from vlm.zero_shot import classifier_from_names

    try:
        if args.templates and not args.zero_shot:
            raise ValueError("--templates make sentences of --zero-shot; a classifier reads none. Leave them out.")
        end = load_classifier(args.end)
        if args.zero_shot:
            start = classifier_from_names(load(args.start), end.labels, args.templates)
        else:
            start = load_classifier(args.start)
        classes = classes_of_classifier(end.labels, args.data, args.classes, args.label)
        data = open_labelled(args.data, args.choose, classes)
        if args.held_out:
            data = data.hold_out(args.held_out)[1]
        points = curve(start, end, data, [step / args.steps for step in range(args.steps + 1)])
        best = max(points, key=lambda point: point.top_1)  # of equals the first
        if args.out:
            save(interpolate(start, end, best.alpha), args.out, _card(args, points, best))
    except (ValueError, OSError) as error:
        print(f"wise_ft: error: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps([point._asdict() for point in points], indent=1))
    else:
        print(*(f"alpha {p.alpha:4.2f}   top-1 {p.top_1:.4f}{'   best' * (p is best)}" for p in points), sep="\n")
    return 0


def interpolate(start: "ViTClassifier", end: "ViTClassifier", alpha: float) -> "ViTClassifier":
    """(1 - alpha) start + alpha end, every weight; alpha 0 and 1 are the two ends bit for bit.

    `ValueError` where the two are not the same kind of model for the same labels and images.
    """
    import copy

    import torch

    _check_alike(start, end)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 (before) and 1 (after), got {alpha}.")
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


def curve(start: "ViTClassifier", end: "ViTClassifier", data: "Labelled", alphas: Sequence[float]) -> list[Point]:
    """Top-1 of every mixture on the same images."""
    from vlm.metrics import top_k_accuracy
    from vlm.training.data.labelled import ask

    if end.preprocess is None:
        raise ValueError("The classifier came without preprocessing settings, so it cannot read images.")
    points = []
    for alpha in alphas:
        answers = ask(interpolate(start, end, alpha), end.preprocess, data, what=f"alpha {alpha:.2f}")
        points.append(Point(alpha, top_k_accuracy(answers.outputs, answers.targets), len(answers.targets)))
    return points


def _check_alike(start: "ViTClassifier", end: "ViTClassifier") -> None:
    import dataclasses

    if start.labels != end.labels:
        raise ValueError(f"START has labels {', '.join(start.labels)}, END {', '.join(end.labels)}: wanted the same.")
    if type(start.head) is not type(end.head):
        raise ValueError(f"START has a {type(start.head).__name__} head, END a {type(end.head).__name__}: wanted one.")
    settings = [dataclasses.replace(model.vision.config, dropout=0.0, drop_path=0.0) for model in (start, end)]
    preprocess = [model.preprocess.config if model.preprocess else None for model in (start, end)]
    for one, other, what in ((*settings, "architectures"), (*preprocess, "preprocessing")):
        if one != other:
            theirs = {} if other is None else other.to_dict()
            ours = {} if one is None else one.to_dict()
            differing = [f"{name} {ours.get(name)} and {theirs.get(name)}" for name in ours.keys() | theirs.keys()
                         if ours.get(name) != theirs.get(name)]  # fmt: skip
            raise ValueError(f"START and END have different {what}: {'; '.join(sorted(differing))}.")


def _card(args: argparse.Namespace, points: Sequence[Point], best: Point) -> str:
    lines = "\n".join(f"| {point.alpha:.2f} | {point.top_1:.4f} |" for point in points)
    return f"""---
library_name: vlm
pipeline_tag: image-classification
---

# A classifier between {args.start} and {args.end}

Every weight is {1 - best.alpha:g} times that before and {best.alpha:g} times that after fine-tuning (WiSE-FT, Wortsman
et al. 2022). alpha was chosen on `{args.choose}`, {best.n} images, so the best of these numbers is a little too good:

| alpha | top-1 |
|---|---|
{lines}
"""


if __name__ == "__main__":
    sys.exit(main())
