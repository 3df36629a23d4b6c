"""Does training wait for data?  The first steps of `mini` with one loader process: seconds, and the share of waiting.

    python -m benchmarks.overlap > benchmarks/overlap.md         (--steps 60)

Runs `vlm train` itself and reads the timing.jsonl it writes (training/engine/run_log.py).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from benchmarks.machine import about

RECIPE = Path(__file__).parents[1] / "training/recipes/mini-picture-words.toml"
WIDTH = 50  # letters of the time line


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    command = f"python -m benchmarks.overlap --steps {args.steps} --workers {args.workers}"
    machine = about(command, ["torch"])  # its load is that before
    lines = train(args.steps, args.workers)
    print("# Waiting for data\n")
    print(machine)
    print("| up to step | seconds a step | of them waiting | share |")
    print("|---:|---:|---:|---:|")
    for line in lines:
        share = line["waiting"] / line["seconds"]
        print(f"| {line['step']} | {line['seconds']:.2f} | {line['waiting']:.3f} | {share:.1%} |")
    waiting, seconds = (sum(line[name] for line in lines) for name in ("waiting", "seconds"))
    print(f"\nOf the whole, {waiting / seconds:.1%} is waiting.  A step:\n\n```")
    print(time_line(waiting / seconds))
    print("```")


def train(steps: int, workers: int) -> list[dict[str, float]]:
    """The lines of timing.jsonl; the first one, with the start of the loader, is left out."""
    with RECIPE.open("rb") as file:
        recipe = tomllib.load(file)
    recipe["data"]["workers"] = workers
    recipe["run"] |= {"steps": steps, "eval_every": steps + 1, "save_every": steps + 1}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "recipe.toml"
        path.write_text(as_toml(recipe), encoding="utf-8")
        command = [sys.executable, "-m", "training.train_clip", str(path), "--out", f"{place}/run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        text = (Path(place) / "run/timing.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()][1:]


def as_toml(recipe: dict[str, dict[str, object]]) -> str:
    """Sections of numbers, strings and lists: JSON writes these as TOML reads them."""
    sections = (
        [f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
        for section, values in recipe.items()
    )
    return "\n".join(line for section in sections for line in section) + "\n"


def time_line(share: float) -> str:
    waits = round(share * WIDTH)
    return f"{'.' * waits}{'#' * (WIDTH - waits)}   . waiting for the batch   # forward, backward, update"


if __name__ == "__main__":
    main()
