"""The prompt of `vlm search` without a query: one query after the other, with a history."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from vlm.commands.printing import note
from vlm.errors import VlmError
from vlm.user_folders import cache_folder

_HISTORY = 1000  # lines


def ask_for_queries(answer: Callable[[str], None]) -> None:
    """Read queries until Ctrl-D or an empty interrupt, and answer each.

    Args:
        answer: prints the result of one query; its errors are shown as a line.
    """
    file = cache_folder() / "search_history"
    with _history(file):
        while True:
            try:
                query = input("vlm> ").strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if not query:
                continue
            try:
                answer(query)
            except VlmError as error:
                note(f"error: {error}")


@contextlib.contextmanager
def _history(file: Path):  # type: ignore[no-untyped-def]
    """Arrow keys and a history, where the readline library is there."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(_HISTORY)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
            os.chmod(file, 0o600)
