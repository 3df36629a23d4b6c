"""The command `vlm`.  One function per command: it declares its arguments and returns what to run.

Exit codes: 0 done, 1 the user can put it right (one line on stderr), 2 wrong usage.  Results go to stdout, progress to
stderr.  Whatever needs torch is imported inside `run`, so that `--help` answers at once.
"""

import io
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence

from vlm.commands.images import classify, look
from vlm.commands.interop import convert, export
from vlm.commands.options import Run
from vlm.commands.retrieval import index, search
from vlm.commands.serve import serve

COMMANDS: dict[str, Callable[[ArgumentParser], Run]] = {
    "classify": classify,
    "convert": convert,
    "export": export,
    "index": index,
    "look": look,
    "search": search,
    "serve": serve,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; `argv` without the program's name, None reads the command line."""
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names that are not UTF-8 print, and stay valid JSON
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"vlm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vlm: stopped", file=sys.stderr)
        return 130  # what a shell reports for a process that Ctrl-C ended
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="vlm", description="Images and words in one space: classify, search, look inside.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, add in COMMANDS.items():
        command = commands.add_parser(name, help=add.__doc__, description=add.__doc__)
        command.set_defaults(run=add(command))
    return parser


if __name__ == "__main__":
    sys.exit(main())
