"""`vlm index` and `vlm search`: a folder of images made searchable, and searched."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vlm.commands.options import Run, add_backend, add_json, add_model, positive, print_rows

if TYPE_CHECKING:
    from vlm.errors import ImageError
    from vlm.index.embedding_index import EmbeddingIndex


def index(parser: ArgumentParser) -> Run:
    """Make the images of a folder ready to be searched; again, and only what is new or changed is read."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", help="with the images, subfolders too")
    parser.add_argument("--index", type=Path, required=True, help="the folder of the index, created if absent")
    parser.add_argument("--prune", action="store_true", help="forget images that are gone, and their vectors")
    parser.add_argument("--workers", type=positive, help="processes that decode, default one per processor")
    parser.add_argument(
        "--fast-decode", action="store_true", help="decode large JPEGs smaller: faster, half a level off on average"
    )
    large = parser.add_argument_group("for large collections")
    large.add_argument("--ann", action="store_true", help="build an approximate index, and print how good it is")
    large.add_argument(
        "--from-embeddings", type=Path, metavar="DIR", help="add vectors of clip-retrieval or training.embed"
    )
    large.add_argument("--to-embeddings", type=Path, metavar="DIR", help="write all vectors in clip-retrieval's layout")
    add_model(parser)
    add_backend(parser)
    add_json(parser)

    def run(args: Namespace) -> None:
        if not (args.folder or args.prune or args.ann or args.from_embeddings or args.to_embeddings):
            parser.error("give FOLDER, --prune, --ann, --from-embeddings or --to-embeddings")
        from vlm.checkpoint.load import load
        from vlm.index.embedding_index import Added, EmbeddingIndex

        embedder = load(args.model, backend=args.backend)
        if args.fast_decode:
            embedder.preprocess.decoding = "scaled"
        with EmbeddingIndex.open(args.index, embedder) as opened:
            imported = opened.add_embeddings(args.from_embeddings) if args.from_embeddings else 0
            added = opened.add_folder(args.folder, workers=args.workers, progress=True) if args.folder else Added()
            forgotten = opened.prune(args.folder) if args.prune else 0
            recall = opened.build_ann(_say).recall if args.ann else None
            written = opened.save_embeddings(args.to_embeddings) if args.to_embeddings else 0
            row = {
                "folder": str(args.folder) if args.folder else None,
                "imported": imported,
                "embedded": added.embedded,
                "recognised": added.recognised,
                "unchanged": added.unchanged,
                "vanished": [str(path) for path in added.vanished],
                "forgotten": forgotten,
                "skipped": [{"path": e.name, "reason": e.reason, "detail": e.detail} for e in added.skipped],
                "images": len(opened),
                "written": written,
                "recall_at_10": recall,
            }
        print_rows([row], args.json, _describe_added)
        _report_skipped(added.skipped, added.found)

    return run


def _describe_added(row: dict[str, Any]) -> str:
    counts = f"{row['embedded']} embedded, {row['recognised']} recognised, {row['unchanged']} unchanged"
    files = f"{row['imported']} imported, {row['written']} written"
    all_counts = f"{counts}, {len(row['vanished'])} vanished, {row['forgotten']} forgotten, {files}"
    return f"{all_counts}; {row['images']} in the index"


def _say(line: str) -> None:
    print(f"vlm: {line}", file=sys.stderr, flush=True)


def search(parser: ArgumentParser) -> Run:
    """The images of a folder or an index that are nearest to a text or to another image."""
    parser.add_argument("query", metavar="QUERY", nargs="?", help='a text, "one + 0.5*another - a third", or an image')
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--folder", type=Path, help="with the images, subfolders too; all are embedded now")
    place.add_argument("--index", type=Path, help="that `vlm index` made")
    parser.add_argument("-k", type=positive, default=10, help="how many, default %(default)s")
    only = parser.add_argument_group("which images")
    only.add_argument("--glob", metavar="PATTERN", help="only paths like this, * crosses folders: '2024/*.jpg'")
    only.add_argument("--since", metavar="DATE", help="only images taken then or later (EXIF, else the file's date)")
    only.add_argument("--until", metavar="DATE", help="only images taken then or earlier")
    only.add_argument("--min-side", type=positive, metavar="PIXELS", help="only images at least so high and wide")
    only.add_argument(
        "--duplicates",
        type=float,
        nargs="?",
        const=0.97,
        metavar="COSINE",
        help="no QUERY: groups of images at least this near, default %(const)s",
    )
    only.add_argument("--exact", action="store_true", help="also where `vlm index --ann` was asked for")
    only.add_argument("--html", type=Path, metavar="FILE", help="write a page of the images found")
    parser.add_argument("--paths", action="store_true", help="print paths only")
    add_model(parser)
    add_backend(parser)
    add_json(parser)

    def run(args: Namespace) -> None:
        if (args.duplicates is None) == (args.query is None):
            parser.error("give either QUERY or --duplicates")
        with _opened_index(args) as opened:
            if args.duplicates is not None:
                groups = [{"paths": [str(path) for path in group]} for group in opened.duplicates(args.duplicates)]
                print_rows(groups, args.json, lambda row: "\t".join(row["paths"]))
                return
            rows = _search(args, opened)
        print_rows(rows, args.json, lambda row: row["path"] if args.paths else _describe_hit(row))

    return run


def _search(args: Namespace, opened: "EmbeddingIndex") -> list[dict[str, Any]]:
    from vlm.commands.contact_sheet import contact_sheet

    query = Path(args.query) if _is_image(args.query) else args.query
    limits = {"glob": args.glob, "since": args.since, "until": args.until, "min_side": args.min_side}
    hits = opened.search(query, args.k, exact=args.exact, **limits)
    unsure = bool(hits) and opened.embedder.no_good_match(hits[0].probability)
    if unsure:
        _say(f"no good match: the first is one with a probability of {hits[0].probability:.1%}")
    if args.html:
        args.html.write_text(contact_sheet(hits, args.query, no_good_match=unsure), encoding="utf-8")
    return [hit.row() for hit in hits]


@contextmanager
def _opened_index(args: Namespace) -> "Generator[EmbeddingIndex]":
    """That of --index, or one of --folder that is gone afterwards; with images in it."""
    from vlm.checkpoint.load import load
    from vlm.index.embedding_index import EmbeddingIndex
    from vlm.index.query import read_query

    if args.index and not args.index.is_dir():
        raise ValueError(f"There is no index '{args.index}'. Make one: vlm index FOLDER --index {args.index}")
    with (
        TemporaryDirectory() as own,
        EmbeddingIndex.open(args.index or own, load(args.model, backend=args.backend)) as opened,
    ):
        if args.folder:
            if args.query is not None and _is_image(args.query):
                opened.embed_query(Path(args.query))  # before the long part: it may be broken
            elif args.query is not None:
                read_query(args.query)
            added = opened.add_folder(args.folder, progress=True)
            if not added.found:
                raise ValueError(f"Folder '{args.folder}' holds no images.")
            _report_skipped(added.skipped, added.found)
        elif not len(opened):
            raise ValueError(f"The index '{args.index}' has no images for this model. Run vlm index with it first.")
        yield opened


def _describe_hit(row: dict[str, Any]) -> str:
    sure = "" if row["probability"] is None else f"\t{row['probability']:7.1%}"
    return f"{row['rank']:3d}\t{row['score']:.3f}{sure}\t{row['path']}"


def _is_image(query: str) -> bool:
    from vlm.images.signatures import IMAGE_SUFFIXES

    named_so = Path(query).suffix.lower() in IMAGE_SUFFIXES
    return named_so or os.path.isfile(query)  # of Path's own, a long text is an error


def _report_skipped(skipped: list["ImageError"], found: int) -> None:
    if not skipped:
        return
    print(f"vlm: skipped {len(skipped)} of {found} images", file=sys.stderr)
    for error in sorted(skipped, key=lambda error: error.reason):
        print(f"  {error}", file=sys.stderr)
