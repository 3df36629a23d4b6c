"""`vlm search`: images by words, by an image, by sums of both; near duplicates."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vlm import atomic
from vlm.commands.index import note_gone_roots, report_skipped
from vlm.commands.index_model import add_index_model, load_index_model
from vlm.commands.options import Run, add_backend, add_json, positive, print_rows
from vlm.commands.printing import check_output_file, escaped, note, print_null_terminated
from vlm.errors import InputError

if TYPE_CHECKING:
    from vlm.index.embedding_index import EmbeddingIndex
    from vlm.index.search import Hit


def search(parser: ArgumentParser) -> Run:
    """Find the images of a folder or an index that are nearest to a text or to another image."""
    parser.add_argument(
        "query",
        metavar="QUERY",
        nargs="?",
        help='a text, "one + 0.5*another - a third", or an image; none on a terminal: ask for queries one by one',
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--folder", type=Path, help="with the images, subfolders too; all are embedded now")
    place.add_argument("--index", type=Path, help="that `vlm index` made")
    parser.add_argument("-k", type=positive, help="how many; default 10 images, or all groups of --duplicates")
    only = parser.add_argument_group("which images")
    only.add_argument("--glob", metavar="PATTERN", help="only paths like this, * crosses folders: '2024/*.jpg'")
    only.add_argument("--literal", action="store_true", help="PATTERN is plain text: all paths that contain it")
    only.add_argument("--since", metavar="DATE", help="only images taken then or later (EXIF, else the file's date)")
    only.add_argument("--until", metavar="DATE", help="only images taken then or earlier")
    only.add_argument("--min-side", type=positive, metavar="PIXELS", help="only images at least so high and wide")
    only.add_argument(
        "--duplicates",
        type=float,
        nargs="?",
        const=0.97,
        metavar="COSINE",
        help="no QUERY: groups of images with at least this cosine similarity, default %(const)s",
    )
    only.add_argument("--exact", action="store_true", help="ignore the approximate index of `vlm index --ann`")
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--by-date", action="store_true", help="the K nearest, oldest first")
    shown.add_argument("--paths", action="store_true", help="print paths only")
    shown.add_argument("-0", "--null", action="store_true", help="print paths only, each followed by a NUL (xargs -0)")
    shown.add_argument("--html", type=Path, metavar="FILE", help="write a page of the images found")
    shown.add_argument("--thumbnails", action="store_true", help="show the images in the terminal, where it can")
    add_index_model(parser)
    add_backend(parser)
    add_json(parser)

    def run(args: Namespace) -> None:
        _check_usage(parser, args)
        if args.html:
            check_output_file(args.html)
        with _opened_index(args) as opened:
            if args.duplicates is not None:
                _print_duplicates(args, opened)
            elif args.query is None:
                from vlm.commands.search_prompt import ask_for_queries

                ask_for_queries(lambda query: _print_hits(args, opened, query))
            else:
                _print_hits(args, opened, args.query)
            if args.index:
                note_gone_roots(opened)

    return run


def _check_usage(parser: ArgumentParser, args: Namespace) -> None:
    if args.duplicates is not None and args.query is not None:
        parser.error("give either QUERY or --duplicates")
    if args.query is None and args.duplicates is None and not (sys.stdin.isatty() and sys.stdout.isatty()):
        parser.error("give either QUERY or --duplicates")
    if args.literal and args.glob is None:
        parser.error("--literal says how --glob is read: give --glob")
    forms = {"--json": args.json, "--paths": args.paths, "--null": args.null}
    if len(given := [name for name, asked in forms.items() if asked]) > 1:
        parser.error(f"give one of {' and '.join(given)}")
    if args.thumbnails and not given and not sys.stdout.isatty():
        parser.error("--thumbnails needs a terminal")
    if args.thumbnails and given:
        parser.error(f"--thumbnails is for people and {given[0]} for programs: give one of them")
    if args.duplicates is not None:
        for name, asked in {"--by-date": args.by_date, "--thumbnails": args.thumbnails, "--exact": args.exact}.items():
            if asked:
                parser.error(f"{name} has no effect on --duplicates: leave one of them out")


def _filters(args: Namespace) -> dict[str, Any]:
    return {name: vars(args)[name] for name in ("glob", "literal", "since", "until", "min_side")}


def _print_hits(args: Namespace, opened: "EmbeddingIndex", query: str) -> None:
    from vlm.commands.contact_sheet import contact_sheet
    from vlm.index.query import has_attached_minus

    asked = Path(query) if _is_image(query) else query
    hits = opened.search(asked, args.k or 10, exact=args.exact, **_filters(args))
    unsure = bool(hits) and opened.embedder.no_good_match(hits[0].probability)
    if isinstance(asked, str) and has_attached_minus(asked):
        note("a minus before a word is part of the word; to subtract, write spaces around it: beach - people")
    if unsure:
        note(f"no good match: the first is one with a probability of {hits[0].probability:.1%}")
    if not hits:
        _note_nothing_found(args)
    if args.by_date:
        hits = sorted(hits, key=lambda hit: hit.taken)
    if args.html:
        atomic.write(args.html, contact_sheet([hits], query, no_good_match=unsure))
    if args.null:
        print_null_terminated(str(hit.path) for hit in hits)
        return
    if hits and not args.json and not args.paths and sys.stdout.isatty():
        print(_header(hits, args.by_date))
    if args.thumbnails:
        from vlm.commands.thumbnails import print_thumbnail

        for hit in hits:
            print(_describe(hit.row(), args.by_date))
            print_thumbnail(hit.path)
        return
    print_rows(
        [hit.row() for hit in hits],
        args.json,
        lambda row: escaped(row["path"]) if args.paths else _describe(row, args.by_date),
    )


def _header(hits: "Sequence[Hit]", by_date: bool) -> str:
    probability = "" if hits[0].probability is None else "\tprobability"
    date = "\ttaken" if by_date else ""
    return f"rank\tscore{probability}{date}\tpath"


def _describe(row: dict[str, Any], by_date: bool) -> str:
    probability = "" if row["probability"] is None else f"\t{row['probability']:7.1%}"
    date = f"\t{row['taken']}" if by_date else ""
    return f"{row['rank']:3d}\t{row['score']:.3f}{probability}{date}\t{escaped(row['path'])}"


def _print_duplicates(args: Namespace, opened: "EmbeddingIndex") -> None:
    from vlm.commands.contact_sheet import contact_sheet
    from vlm.index.search import Hit

    groups = opened.duplicates(args.duplicates, **_filters(args))[: args.k]
    if not groups:
        _note_nothing_found(args, f"no two images have a cosine similarity of {args.duplicates:g} or more")
    if args.html:
        pages = [[Hit(path, 1.0, number, None) for number, path in enumerate(group, 1)] for group in groups]
        atomic.write(args.html, contact_sheet(pages, f"Duplicates, {args.duplicates:g}", scores=False))
    if args.null:
        print_null_terminated(str(path) for group in groups for path in group)
        return
    rows = [{"paths": [str(path) for path in group]} for group in groups]
    print_rows(rows, args.json, lambda row: "\t".join(map(escaped, row["paths"])))


def _note_nothing_found(args: Namespace, otherwise: str = "nothing was found") -> None:
    given = {"--glob": args.glob, "--since": args.since, "--until": args.until, "--min-side": args.min_side}
    conditions = " ".join(f"{name} {value}" for name, value in given.items() if value is not None)
    note(f"no image passes {conditions}" if conditions else otherwise)
    if args.glob and "[" in args.glob and not args.literal:
        note("in a pattern, [abc] is one of these characters; for a name with brackets add --literal, or write [[]")


@contextmanager
def _opened_index(args: Namespace) -> "Generator[EmbeddingIndex]":
    """The index of --index, or a temporary one of --folder; with images in it."""
    from vlm.index.embedding_index import EmbeddingIndex
    from vlm.index.query import read_query

    if args.index and not args.index.is_dir():
        raise InputError(f"There is no index '{args.index}'. Make one: vlm index FOLDER --index {args.index}")
    embedder, _ = load_index_model(args, args.index)
    with TemporaryDirectory() as own, EmbeddingIndex.open(args.index or own, embedder) as opened:
        if args.folder:
            if args.query is not None and _is_image(args.query):
                opened.embed_query(Path(args.query))  # before the long part: it may be broken
            elif args.query is not None:
                read_query(args.query)
            added = opened.add_folder(args.folder, progress=True)
            if not added.found:
                raise InputError(f"Folder '{args.folder}' holds no images. Name a folder that does.")
            report_skipped(added)
        elif not len(opened):
            raise InputError(f"The index '{args.index}' has no images for this model. Run vlm index with it first.")
        yield opened


def _is_image(query: str) -> bool:
    from vlm.images.signatures import IMAGE_SUFFIXES

    named_so = Path(query).suffix.lower() in IMAGE_SUFFIXES
    return named_so or os.path.isfile(query)  # of Path's own, a long text is an error
