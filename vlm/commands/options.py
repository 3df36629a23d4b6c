"""Options and output formats that the commands share."""

import argparse
import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

Run = Callable[[Namespace], int | None]  # what a command returns: it runs, and gives the exit code, None for 0

SOURCE_HELP = "a short name of `vlm models`, a folder, openclip:NAME/TAG or hf:ORG/NAME"
MODEL_HELP = f"{SOURCE_HELP}; default: VLM_MODEL, the config file, mini"
DATA_HELP = "a folder, .csv, .jsonl, .parquet, .tar, or the name of a data set on the hub"


def chosen_model(given: str | None) -> str:
    """The model of a command: --model, then VLM_MODEL, the config file, mini."""
    from vlm.interop.names.default_model import resolve_model

    return resolve_model(given).name


def add_backend(parser: ArgumentParser) -> None:
    """`--backend`, of every command that embeds."""
    parser.add_argument(
        "--backend",
        choices=["torch", "onnx", "int8"],
        default="torch",
        help="onnx: the same vectors, faster; int8: faster still, vectors of its own; default %(default)s",
    )


def add_json(parser: ArgumentParser) -> None:
    """`--json`, of every command that prints rows."""
    parser.add_argument("--json", action="store_true", help="print a list of objects for programs to read")


def positive(text: str) -> int:
    """A type of argparse: a whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, got {text}")
    return int(text)


def print_rows(rows: list[dict[str, Any]], as_json: bool, line: Callable[[dict[str, Any]], str]) -> None:
    """Rows to stdout: one JSON list, or a `line` each."""
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    for row in rows:
        print(line(row))


def user_language() -> str:
    """`ja` where the user's locale says so, else `en`."""
    chosen = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := os.environ.get(name))), "")
    return "ja" if chosen.startswith("ja") else "en"
