"""Embed the images of any data set: python -m training.embed MODEL DATA --out SHARDS

SHARDS receives part-00000.parquet ... (uid, embedding) and broken.jsonl.  Run the command again after a crash: whole
shards are kept.  The same files, bit for bit, from one process, from many, or from a Ray cluster:
    torchrun --nproc-per-node 8 -m training.embed MODEL DATA --out SHARDS
    RAY_ADDRESS=... python -m training.embed MODEL DATA --out SHARDS --ray
"""

import argparse
import json
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="as for vlm.load: mini, a folder, openclip:..., hf:...")
    parser.add_argument("data", help="a folder, .csv, .jsonl, .parquet, .tar, or a data set's name on the hub")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--split", nargs="+", metavar="SPLIT", default=[], help="only these; default: all")
    parser.add_argument("--rows-per-shard", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="of the stored numbers")
    parser.add_argument("--device", choices=["cpu", "cuda", "mps"], help="default: cuda where there is one, else cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each process; default 1: use more processes instead")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode ahead, for each that embeds")
    parser.add_argument("--ray", action="store_true", help="on the Ray cluster at RAY_ADDRESS, else a local one")
    parser.add_argument("--json", action="store_true", help="what was done, for a program, on standard output")
    arguments = parser.parse_args()
    import torch  # slow to import, and --help does not need it

    from vlm.training.engine.distributed import place_from_env
    from vlm.training.measure.shards import Job, embed, embed_with_ray

    rank, size, local = place_from_env()
    if arguments.ray and size > 1:
        parser.error("--ray and torchrun both deal out the shards: use one of them")
    try:
        device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda: torch sees no such GPU here. Use --device cpu.")
        job = Job(
            model=arguments.model,
            data=arguments.data,
            out=arguments.out,
            splits=tuple(arguments.split),
            rows_per_shard=arguments.rows_per_shard,
            batch_size=arguments.batch_size,
            dtype=arguments.dtype,
            device=f"cuda:{local}" if device == "cuda" and not arguments.ray else device,
            threads=arguments.threads,
            workers=arguments.workers,
        )
        begin = time.perf_counter()
        if arguments.ray:
            done, complete = embed_with_ray(job, progress=True)
        else:
            done, complete = embed(job, rank, size, progress=rank == 0)
    except (ValueError, OSError) as error:
        print(f"embed: error: {error}", file=sys.stderr)
        return 1
    seconds = time.perf_counter() - begin
    if arguments.json:
        print(json.dumps(done._asdict() | {"complete": complete, "seconds": round(seconds, 3)}))
    print(
        f"{done.shards} shards written, {done.found} were there: {done.rows - done.broken} vectors, "
        f"{done.broken} broken samples left out, {seconds:.1f} s. "
        + (f"{job.out} is complete." if complete else "Other processes have shards to write."),
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
