"""A training run of each library with a clock, and what its checkpoints score: a folder with run.json and curve.jsonl.

Both are fitted the same way: a few steps say how long a step takes, and the schedule of the run is made to end after
the minutes that were asked for.  Both are timed the same way, by what they log themselves: a step's time, waiting for
data included; starting up, saving and scoring are not counted.  Both are scored by the same function, afterwards.
"""

import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from benchmarks import open_clip_run
from benchmarks.machine import about
from benchmarks.open_clip_run import Settings
from vlm.embedder import Embedder
from vlm.training.engine.distributed import SINGLE_PROCESS
from vlm.training.measure.drawings import open_unseen
from vlm.training.measure.retrieval import embed_all_images, measure_retrieval

SPLIT = "val_style"
TASK = "text->image R@1"
LOG_EVERY = 10
TRIAL_STEPS = 24  # of OpenCLIP, to see how long a step takes; the first 4 warm up


class Point(NamedTuple):
    """A checkpoint and what it scores."""

    step: int
    seconds: float  # of training so far
    loss: float  # of the last step
    logit_scale: float  # the factor, 1 / temperature
    en: float  # text->image R@1 of the names in English
    ja: float


class Checkpoint(NamedTuple):
    step: int
    seconds: float
    loss: float
    logit_scale: float
    path: Path


# -- OpenCLIP ------------------------------------------------------------------------------------------------------


def run_peer(data: Path, out: Path, minutes: float, settings: Settings, threads: int) -> None:
    """`data`: what `open_clip_run.prepare` wrote."""
    out, data = open_clip_run.from_root(out), open_clip_run.from_root(data)
    begin(out)
    rows = open_clip_run.count_rows(data / "train.csv")
    steps_per_epoch = rows // settings.batch_size  # the rest of a batch is dropped
    if not steps_per_epoch:
        raise ValueError(f"{data} has {rows} captions, a batch has {settings.batch_size}. Make batches smaller.")
    few = out / "trial.csv"
    open_clip_run.copy_rows(data / "train.csv", few, min(TRIAL_STEPS, steps_per_epoch) * settings.batch_size)
    trial = settings._replace(warmup=1)
    start(open_clip_run.command(data, few, out, "trial", trial, epochs=1, log_every=4), threads)
    log = (out / "trial/out.log").read_text(encoding="utf-8")
    windows = list(open_clip_run.read_log(log, min(TRIAL_STEPS, steps_per_epoch), 4))
    for _, path in open_clip_run.checkpoints(out / "trial"):
        path.unlink()
    step = statistics.median(window.seconds / window.steps for window in windows[2:] or windows[-1:])
    epochs = max(1, round(minutes * 60 / (step * steps_per_epoch)))
    steps = epochs * steps_per_epoch
    if settings.warmup >= steps:
        raise ValueError(f"--warmup {settings.warmup} is not less than all {steps} steps of {minutes:g} minutes.")
    words = open_clip_run.command(data, data / "train.csv", out, "run", settings, epochs=epochs, log_every=LOG_EVERY)
    packages = ["open_clip_torch", "torch", "transformers"]
    batch, more = settings.batch_size, {"data": str(data), "steps_per_epoch": steps_per_epoch}
    write_about(out, "OpenCLIP", words[3:], packages, threads, steps, step, minutes, batch, **more)
    start(words, threads)


def peer_checkpoints(out: Path, about: dict[str, Any]) -> list[Checkpoint]:
    """Of every epoch; each at the sum of its windows' seconds."""
    epochs = dict(open_clip_run.checkpoints(out / "run"))
    steps_per_epoch = about["steps_per_epoch"]
    found, step, seconds = [], 0, 0.0
    for window in open_clip_run.read_log((out / "run/out.log").read_text("utf-8"), steps_per_epoch, LOG_EVERY):
        step, seconds = step + window.steps, seconds + window.seconds
        if step % steps_per_epoch == 0 and window.epoch + 1 in epochs:
            found.append(Checkpoint(step, seconds, window.loss, window.logit_scale, epochs[window.epoch + 1]))
    return found


# -- ours ----------------------------------------------------------------------------------------------------------


def run_ours(
    recipe_file: Path,
    out: Path,
    minutes: float,
    threads: int,
    every: int,
    steps: int | None = None,
    seed: int | None = None,
) -> None:
    """`every`: steps from checkpoint to checkpoint; `steps`: of the whole run, instead of what a trial says."""
    out, recipe_file = open_clip_run.from_root(out), open_clip_run.from_root(recipe_file)
    begin(out)
    with recipe_file.open("rb") as file:
        recipe = tomllib.load(file)
    if every % LOG_EVERY:
        raise ValueError(f"--every {every} is not a multiple of {LOG_EVERY}, the steps between two lines of the log.")
    if seed is not None:
        recipe["run"]["seed"] = seed
    step = math.nan
    if steps is None:
        step = trial_step(recipe, out, threads)
        steps = max(1, round(minutes * 60 / step))
    recipe["run"] |= {"steps": steps, "eval_every": steps, "save_every": every, "keep": steps, "log_every": LOG_EVERY}
    words = train_command(recipe, out / "recipe.toml", out / "run")
    batch = recipe["run"]["batch_size"]
    asked = [str(recipe_file), "--seed", str(recipe["run"].get("seed", 0))]
    write_about(out, "vlm", asked, ["torch"], threads, steps, step, minutes, batch)
    start(words, threads)


def trial_step(recipe: dict[str, Any], out: Path, threads: int) -> float:
    """Seconds of a step, over the recipe's shares of steps with and without patch dropout."""
    data = recipe["data"]
    dense = data.get("dense_share", 0.0) if data.get("patch_dropout") or data.get("coarse_size") else 0.0
    trial = {name: dict(section) for name, section in recipe.items()}
    trial["run"] |= {"steps": TRIAL_STEPS, "eval_every": TRIAL_STEPS, "save_every": TRIAL_STEPS, "log_every": 4}
    trial["data"]["dense_share"] = 0.5 if dense else 0.0
    start(train_command(trial, out / "trial.toml", out / "trial"), threads)
    seconds = [line["seconds"] for line in read_lines(out / "trial/timing.jsonl")]
    sparse, full = seconds[1 : len(seconds) // 2], seconds[len(seconds) // 2 + 1 :]  # the first of each warms up
    if not dense:
        return statistics.median(sparse + full)
    return (1 - dense) * statistics.median(sparse) + dense * statistics.median(full)


def train_command(recipe: dict[str, Any], path: Path, out: Path) -> list[str]:
    """Writes the recipe to `path`."""
    path.write_text(as_toml(recipe), encoding="utf-8")
    return [sys.executable, "-m", "training.train_clip", str(path), "--out", str(out)]


def as_toml(recipe: dict[str, dict[str, Any]]) -> str:
    """Sections of plain values, lists and dictionaries; what they hold is written on one line."""

    def value(given: Any) -> str:
        if isinstance(given, dict):
            return "{" + ", ".join(f"{json.dumps(name)} = {value(part)}" for name, part in given.items()) + "}"
        if isinstance(given, list):
            return f"[{', '.join(map(value, given))}]"
        return json.dumps(given, ensure_ascii=False)

    sections = (
        [f"[{section}]", *(f"{name} = {value(given)}" for name, given in values.items())]
        for section, values in recipe.items()
    )
    return "\n".join(line for section in sections for line in section) + "\n"


def our_checkpoints(out: Path) -> list[Checkpoint]:
    """Each at the sum of its steps' seconds."""
    numbers = {line["step"]: line for line in read_lines(out / "run/metrics.jsonl") if "loss" in line}
    paths = {int(path.name.removeprefix("step-")): path for path in (out / "run/checkpoints").glob("step-*")}
    found, before, seconds = [], 0, 0.0
    for line in read_lines(out / "run/timing.jsonl"):
        step = line["step"]
        seconds, before = seconds + line["seconds"] * (step - before), step
        if step in paths:
            loss, scale = numbers[step]["loss"], math.exp(numbers[step]["logit_scale"])
            found.append(Checkpoint(step, seconds, loss, scale, paths[step]))
    return found


def open_our_checkpoint(recipe_file: Path, checkpoint: Path) -> Embedder:
    """With the average of the weights where the recipe keeps one, as the trainer itself evaluates."""
    from vlm.training.recipe.reading import read_recipe
    from vlm.training.tasks.contrastive import open_embedder, ordinary

    recipe = read_recipe(recipe_file)
    embedder = open_embedder(recipe, SINGLE_PROCESS)
    tensors = load_file(checkpoint / "tensors.safetensors")
    weights = {}
    for part in ("/model/", "/average/"):  # training/engine/state.py names tensors by their path in `Training.state`
        weights |= {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
    model = ordinary(embedder.model.config, recipe.model, weights)
    return Embedder(model, embedder.tokenizer, embedder.preprocess)


# -- both ----------------------------------------------------------------------------------------------------------


def begin(out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out} exists. Name a new folder for this run.")
    out.mkdir(parents=True)


def start(words: list[str], threads: int) -> None:
    """Run it from the checkout and wait; both libraries get the same number of threads."""
    print("+ " + " ".join(words[1:]), file=sys.stderr, flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    subprocess.run(words, check=True, cwd=open_clip_run.ROOT, env=environment, stdout=sys.stderr)


def write_about(
    out: Path,
    library: str,
    command: list[str],
    packages: list[str],
    threads: int,
    steps: int,
    step_seconds: float,
    minutes: float,
    batch_size: int,
    **more: str | int,
) -> None:
    """run.json: what curve.jsonl begins with."""
    found = {
        "library": library,
        "about": about(" ".join(command), packages, threads).strip(),
        "date": str(datetime.date.today()),
        "minutes_wanted": minutes,
        "steps": steps,
        "batch_size": batch_size,
        "step_seconds_of_the_trial": round(step_seconds, 4),
    }
    (out / "run.json").write_text(json.dumps(found | more, ensure_ascii=False, indent=1), encoding="utf-8")


def score_run(out: Path) -> Path:
    """out/curve.jsonl: run.json, what chance is, and a line for every checkpoint."""
    about = json.loads((out / "run.json").read_text(encoding="utf-8"))
    peer = about["library"] == "OpenCLIP"
    found = peer_checkpoints(out, about) if peer else our_checkpoints(out)
    if not found:
        raise ValueError(f"{out} has no checkpoints to score.")
    path, score = out / "curve.jsonl", None
    begun = time.perf_counter()
    with path.open("w", encoding="utf-8") as file:
        for step, seconds, loss, scale, checkpoint in found:
            if peer:
                embedder = open_clip_run.open_checkpoint(checkpoint, Path(about["data"]) / "model", out / "opened")
            else:
                embedder = open_our_checkpoint(out / "recipe.toml", checkpoint)
            if score is None:
                score = Score(embedder)
                print(json.dumps(about | score.about(embedder), ensure_ascii=False), file=file)
            point = Point(step, round(seconds, 2), round(loss, 4), round(scale, 3), *score(embedder))
            print(json.dumps(point._asdict()), file=file, flush=True)
            print(f"step {step}: {seconds / 60:.2f} min, R@1 {point.en:.4f} / {point.ja:.4f}", file=sys.stderr)
    print(f"{len(found)} checkpoints scored in {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    return path


class Score:
    """Text->image R@1 of val_style, by language: training/measure/retrieval.py, for both libraries alike."""

    def __init__(self, embedder: Embedder):
        self.pairs = open_unseen(embedder, (SPLIT,))  # decoded once: both preprocess alike

    def __call__(self, embedder: Embedder) -> tuple[float, float]:
        embedder.model.eval()
        rows = measure_retrieval(embedder, self.pairs, embed_all_images(embedder, self.pairs), SPLIT, "")
        en, ja = (next(row for row in rows if (row.task, row.language) == (TASK, own)) for own in ("en", "ja"))
        return en.value, ja.value

    def about(self, embedder: Embedder) -> dict[str, float]:
        """Chance, and sizes."""
        rows = measure_retrieval(embedder, self.pairs, embed_all_images(embedder, self.pairs), SPLIT, "")
        found = {row.language: row for row in rows if row.task == TASK}
        return {
            "chance_en": found["en"].chance,
            "chance_ja": found["ja"].chance,
            "queries": found["en"].n,
            "images": len(self.pairs),
            "parameters": sum(p.numel() for p in embedder.model.parameters()),
        }


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_curve(path: Path) -> tuple[dict[str, Any], list[Point]]:
    """(run.json and chance, points) of a curve.jsonl."""
    first, *points = read_lines(path)
    return first, [Point(**point) for point in points]


def pairs_a_second(about: dict[str, Any], points: Iterable[Point]) -> float:
    last = max(points, key=lambda point: point.step)
    return last.step * about["batch_size"] / last.seconds
