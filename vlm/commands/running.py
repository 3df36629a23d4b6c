"""Runs a command and turns what ends it into an exit code and, where the user can put it right, one line."""

import io
import os
import select
import signal
import sys
import threading
import traceback
from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from vlm.errors import DISTRIBUTION, VlmError

FAILED, DEFECT, INTERRUPTED, CLOSED_PIPE = 1, 70, 130, 141  # 70: EX_SOFTWARE; the last two as shells report them


def add_debug(parser: ArgumentParser) -> None:
    """`--debug`, of every command."""
    parser.add_argument(
        "--debug", action="store_true", default=SUPPRESS, help="show the traceback of every error (or VLM_DEBUG=1)"
    )


def run_safely(args: Namespace) -> int:
    """Run `args.run(args)` and return the exit code.

    Args:
        args: what argparse found; `run` is the command's function, `debug` asks for tracebacks.

    Returns:
        What the command returned, 0 for None; 1 after an error that the user can put right, which is one line on
        stderr; 70 after any other error, with its traceback; 130 after Ctrl-C; 141 where stdout was closed.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names that are not UTF-8 print, and stay valid JSON
    debug = bool(vars(args).get("debug")) or os.environ.get("VLM_DEBUG", "") not in ("", "0")
    interrupts = _Interrupts()
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code or 0
    except KeyboardInterrupt:
        return _interrupted(debug)
    except Exception as error:
        if interrupts.seen:  # code in C may turn KeyboardInterrupt into another error
            return _interrupted(debug)
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            return CLOSED_PIPE
        return _explain(error, debug, _paths(args))
    finally:
        interrupts.restore()


def _interrupted(debug: bool) -> int:
    if debug:
        traceback.print_exc()
    _say("stopped")
    # Python ends itself by SIGINT where KeyboardInterrupt passed through an evaluated string, handled or not (torch's
    # import has many).  The next evaluated string clears that mark, and NamedTuple evaluates one.
    NamedTuple("Cleared", [])
    return INTERRUPTED


def _paths(args: Namespace) -> list[str]:
    """All texts and paths on the command line; which of them name files is not known here."""
    found: list[str] = []
    for value in vars(args).values():
        items: list[Any] = [*value] if isinstance(value, list) else [value]  # pyright: ignore[reportUnknownVariableType]
        found += [str(item) for item in items if isinstance(item, (str, Path))]
    return found


def _explain(error: Exception, debug: bool, given: list[str]) -> int:
    if debug:
        traceback.print_exc()
    from vlm.commands.troubles import trouble  # after an error only: it imports multiprocessing and sqlite3

    if not isinstance(error, VlmError) and (line := trouble(error, given)) is not None:
        _say(f"error: {line}")
        return FAILED
    if isinstance(error, VlmError):
        _say(f"error: {_one_line(error)}")
        return FAILED
    if not debug:
        traceback.print_exc()
    _say(f"this is a defect of vlm, not of what you gave it. Please report it with the lines above {_where()}.")
    return DEFECT


def _where() -> str:
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        urls = metadata(DISTRIBUTION).get_all("Project-URL") or []
    except PackageNotFoundError:
        urls = []
    pages = {name.strip().lower(): url.strip() for name, _, url in (line.partition(",") for line in urls)}
    found = next((pages[name] for name in ("issues", "repository", "homepage") if name in pages), None)
    return f"at {found}" if found else "where you got vlm from"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _say(text: str) -> None:
    """One line on stderr; bytes of a file name that are not UTF-8 are escaped."""
    print(f"vlm: {text.encode('utf-8', 'backslashreplace').decode()}", file=sys.stderr, flush=True)


def _stdout_is_closed() -> bool:
    """True where nobody reads stdout any more; what is left to be written then goes nowhere, silently."""
    try:
        file = sys.stdout.fileno()
    except (OSError, ValueError):  # a test's or a notebook's stand-in for stdout
        return False
    poll = select.poll()
    poll.register(file, 0)  # errors are always reported
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), file)
    return True


class _Interrupts:
    """Notes Ctrl-C, and raises KeyboardInterrupt as Python does.  A process that ignores SIGINT goes on ignoring it."""

    def __init__(self) -> None:
        self.seen = False
        self.old = None
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self.old = signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def restore(self) -> None:
        if self.old is not None:
            signal.signal(signal.SIGINT, self.old)
