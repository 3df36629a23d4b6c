"""The command `vlm`.  One function per command: it declares its arguments and returns what to run.

Exit codes: 0 done, 1 the user can put it right (one line on stderr), 2 wrong usage, 70 a defect of vlm (with its
traceback), 75 a training run stopped by a signal and saved, 130 Ctrl-C.  Results go to stdout, progress to stderr.
Whatever needs torch is imported inside `run`, so that `--help` answers at once.
"""

import argparse
import inspect
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Any

from vlm.commands.data import check, embed
from vlm.commands.demo import demo
from vlm.commands.images import classify, look
from vlm.commands.index import index
from vlm.commands.interop import convert, export
from vlm.commands.measure import evaluate, probe, report, wise_ft
from vlm.commands.models import models
from vlm.commands.options import Run
from vlm.commands.running import add_debug, run_safely
from vlm.commands.search import search
from vlm.commands.serve import serve
from vlm.commands.train import tokenizer, train

Declare = Callable[[ArgumentParser], Run]

GROUPS: dict[str, dict[str, Declare]] = {
    "use a model": {
        "classify": classify,
        "index": index,
        "search": search,
        "look": look,
        "serve": serve,
        "demo": demo,
        "models": models,
    },
    "train a model": {
        "check": check,
        "tokenizer": tokenizer,
        "train": train,
        "wise-ft": wise_ft,
    },
    "measure a model": {
        "evaluate": evaluate,
        "probe": probe,
        "report": report,
    },
    "exchange models and embeddings": {
        "convert": convert,
        "export": export,
        "embed": embed,
    },
}
COMMANDS: dict[str, Declare] = {name: declare for group in GROUPS.values() for name, declare in group.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `vlm`.

    Args:
        argv: the words behind `vlm`; None reads the command line.

    Returns:
        The exit code.
    """
    return run_safely(_parser().parse_args(argv))


def run_alone(declare: Declare, name: str) -> int:
    """Run one command that `vlm` does not list, with the words of the command line.

    Args:
        declare: the command's function.
        name: what the usage line calls it, such as `python -m training.release`.

    Returns:
        The exit code.
    """
    parser = ArgumentParser(prog=name)
    _describe(parser, declare)
    return run_safely(parser.parse_args())


def _parser() -> ArgumentParser:
    width = max(map(len, COMMANDS))
    listed = "\n\n".join(
        "\n".join([f"{title}:", *(f"  {name:<{width}}  {_summary(declare)}" for name, declare in group.items())])
        for title, group in GROUPS.items()
    )
    parser = ArgumentParser(
        prog="vlm",
        usage="vlm COMMAND ...",
        description="Images and texts in one embedding space: classify, search, train.\n\n" + listed,
        epilog="vlm COMMAND --help explains a command.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="print the versions of vlm and torch, and the device used")
    commands = parser.add_subparsers(prog="vlm", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    for name, declare in COMMANDS.items():
        _describe(commands.add_parser(name), declare)
    return parser


def _describe(parser: ArgumentParser, declare: Declare) -> None:
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.description = inspect.cleandoc(declare.__doc__ or "")
    parser.set_defaults(run=declare(parser))
    add_debug(parser)


def _summary(declare: Declare) -> str:
    return (declare.__doc__ or "").partition("\n")[0]


class _Version(argparse.Action):
    """Prints the versions when asked, and not before: torch takes seconds to import."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **settings)

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: object, option: str | None = None) -> None:
        parser.exit(run_safely(Namespace(run=_print_versions)))


def _print_versions(_: Namespace) -> None:
    import torch

    from vlm import __version__

    device = "cuda" if torch.cuda.is_available() else "cpu"
    named = f"{device}, {torch.cuda.get_device_name()}" if device == "cuda" else device
    print(f"vlm {__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}, device {named}")


if __name__ == "__main__":
    sys.exit(main())
