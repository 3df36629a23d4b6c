"""Commands of the maintainers for the bundled model: `python -m training.calibrate`, `.release` and `.average`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from vlm.commands.options import Run, add_device
from vlm.errors import InputError


def calibrate(parser: ArgumentParser) -> Run:
    """Fit the probability that an image matches a text, and write it into a model folder.

    The validation splits of picture-words and of icon-words, concepts shuffled and cut in two: each half is a gallery,
    the first captions of its concepts are the queries, in each language. The best 10 images of each query are pairs
    (cosine, is it correct), and a logistic regression of them (Platt 1999) gives P = sigmoid(scale cos + bias): for
    what a search shows, not for all pairs. Its reliability is measured on the half that it was not fitted to, each way.
    The numbers stored come from both halves. Test splits are never read.
    """
    parser.add_argument("model", metavar="MODEL", type=Path, help="a model folder of ours, which is written to")
    add_device(parser)

    def run(args: Namespace) -> None:
        from vlm.training.measure.match_calibration import calibrate_folder

        print(calibrate_folder(args.model, args.device, args.dtype))

    return run


def release(parser: ArgumentParser) -> Run:
    """Pack a finished model: float16 weights and a model card whose numbers are measured on the packed model.

        python -m training.release vlm/assets/mini runs/mini --runs runs/mini-picture-words runs/mini-icons

    Test splits are scored here and nowhere else: once per released model.
    """
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the packed model; a model there is replaced")
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder of the finished model")
    parser.add_argument(
        "--runs", nargs="+", type=Path, metavar="RUN", help="runs that led to it, in order; default: MODEL alone"
    )

    def run(args: Namespace) -> None:
        from vlm.training.measure.release import release as pack

        pack(args.out, args.model, args.runs or [args.model])

    return run


def average(parser: ArgumentParser) -> Run:
    """Average the weights of CLIPs of one training (model soups and WiSE-FT, Wortsman et al. 2022).

        python -m training.average runs/before=0.2 runs/after=0.8 --out runs/average

    The average often keeps most of what was learned and more of what was known before. Choose the shares on validation.
    """
    parser.add_argument("parts", nargs="+", metavar="MODEL=SHARE", help="folders and their shares, which add up to 1")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the new model")

    def run(args: Namespace) -> None:
        from vlm.training.measure.average import average as write

        write(dict(map(_share, args.parts)), args.out)

    return run


def _share(part: str) -> tuple[str, float]:
    model, _, share = part.rpartition("=")
    try:
        return model, float(share)
    except ValueError:
        raise InputError(f"'{part}' is no MODEL=SHARE. Write a folder, = and a number: runs/mini=0.5") from None
