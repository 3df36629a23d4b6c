"""A training run killed again and again, against the same run left alone: the same bytes at the end (Linux).

    python -m benchmarks.resume_torture > benchmarks/resume_torture.md        3 seeds, 30 kills each, 5 SIGTERMs each
    python -m benchmarks.resume_torture --quick                               1 seed, 6 kills, 2 SIGTERMs

200 steps of a small CLIP on picture-words, one loader process, patch dropout, dropout, Muon and AdamW, an average of
weights, two chunks a step, a checkpoint every 5 steps.  Each life of the run is a process of its own, forked from this
one after its imports; the parent watches its files and ends it with SIGKILL: at any moment of its start, at any moment
of a step, or while a checkpoint is being written.  A kill counts as "while saving" only if it left an unfinished
checkpoint behind.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import torch
import torch.utils.tensorboard.writer  # imported here so that no life needs to

from benchmarks.machine import about
from vlm.training.engine.distributed import Processes
from vlm.training.engine.state import saved
from vlm.training.recipe.reading import read_recipe
from vlm.training.tasks.train import train

STEPS, SAVE_EVERY = 200, 5
MOMENTS = ("saving", "step", "saving", "start", "step", "saving", "step", "saving", "start", "saving")
PICTURE_WORDS = Path(__file__).parent.parent / "training" / "picture_words"
RECIPE = """
[model]
tokenizer = "{tokenizer}"
embed_dim = 16
vision = {{ image_size = 24, patch_size = 6, width = 24, depth = 2, num_heads = 2, mlp_dim = 48, dropout = 0.1 }}
text = {{ width = 24, depth = 1, num_heads = 2, mlp_dim = 48, dropout = 0.1 }}

[data]
train = "{data}"
train_splits = ["val_concept"]
validation = "{data}"
validation_split = "val_both"
patch_dropout = 0.5
captions_per_image = 2

[optim]
warmup_steps = 20

[run]
steps = {steps}
batch_size = 16
accumulate = 2
seed = {seed}
ema_decay = 0.95
eval_every = 50
save_every = {save_every}
log_every = 1
"""


class Score(NamedTuple):
    """What a run went through."""

    kills: int
    saving: int  # of them while a checkpoint was being written
    starting: int  # of them before its life's first step
    repeated: int  # steps computed more than once
    same: bool


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resume_torture", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="1 seed, 6 kills, 2 SIGTERMs")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    seeds, kills, stops = (1, 6, 2) if quick else (3, 30, 5)
    print("# A run killed and resumed, against the same run left alone\n")
    print(about(f"python -m benchmarks.resume_torture{' --quick' * quick}", ["torch"], 1))
    print("| seed | kills | in a save | at the start | steps repeated | weights, optimizers, average, metrics.jsonl |")
    print("|---:|---:|---:|---:|---:|---|", flush=True)
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            whole, recipe = uninterrupted(Path(folder), seed)
            score = torture(Path(folder) / f"killed-{seed}", recipe, whole, seed, kills)
            good &= score.same and score.kills == kills and score.saving >= kills // 3
            print(f"| {seed} | {' | '.join(map(str, score[:-1]))} | {verdict(score.same)} |", flush=True)
        print("\n| seed | SIGTERM after step | exit code | saved step | steps lost |")
        print("|---:|---:|---:|---:|---:|", flush=True)
        for seed in range(seeds):
            whole, recipe = uninterrupted(Path(folder), seed)
            out = Path(folder) / f"stopped-{seed}"
            for asked, code, step in terminate(out, recipe, seed, stops):
                good &= code == 75 and step >= asked
                print(f"| {seed} | {asked} | {code} | {step} | {max(0, asked - step)} |", flush=True)
            good &= wait(live(out, recipe)) == 0 and same(out, whole)
            print(f"| {seed} | the end | 0 | {STEPS} | {verdict(same(out, whole))} |", flush=True)
    return 0 if good else 1


def uninterrupted(folder: Path, seed: int) -> tuple[Path, Path]:
    """(folder of the run, recipe); done once per seed."""
    recipe, out, data = folder / f"seed-{seed}.toml", folder / f"whole-{seed}", folder / "data.parquet"
    if not data.exists():
        table = pq.read_table(PICTURE_WORDS / "validation.parquet")
        small = [i for i, split in enumerate(table.column("split").to_pylist()) if split == "val_both"]
        pq.write_table(table.take([*range(150), *small]), data)
    if not out.exists():
        tokenizer = PICTURE_WORDS / "tokenizer"
        recipe.write_text(RECIPE.format(tokenizer=tokenizer, data=data, steps=STEPS, seed=seed, save_every=SAVE_EVERY))
        if wait(live(out, recipe)) != 0:
            raise SystemExit(f"the uninterrupted run failed: {(folder / f'whole-{seed}.log').read_text()[-2000:]}")
    return out, recipe


def live(out: Path, recipe: Path) -> int:
    """Start the run, or go on with it, in a process of its own; its number."""
    child = os.fork()
    if child:
        return child
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 70
    try:
        code = train(read_recipe(recipe), out, Processes(rank=0, size=1, device=torch.device("cpu")), resume=True)
    except BaseException:
        traceback.print_exc()  # _exit says nothing
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """Its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def torture(out: Path, recipe: Path, whole: Path, seed: int, kills: int) -> Score:
    dice = random.Random(seed)
    moments = [MOMENTS[number % len(MOMENTS)] for number in range(kills)]
    done = saving = starting = 0
    for moment in moments:
        before, worked = last_step(out), computed(out)
        child = live(out, recipe)
        if moment == "start":
            time.sleep(dice.uniform(0, 0.4))
        elif moment == "step":
            target = before + SAVE_EVERY + dice.randrange(3)
            until(child, lambda target=target: lines(out) >= target)
            time.sleep(dice.uniform(0, 0.03))
        else:  # let one checkpoint through, so that the run gets on, and cut the next
            until(child, lambda target=before + SAVE_EVERY: last_step(out) >= target)
            until(child, lambda: any((out / "checkpoints").glob(".writing-*")))
            time.sleep(dice.uniform(0, 0.004))
        os.kill(child, signal.SIGKILL)
        done += wait(child) == -signal.SIGKILL
        saving += any((out / "checkpoints").glob(".writing-*"))
        starting += computed(out) == worked
    ended = wait(live(out, recipe))
    return Score(done, saving, starting, computed(out) - STEPS, ended == 0 and same(out, whole))


def terminate(out: Path, recipe: Path, seed: int, stops: int) -> list[tuple[int, int, int]]:
    """(steps done when asked to stop, exit code, steps saved), `stops` times on the way to the end."""
    dice, found = random.Random(seed), []
    for number in range(stops):
        child = live(out, recipe)
        target = (number + 1) * STEPS // (stops + 1) + dice.randrange(5)
        until(child, lambda target=target: lines(out) >= target)
        time.sleep(dice.uniform(0, 0.03))
        asked = lines(out)
        os.kill(child, signal.SIGTERM)
        found.append((asked, wait(child), last_step(out)))
    return found


def until(child: int, ready) -> None:
    while not ready():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return  # it came to its end before; the caller will see
        time.sleep(0.0003)


def lines(out: Path) -> int:
    """Steps that metrics.jsonl has, torn lines left out."""
    path = out / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def computed(out: Path) -> int:
    """Steps of all lives together: timing.jsonl, which is never cut."""
    path = out / "timing.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def last_step(out: Path) -> int:
    checkpoints = saved(out / "checkpoints")
    return int(checkpoints[0].name.removeprefix("step-")) if checkpoints else 0


def same(one: Path, two: Path) -> bool:
    """The model, metrics.jsonl and the last checkpoint: weights, optimizers, average."""
    last = f"checkpoints/step-{STEPS:08d}"
    names = ["model.safetensors", "metrics.jsonl", f"{last}/tensors.safetensors", f"{last}/state.json"]
    return all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def verdict(same: bool) -> str:
    return "bit-identical" if same else "DIFFERENT"


if __name__ == "__main__":
    sys.exit(main())
