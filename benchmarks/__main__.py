"""Every measurement that needs nothing but this checkout, one after the other: make bench, or make bench QUICK=1.

Left out: time_to_accuracy (hours), ann and demo_soak (half an hour each), retrieval_store and clip_benchmark_check
(they want the extra `bench`), comparison, interop_table and relevance (they measure no time).
"""

import os
import subprocess
import sys
import time

QUICK = os.environ.get("QUICK") == "1"
SHORT = ["--quick"] if QUICK else []
MEASUREMENTS = [
    ["loss_memory", *SHORT],
    ["accumulation"],
    ["train_step", *SHORT],
    ["text_tower", *SHORT],
    ["tokenizer_speed", *SHORT],
    ["start_up", *SHORT],
    ["backends", *SHORT],
    ["resume_torture", *SHORT],
    ["decoding", *SHORT],
    ["index_speed", *SHORT],
    ["exact_search"],
    ["folder_index", *(["1000"] if QUICK else [])],
    ["serve_load", *SHORT],
    ["overlap", *(["--steps", "30"] if QUICK else [])],
    ["cost_curves", *SHORT],
]


def main() -> int:
    failed = 0
    for name, *options in MEASUREMENTS:
        start = time.monotonic()
        print(f"== benchmarks.{name}", file=sys.stderr, flush=True)
        failed |= subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False).returncode != 0
        print(f"== benchmarks.{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
