"""`vlm check` and `vlm embed`: a data set is examined, or turned into embeddings."""

import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from vlm.commands.options import (
    DATA_HELP,
    SOURCE_HELP,
    Run,
    add_data_description,
    add_device,
    add_trust,
    columns_of,
    positive,
    user_language,
)


def check(parser: ArgumentParser) -> Run:
    """Check a data set before training: broken files, duplicates, leaks between splits, captions, sizes.

    Prints a table and then, in words, each problem and what to do. Several DATA are checked as one: a leak from one to
    another is found too. --out FOLDER receives check.json, doubtful.jsonl (every sample to look at, and why) and
    contact-sheet.png.
    """
    parser.add_argument("data", nargs="+", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--split", nargs="+", default=[], metavar="SPLIT", help="only these splits; default: all")
    add_data_description(parser)
    parser.add_argument("--tokenizer", default="mini", help="mini, clip, or a folder; default %(default)s")
    parser.add_argument(
        "--sample", type=positive, default=50_000, metavar="N", help="check N samples at most, drawn at random (50,000)"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that decode; default: one per processor"
    )
    parser.add_argument("--lang", choices=["en", "ja"], default=user_language(), help="language of the contact sheet")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for check.json, doubtful.jsonl, contact-sheet.png")
    parser.add_argument(
        "--channels", type=positive, metavar="C", help="instead: measure mean and std of C channels, lines for a recipe"
    )
    parser.add_argument("--json", action="store_true", help="print check.json instead of the table")

    def run(args: Namespace) -> None:
        if args.channels is not None:
            _print_channels(parser, args)
            return
        columns = columns_of(args.columns)
        from vlm.training.audit.check import check as check_data
        from vlm.training.audit.check import open_tokenizer
        from vlm.training.audit.findings import summary_table

        found = check_data(
            args.data, open_tokenizer(args.tokenizer), splits=args.split, columns=columns, root=args.root,
            sample=args.sample, workers=args.workers, out=args.out, language=args.lang,
        )  # fmt: skip
        if args.json:
            print(json.dumps(found, ensure_ascii=False, indent=1))
            return
        print(summary_table(found), end="\n\n")
        for number, finding in enumerate(found["findings"], 1):
            print(f"{number}. {finding['text']}")
        if not found["findings"]:
            print("No problems found.")

    return run


def _print_channels(parser: ArgumentParser, args: Namespace) -> None:
    if len(args.data) > 1:
        parser.error("--channels measures one DATA at a time")
    from vlm.training.measure.channel_statistics import channel_statistics

    found = channel_statistics(
        args.data[0], args.channels, splits=args.split, columns=columns_of(args.columns), root=args.root,
        sample=args.sample,
    )  # fmt: skip
    print(json.dumps(found._asdict()) if args.json else found.describe())


def embed(parser: ArgumentParser) -> Run:
    """Embed the images of a data set as parquet shards.

    SHARDS receives part-00000.parquet ... (uid, embedding) and broken.jsonl. Run the command again after a crash:
    finished shards are kept. One process, several, or a Ray cluster write the same files, bit for bit:

        torchrun --nproc-per-node 8 -m vlm embed MODEL DATA --out SHARDS
        RAY_ADDRESS=... vlm embed MODEL DATA --out SHARDS --ray
    """
    parser.add_argument("model", metavar="MODEL", help=SOURCE_HELP)
    add_trust(parser)
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="folder for the shards")
    parser.add_argument("--split", nargs="+", metavar="SPLIT", default=[], help="only these splits; default: all")
    parser.add_argument("--rows-per-shard", type=positive, default=10_000, metavar="N", help="default %(default)s")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="B", help="default %(default)s")
    parser.add_argument(
        "--store", choices=["float16", "float32"], default="float16", help="of the stored numbers; default %(default)s"
    )
    add_data_description(parser)
    add_device(parser)
    parser.add_argument(
        "--threads", type=positive, default=1, help="of each process; default %(default)s: use more processes instead"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that decode ahead, for each that embeds")
    parser.add_argument("--ray", action="store_true", help="on the Ray cluster at RAY_ADDRESS, else a local one")
    parser.add_argument("--json", action="store_true", help="print the counts as one object on stdout")

    def run(args: Namespace) -> None:
        from vlm.precision import choose_device
        from vlm.training.engine.distributed import place_from_env
        from vlm.training.measure.embedding_shards import ShardJob, embed_with_ray
        from vlm.training.measure.embedding_shards import embed as embed_data

        rank, size, local = place_from_env()
        if args.ray and size > 1:
            parser.error("--ray and torchrun both distribute the shards: use one of them")
        device = str(choose_device(args.device))
        job = ShardJob(
            model=args.model,
            trust_remote_code=args.trust_remote_code,
            data=args.data,
            out=args.out,
            splits=tuple(args.split),
            columns=columns_of(args.columns),
            root=args.root,
            rows_per_shard=args.rows_per_shard,
            batch_size=args.batch_size,
            dtype=args.store,
            weights=args.dtype,
            device=f"cuda:{local}" if device == "cuda" and not args.ray else device,
            threads=args.threads,
            workers=args.workers,
        )
        begin = time.perf_counter()
        if args.ray:
            done, complete = embed_with_ray(job, progress=True)
        else:
            done, complete = embed_data(job, rank, size, progress=rank == 0)
        seconds = time.perf_counter() - begin
        if args.json:
            print(json.dumps(done._asdict() | {"complete": complete, "seconds": round(seconds, 3)}))
        print(
            f"{done.shards} shards written, {done.found} already there: {done.rows - done.broken} embeddings, "
            f"{done.broken} broken samples skipped, {seconds:.1f} s. "
            + (f"{job.out} is complete." if complete else "Other processes still write shards."),
            file=sys.stderr,
        )

    return run
