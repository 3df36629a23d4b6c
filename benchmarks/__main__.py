"""Every measurement that needs nothing but this checkout, one after the other: make bench, or make bench QUICK=1."""

import os
import subprocess
import sys

QUICK = os.environ.get("QUICK") == "1"
MEASUREMENTS = [
    ["loss_memory"],
    ["accumulation"],
    ["resume_torture", *(["--quick"] if QUICK else [])],
    ["decoding", *(["--quick"] if QUICK else [])],
    ["index_speed", *(["--quick"] if QUICK else [])],
    ["exact_search"],
    ["folder_index"],
    ["serve_load", *(["--quick"] if QUICK else [])],
    ["overlap", *(["--steps", "30"] if QUICK else [])],
]


def main() -> int:
    failed = 0
    for name, *options in MEASUREMENTS:
        print(f"== benchmarks.{name}", file=sys.stderr, flush=True)
        failed |= subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
