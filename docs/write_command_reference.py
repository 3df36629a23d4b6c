"""Writes docs/reference/commands.md from what the command `vlm` declares.

python docs/write_command_reference.py
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "commands.md"
INTRO = """# The command vlm

Exit code 0: done. 1: something you can put right, one line on stderr says what. 2: wrong usage. Results go to stdout,
progress to stderr. `vlm COMMAND --help` says the same as this page.

終了コードは、0 が成功、1 が利用者側で直せる問題(標準エラー出力に 1 行で説明)、2 が使い方の誤りです。結果は標準出力に、
進み具合は標準エラー出力に出ます。内容は `vlm COMMAND --help` と同じです。"""
WRITTEN = "Written by `python docs/write_command_reference.py`."


def page(parser: argparse.ArgumentParser) -> str:
    """Markdown: one heading and one table per command of `parser`."""
    parts = [INTRO, *(_section(name, command) for name, command in _commands(parser)), WRITTEN]
    return "\n\n".join(parts) + "\n"


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:  # argparse has no public way to them
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _section(name: str, command: argparse.ArgumentParser) -> str:
    formatter = command._get_formatter()
    either = {one for group in command._mutually_exclusive_groups if group.required for one in group._group_actions}
    rows = [
        f"| {_written(action)}{', one of these' if action in either else ''} "
        f"| {_cell(formatter._expand_help(action)) if action.help else ''} |"
        for action in command._actions
        if not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS
    ]
    table = "\n".join(["| argument | meaning |", "|---|---|", *rows])
    return f"## vlm {name}\n\n{command.description}\n\n{table}"


def _written(action: argparse.Action) -> str:
    """`IMAGE...` or `--labels LABEL...` or `-k K`, as one types it."""
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
    value = action.metavar or choices or action.dest.upper()
    value = " ".join(value) if isinstance(value, tuple) else value
    if action.nargs == 0:
        value = ""
    elif action.nargs in ("+", "*"):
        value += "..."
    elif action.nargs == "?":
        value = f"[{value}]"
    words = [", ".join(action.option_strings), value]
    needed = ", needed" if action.required and action.option_strings else ""
    return f"`{' '.join(filter(None, words))}`".replace("|", "\\|") + needed


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from vlm.cli import _parser

    PAGE.write_text(page(_parser()), encoding="utf-8")


if __name__ == "__main__":
    main()
