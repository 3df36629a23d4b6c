"""`vlm index` on JPEGs of 2000 x 1500, beside one process that decodes with Pillow and runs the same model.

    python -m benchmarks.index_speed > benchmarks/index_speed.md         (--quick: fewer images and rounds)

Both take turns.  Wall time needs a quiet machine; processor time (user + system, all processes) hardly depends on it.
On c cores a run can never take less wall time than its processor time / c.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torchvision import transforms

import vlm
from benchmarks.machine import about
from benchmarks.photographs import photograph
from vlm.config import PreprocessConfig, named_size
from vlm.images.preprocess import Preprocess
from vlm.index.embedding_index import EmbeddingIndex

BATCH = 64
DISTINCT = 16


class Taken(NamedTuple):
    wall: float
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    counts, rounds = ({"mini": 192, "B/32": 128}, 2) if quick else ({"mini": 768, "B/32": 384}, 7)
    print("# `vlm index` on JPEGs of 2000 x 1500\n")
    print(about(f"python -m benchmarks.index_speed{' --quick' * quick}", ["torch", "pillow"]))
    print(f"Each line: images a second, medians of {rounds} rounds; ratios with smallest to largest.\n")
    print("| model | images | one process | `vlm index` | wall ratio | processor ratio | with `--fast-decode` |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_photographs(folder, max(counts.values()))
        for name, count in counts.items():
            files = sorted(folder.glob("*.jpg"))[:count]
            print(compare(name, embedder(name), files, rounds), flush=True)


def write_photographs(folder: Path, count: int) -> None:
    """Files that differ, of `DISTINCT` images: bytes behind the end of a JPEG change nothing but the hash."""
    files = [photograph(seed) for seed in range(min(DISTINCT, count))]
    for number in range(count):
        (folder / f"{number:04d}.jpg").write_bytes(files[number % len(files)] + number.to_bytes(4, "big"))


def embedder(name: str) -> vlm.Embedder:
    if name == "mini":
        return vlm.load("mini")
    torch.manual_seed(0)
    config = named_size(name)
    preprocess = Preprocess(PreprocessConfig(image_size=config.vision.image_size))
    return vlm.Embedder(vlm.CLIP(config).eval(), None, preprocess, name=name)  # random weights take the same time


def compare(name: str, model: vlm.Embedder, files: list[Path], rounds: int) -> str:
    quick = vlm.Embedder(model.model, model.parts()[0], Preprocess(model.preprocess.config, decoding="scaled"))
    variants: list[Callable[[], None]] = [
        lambda: one_process(model, files),
        lambda: indexed(model, files),
        lambda: indexed(quick, files),
    ]
    one_process(model, files[:BATCH])
    taken = [[measure(variant) for variant in variants] for _ in range(rounds)]
    walls = [statistics.median(row[i].wall for row in taken) for i in range(2)]
    wall, scaled = ([row[0].wall / row[i].wall for row in taken] for i in (1, 2))
    cost = [row[0].processor / row[1].processor for row in taken]
    speeds = " | ".join(f"{len(files) / seconds:.1f}" for seconds in walls)
    return f"| {name} | {len(files)} | {speeds} | {' | '.join(map(spread, (wall, cost, scaled)))} |"


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def measure(work: Callable[[], None]) -> Taken:
    wall, busy = time.perf_counter(), processor_seconds()
    work()
    return Taken(time.perf_counter() - wall, processor_seconds() - busy)


def processor_seconds() -> float:
    """User + system of this process and of those it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def indexed(model: vlm.Embedder, files: list[Path]) -> None:
    with tempfile.TemporaryDirectory() as place, EmbeddingIndex.open(Path(place) / "index", model) as index:
        added = index.add(files)
    assert added.embedded == len(files)


@torch.inference_mode()
def one_process(model: vlm.Embedder, files: list[Path]) -> None:
    """As a script would: Pillow, torchvision's transforms as OpenCLIP has them, the same batches, all cores."""
    config = model.preprocess.config
    side = config.image_shape[0]
    cubic = transforms.InterpolationMode.BICUBIC
    squash = config.resize == "squash"
    resize: list[Any] = [transforms.Resize((side, side) if squash else side, cubic), transforms.CenterCrop(side)]
    prepare = transforms.Compose([*resize, transforms.ToTensor(), transforms.Normalize(config.mean, config.std)])
    for at in range(0, len(files), BATCH):
        batch: list[Any] = [prepare(Image.open(file).convert("RGB")) for file in files[at : at + BATCH]]
        model.model.encode_image(torch.stack(batch))


if __name__ == "__main__":
    main()
