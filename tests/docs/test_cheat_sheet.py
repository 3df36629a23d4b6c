"""Every command of the cheat sheets and of the FAQ is one that the parser takes."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from vlm.cli import _parser  # pyright: ignore[reportPrivateUsage]

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("cheat-sheet.md", "cheat-sheet.ja.md", "faq.md", "faq.ja.md")


def commands(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    inline = re.findall(r"`(vlm [a-z][^`\n]*)`", text)
    return [*inline, *re.findall(r"^vlm .*$", blocks, re.MULTILINE)]


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))  # pyright: ignore
    return action.choices


@pytest.mark.parametrize(("page", "command"), [(page, command) for page in PAGES for command in commands(page)])
def test_a_command_of_the_page_is_understood(page: str, command: str) -> None:
    words = shlex.split(command)[1:]
    if len(words) > 1:
        _parser().parse_args(words)  # SystemExit(2) where the command line is not understood
    else:
        assert words[0] in subparsers(_parser())


@pytest.mark.parametrize("page", ["cheat-sheet.md", "cheat-sheet.ja.md"])
def test_the_cheat_sheet_has_every_command(page: str) -> None:
    shown = {shlex.split(command)[1] for command in commands(page)}
    assert shown >= set(subparsers(_parser())) - {"wise-ft"}
