"""`python -m training.calibrate` and `python -m training.release`: what the maintainers do with the bundled model."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from vlm.commands.options import Run, add_device


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
    """Pack a finished run: float16 weights and a model card whose numbers are measured on the packed model.

        python -m training.release vlm/assets/mini runs/mini

    Test splits are scored here and nowhere else: once per released model.
    """
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the packed model; a model there is replaced")
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="folder of the finished run")

    def run(args: Namespace) -> None:
        from vlm.training.measure.release import release as pack

        pack(args.out, args.run_folder)

    return run
