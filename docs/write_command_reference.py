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

Results go to stdout, progress to stderr. Every command takes `--debug` (or `VLM_DEBUG=1`), which shows the traceback of
an error. `vlm --version` prints the versions of vlm, torch and Python and the device that is used. `vlm COMMAND --help`
says the same as this page.

結果は標準出力に、進み具合は標準エラー出力に出ます。どのコマンドも `--debug`(または `VLM_DEBUG=1`)を付けると、エラーの
トレースバックを表示します。`vlm --version` は vlm、torch、Python の版と、使うデバイスを表示します。内容は
`vlm COMMAND --help` と同じです。

| exit code | meaning | 意味 |
|---|---|---|
| 0 | done | 成功 |
| 1 | something you can put right: one line on stderr says what | 利用者側で直せる問題(標準エラー出力に 1 行で説明) |
| 2 | wrong usage | 使い方の誤り |
| 70 | a defect of vlm, with its traceback; please report it | vlm の不具合(トレースバックつき)。ご報告ください |
| 75 | a training run was stopped and saved: `--resume auto` goes on | 学習が止まり、保存済み(`--resume auto` で再開) |
| 130 | Ctrl-C | Ctrl-C による中断 |
| 141 | nobody reads stdout any more, as after `head -1` | 標準出力の読み手がいない(`head -1` の後など) |"""
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
        if not isinstance(action, argparse._HelpAction) and action.dest != "debug" and action.help != argparse.SUPPRESS
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
