"""What the frozen features of a model are worth: linear probe, few-shot and zero-shot, in one table with chance.

python -m training.probe mini training/picture_words --classes emoji_group8 --train-split train --choose val_style
... --report test_style                  the same, once more on a split that chose nothing: once per released model
... --classifier runs/vit runs/scratch   trained classifiers in the same table
... --out my-vit                         the linear probe as a classifier that vlm.load_classifier opens
"""

import argparse
import json
import sys

from vlm.commands.options import positive, user_language


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a CLIP or ViT: mini, a folder, or anything else vlm reads")
    parser.add_argument("data", help="what vlm.training.data.rows.open_rows reads")
    parser.add_argument("--classes", metavar="NAME", help="a class set of DATA/classes.json; default: all that occur")
    parser.add_argument("--label", metavar="COLUMN", help="that holds the classes, where --classes does not say it")
    parser.add_argument("--train-split", default="train", metavar="SPLIT", help="default %(default)s")
    parser.add_argument("--choose", metavar="SPLIT", help="validation: chooses C")
    parser.add_argument("--held-out", type=positive, metavar="N", help="of --train-split: these choose, see train_vit")
    parser.add_argument("--report", metavar="SPLIT", help="is scored with what was chosen")
    parser.add_argument("--shots", nargs="*", type=positive, default=[1, 4, 16], help="default 1 4 16")
    parser.add_argument("--draws", type=positive, default=5, help="of few-shot images, default %(default)s")
    parser.add_argument("--classifier", nargs="+", default=[], metavar="FOLDER", help="trained ones for the table")
    parser.add_argument("--lang", choices=["en", "ja"], default=user_language(), help="of the labels of --out")
    parser.add_argument("--out", metavar="FOLDER", help="write the linear probe as a classifier")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    args = parser.parse_args()
    if (args.choose is None) == (args.held_out is None):
        parser.error("give either --choose SPLIT or --held-out N")
    from vlm.checkpoint.folder import load, load_classifier, save
    from vlm.errors import OtherKind
    from vlm.training.data.labelled import classes_of, open_labelled, read_class_set
    from vlm.training.measure.heads import (  # torch is slow to import, and --help does not need it
        Probe,
        classifier_rows,
        table,
    )

    try:
        classes = (
            read_class_set(args.data, args.classes)
            if args.classes
            else classes_of(args.data, args.train_split, args.label)
        )
        shown = open_labelled(args.data, args.train_split, classes)
        if args.held_out:
            shown, held = shown.hold_out(args.held_out)
            measured = {"held out": held}
        else:
            measured = {args.choose: open_labelled(args.data, args.choose, classes)}
        if args.report:
            measured[args.report] = open_labelled(args.data, args.report, classes)
        try:
            model = load(args.model)
        except OtherKind:  # a ViT with classes of its own: no zero-shot
            model = load_classifier(args.model)
        probe = Probe(model, classes, shown, measured)
        rows = probe.zero_shot() + probe.few_shot(args.shots, args.draws)
        linear, strength = probe.fit_linear()
        rows += probe.rows("linear probe", [linear], f"C {strength:g}, {len(probe.train.targets)} images")
        for folder in args.classifier:
            rows += classifier_rows(folder, classes, measured)
        if args.out:
            save(probe.classifier(linear, classes.words(args.lang)), args.out)
    except (ValueError, OSError) as error:
        print(f"probe: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps([row.plain() for row in rows], ensure_ascii=False, indent=1) if args.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
