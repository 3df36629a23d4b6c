"""Time and memory of the contrastive losses, forward and backward, beside OpenCLIP's, on one CPU thread (Linux).

    python -m benchmarks.loss_memory > benchmarks/loss_memory.md          (--quick: N = 1024 and 4096)

Every measurement is a process of its own.  Memory is the highest resident size above that with the inputs in place, so
it includes the gradients.  Time is the processor time of the process, the best of REPEATS that take turns.

A second table counts, on the meta device, what a GPU would be asked for by tile: operations that are no views (each is
a kernel launch or a few), bytes written by them, the largest result.  (--operations: only this table, in seconds)
"""

import argparse
import math
import multiprocessing
import resource
import time
from collections.abc import Callable

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from benchmarks.machine import about, resident
from benchmarks.operations import Operations, count
from vlm.loss import clip_loss, siglip_loss, tile_side

EMBED_DIM = 512
REPEATS = 2
SIZES = (1024, 4096, 16384)
LARGEST = 65536  # ours alone: OpenCLIP would need some 100 GiB
TILES = (1024, 8192, 32768)

LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "clip_loss": lambda x, y, scale, bias: clip_loss(x, y, scale),
    "ClipLoss": lambda x, y, scale, bias: ClipLoss()(x, y, scale.exp()),
    "siglip_loss": lambda x, y, scale, bias: siglip_loss(x, y, scale, bias),
    "SigLipLoss": lambda x, y, scale, bias: SigLipLoss()(x, y, scale.exp(), bias),
}
RIVALS = {"clip_loss": "ClipLoss", "siglip_loss": "SigLipLoss"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--operations", action="store_true")
    arguments = parser.parse_args()
    quick = arguments.quick
    if arguments.operations:
        print_operations()
        return
    print(f"# Contrastive losses, E = {EMBED_DIM}, float32, scale 100, forward and backward, one thread\n")
    print(about(f"python -m benchmarks.loss_memory{' --quick' * quick}", ["torch", "open_clip_torch"], 1))
    print("| N | loss | extra memory, MiB | OpenCLIP, MiB | share | time, s | OpenCLIP, s | share |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|", flush=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "open_clip.loss", "vlm.loss"])
    with context.Pool(1, maxtasksperchild=1) as pool:
        for n in SIZES[:2] if quick else SIZES:
            for pair in RIVALS.items():
                taken = [[pool.apply(measure, (name, n)) for name in pair] for _ in range(REPEATS)]
                ours, theirs = (tuple(map(min, zip(*results, strict=True))) for results in zip(*taken, strict=True))
                print(row(n, pair[0], ours, theirs), flush=True)
        for name in () if quick else RIVALS:
            print(row(LARGEST, name, pool.apply(measure, (name, LARGEST)), None), flush=True)
    print()
    print_operations()


def print_operations() -> None:
    """What one forward and backward pass asks of a GPU, by tile."""
    chosen = tile_side(torch.device("meta"), TILES[-1], TILES[-1])
    print(f"| N | loss | tile ({chosen}: chosen with 8 GiB free) | operations | written, GiB | largest result, MiB |")
    print("|---:|---|---:|---:|---:|---:|")
    for n in (4096, 32768):
        for ours, theirs in RIVALS.items():
            for tile in (*(tile for tile in TILES if tile <= n), None):
                seen = operations(ours if tile else theirs, n, tile)
                print(
                    f"| {n} | `{ours if tile else theirs}` | {tile or 'dense'} | {seen.kernels.total()} "
                    f"| {seen.bytes / 2**30:.2f} | {seen.largest / 2**20:.0f} |"
                )


def operations(name: str, n: int, tile: int | None) -> Operations:
    """Counted on the meta device."""
    x, y = (torch.empty(n, EMBED_DIM, device="meta", requires_grad=True) for _ in range(2))
    scale, bias = (torch.empty((), device="meta", requires_grad=True) for _ in range(2))
    if name == "clip_loss":
        return count(lambda: clip_loss(x, y, scale, tile=tile).backward())
    if name == "siglip_loss":
        return count(lambda: siglip_loss(x, y, scale, bias, tile=tile).backward())
    return count(lambda: LOSSES[name](x, y, scale, bias).backward())


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


def row(n: int, name: str, ours: tuple[float, ...], theirs: tuple[float, ...] | None) -> str:
    (seconds, memory), empty = ours, ("", "")
    memories = empty if theirs is None else (f"{theirs[1]:.0f}", f"{memory / theirs[1]:.3f}")
    times = empty if theirs is None else (f"{theirs[0]:.2f}", f"{seconds / theirs[0]:.2f}")
    return f"| {' | '.join([f'{n}', f'`{name}`', f'{memory:.0f}', *memories, f'{seconds:.2f}', *times])} |"


if __name__ == "__main__":
    main()
