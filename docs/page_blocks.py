"""Fenced blocks of a page: find them, run them as a reader would, put in what they print."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from docs.include_code import MARKED

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block."""

    kind: str
    """sh, python, text, ..."""
    body: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page that are not included from the source (docs/include_code.py), in order."""
    return [Block(*found.groups()) for found in FENCED.finditer(MARKED.sub("", page))]


def printed(block: Block, folder: Path, python: Path = Path(sys.executable)) -> str:
    """Standard output of a sh or python block, as a reader's shell runs it in a folder.

    Args:
        block: its commands, or a Python program.
        folder: working directory, first on Python's path.
        python: interpreter of the environment whose commands are run.

    Raises:
        RuntimeError: the block failed; the message ends with the last lines of standard error.
    """
    environment = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    command = ["bash", "-e"] if block.kind == "sh" else [str(python), "-"]
    done = subprocess.run(
        command, input=block.body, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"This block of the page failed:\n{block.body}\n{done.stderr[-2000:]}")
    return done.stdout


def outputs(page: str, run: Callable[[Block], str]) -> list[str]:
    """What the `text` blocks of a page should say: the output of the last sh or python block above each.

    Args:
        page: Markdown.
        run: executes one block and returns its standard output.
    """
    output, found = "", list[str]()
    for block in blocks(page):
        if block.kind in ("sh", "python"):
            output = run(block)
        elif block.kind == "text":
            found.append(output)
    return found


def with_outputs(page: str, texts: list[str]) -> str:
    """The page with its `text` blocks replaced, in order.

    Raises:
        ValueError: the page has another number of `text` blocks.
    """
    count = sum(block.kind == "text" for block in blocks(page))
    if count != len(texts):
        raise ValueError(f"the page has {count} text blocks, but {len(texts)} outputs came.")
    waiting = iter(texts)
    return FENCED.sub(lambda found: f"```text\n{next(waiting)}```" if found[1] == "text" else found[0], page)
