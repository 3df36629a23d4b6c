"""Time and memory of the contrastive losses, forward and backward, beside OpenCLIP's, on one CPU thread (Linux).

    python -m benchmarks.loss_memory > benchmarks/loss_memory.md

Every measurement is a process of its own.  Memory is the highest resident size above that with the inputs in place, so
it includes the gradients.  Time is the processor time of the process, the best of REPEATS that take turns.
"""

import datetime
import math
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from tqdm import tqdm

from vlm.loss import clip_loss, siglip_loss

EMBED_DIM = 512
REPEATS = 2
SIZES = (1024, 4096, 16384)
LARGEST = 65536  # ours alone: OpenCLIP would need some 100 GiB

LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "clip_loss": lambda x, y, scale, bias: clip_loss(x, y, scale),
    "ClipLoss": lambda x, y, scale, bias: ClipLoss()(x, y, scale.exp()),
    "siglip_loss": lambda x, y, scale, bias: siglip_loss(x, y, scale, bias),
    "SigLipLoss": lambda x, y, scale, bias: SigLipLoss()(x, y, scale.exp(), bias),
}
RIVALS = {"clip_loss": "ClipLoss", "siglip_loss": "SigLipLoss"}


def main() -> None:
    cases = [(name, n) for n in SIZES for name in LOSSES] + [(name, LARGEST) for name in RIVALS]
    measured: dict[tuple[str, int], list[tuple[float, float]]] = {case: [] for case in cases}
    jobs = cases[: -len(RIVALS)] * REPEATS + cases[-len(RIVALS) :]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "open_clip.loss", "vlm.loss"])
    with context.Pool(1, maxtasksperchild=1) as pool:
        for case in tqdm(jobs):
            measured[case].append(pool.apply(measure, case))
    best = {case: tuple(map(min, zip(*results, strict=True))) for case, results in measured.items()}
    print(table(best))


def measure(name: str, n: int) -> tuple[float, float]:
    """(seconds, MiB)."""
    torch.set_num_threads(1)
    step(name, *inputs(64))  # what is loaded once is not counted
    given = inputs(n)
    before, start = resident(), time.process_time()
    step(name, *given)
    seconds = time.process_time() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def inputs(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = (torch.randn(n, EMBED_DIM) for _ in range(2))
    for embeds in (x, y):
        embeds /= embeds.norm(dim=1, keepdim=True)
        embeds.requires_grad_()
    return x, y, torch.tensor(math.log(100.0), requires_grad=True), torch.tensor(-10.0, requires_grad=True)


def step(name: str, *given: Tensor) -> None:
    LOSSES[name](*given).backward()


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def table(best: dict[tuple[str, int], tuple[float, ...]]) -> str:
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    lines = [
        f"# Contrastive losses, E = {EMBED_DIM}, float32, scale 100, forward and backward, one thread\n",
        f"{datetime.date.today()}, {processor.split(':')[1].strip()}, {platform.system()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, open_clip_torch {version('open_clip_torch')}; "
        "`python -m benchmarks.loss_memory`\n",
        "| N | loss | extra memory, MiB | OpenCLIP, MiB | share | time, s | OpenCLIP, s | share |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (name, n), (seconds, memory) in best.items():
        if name not in RIVALS:
            continue
        row = [f"{n}", f"`{name}`", f"{memory:.0f}", "", "", f"{seconds:.2f}", "", ""]
        if (rival := best.get((RIVALS[name], n))) is not None:
            row[3:5] = f"{rival[1]:.0f}", f"1/{rival[1] / memory:.0f}"
            row[6:8] = f"{rival[0]:.2f}", f"{seconds / rival[0]:.2f}"
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
