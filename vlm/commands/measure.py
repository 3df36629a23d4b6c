"""`vlm evaluate`, `vlm probe`, `vlm report` and `vlm wise-ft`: how good a model is, with chance beside every number."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from vlm.commands.options import (
    DATA_HELP,
    SOURCE_HELP,
    Run,
    add_data_description,
    add_device,
    add_trust,
    columns_of,
    count_or_share,
    positive,
    user_language,
)
from vlm.errors import InputError


def evaluate(parser: ArgumentParser) -> Run:
    """Measure retrieval and zero-shot classification of a CLIP, in each language.

        vlm evaluate mini --data photos --split validation     your own data, in any format of docs/data.md
        vlm evaluate mini                        the validation splits of mini's data (in the repository)
        vlm evaluate mini --split val_style      one split, for tuning
        vlm evaluate mini --split test_style     test splits only by name: once per released model

    Retrieval: a text query is the first caption of each concept, and every image of that concept is correct; an image
    query is each image, and the texts of its concept are correct. Recall@k: any correct item among the first k; median
    rank: of the first correct item; mAP and nDCG: of all of them. Equal scores count as the mean over every order of
    them, so chance is the score of a model that gives every pair the same similarity. Classification: the class sets of
    classes.json, restricted to the split. A few images whose pixels also occur in the training data are left out.
    """
    parser.add_argument("model", metavar="MODEL", help=SOURCE_HELP)
    add_trust(parser)
    parser.add_argument(
        "--split", nargs="+", metavar="SPLIT", help="default: those of validation; with --data all rows"
    )
    parser.add_argument("--data", help=f"other than that of mini, for retrieval: {DATA_HELP}")
    add_data_description(parser)
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print a list of objects")

    def run(args: Namespace) -> None:
        if args.data is None and (args.columns or args.root):
            raise InputError(
                "--columns and --root describe --data, which is not given. Name the data, or leave them out."
            )
        from vlm.checkpoint.load import load
        from vlm.training.measure.drawings import VALIDATION, evaluate_drawings
        from vlm.training.measure.measurement import text_table
        from vlm.training.measure.retrieval import evaluate_pairs

        embedder = load(args.model, device=args.device, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
        if args.data is None:
            rows = evaluate_drawings(embedder, args.split or VALIDATION)
        else:
            rows = evaluate_pairs(
                embedder, args.data, args.split or (), columns=columns_of(args.columns), root=args.root
            )
        if args.json:
            print(json.dumps([row._asdict() for row in rows], ensure_ascii=False, indent=1))
        else:
            print(text_table(rows))

    return run


def probe(parser: ArgumentParser) -> Run:
    """Measure the frozen features of a model: linear probe, k-NN, few-shot and zero-shot, in one table.

    vlm probe mini training/picture_words --classes emoji_group8 --train-split train --choose val_style
    ... --report test_style                  also on a split that chose nothing: once per released model
    ... --classifier runs/vit runs/scratch   trained classifiers in the same table
    ... --out my-vit                         write the linear probe as a classifier for vlm.load_classifier
    """
    parser.add_argument("model", metavar="MODEL", help="a CLIP or ViT: mini, a folder, or anything else vlm reads")
    add_trust(parser)
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    _add_classes(parser, "all that occur")
    parser.add_argument("--train-split", default="train", metavar="SPLIT", help="default %(default)s")
    parser.add_argument("--choose", metavar="SPLIT", help="validation: chooses C")
    parser.add_argument(
        "--held-out",
        type=count_or_share,
        metavar="N",
        help="of --train-split: these choose, as held_out of a vit recipe",
    )
    parser.add_argument("--report", metavar="SPLIT", help="is measured with what was chosen")
    parser.add_argument("--shots", nargs="*", type=positive, default=[1, 4, 16], help="images per class (1 4 16)")
    parser.add_argument("--draws", type=positive, default=5, help="of few-shot images, default %(default)s")
    parser.add_argument("--neighbours", type=int, default=20, metavar="K", help="of k-NN; 0: no k-NN (%(default)s)")
    parser.add_argument("--classifier", nargs="+", default=[], metavar="FOLDER", help="trained ones for the table")
    parser.add_argument("--lang", choices=["en", "ja"], default=user_language(), help="language of the labels of --out")
    parser.add_argument("--out", metavar="FOLDER", help="write the linear probe as a classifier")
    parser.add_argument("--json", action="store_true", help="print a list of objects")

    def run(args: Namespace) -> None:
        if (args.choose is None) == (args.held_out is None):
            parser.error("give either --choose SPLIT or --held-out N")
        from vlm.training.measure.probe import probe as probe_features
        from vlm.training.measure.probe import probe_table

        rows = probe_features(
            args.model,
            args.data,
            trust_remote_code=args.trust_remote_code,
            classes=args.classes,
            label=args.label,
            columns=columns_of(args.columns),
            root=args.root,
            device=args.device,
            dtype=args.dtype,
            train_split=args.train_split,
            choose=args.choose,
            held_out=args.held_out,
            report=args.report,
            shots=args.shots,
            draws=args.draws,
            neighbours=args.neighbours,
            classifiers=args.classifier,
            language=args.lang,
            out=args.out,
        )
        print(
            json.dumps([row.plain() for row in rows], ensure_ascii=False, indent=1) if args.json else probe_table(rows)
        )

    return run


def report(parser: ArgumentParser) -> Run:
    """Measure a classifier: accuracy, calibration, confusion and its worst mistakes, as numbers and figures.

        vlm report runs/my-vit --out report                     what the run validated on, its held-out part too
        vlm report my-vit training/picture_words --classes emoji_group8 --split val_style --out report
        ... --split test_style --fit-split val_style            a test split: once per released model
        ... --split test --fit-split train --held-out 5000      where validation was held out of the training images

    --out receives

        metrics.json     top-1, top-5, balanced accuracy, calibration error before and after temperature, per class,
                         confusion
        README.md        the part of a model card
        confusion.png, reliability.png, most-wrong.png     in the user's language (--lang)
    """
    parser.add_argument("classifier", metavar="CLASSIFIER", help="a folder, or anything else vlm.load_classifier reads")
    parser.add_argument("data", metavar="DATA", nargs="?", help=f"{DATA_HELP}; default: what the run was trained on")
    parser.add_argument("--split", metavar="SPLIT", help="is measured; '' is all; default: what the run validated on")
    parser.add_argument(
        "--fit-split", metavar="SPLIT", help="validation: fits the temperature; default: what is measured"
    )
    parser.add_argument(
        "--held-out", type=count_or_share, metavar="N", help="of --fit-split: as held_out of the recipe"
    )
    _add_classes(parser, "its own labels")
    parser.add_argument("--wrong", type=positive, default=24, metavar="N", help="images to show, default %(default)s")
    parser.add_argument("--lang", choices=["en", "ja"], default=user_language(), help="of the words in the images")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the report")
    parser.add_argument("--json", action="store_true", help="print metrics.json")

    def run(args: Namespace) -> None:
        from vlm.training.measure.report import report as report_classifier
        from vlm.training.measure.report import summary

        found = report_classifier(
            args.classifier,
            args.data,
            args.out,
            split=args.split,
            fit_split=args.fit_split,
            held_out=args.held_out,
            classes=args.classes,
            label=args.label,
            columns=columns_of(args.columns),
            root=args.root,
            device=args.device,
            dtype=args.dtype,
            wrong=args.wrong,
            language=args.lang,
        )
        print(json.dumps(found, ensure_ascii=False, indent=1) if args.json else summary(found, args.out))

    return run


def wise_ft(parser: ArgumentParser) -> Run:
    """Interpolate a classifier's weights before and after fine-tuning (WiSE-FT, Wortsman et al. 2022).

        vlm wise-ft START END DATA --choose val_style --out runs/wise
        vlm wise-ft mini END DATA --zero-shot --choose val_style --out runs/wise

    The second starts from the zero-shot classifier of END's own labels. alpha is the best on the split of --choose; of
    equals the one nearest to START.
    """
    parser.add_argument("start", metavar="START", help="the classifier before fine-tuning; with --zero-shot a CLIP")
    parser.add_argument("end", metavar="END", help="the classifier after it")
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--zero-shot", action="store_true", help="START is a CLIP, END began as its zero-shot head")
    parser.add_argument("--templates", nargs="+", metavar="SENTENCE", help="of --zero-shot; default: by language")
    _add_classes(parser, "END's labels")
    parser.add_argument("--choose", required=True, metavar="SPLIT", help="validation: chooses alpha")
    parser.add_argument("--held-out", type=count_or_share, metavar="N", help="of --choose: as held_out of the recipe")
    parser.add_argument("--steps", type=positive, default=10, help="alpha in steps of 1 / STEPS, default %(default)s")
    parser.add_argument("--out", metavar="FOLDER", help="write the classifier of the best alpha")
    parser.add_argument("--json", action="store_true", help="print a list of objects")

    def run(args: Namespace) -> None:
        if args.templates and not args.zero_shot:
            raise InputError("--templates make sentences of --zero-shot; a classifier reads none. Leave them out.")
        from vlm.training.measure.wise_ft import wise_ft as interpolate_best

        points, best = interpolate_best(
            args.start,
            args.end,
            args.data,
            choose=args.choose,
            zero_shot=args.zero_shot,
            templates=args.templates,
            classes=args.classes,
            label=args.label,
            columns=columns_of(args.columns),
            root=args.root,
            device=args.device,
            dtype=args.dtype,
            held_out=args.held_out,
            steps=args.steps,
            out=args.out,
        )
        if args.json:
            print(json.dumps([point._asdict() for point in points], indent=1))
        else:
            print(*(f"alpha {p.alpha:4.2f}   top-1 {p.top_1:.4f}{'   best' * (p is best)}" for p in points), sep="\n")

    return run


def _add_classes(parser: ArgumentParser, default: str) -> None:
    parser.add_argument("--classes", metavar="NAME", help=f"a class set of DATA/classes.json; default: {default}")
    parser.add_argument("--label", metavar="COLUMN", help="that holds the classes, where --classes does not say it")
    add_data_description(parser)
    add_device(parser)
