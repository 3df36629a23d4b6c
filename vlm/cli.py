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

from vlm.cli_interop import convert, export

if TYPE_CHECKING:
    from torch import Tensor

    from vlm.embedder import Embedder
    from vlm.preprocess import ImageError, Preprocess
    from vlm.retrieval import EmbeddingIndex
    from vlm.vision import VisionTransformer, ViTClassifier
    from vlm.visualize import Score

Run = Callable[[Namespace], None]

_MODEL_HELP = "mini, a folder, openclip:NAME/TAG or hf:ORG/NAME; default %(default)s"


def classify(parser: ArgumentParser) -> Run:
    """Which of these labels fits each picture?"""
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", type=Path)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--labels", nargs="+", metavar="LABEL", help="in any language the model reads")
    which.add_argument("--classifier", metavar="FOLDER", help="a trained ViT, which has labels of its own")
    parser.add_argument(
        "--templates", nargs="+", metavar="SENTENCE", help="with {} where the label goes; default: by language"
    )
    parser.add_argument("-k", type=_positive, help="labels per picture; default all of --labels, 5 of a classifier")
    _add_model(parser)
    _add_json(parser)

    def run(args: Namespace) -> None:
        if args.classifier:
            if args.templates:
                raise ValueError("--templates make sentences of --labels; a classifier reads none. Leave them out.")
            classifier, preprocess = _open_classifier(args.classifier)
            labels, probabilities = classifier.labels, _classify(classifier, preprocess, args.pictures)
        else:
            from vlm.checkpoint import load
            from vlm.zero_shot import ZeroShotClassifier

            zero_shot = ZeroShotClassifier(load(args.model), args.labels, args.templates)
            labels, probabilities = zero_shot.labels, zero_shot(args.pictures)
        count = args.k or (5 if args.classifier else len(labels))
        rows: list[dict[str, Any]] = []
        for path, row in zip(args.pictures, probabilities, strict=True):
            scores, order = row.sort(descending=True, stable=True)
            best = zip(scores[:count].tolist(), order[:count].tolist(), strict=True)
            for rank, (score, label) in enumerate(best, 1):
                rows.append({"path": str(path), "label": labels[label], "score": score, "rank": rank})
        _print(rows, args.json, lambda row: f"{row['path']}\t{row['score']:7.1%}\t{row['label']}")

    return run


def index(parser: ArgumentParser) -> Run:
    """Make the pictures of a folder ready to be searched; again, and only what is new or changed is read."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="with the pictures, subfolders too")
    parser.add_argument("--index", type=Path, required=True, help="the folder of the index, created if absent")
    parser.add_argument("--prune", action="store_true", help="forget pictures that are gone, and their vectors")
    parser.add_argument("--workers", type=_positive, help="processes that decode, default one per processor")
    _add_model(parser)
    _add_json(parser)

    def run(args: Namespace) -> None:
        from vlm.checkpoint import load
        from vlm.retrieval import EmbeddingIndex

        with EmbeddingIndex.open(args.index, load(args.model)) as opened:
            added = opened.add_folder(args.folder, workers=args.workers, progress=True)
            forgotten = opened.prune(args.folder) if args.prune else 0
            row = {
                "folder": str(args.folder),
                "embedded": added.embedded,
                "recognised": added.recognised,
                "unchanged": added.unchanged,
                "vanished": [str(path) for path in added.vanished],
                "forgotten": forgotten,
                "skipped": [{"path": e.name, "reason": e.reason, "detail": e.detail} for e in added.skipped],
                "pictures": len(opened),
            }
        _print([row], args.json, _describe_added)
        _report_skipped(added.skipped, added.found)

    return run


def _describe_added(row: dict[str, Any]) -> str:
    counts = f"{row['embedded']} embedded, {row['recognised']} recognised, {row['unchanged']} unchanged"
    return f"{counts}, {len(row['vanished'])} vanished, {row['forgotten']} forgotten; {row['pictures']} in the index"


def look(parser: ArgumentParser) -> Run:
    """Draw what a model sees in a picture: attention, positions, filters, and where in it a text is."""
    parser.add_argument("picture", metavar="PICTURE", type=Path)
    parser.add_argument("--text", nargs="+", default=[], metavar="TEXT", help="what to look for; a classifier's labels")
    parser.add_argument("--out", type=Path, default=Path("look"), metavar="FOLDER", help="default %(default)s")
    parser.add_argument("--lang", choices=["en", "ja"], default=_user_language(), help="of the words in the pictures")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default="mini", help=_MODEL_HELP)
    source.add_argument("--classifier", metavar="MODEL", help="a trained ViT instead; no --text: its own answer")
    _add_json(parser)

    def run(args: Namespace) -> None:
        from vlm import figures

        if args.classifier:
            vision, preprocess, scores = _inside_classifier(args.classifier, args.text, args.picture)
        else:
            vision, preprocess, scores = _inside_model(args.model, args.text)
        pixels = preprocess.pixels(args.picture)  # (3, H, W)
        pen = figures.pen(args.lang)
        if not pen.japanese:
            japanese = {text: f"text {n}" for n, text in enumerate(scores, 1) if not text.isascii()}
            scores = {japanese.get(text, text): score for text, score in scores.items()}
            if args.lang == "ja" or japanese:
                named = "".join(f"; {caption} is {text}" for text, caption in japanese.items())
                print(
                    f"vlm: no font with Japanese on this machine: the pictures are in English{named}", file=sys.stderr
                )
        images, picture = preprocess.normalize(pixels)[None], figures.picture_seen(pixels)
        args.out.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        for name, figure in figures.draw_all(vision, images, picture, scores, pen).items():
            path = args.out / f"look-{name}.png"
            figure.save(path)
            rows.append({"path": str(path), "question": pen.words[name]})
        _print(rows, args.json, lambda row: f"{row['path']}\t{row['question']}")

    return run


def search(parser: ArgumentParser) -> Run:
    """The pictures of a folder or an index that are nearest to a text or to another picture."""
    parser.add_argument("query", metavar="QUERY", nargs="?", help='a text, "one + another - a third", or a picture')
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--folder", type=Path, help="with the pictures, subfolders too; all are embedded now")
    place.add_argument("--index", type=Path, help="that `vlm index` made")
    parser.add_argument("-k", type=_positive, default=10, help="how many, default %(default)s")
    only = parser.add_argument_group("with --index")
    only.add_argument("--glob", metavar="PATTERN", help="only paths like this, * crosses folders: '2024/*.jpg'")
    only.add_argument("--since", metavar="DATE", help="only pictures taken then or later (EXIF, else the file's date)")
    only.add_argument("--until", metavar="DATE", help="only pictures taken then or earlier")
    only.add_argument("--min-side", type=_positive, metavar="PIXELS", help="only pictures at least so high and wide")
    only.add_argument(
        "--duplicates",
        type=float,
        nargs="?",
        const=0.97,
        metavar="COSINE",
        help="no QUERY: groups of pictures at least this near, default %(const)s",
    )
    only.add_argument("--html", type=Path, metavar="FILE", help="write a page of the pictures found")
    parser.add_argument("--paths", action="store_true", help="print paths only")
    _add_model(parser)
    _add_json(parser)

    def run(args: Namespace) -> None:
        if (args.duplicates is None) == (args.query is None):
            parser.error("give either QUERY or --duplicates")
        needs_index = args.duplicates, args.glob, args.since, args.until, args.min_side, args.html
        if args.index is None and any(value is not None for value in needs_index):
            parser.error("--duplicates, --glob, --since, --until, --min-side and --html need --index")
        if args.duplicates is not None:
            _print(_duplicates(args), args.json, lambda row: "\t".join(row["paths"]))
            return
        rows = _search_folder(args) if args.index is None else _search_index(args)
        _print(rows, args.json, lambda row: row["path"] if args.paths else _describe_hit(row))

    return run


def _search_folder(args: Namespace) -> list[dict[str, Any]]:
    from vlm.checkpoint import load

    embedder = load(args.model)
    query = _embed_query(embedder, args.query)  # (E,)
    paths, embeds, skipped = _embed_folder(embedder, args.folder)
    scores, order = (embeds @ query).sort(descending=True, stable=True)
    hits = zip(scores[: args.k].tolist(), order[: args.k].tolist(), strict=True)
    _report_skipped(skipped, len(paths) + len(skipped))
    return [{"path": str(paths[item]), "score": score, "rank": rank} for rank, (score, item) in enumerate(hits, 1)]


def _search_index(args: Namespace) -> list[dict[str, Any]]:
    from vlm.contact_sheet import contact_sheet

    with _open_index(args) as opened:
        query = Path(args.query) if _is_picture(args.query) else args.query
        limits = {"glob": args.glob, "since": args.since, "until": args.until, "min_side": args.min_side}
        hits = opened.search(query, args.k, **limits)
        if not hits:
            _check_filled(opened, args.index)
    if args.html:
        args.html.write_text(contact_sheet(hits, args.query), encoding="utf-8")
    return [
        {"path": str(hit.path), "score": hit.score, "rank": hit.rank, "probability": hit.probability} for hit in hits
    ]


def _duplicates(args: Namespace) -> list[dict[str, Any]]:
    with _open_index(args) as opened:
        _check_filled(opened, args.index)
        return [{"paths": [str(path) for path in group]} for group in opened.duplicates(args.duplicates)]


def _open_index(args: Namespace) -> "EmbeddingIndex":
    from vlm.checkpoint import load
    from vlm.retrieval import EmbeddingIndex

    if not args.index.is_dir():
        raise ValueError(f"There is no index '{args.index}'. Make one: vlm index FOLDER --index {args.index}")
    return EmbeddingIndex.open(args.index, load(args.model))


def _check_filled(opened: "EmbeddingIndex", folder: Path) -> None:
    if not len(opened):
        raise ValueError(f"The index '{folder}' has no pictures for this model. Run vlm index with it first.")


def _describe_hit(row: dict[str, Any]) -> str:
    probability = row.get("probability")
    sure = "" if probability is None else f"\t{probability:7.1%}"
    return f"{row['rank']:3d}\t{row['score']:.3f}{sure}\t{row['path']}"


COMMANDS: dict[str, Callable[[ArgumentParser], Run]] = {
    "classify": classify,
    "convert": convert,
    "export": export,
    "index": index,
    "look": look,
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
    parser = ArgumentParser(prog="vlm", description="Pictures and words in one space: classify, search, look inside.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, add in COMMANDS.items():
        command = commands.add_parser(name, help=add.__doc__, description=add.__doc__)
        command.set_defaults(run=add(command))
    return parser


def _add_model(parser: ArgumentParser) -> None:
    parser.add_argument("--model", default="mini", help=_MODEL_HELP)


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


def _user_language() -> str:
    """`ja` where the user's locale says so, else `en`."""
    chosen = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := os.environ.get(name))), "")
    return "ja" if chosen.startswith("ja") else "en"


def _open_classifier(source: str) -> tuple["ViTClassifier", "Preprocess"]:
    from vlm.checkpoint import load_classifier

    classifier = load_classifier(source)
    if classifier.preprocess is None:
        raise ValueError(f"{source} came without preprocessing settings, so it cannot read pictures.")
    return classifier, classifier.preprocess


def _classify(classifier: "ViTClassifier", preprocess: "Preprocess", pictures: list[Path]) -> "Tensor":
    """Probabilities (B, M)."""
    import torch

    with torch.inference_mode():
        return torch.cat([classifier(preprocess(picture)[None]).softmax(-1) for picture in pictures])


def _inside_model(source: str, texts: list[str]) -> tuple["VisionTransformer", "Preprocess", dict[str, "Score"]]:
    """What `vlm look` draws: the picture tower, its preprocessing, and for each text what speaks for it."""
    from vlm.checkpoint import load
    from vlm.visualize import text_score
    from vlm.zero_shot import class_embeddings

    embedder = load(source)
    embeds = class_embeddings(embedder, texts) if texts else []
    scores = {text: text_score(embedder.model.vision_proj, embed) for text, embed in zip(texts, embeds, strict=True)}
    return embedder.model.vision, embedder.preprocess, scores


def _inside_classifier(
    source: str, labels: list[str], picture: Path
) -> tuple["VisionTransformer", "Preprocess", dict[str, "Score"]]:
    """The same of a classifier; without labels its own answer to the picture."""
    from vlm.visualize import label_score

    classifier, preprocess = _open_classifier(source)
    labels = labels or [classifier.labels[int(_classify(classifier, preprocess, [picture]).argmax())]]
    return classifier.vision, preprocess, {label: label_score(classifier, label) for label in labels}


def _embed_query(embedder: "Embedder", query: str) -> "Tensor":
    """A path of a picture, or else a text -> (E,)."""
    if _is_picture(query):
        return embedder.embed_images([query])[0]
    if not query.strip():
        raise ValueError("QUERY is empty. Give a text, or the path of a picture.")
    return embedder.embed_texts([query])[0]


def _is_picture(query: str) -> bool:
    from vlm.preprocess import IMAGE_SUFFIXES

    return Path(query).suffix.lower() in IMAGE_SUFFIXES or os.path.isfile(
        query
    )  # of Path's own, a long text is an error


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
