"""`vlm index`: the images of a folder, made searchable and kept up to date."""

import contextlib
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.commands.index_model import add_index_model, load_index_model
from vlm.commands.options import Run, add_backend, add_json, positive, print_rows
from vlm.commands.printing import escaped, note
from vlm.errors import ImageError, InputError, VlmError
from vlm.user_folders import expanded

if TYPE_CHECKING:
    from vlm.index.embedding_index import Added, EmbeddingIndex

_MAX_LISTED = 1000  # lines of skipped files

_READING = ("workers", "exclude")
_READING_FLAGS = ("fast_decode", "force", "retry_skipped", "allow_empty", "watch")


def index(parser: ArgumentParser) -> Run:
    """Index the images of a folder. Run it again to pick up new and changed files."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", help="with the images, subfolders too")
    parser.add_argument("--index", type=Path, required=True, help="the folder of the index, created if absent")
    parser.add_argument("--prune", action="store_true", help="forget images that are gone, and their embeddings")
    reading = parser.add_argument_group("which files are read")
    reading.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="pass over files and folders, as in .gitignore; may be repeated; also read from .vlmignore files. "
        "Thumbnail folders, trash, .git and @eaDir are always passed over, unless '!NAME' takes them in",
    )
    reading.add_argument("--retry-skipped", action="store_true", help="read the files again that were refused")
    reading.add_argument("--force", action="store_true", help="read and embed every file again")
    reading.add_argument("--allow-empty", action="store_true", help="FOLDER had images and may have none now")
    reading.add_argument("--workers", type=positive, help="processes that decode, default one for each processor")
    reading.add_argument(
        "--fast-decode", action="store_true", help="decode large JPEGs smaller: faster, half a level off on average"
    )
    reading.add_argument("--watch", action="store_true", help="stay, and pick up changes as they happen, until Ctrl-C")
    roots = parser.add_argument_group("folders that moved or are gone")
    roots.add_argument("--roots", action="store_true", help="list the indexed folders")
    roots.add_argument("--move", nargs=2, metavar=("OLD", "NEW"), help="the images below OLD are now below NEW")
    roots.add_argument("--forget", metavar="FOLDER", dest="forgotten", help="take the images below FOLDER out")
    large = parser.add_argument_group("for large collections")
    large.add_argument("--ann", action="store_true", help="build an approximate index, and print its recall")
    large.add_argument(
        "--from-embeddings", type=Path, metavar="DIR", help="add embeddings of clip-retrieval or vlm embed"
    )
    large.add_argument("--to-embeddings", type=Path, metavar="DIR", help="write all embeddings as clip-retrieval does")
    add_index_model(parser)
    add_backend(parser)
    add_json(parser)

    def run(args: Namespace) -> None:
        _check_usage(parser, args)
        if args.roots or args.move or args.forgotten:
            _change_roots(args)
        else:
            _update(args)

    return run


def _check_usage(parser: ArgumentParser, args: Namespace) -> None:
    work = [args.folder, args.prune, args.ann, args.from_embeddings, args.to_embeddings]
    roots = [args.roots, args.move, args.forgotten]
    if sum(map(bool, roots)) > 1 or (any(roots) and any(work)):
        parser.error("--roots, --move and --forget each stand alone")
    if not any(roots) and not any(work):
        parser.error("give FOLDER, --prune, --roots, --move, --forget, --ann, --from-embeddings or --to-embeddings")
    given = [name for name in (*_READING, *_READING_FLAGS) if vars(args)[name]]
    if given and not args.folder:
        parser.error(f"--{given[0].replace('_', '-')} says how FOLDER is read: give FOLDER")
    if args.watch and args.json:
        parser.error("--watch has no end, and --json prints one list at the end: give one of them")


def _change_roots(args: Namespace) -> None:
    from vlm.index.paths import absolute_path
    from vlm.index.roots import Roots
    from vlm.index.vector_store import VectorStore

    if not args.index.is_dir():
        raise InputError(f"There is no index '{args.index}'. Make one: vlm index FOLDER --index {args.index}")
    with contextlib.closing(VectorStore(absolute_path(args.index))) as store:
        roots = Roots(store)
        moved = forgotten = 0
        if args.move:
            moved = roots.move(*(str(absolute_path(path)) for path in args.move))
        elif args.forgotten:
            forgotten = roots.forget(str(absolute_path(args.forgotten)))
        if not args.json and not args.roots:
            print(f"{moved} moved, {forgotten} forgotten")
        rows = [{"path": str(root.path), "images": root.images, "state": root.state} for root in roots.all()]
    print_rows(rows, args.json, lambda row: f"{row['images']:7d}\t{row['state']}\t{escaped(row['path'])}")


def _update(args: Namespace) -> None:
    from vlm.index.embedding_index import Added, EmbeddingIndex

    if args.folder and not expanded(args.folder).is_dir() and not args.index.is_dir():
        raise InputError(
            f"There is no folder '{args.folder}'. Name a folder with images."
        )  # before the model is loaded
    if args.to_embeddings and args.to_embeddings.exists() and any(args.to_embeddings.iterdir()):
        raise InputError(f"'{args.to_embeddings}' is not empty. Name a folder that is, or does not exist yet.")
    embedder, source = load_index_model(args, args.index)
    if args.fast_decode:
        embedder.preprocess.decoding = "scaled"
    with EmbeddingIndex.open(args.index, embedder, source=source) as opened:
        imported = opened.add_embeddings(args.from_embeddings) if args.from_embeddings else 0
        added = _add(opened, args) if args.folder else Added()
        forgotten = opened.prune(args.folder) if args.prune else 0
        recall = opened.build_ann(note).recall if args.ann else None
        written, left_out = opened.save_embeddings(args.to_embeddings) if args.to_embeddings else (0, [])
        numbers = {"imported": imported, "forgotten": forgotten, "written": written}
        row = _row(added, args, len(opened)) | numbers | {"left_out": left_out, "recall_at_10": recall}
        print_rows([row], args.json, _describe)
        report_skipped(added)
        if left_out:
            names = ", ".join(ascii(path) for path in left_out[:5])
            note(f"left out {len(left_out)} files whose names are not UTF-8, which parquet files need: {names}")
        note_gone_roots(opened)
        if args.watch:
            _watch(opened, args)


def _add(opened: "EmbeddingIndex", args: Namespace) -> "Added":
    return opened.add_folder(
        args.folder,
        workers=args.workers,
        progress=True,
        exclude=args.exclude,
        allow_empty=args.allow_empty,
        force=args.force,
        retry_skipped=args.retry_skipped,
    )


def _watch(opened: "EmbeddingIndex", args: Namespace) -> None:
    from vlm.commands.watching import changes_of

    note(f"watching {args.folder}; Ctrl-C ends it")
    args.force = args.retry_skipped = False  # that was for the first pass
    with contextlib.suppress(KeyboardInterrupt):
        for _ in changes_of(expanded(args.folder)):
            try:
                added = opened.add_folder(args.folder, workers=args.workers, exclude=args.exclude)
            except VlmError as error:  # a disk that is unmounted for a while
                note(str(error))
                continue
            changed = added.embedded + added.recognised + len(added.vanished)
            if changed:
                print(_describe(_row(added, args, len(opened))), flush=True)


def _row(added: "Added", args: Namespace, images: int) -> dict[str, Any]:
    """The fields of `--json` that say what happened to the files of the folder."""
    return {
        "folder": str(args.folder) if args.folder else None,
        "imported": 0,
        "embedded": added.embedded,
        "recognised": added.recognised,
        "unchanged": added.unchanged,
        "moved": added.moved,
        "vanished": [str(path) for path in added.vanished],
        "forgotten": 0,
        "skipped": [{"path": e.name, "reason": e.reason, "detail": e.detail} for e in added.skipped],
        "others": dict(added.others),
        "excluded": added.excluded,
        "images": images,
        "written": 0,
        "left_out": [],
        "recall_at_10": None,
    }


def _describe(row: dict[str, Any]) -> str:
    counts = f"{row['embedded']} embedded, {row['recognised']} recognised, {row['unchanged']} unchanged"
    files = f"{row['imported']} imported, {row['written']} written"
    gone = f"{row['moved']} moved, {len(row['vanished'])} vanished, {row['forgotten']} forgotten"
    return f"{counts}, {gone}, {files}; {row['images']} in the index"


def report_skipped(added: "Added") -> None:
    """Lines on stderr: refused files one by one, files of other kinds as counts."""
    for line in added.notes:
        note(line)
    if added.skipped:
        note(f"skipped {len(added.skipped)} of {added.found} images")
        listed = sorted(added.skipped, key=lambda error: error.reason)
        for error in listed[:_MAX_LISTED]:
            _note_file(error)
        if len(listed) > _MAX_LISTED:
            note(f"{len(listed) - _MAX_LISTED} more like these; --json lists all")
    if added.others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in added.others.most_common(10))
        note(f"passed over {added.others.total()} files of other kinds: {kinds}")


def _note_file(error: ImageError) -> None:
    """A line about a skipped file."""
    print(f"  {escaped(str(error))}", file=sys.stderr)


def note_gone_roots(opened: "EmbeddingIndex") -> None:
    """Say which indexed folders are not there."""
    for root in opened.roots():
        if root.state in ("gone", "empty") and root.images:
            note(
                f"the folder {str(root.path)!r} is {root.state}, and {root.images:,} images of it are in the index. "
                "Mount its disk, or: vlm index --move OLD NEW, vlm index --forget FOLDER"
            )
