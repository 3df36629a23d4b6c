"""File names on a terminal or for other programs, and output files that are checked before the work begins."""

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from vlm.errors import InputError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def note(line: str) -> None:
    """One line on stderr."""
    print(f"vlm: {escaped(line)}", file=sys.stderr, flush=True)


def escaped(text: str) -> str:
    """Control characters, which could move the cursor or forge lines, as \\x1b, \\n, \\u202e."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def print_null_terminated(paths: Iterable[str]) -> None:
    """The bytes of each path and a NUL, for `xargs -0`."""
    sys.stdout.flush()
    for path in paths:
        sys.stdout.buffer.write(os.fsencode(path) + b"\0")
    sys.stdout.buffer.flush()


def check_output_file(file: Path) -> None:
    """Raise `InputError` if a file cannot be written at this place."""
    folder = file.absolute().parent
    if not folder.is_dir():
        raise InputError(f"'{file}' cannot be written: there is no folder '{folder}'. Make it, or name another file.")
    if file.is_dir():
        raise InputError(f"'{file}' is a folder, wanted the name of a file. Add one: {file / 'page.html'}")
    if not os.access(folder, os.W_OK) or (file.exists() and not os.access(file, os.W_OK)):
        raise InputError(f"'{file}' cannot be written: its folder or the file is read-only. Name another file.")
