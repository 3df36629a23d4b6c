"""What grows how: time and memory against batch, image size, N in the loss, gallery size, processes (Linux).

    python -m benchmarks.cost_curves > benchmarks/cost_curves.md          (--quick: half the sizes, one repeat)

One thread, one process per point; a point's time is the best of REPEATS, its memory the highest resident size above
that with model and inputs in place.  An exponent p is the slope of a straight line through (log size, log cost): cost
grows as size ** p.  The figure is docs/images/cost-curves.png.
"""

import argparse
import math
import multiprocessing
import os
import resource
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.machine import about, resident
from vlm.config import named_size
from vlm.index.exact_search import nearest
from vlm.loss import clip_loss
from vlm.models.clip import CLIP
from vlm.training.engine.accumulate import accumulate
from vlm.training.engine.distributed import init_from_env

REPEATS = 3
EMBED_DIM = 512  # of the loss and of the gallery
FIGURE = Path(__file__).parents[1] / "docs/images/cost-curves.png"


class Cost(NamedTuple):
    seconds: float
    mib: float


class Curve(NamedTuple):
    what: str
    size: str
    sizes: tuple[int, ...]
    work: Callable[[int], Callable[[], object]]  # size -> what is measured, its inputs in place
    note: str


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    print("# What grows how\n")
    print(about(f"python -m benchmarks.cost_curves{' --quick' * quick}", ["torch"], 1))
    context = multiprocessing.get_context("spawn")
    measured: list[tuple[Curve, list[Cost]]] = []
    with context.Pool(1, maxtasksperchild=1) as pool:
        for number, curve in enumerate(CURVES):
            sizes = curve.sizes[: (len(curve.sizes) + 1) // 2] if quick else curve.sizes
            curve = curve._replace(sizes=sizes)
            repeats = 1 if quick else REPEATS
            costs = [Cost(*pool.apply(measure, (number, size, repeats))) for size in sizes]
            print(table(curve, costs), flush=True)
            measured.append((curve, costs))
    print(ranks_table((1, 2) if quick else (1, 2, 4)))
    if not quick:
        draw(measured)


def measure(number: int, size: int, repeats: int) -> Cost:
    torch.set_num_threads(1)
    curve = CURVES[number]
    curve.work(curve.sizes[0] // 4)()  # what is loaded once is not counted
    work, times = curve.work(size), list[float]()
    before = resident()
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return Cost(min(times), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)


def step(pairs: int, side: int, chunk: int | None = None) -> Callable[[], object]:
    """A training step without the optimizer: forward and backward of `mini`."""
    torch.manual_seed(0)
    mini = named_size("mini")
    model = CLIP(replace(mini, vision=replace(mini.vision, image_size=side)))
    images, ids = torch.randn(pairs, 3, side, side), torch.full((pairs, 32), 2)
    chunks = [*zip(images.split(chunk or pairs), ids.split(chunk or pairs), strict=True)]
    loss = partial(clip_loss, logit_scale=model.logit_scale)
    return lambda: accumulate(model, chunks, lambda model, part: model(*part), loss, [model.logit_scale])


def contrast(pairs: int) -> Callable[[], object]:
    torch.manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(pairs, EMBED_DIM), dim=1).requires_grad_() for _ in range(2))
    scale = torch.tensor(math.log(100.0), requires_grad=True)
    return lambda: clip_loss(x, y, scale).backward()


def gallery(count: int) -> Callable[[], object]:
    generator = np.random.default_rng(0)
    vectors = np.empty((count, EMBED_DIM), np.float16)
    for at in range(0, count, 10_000):
        vectors[at : at + 10_000] = generator.standard_normal((min(10_000, count - at), EMBED_DIM), np.float32)
    query = torch.from_numpy(generator.standard_normal((1, EMBED_DIM), np.float32))
    return lambda: nearest(vectors, query, 10)


CURVES = (
    Curve("a step of `mini`", "pairs of a batch", (8, 16, 32, 64, 128), lambda n: step(n, 96), "one chunk, 96 pixels"),
    Curve("the same in chunks of 16", "pairs of a batch", (16, 32, 64, 128), lambda n: step(n, 96, 16), "96 pixels"),
    Curve("a step of `mini`", "pixels of a side", (48, 72, 96, 144, 192, 288), lambda n: step(8, n), "8 pairs"),
    Curve("`clip_loss`, both ways", "N", (1024, 2048, 4096, 8192, 16384), contrast, f"E = {EMBED_DIM}"),
    Curve("one exact search", "images", (10_000, 30_000, 100_000, 300_000, 1_000_000), gallery, f"E = {EMBED_DIM}"),
)  # fmt: skip


def table(curve: Curve, costs: Sequence[Cost]) -> str:
    lines = [
        f"## {curve.what}, by {curve.size} ({curve.note})\n",
        f"| {curve.size} | ms | extra MiB |",
        "|---:|---:|---:|",
    ]
    lines += [
        f"| {size:,} | {1e3 * c.seconds:,.1f} | {c.mib:,.0f} |" for size, c in zip(curve.sizes, costs, strict=True)
    ]
    return "\n".join([*lines, f"| exponent | {exponent(curve, costs, 0)} | {exponent(curve, costs, 1)} |\n"])


def exponent(curve: Curve, costs: Sequence[Cost], which: int) -> str:
    """Least squares; no exponent where some cost is too small to measure."""
    values = [cost[which] for cost in costs]
    if min(values) < (1e-5, 2.0)[which]:
        return "-"
    return f"{np.polyfit(np.log(curve.sizes), np.log(values), 1)[0]:.2f}"


def ranks_table(sizes: Sequence[int]) -> str:
    """The same N = 4096 rows for all, shared by gloo processes of one thread each."""
    lines = ["## `clip_loss` of N = 4096 over processes (gloo, one thread each)\n"]
    lines += ["| processes | ms | extra MiB of one |", "|---:|---:|---:|"]
    for size in sizes:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with multiprocessing.get_context("spawn").Pool(size) as pool:
            costs = pool.starmap(one_of, [(rank, size, port) for rank in range(size)], chunksize=1)
        lines.append(f"| {size} | {1e3 * max(c[0] for c in costs):,.0f} | {max(c[1] for c in costs):,.0f} |")
    return "\n".join(lines) + f"\n\n{os.cpu_count()} processors: more processes than that take turns."


def one_of(rank: int, size: int, port: int) -> Cost:
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{size}"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    torch.set_num_threads(1)
    processes = init_from_env("cpu")
    scale = torch.tensor(math.log(100.0), requires_grad=True)

    def rows(n: int) -> list[Tensor]:
        torch.manual_seed(rank)
        return [torch.nn.functional.normalize(torch.randn(n, EMBED_DIM), dim=1).requires_grad_() for _ in range(2)]

    clip_loss(*rows(64), scale, processes=processes).backward()
    given, times = rows(4096 // size), list[float]()
    before = resident()
    for _ in range(REPEATS):
        if size > 1:
            dist.barrier()
        start = time.perf_counter()
        clip_loss(*given, scale, processes=processes).backward()
        times.append(time.perf_counter() - start)
    cost = Cost(min(times), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
    if size > 1:
        dist.destroy_process_group()
    return cost


def draw(measured: Sequence[tuple[Curve, list[Cost]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(measured), 5.2), layout="constrained")
    axes = figure.subplots(2, len(measured))
    for column, (curve, costs) in enumerate(measured):
        for which, unit in enumerate(("ms", "MiB")):
            axis = axes[which][column]
            axis.plot(curve.sizes, [max(0.0, cost[which]) * (1e3, 1)[which] for cost in costs], "o-", color="#2b6cb0")
            axis.set_xscale("log")
            axis.set_xticks(curve.sizes, [f"{size:,}" for size in curve.sizes], rotation=30)
            axis.set_xticks([], minor=True)
            axis.set_yscale(("log", "linear")[which])
            if which:
                axis.set_ylim(bottom=0)
            title = curve.what.replace("`", "")
            axis.set(xlabel=curve.size, ylabel=unit, title=f"{title}\nexponent {exponent(curve, costs, which)}")
            axis.title.set_size(9)
            axis.grid(alpha=0.3)
    figure.savefig(FIGURE, dpi=100)


if __name__ == "__main__":
    main()
