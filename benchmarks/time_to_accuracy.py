"""Time to accuracy: minutes of training, from nothing, until texts find images as well as by OpenCLIP's trainer.

    python -m benchmarks.time_to_accuracy prepare runs/race/data
    python -m benchmarks.time_to_accuracy peer runs/race/data runs/race/peer --minutes 60 --lr 1e-3 --batch-size 256 \\
        --warmup 100 --patch-dropout 0.5 -- --aug-cfg "scale=(0.5,1.0)"
    python -m benchmarks.time_to_accuracy ours training/recipes/mini-quick.toml runs/race/ours-0 --minutes 9 --seed 0
    python -m benchmarks.time_to_accuracy tuning runs/race/tune-*/curve.jsonl
    python -m benchmarks.time_to_accuracy table runs/race/peer/curve.jsonl runs/race/ours-*/curve.jsonl \\
        > benchmarks/time_to_accuracy.md

The peer is `open_clip_train.main` as it is, with a model of the same sizes, the same vocabulary, images, processors;
what follows `--` goes to it.  Score: text->image R@1 on val_style (images of an artist not in training), the names in
English and in Japanese.  benchmarks/open_clip_run.py says what the peer is given, benchmarks/timed_runs.py how time is
taken.
"""

import argparse
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.open_clip_run import Settings, prepare
from benchmarks.timed_runs import Point, pairs_a_second, read_curve, run_ours, run_peer, score_run

Run = tuple[dict[str, Any], list[Point]]  # what there is to know about it, its checkpoints

IMAGE = Path(__file__).parents[1] / "docs/images/time-to-accuracy.png"
SCORES: dict[str, Callable[[Point], float]] = {
    "English": lambda point: point.en,
    "Japanese": lambda point: point.ja,
    "mean of both": lambda point: (point.en + point.ja) / 2,
}
CHANCE: dict[str, Callable[[dict[str, Any]], float]] = {
    "English": lambda about: about["chance_en"],
    "Japanese": lambda about: about["chance_ja"],
    "mean of both": lambda about: (about["chance_en"] + about["chance_ja"]) / 2,
}


class Reached(NamedTuple):
    """Where a run first scores as much as it was to."""

    score: float
    minutes: float


def main() -> int:
    words, extra = split(sys.argv[1:])
    arguments = parser().parse_args(words)
    if extra and arguments.what != "peer":
        parser().error("what follows -- goes to OpenCLIP's trainer: it goes with peer")
    try:
        match arguments.what:
            case "prepare":
                lines = prepare(arguments.data, arguments.images)
                print(f"{lines} lines in {arguments.data}/train.csv", file=sys.stderr)
            case "peer":
                settings = Settings(
                    arguments.lr,
                    arguments.batch_size,
                    arguments.warmup,
                    arguments.patch_dropout,
                    arguments.precision,
                    arguments.weight_decay,
                    extra,
                )
                run_peer(arguments.data, arguments.out, arguments.minutes, settings, arguments.threads)
                print(score_run(arguments.out))
            case "ours":
                run_ours(
                    arguments.recipe,
                    arguments.out,
                    arguments.minutes,
                    arguments.threads,
                    arguments.every,
                    arguments.steps,
                    arguments.seed,
                )
                print(score_run(arguments.out))
            case "score":
                print(score_run(arguments.out))
            case "tuning":
                print(tuning([read_curve(path) for path in arguments.curves]))
            case _:
                peer, ours = read_curve(arguments.peer), [read_curve(path) for path in arguments.ours]
                print(table(peer, ours))
                draw(peer, ours, arguments.image)
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"time_to_accuracy: error: {error}", file=sys.stderr)
        return 1
    return 0


def split(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """What stands before -- and what behind."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], tuple(words[end + 1 :])


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(
        prog="python -m benchmarks.time_to_accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = own.add_subparsers(dest="what", required=True)
    one = parts.add_parser("prepare", help="picture-words as OpenCLIP's trainer reads it")
    one.add_argument("data", type=Path)
    one.add_argument("--images", type=int, help="only so many, to try the programs")
    one = parts.add_parser("peer", help="train with OpenCLIP, and score; after -- more for it")
    one.add_argument("data", type=Path, help="what prepare wrote")
    one.add_argument("out", type=Path)
    one.add_argument("--lr", type=float, required=True)
    one.add_argument("--batch-size", type=int, required=True)
    one.add_argument("--warmup", type=int, required=True, help="steps")
    one.add_argument("--patch-dropout", type=float, default=0.0, help="share of patches left out (0)")
    one.add_argument("--precision", default="amp_bf16", help="amp_bf16 or fp32 (amp_bf16)")
    one.add_argument("--weight-decay", type=float, default=0.2, help="0.2, OpenCLIP's own default")
    _timed(one)
    one = parts.add_parser("ours", help="train with this library, and score")
    one.add_argument("recipe", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--every", type=int, default=50, help="steps from checkpoint to checkpoint (50)")
    one.add_argument("--steps", type=int, help="of the whole run; default: as many as fit into the minutes")
    one.add_argument("--seed", type=int, help="default: the recipe's")
    _timed(one)
    one = parts.add_parser("score", help="score a run again")
    one.add_argument("out", type=Path)
    one = parts.add_parser("tuning", help="Markdown: what each of several runs reached")
    one.add_argument("curves", nargs="+", type=Path, help="their curve.jsonl")
    one = parts.add_parser("table", help="Markdown, and the figure")
    one.add_argument("peer", type=Path, help="its curve.jsonl")
    one.add_argument("ours", nargs="+", type=Path, help="its curve.jsonl, of each seed")
    one.add_argument("--image", type=Path, default=IMAGE)
    return own


def _timed(one: argparse.ArgumentParser) -> None:
    one.add_argument("--minutes", type=float, required=True, help="of training; the schedule ends there")
    one.add_argument("--threads", type=int, default=2, help="of torch, in either library (2)")


def best(points: Sequence[Point], score: Callable[[Point], float]) -> Reached:
    """The highest score, and when it was first there."""
    highest = max(points, key=lambda point: (score(point), -point.seconds))
    return Reached(score(highest), highest.seconds / 60)


def first_at(points: Sequence[Point], score: Callable[[Point], float], wanted: float) -> Reached | None:
    """The first checkpoint with `wanted` or more; None if no one has it.  Nothing is interpolated."""
    found = min((point for point in points if score(point) >= wanted), key=lambda point: point.seconds, default=None)
    return None if found is None else Reached(score(found), found.seconds / 60)


def table(peer: Run, ours: Sequence[Run]) -> str:
    """`ours`: one run or several, which differ in their seeds."""
    about_peer, theirs = peer
    lines = [
        "# Time to accuracy: OpenCLIP's trainer and this one, from nothing\n",
        f"Text->image R@1 on val_style: {about_peer['queries']} names, {about_peer['images']} images of an artist "
        "not in training. Minutes of training: steps, waiting for data included; starting, saving, scoring not.\n",
        "| names | chance | OpenCLIP, best R@1 | at minute | vlm as much at minute | ratio | vlm, best | at minute |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, score in SCORES.items():
        goal, highest = best(theirs, score), [best(points, score) for _, points in ours]
        reached = [first_at(points, score, goal.score) for _, points in ours]
        when = ", ".join(f"{one.minutes:.1f} (R@1 {one.score:.3f})" if one else "not reached" for one in reached)
        tops = ", ".join(f"{one.score:.3f}" for one in highest)
        then = ", ".join(f"{one.minutes:.1f}" for one in highest)
        lines.append(
            f"| {name} | {CHANCE[name](about_peer):.4f} | {goal.score:.3f} | {goal.minutes:.1f} "
            f"| {when} | {_ratio(goal, reached)} | {tops} | {then} |"
        )
    lines += [
        "\n| | parameters | batch | steps | pairs a second | loss, first to last checkpoint | 1 / temperature, last |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for about, points in (peer, *ours):
        lines.append(
            f"| {about['library']} | {about['parameters'] / 1e6:.2f} M | {about['batch_size']} | {points[-1].step} "
            f"| {pairs_a_second(about, points):.0f} | {points[0].loss:.2f} to {points[-1].loss:.2f} "
            f"| {points[-1].logit_scale:.1f} |"
        )
    lines += [f"\n{about['library']}: {about['about']}" for about, _ in (peer, *ours)]
    return "\n".join(lines)


def _ratio(goal: Reached, reached: Sequence[Reached | None]) -> str:
    """Median, lowest and highest of the runs; none where one of them did not get there."""
    ratios = [goal.minutes / one.minutes for one in reached if one]
    if len(ratios) < len(reached):
        return "-"
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{spread}"


def tuning(runs: Sequence[Run]) -> str:
    """Where several runs differ in what was asked for, and the best that each reached."""
    asked = [_options(about["about"]) for about, _ in runs]
    differing = sorted(
        {name for one in asked for name in one if len({other.get(name) for other in asked}) > 1}
        - {"--logs", "--epochs", "--log-every-n-steps"}
    )
    lines = [
        f"| {' | '.join(differing)} | minutes | R@1, English / Japanese, best mean | at minute |",
        f"|{'---|' * len(differing)}---:|---:|---:|",
    ]
    for one, (_, points) in zip(asked, runs, strict=True):
        score = SCORES["mean of both"]
        top = max(points, key=score)
        lines.append(
            f"| {' | '.join(one.get(name, '') for name in differing)} | {points[-1].seconds / 60:.1f} "
            f"| {top.en:.3f} / {top.ja:.3f} | {top.seconds / 60:.1f} |"
        )
    return "\n".join(lines)


def _options(about: str) -> dict[str, str]:
    """--name -> what follows it, of the command line that `about` quotes."""
    command = about[about.index("`") + 1 : about.rindex("`")]
    return {name: value.strip() for name, value in re.findall(r"(--[a-z-]+) (.*?)(?= --|$)", command)}


def draw(peer: Run, ours: Sequence[Run], image: Path) -> None:
    """R@1 over minutes, the mean of both languages; few words, which serve in either."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    score = SCORES["mean of both"]
    chance = CHANCE["mean of both"](peer[0])
    figure = Figure(figsize=(7, 4))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (about, points) in enumerate((peer, *ours)):
        minutes = [0.0, *(point.seconds / 60 for point in points)]
        colour = "tab:blue" if number else "tab:gray"
        label = about["library"] if number < 2 else None  # one name for all seeds
        axes.plot(minutes, [chance, *map(score, points)], color=colour, marker=".", linewidth=1, label=label)
    goal = best(peer[1], score)
    axes.axhline(goal.score, color="tab:gray", linewidth=0.8, linestyle="--")
    reached = sorted(one.minutes for _, points in ours if (one := first_at(points, score, goal.score)))
    for minute in (goal.minutes, *reached[len(reached) // 2 :][:1]):  # OpenCLIP's, and the median of ours
        axes.annotate(f"{minute:.1f}", (minute, goal.score), (12, 6), textcoords="offset points")
    axes.axhline(chance, color="tab:red", linewidth=0.8, linestyle=":", label=f"chance {chance:.4f}")
    axes.set(xlabel="min", ylabel="R@1, text → image, val_style", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    sys.exit(main())
