"""Options and output formats that the commands share."""

import argparse
import json
import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from vlm.onnx.backends import Backend

Run = Callable[[Namespace], int | None]  # what a command returns: it runs, and gives the exit code, None for 0

SOURCE_HELP = "a short name of `vlm models`, a folder, openclip:NAME/TAG or hf:ORG/NAME"
MODEL_HELP = f"{SOURCE_HELP}; default: VLM_MODEL, the config file, mini"
DATA_HELP = "a folder, .csv, .jsonl, .parquet, .tar, or the name of a data set on the hub"


def chosen_model(given: str | None) -> str:
    """The model of a command: --model, then VLM_MODEL, the config file, mini."""
    from vlm.interop.names.default_model import resolve_model

    return resolve_model(given).name


def chosen_backend(args: Namespace, model: str) -> "Backend":
    """The back end of a command: --backend; of auto that of a short name on this machine, as `vlm models` shows it."""
    from vlm.interop.names.installed import usual_backend

    if args.backend != "auto":
        return cast("Backend", args.backend)
    plain = args.device in ("auto", "cpu") and args.dtype == "auto"
    return usual_backend(model) if plain else "torch"


def add_backend(parser: ArgumentParser) -> None:
    """`--backend`, of every command that embeds."""
    parser.add_argument(
        "--backend",
        choices=["auto", "torch", "onnx", "int8"],
        default="auto",
        help="onnx: the same vectors, faster; int8: faster still, vectors of its own; default auto: what `vlm models "
        "get` found faster here, else torch",
    )


def add_trust(parser: ArgumentParser) -> None:
    """`--trust-remote-code`, of the commands that open a model which another library may compute."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python code that comes with the model, where it needs such code; read that code first",
    )


def add_device(parser: ArgumentParser) -> None:
    """`--device` and `--dtype`, of every command that runs a model."""
    group = parser.add_argument_group("where and how the model runs")
    group.add_argument(
        "--device", default="auto", help="auto (a CUDA GPU where there is one, else the CPU), cpu, cuda, cuda:1 or mps"
    )
    group.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="of the weights; auto: as they are, computed in 16 bits on a GPU",
    )


def add_data_description(parser: ArgumentParser) -> None:
    """`--columns` and `--root`, of every command that opens data: what a recipe says of it."""
    parser.add_argument(
        "--columns",
        nargs="+",
        type=roles,
        default=[],
        metavar="ROLE=NAME",
        help="of a table: image=photo,label=breed caption=note",
    )
    parser.add_argument(
        "--root", type=Path, metavar="FOLDER", help="where the paths of a table begin; default: the table's folder"
    )


def columns_of(given: Sequence[list[tuple[str, str]]]) -> dict[str, list[str]] | None:
    """Returns the columns of `--columns`: role -> names; None where none is given."""
    found: dict[str, list[str]] = {}
    for role, name in (pair for word in given for pair in word):
        found.setdefault(role, []).append(name)
    return found or None


def roles(text: str) -> list[tuple[str, str]]:
    """A type of argparse: ROLE=NAME, or several with commas between them."""
    found: list[tuple[str, str]] = []
    for part in re.split(r",(?=\s*\w+=)", text):
        role, mark, name = (piece.strip() for piece in part.partition("="))
        if not (mark and role and name):
            raise argparse.ArgumentTypeError(f"must be ROLE=NAME, got {part}; image=photo,label=breed is an example")
        found.append((role, name))
    return found


def count_or_share(text: str) -> int | float:
    """A type of argparse: a whole number, 1 or more, or a share between 0 and 1."""
    try:
        value = int(text) if text.isdecimal() else float(text)
    except ValueError:
        value = 0
    if not (0 < value < 1 or (value >= 1 and isinstance(value, int))):
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, or a share below 1, got {text}")
    return value


def add_json(parser: ArgumentParser) -> None:
    """`--json`, of every command that prints rows."""
    parser.add_argument("--json", action="store_true", help="print a list of objects for programs to read")


def positive(text: str) -> int:
    """A type of argparse: a whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, got {text}")
    return int(text)


def port(text: str) -> int:
    """A type of argparse: a port number; 0 is any that is free."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, got {text}")
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
