"""Training images from JPEG files, by one core: our loader beside OpenCLIP's and timm's training transforms.

    python -m benchmarks.loader > benchmarks/loader.md         (--quick: fewer images and rounds)

A round takes every image once with each variant, in turns, so that all meet the same machine; a time is processor time
(user + system).  A ratio is OpenCLIP's time / the variant's of the same round, the median over rounds.  "on the device"
is what the loader processes do where a GPU augments and normalises: decode, crop, uint8.  The last table reads the
small files from .tar shards, through `fsspec` (memory://), and counts what is asked for.
"""

import argparse
import io
import os
import statistics
import tarfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from fsspec import filesystem
from open_clip.transform import image_transform
from PIL import Image
from timm.data.transforms_factory import create_transform

import vlm
from benchmarks.machine import about
from benchmarks.photographs import as_jpeg, photograph
from vlm.config import PreprocessConfig
from vlm.images.preprocess import Preprocess
from vlm.training.data.augment import augment
from vlm.training.data.formats.shards import Range
from vlm.training.data.formats.tars import Tars
from vlm.training.data.order import AUGMENT, Shuffled
from vlm.training.data.pair_stream import PairStream
from vlm.training.data.pairs import Pairs
from vlm.training.data.sources import open_rows
from vlm.training.data.stream import PREFETCH_BYTES, EndlessOrder, Places, batches, item_size
from vlm.training.data.transforms import Transform
from vlm.training.recipe.augmentation import AugmentConfig, TransformConfig

SIDE, BATCH = 224, 32
CROP = (0.9, 1.0)  # OpenCLIP's default scale of RandomResizedCrop
Variant = Callable[[Sequence[bytes]], object]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    large = _large(4 if quick else 100)
    small = _smaller(large[:8], 32 if quick else 500)
    print("# Training images of 224 pixels from JPEG files, one core\n")
    packages = ["torch", "torchvision", "pillow", "open_clip_torch", "timm"]
    print(about(f"python -m benchmarks.loader{' --quick' * quick}", packages, 1))
    rounds = 3 if quick else 5
    for name, files in ((f"{len(small)} files of 500 x 375", small), (f"{len(large)} files of 2000 x 1500", large)):
        print(f"## {name}, {rounds} rounds\n")
        print(speed_table(files, rounds))
    print(memory_table(small, 512 if quick else 4096))
    print(tar_table(small))


def _large(count: int) -> list[bytes]:
    """A quarter of them made, the others mirrored and upside down."""
    made = [photograph(seed) for seed in range(-(-count // 4))]
    turns = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)
    found = [
        file if turn is None else as_jpeg(Image.open(io.BytesIO(file)).transpose(turn))
        for turn in turns
        for file in made
    ]
    return found[:count]


def _smaller(large: Sequence[bytes], count: int) -> list[bytes]:
    """Parts of the large ones, 500 x 375."""
    rng, found = np.random.default_rng(0), []
    opened = [Image.open(io.BytesIO(file)).convert("RGB") for file in large]
    for number in range(count):
        image = opened[number % len(opened)]
        left, top = int(rng.integers(0, image.width - 1000)), int(rng.integers(0, image.height - 750))
        found.append(as_jpeg(image.crop((left, top, left + 1000, top + 750)).resize((500, 375))))
    return found


def variants() -> dict[str, Variant]:
    config = PreprocessConfig(image_size=SIDE)
    prepare = Preprocess(config).near()
    theirs: Any = image_transform(SIDE, is_train=True, mean=config.mean, std=config.std)
    plain: Any = create_transform  # color_jitter may be None, its type says otherwise
    timms: Any = plain(SIDE, is_training=True, scale=CROP, ratio=(0.75, 4 / 3), color_jitter=None)
    raw: Any = plain(SIDE, is_training=True, scale=CROP, ratio=(0.75, 4 / 3), color_jitter=None, use_prefetcher=True)
    crops = Transform(TransformConfig(scale=CROP), (SIDE, SIDE), seed=0)

    def open_one(file: bytes) -> Image.Image:
        return Image.open(io.BytesIO(file)).convert("RGB")

    def decoded(files: Sequence[bytes]) -> torch.Tensor:
        return torch.stack([prepare.pixels(file) for file in files])

    def places(count: int) -> Places:
        numbers = np.arange(count)
        return Places(np.zeros(count, int), numbers, numbers)

    return {
        "OpenCLIP's training transform": lambda files: torch.stack([theirs(open_one(file)) for file in files]),
        "timm's training transform": lambda files: torch.stack([timms(open_one(file)) for file in files]),
        "timm's, normalised on the device": lambda files: np.stack([raw(open_one(file)) for file in files]),
        "`vlm`, augmented in the workers (a CLIP's recipe)": lambda files: augment(
            decoded(files), AugmentConfig(), 0, AUGMENT, np.zeros(len(files), int), np.arange(len(files))
        ),
        "`vlm`, RandomResizedCrop in the workers (a classifier's)": lambda files: crops(
            decoded(files), places(len(files))
        ),
        "`vlm`, augmented on the device": decoded,
    }


def speed_table(files: Sequence[bytes], rounds: int) -> str:
    works = variants()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            start = time.process_time()
            for first in range(0, len(files), BATCH):
                work(files[first : first + BATCH])
            if number:  # the first round warms up
                taken[name].append(time.process_time() - start)
    theirs = next(iter(taken.values()))
    lines = ["| | images/s of a core | OpenCLIP's time / this | smallest to largest |", "|---|---:|---:|---|"]
    for name, own in taken.items():
        beside = sorted(their / our for their, our in zip(theirs, own, strict=True))
        lines.append(
            f"| {name} | {len(files) / statistics.median(own):.0f} | {statistics.median(beside):.2f} "
            f"| {beside[0]:.2f} to {beside[-1]:.2f} |"
        )
    return "\n".join(lines) + "\n"


def memory_table(files: Sequence[bytes], batch: int, workers: int = 2) -> str:
    """Time to the first batch, and what the workers hold then."""
    with TemporaryDirectory() as folder:
        for number, file in enumerate(files):
            (Path(folder) / f"{number}.jpg").write_bytes(file)
        (Path(folder) / "d.csv").write_text(
            "image,caption\n" + "".join(f"{n}.jpg,image {n}\n" for n in range(len(files)))
        )
        rows = open_rows(Path(folder) / "d.csv")
        lines = ["## Memory and first batch\n", "| batch | part of a worker | workers | seconds to the first batch "
                 "| pixels that may wait, MiB | workers' own memory then, MiB |",
                 "|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
        for size in (256, batch):
            lines.append(_memory_row(rows, size, workers))
    return "\n".join(lines) + "\n"


def _memory_row(rows: Any, size: int, workers: int) -> str:
    pairs = Pairs(rows, Preprocess(PreprocessConfig(image_size=SIDE)).near(), cache="none")
    stream = PairStream(
        pairs, _tokenizer(), AugmentConfig(), seed=0, batch_size=size, num_patches=49, augment_later=True
    )
    before, start = _children(), time.perf_counter()
    found = batches(stream, 0, 9, workers)
    next(found)
    seconds = time.perf_counter() - start
    held = sum(_held(child) for child in _children() - before)
    found.close()  # type: ignore[attr-defined]  # a generator: ends the workers
    part = item_size(size, stream.sample_bytes)
    return f"| {size:,} | {part} | {workers} | {seconds:.1f} | {PREFETCH_BYTES / 2**20:.0f} | {held:.0f} |"


def tar_table(files: Sequence[bytes]) -> str:
    """Reads of one epoch in the parts that a worker builds, of shards of 50 images."""
    store = filesystem("memory")
    for shard in range(-(-len(files) // 50)):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for number, file in enumerate(files[50 * shard : 50 * (shard + 1)]):
                for ending, content in (("jpg", file), ("txt", f"image {number}".encode())):
                    member = tarfile.TarInfo(f"{shard:05d}{number:04d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        store.pipe_file(f"/benchmark/{shard:05d}.tar", data.getvalue())
    rows = open_rows("memory://benchmark")
    assert isinstance(rows, Tars)
    needed, part = sum(map(len, files)), item_size(4096, 3 * SIDE**2)
    reads: list[int] = []
    read = rows.shards.read

    def counted(ranges: Sequence[Range]) -> list[bytes]:
        reads.extend(own.end - own.start for own in ranges)
        return read(ranges)

    rows.shards.read = counted  # type: ignore[method-assign]
    lines = [
        f"## {len(files)} images in .tar shards, parts of {part}\n",
        "| order | reads | bytes asked for per read, mean | largest | bytes asked for / bytes of the images |",
        "|---|---:|---:|---:|---:|",
    ]
    orders = {
        "each image by itself, as before": 0,
        "all shuffled": 0,
        "neighbours together, 32": 32,
        f"neighbours together, {rows.run_length} (the default)": rows.run_length,
    }
    for name, window in orders.items():
        order = EndlessOrder(len(rows), seed=0, batch_size=part, order=Shuffled(len(rows), 0, window))
        reads.clear()
        for step in range(len(rows) // part):
            order.load(step, rows.image, read_ahead=None if "before" in name else rows.read_ahead)
        share = needed * (len(rows) // part * part) / len(rows)
        lines.append(
            f"| {name} | {len(reads)} | {statistics.mean(reads):,.0f} | {max(reads):,} | {sum(reads) / share:.2f} |"
        )
    return "\n".join(lines) + "\n"


@lru_cache(1)
def _tokenizer() -> Any:
    return vlm.load("mini", device="cpu").tokenizer


def _children() -> set[int]:
    """Numbers of this process's children (Linux)."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(number) for number in (task / "children").read_text().split()}
    return found


def _held(process: int) -> float:
    """MiB that a process holds now: its private pages and its share of the shared memory of batches."""
    try:
        lines = (Path("/proc") / str(process) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:] if line.endswith("kB")}
    return (sizes["Private_Dirty"] + sizes.get("Pss_Shmem", 0)) / 1024


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
