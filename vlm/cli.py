"""The command `vlm`.  One function per command: it declares its arguments and returns what to run.

Exit codes: 0 done, 1 the user can put it right (one line on stderr), 2 wrong usage.  Results go to stdout, progress to
stderr.  Whatever needs torch is imported inside `run`, so that `--help` answers at once.
"""

import argparse
import io
import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from vlm.embedder import Embedder
    from vlm.preprocess import ImageError

Run = Callable[[Namespace], None]


def classify(parser: ArgumentParser) -> Run:
    """Which of these labels fits each picture?"""
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", type=Path)
    parser.add_argument("--labels", nargs="+", required=True, metavar="LABEL", help="in any language the model reads")
    parser.add_argument(
        "--templates", nargs="+", metavar="SENTENCE", help="with {} where the label goes; default: by language"
    )
    _add_model(parser)
    _add_json(parser)

    def run(args: Namespace) -> None:
        from vlm.checkpoint import load
        from vlm.zero_shot import ZeroShotClassifier

        zero_shot = ZeroShotClassifier(load(args.model), args.labels, args.templates)
        rows: list[dict[str, Any]] = []
        for path, probabilities in zip(args.pictures, zero_shot(args.pictures), strict=True):
            scores, order = probabilities.sort(descending=True, stable=True)
            for rank, (score, label) in enumerate(zip(scores.tolist(), order.tolist(), strict=True), 1):
                rows.append({"path": str(path), "label": zero_shot.labels[label], "score": score, "rank": rank})
        _print(rows, args.json, lambda row: f"{row['path']}\t{row['score']:7.1%}\t{row['label']}")

    return run


def search(parser: ArgumentParser) -> Run:
    """The pictures of a folder that are nearest to a text or to another picture."""
    parser.add_argument("query", metavar="QUERY", help="a text, or the path of a picture")
    parser.add_argument("--folder", type=Path, required=True, help="with the pictures, subfolders too")
    parser.add_argument("-k", type=_positive, default=10, help="how many, default %(default)s")
    _add_model(parser)
    _add_json(parser)

    def run(args: Namespace) -> None:
        from vlm.checkpoint import load

        embedder = load(args.model)
        query = _embed_query(embedder, args.query)  # (E,)
        paths, embeds, skipped = _embed_folder(embedder, args.folder)
        scores, order = (embeds @ query).sort(descending=True, stable=True)
        hits = zip(scores[: args.k].tolist(), order[: args.k].tolist(), strict=True)
        rows = [{"path": str(paths[item]), "score": score, "rank": rank} for rank, (score, item) in enumerate(hits, 1)]
        _print(rows, args.json, lambda row: f"{row['rank']:3d}\t{row['score']:.3f}\t{row['path']}")
        _report_skipped(skipped, len(paths) + len(skipped))

    return run


COMMANDS: dict[str, Callable[[ArgumentParser], Run]] = {
    "classify": classify,
    "search": search,
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
    parser = ArgumentParser(prog="vlm", description="Pictures and words in one space: classify, search.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, add in COMMANDS.items():
        command = commands.add_parser(name, help=add.__doc__, description=add.__doc__)
        command.set_defaults(run=add(command))
    return parser


def _add_model(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="mini", help="mini, a folder, openclip:NAME/TAG or hf:ORG/NAME; default %(default)s"
    )


def _add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a list of objects for programs to read")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, got {text}")
    return int(text)


def _print(rows: list[dict[str, Any]], as_json: bool, line: Callable[[dict[str, Any]], str]) -> None:
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    for row in rows:
        print(line(row))


def _embed_query(embedder: "Embedder", query: str) -> "Tensor":
    """A path of a picture, or else a text -> (E,)."""
    from vlm.preprocess import IMAGE_SUFFIXES

    if Path(query).suffix.lower() in IMAGE_SUFFIXES or os.path.isfile(
        query
    ):  # of Path's own, a long text makes an error
        return embedder.embed_images([query])[0]
    if not query.strip():
        raise ValueError("QUERY is empty. Give a text, or the path of a picture.")
    return embedder.embed_texts([query])[0]


def _embed_folder(embedder: "Embedder", folder: Path) -> tuple[list[Path], "Tensor", list["ImageError"]]:
    """All pictures below a folder -> their paths, their vectors (G, E), and what was skipped."""
    import torch
    from tqdm import tqdm

    from vlm.preprocess import ImageError, find_images

    if not folder.is_dir():
        raise ValueError(f"There is no folder '{folder}'.")
    found = list(find_images(folder))
    if not found:
        raise ValueError(f"Folder '{folder}' holds no pictures.")
    paths: list[Path] = []
    skipped: list[ImageError] = []
    embeds = [torch.empty(0, embedder.embed_dim)]
    batch: list[Tensor] = []
    for path in tqdm(found, desc="embedding", unit="picture", file=sys.stderr):
        try:
            batch.append(embedder.preprocess(path))
            paths.append(path)
        except ImageError as error:
            skipped.append(error)
        if len(batch) == 32:
            embeds.append(embedder.embed_pixels(torch.stack(batch)))
            batch.clear()
    if batch:
        embeds.append(embedder.embed_pixels(torch.stack(batch)))
    return paths, torch.cat(embeds), skipped


def _report_skipped(skipped: list["ImageError"], found: int) -> None:
    if not skipped:
        return
    print(f"vlm: skipped {len(skipped)} of {found} pictures", file=sys.stderr)
    for error in sorted(skipped, key=lambda error: error.reason):
        print(f"  {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
