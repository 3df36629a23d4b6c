"""What the back ends gain: B/32's image tower beside OpenCLIP's, and what int8 changes in the answers of `mini`.

    python -m benchmarks.backends > benchmarks/backends.md         (--quick: fewer rounds and images)

Random weights, float32, the same in all; two threads.  Each variant is a process of its own; they work in turns,
A B C D A B C D, each after one batch that is not timed.  The ratio is the median over rounds of OpenCLIP's time / this
one's of the same round.  Memory: what goes when the process ends (USS), after the batches.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from pyarrow.parquet import read_table
from torch import Tensor

import vlm
from benchmarks.machine import about
from benchmarks.side_by_side import ratios
from vlm.onnx.backends import Backend

THREADS = 2
MODEL = "ViT-B-32"
VARIANTS: dict[str, Backend | None] = {
    "OpenCLIP": None,
    "`vlm`, torch": "torch",
    "`vlm`, onnx": "onnx",
    "`vlm`, int8": "int8",
}
VALIDATION = Path(__file__).parents[1] / "training/picture_words/validation.parquet"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    print(f"# Back ends: the image tower of {MODEL}, {THREADS} threads\n")
    command = f"python -m benchmarks.backends{' --quick' * quick}"
    print(about(command, ["torch", "onnxruntime", "open_clip_torch"], THREADS))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        model = Path(folder) / "openclip"
        make_model(model)
        write_seconds = {backend: first_load(model, backend) for backend in ("onnx", "int8")}
        print(speed_table(model, rounds=3 if quick else 11))
        print(f"The first load writes the ONNX files: onnx {write_seconds['onnx']:.0f} s, ", end="")
        print(f"int8 {write_seconds['int8']:.0f} s more. {roofline()}\n")
        print(agreement_table(100 if quick else None))


def make_model(folder: Path) -> None:
    """OpenCLIP's architecture with its own random weights, as a folder of ours that both sides read."""
    import open_clip

    torch.manual_seed(0)
    theirs = open_clip.create_model(MODEL)
    folder.mkdir()
    torch.save(theirs.state_dict(), folder / "openclip.pt")
    vlm.save(vlm.load(f"openclip:{MODEL}/{folder / 'openclip.pt'}"), folder / "ours")


def first_load(model: Path, backend: Backend) -> float:
    start = time.perf_counter()
    vlm.load(model / "ours", backend=backend)
    return time.perf_counter() - start


def tower(model: Path, backend: Backend | None) -> Callable[[Tensor], Tensor]:
    if backend is not None:
        return vlm.load(model / "ours", backend=backend).embed_pixels
    import open_clip

    theirs: Any = open_clip.create_model(MODEL).eval()
    theirs.load_state_dict(torch.load(model / "openclip.pt"))

    def encode(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return theirs.encode_image(pixels, normalize=True)

    return encode


def serve(connection: Connection, model: Path, backend: Backend | None) -> None:
    """The process of one variant: (pixels, repetitions) -> (seconds a batch, vectors, bytes that are its own)."""
    import psutil

    torch.set_num_threads(THREADS)
    encode = tower(model, backend)
    while (asked := connection.recv()) is not None:
        pixels, repetitions = torch.from_numpy(asked[0]), asked[1]
        embeds = encode(pixels)
        start = time.perf_counter()
        for _ in range(repetitions):
            embeds = encode(pixels)
        seconds = (time.perf_counter() - start) / repetitions
        connection.send((seconds, embeds.numpy(), psutil.Process().memory_full_info().uss))


def speed_table(model: Path, rounds: int) -> str:
    context, connections, processes = get_context("spawn"), {}, []
    for name, backend in VARIANTS.items():
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, model, backend)))
        processes[-1].start()
        connections[name] = ours

    def ask(name: str, pixels: Tensor, repetitions: int) -> tuple[float, Tensor, int]:
        connections[name].send((pixels.numpy(), repetitions))
        seconds, embeds, memory = connections[name].recv()
        return seconds, torch.from_numpy(embeds), memory

    lines = [
        "| batch | variant | ms an image, median | best | OpenCLIP's / this, median | smallest to largest "
        "| best / best | largest difference | smallest cosine | memory of the process, MB |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for batch, repetitions in ((1, 24), (8, 4)):
        pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(batch))
        first = {name: ask(name, pixels, 2)[1] for name in VARIANTS}  # and warm
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        memory = dict.fromkeys(VARIANTS, 0)
        for _ in range(rounds):
            for name in VARIANTS:
                taken, _, memory[name] = ask(name, pixels, repetitions)
                seconds[name].append(taken * 1e3 / batch)
        theirs = seconds["OpenCLIP"]
        for name, ours in seconds.items():
            beside = ratios(theirs, ours)
            apart = (first[name] - first["OpenCLIP"]).abs().max().item()
            cosine = (first[name] * first["OpenCLIP"]).sum(1).min().item()
            middle = statistics.median(beside)
            lines.append(
                f"| {batch} | {name} | {statistics.median(ours):.1f} | {min(ours):.1f} | {middle:.2f} "
                f"| {beside[0]:.2f} to {beside[-1]:.2f} | {min(theirs) / min(ours):.2f} "
                f"| {apart:.0e} | {cosine:.4f} | {memory[name] / 1e6:.0f} |"
            )
    for connection in connections.values():
        connection.send(None)
    for process in processes:
        process.join()
    return "\n".join(lines) + "\n"


def roofline() -> str:
    """What float32 matrix products of this size reach in PyTorch, the ceiling of OpenCLIP's tower."""
    a, b = torch.randn(400, 768), torch.randn(768, 3072)
    best = min(_seconds(lambda: a @ b) for _ in range(30))
    speed = 2 * 400 * 768 * 3072 / best / 1e9
    return f"PyTorch's float32 product of 400 x 768 and 768 x 3072 reaches {speed:.0f} GFLOP/s."


def _seconds(work: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def validation(count: int | None = None) -> tuple[Tensor, dict[str, list[str]]]:
    """Pixels of validation drawings (B, 3, H, W), and the first names of all of them by language."""
    rows = read_table(VALIDATION).to_pylist()
    preprocess = vlm.load("mini").preprocess
    pixels = torch.stack([preprocess(vlm.open_image(row["image"]["bytes"])) for row in rows[:count]])
    names = {language: sorted({row[f"captions_{language}"][0] for row in rows}) for language in ("en", "ja")}
    return pixels, names


def agreement(one: vlm.Embedder, other: vlm.Embedder, pixels: Tensor, names: list[str], batch: int = 32) -> float:
    """The share of images for which both find the same of the names."""
    best = []
    for embedder in (one, other):
        images = torch.cat([embedder.embed_pixels(part) for part in pixels.split(batch)])
        best.append((images @ embedder.embed_texts(names).T).argmax(1))
    return (best[0] == best[1]).float().mean().item()


def agreement_table(count: int | None) -> str:
    pixels, names = validation(count)
    exact = vlm.load("mini")
    lines = [
        f"`mini`, the nearest name for each of {len(pixels)} validation drawings, against backend torch:\n",
        "| backend | names | batch | same name | chance |",
        "|---|---|---:|---:|---:|",
    ]
    for backend in ("onnx", "int8"):
        fast = vlm.load("mini", backend=backend)
        for language, words in names.items():
            for batch in (1, 32):
                same = agreement(exact, fast, pixels, words, batch)
                lines.append(f"| {backend} | {len(words)} ({language}) | {batch} | {same:.2%} | {1 / len(words):.2%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
