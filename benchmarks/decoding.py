"""A JPEG of 2000 x 1500 to 224 pixels, normalised, in one thread: our preprocessing beside OpenCLIP's transform.

    python -m benchmarks.decoding > benchmarks/decoding.md         (--quick: fewer images and rounds)

Each round takes every image once with each variant, in turns, so that all meet the same machine; a time is processor
time (user + system).  The ratio is the median over rounds of OpenCLIP's time / ours of the same round.
"""

import argparse
import dataclasses
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from open_clip.transform import image_transform
from PIL import Image
from pyarrow.parquet import read_table
from torch import Tensor

import vlm
from benchmarks.machine import about
from benchmarks.photographs import HEIGHT, WIDTH, as_jpeg, photograph
from benchmarks.side_by_side import ratios
from vlm.config import PreprocessConfig
from vlm.images.preprocess import Preprocess

Prepare = Callable[[bytes], Tensor]
VALIDATION = Path(__file__).parents[1] / "training/picture_words/validation.parquet"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    files = [photograph(seed) for seed in range(4 if quick else 16)]
    sizes = [len(file) // 1024 for file in files]
    print("# A JPEG of 2000 x 1500 to 224 pixels, one thread\n")
    print(about(f"python -m benchmarks.decoding{' --quick' * quick}", ["torch", "pillow", "open_clip_torch"], 1))
    print(f"{len(files)} made-up photographs of {min(sizes)} to {max(sizes)} KiB, {7 if quick else 9} rounds.\n")
    print(speed_table(files, rounds=7 if quick else 9))
    print(agreement_table(files, drawings(60 if quick else 547)))


def variants(config: PreprocessConfig) -> dict[str, Prepare]:
    transform: Any = image_transform(config.image_shape[0], is_train=False, mean=config.mean, std=config.std)
    return {
        "OpenCLIP's transform": lambda file: transform(Image.open(io.BytesIO(file))),
        "`vlm`, models of other libraries": Preprocess(dataclasses.replace(config, exact=True)),
        "`vlm`, models trained here": Preprocess(config),
        "`vlm`, scaled": Preprocess(config, decoding="scaled"),
    }


def speed_table(files: list[bytes], rounds: int) -> str:
    config = PreprocessConfig()
    prepares = variants(config)
    seconds: dict[str, list[float]] = {name: [] for name in prepares}
    for prepare in prepares.values():
        prepare(files[0])
    for _ in range(rounds):
        taken = dict.fromkeys(prepares, 0.0)
        for file in files:
            for name, prepare in prepares.items():
                start = time.process_time()
                prepare(file)
                taken[name] += time.process_time() - start
        for name in prepares:
            seconds[name].append(taken[name] / len(files))
    theirs = seconds["OpenCLIP's transform"]
    lines = [
        "| variant | ms an image, median | best | OpenCLIP's / this, median | smallest to largest "
        "| levels from OpenCLIP's: mean | largest |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, ours in seconds.items():
        beside = ratios(theirs, ours)
        mean, largest = levels_apart(prepares[name], prepares["OpenCLIP's transform"], files, config)
        lines.append(
            f"| {name} | {statistics.median(ours) * 1e3:.1f} | {min(ours) * 1e3:.1f} | {statistics.median(beside):.2f} "
            f"| {beside[0]:.2f} to {beside[-1]:.2f} | {mean:.3f} | {largest:.0f} |"
        )
    return "\n".join(lines) + "\n"


def levels_apart(one: Prepare, other: Prepare, files: list[bytes], config: PreprocessConfig) -> tuple[float, float]:
    std = torch.tensor(config.std).view(3, 1, 1) * 255
    apart = torch.stack([(one(file) - other(file)).abs() * std for file in files])
    return apart.mean().item(), round(apart.max().item(), 2)


def drawings(count: int) -> tuple[list[bytes], list[str]]:
    """Validation drawings of the artist that `mini` never saw, as large JPEGs; and all their English names."""
    rows = [row for row in read_table(VALIDATION).to_pylist() if row["split"] == "val_style"]
    names = sorted({row["captions_en"][0] for row in rows})
    images = [vlm.open_image(row["image"]["bytes"]) for row in rows[:count]]
    return [as_jpeg(_enlarge(image)) for image in images], names


def _enlarge(image: Image.Image) -> Image.Image:
    scale = min(WIDTH / image.width, HEIGHT / image.height)
    large = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    page = Image.new("RGB", (WIDTH, HEIGHT), "white")
    page.paste(large, ((WIDTH - large.width) // 2, (HEIGHT - large.height) // 2))
    return page


@torch.inference_mode()
def agreement_table(photographs: list[bytes], validation: tuple[list[bytes], list[str]]) -> str:
    embedder = vlm.load("mini")
    texts = embedder.embed_texts(validation[1])  # (M, E)
    lines = [
        f"`mini`, the best of {len(texts)} names for each image, against decoding and resizing with Pillow alone:\n",
        "| images | variant | same first name | of |",
        "|---|---|---:|---:|",
    ]
    for kind, files in (("drawings, enlarged", validation[0]), ("photographs", photographs)):
        wanted = best(embedder, [by_pillow(file, embedder.preprocess) for file in files], texts)
        for decoding in ("exact", "scaled"):
            prepare = Preprocess(embedder.preprocess.config, decoding=decoding)
            same = (best(embedder, [prepare(file) for file in files], texts) == wanted).float().mean().item()
            lines.append(f"| {kind} | {decoding} | {same:.2%} | {len(files)} |")
    return "\n".join(lines)


def by_pillow(file: bytes, preprocess: Preprocess) -> Tensor:
    """`mini` squashes: Pillow resizes to its frame, and the preprocessing has nothing left to do but normalise."""
    height, width = preprocess.config.image_shape
    return preprocess(vlm.open_image(file).resize((width, height), Image.Resampling.BICUBIC))


def best(embedder: vlm.Embedder, pixels: list[Tensor], texts: Tensor) -> Tensor:
    embeds = [embedder.embed_pixels(torch.stack(pixels[at : at + 64])) for at in range(0, len(pixels), 64)]
    return (torch.cat(embeds) @ texts.T).argmax(1)


if __name__ == "__main__":
    main()
