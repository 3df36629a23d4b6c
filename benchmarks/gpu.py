"""What one GPU does with vlm: its own tests, training, the loss at 32,768 pairs, embedding, and the loader's feed.

    python -m benchmarks.gpu > gpu.md          at most 8 minutes on one GPU; on a CPU a minute, with tiny sizes

Every part is a process with its own time limit and prints its table when it ends; a part that fails says so and the
next one runs.  Training runs beside `open_clip` at the same batch in turns, where that package is installed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WANTED = (2, 14)  # variable-length attention and FSDP2 as vlm uses them
LIMITS = {"tests": 120, "training": 180, "loss": 45, "embedding": 60, "loader": 60}  # seconds
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
MODELS = {"B/32": 512, "B/16": 256, "L/14": 128} if ON_GPU else {"mini": 8}  # size -> batch
ROUNDS = 2 if ON_GPU else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=LIMITS, help="run this one in the present process")
    part = parser.parse_args().part
    if part is not None:
        PARTS[part]()
        return
    print(f"# vlm on {machine()}\n\n{versions()}", flush=True)
    environ = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1" if not ON_GPU else "8")}
    for name, limit in LIMITS.items():
        start = time.perf_counter()
        print(f"\n## {name}, at most {limit} s\n", flush=True)
        try:
            done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--part", name], timeout=limit, env=environ)
            if done.returncode:
                print(f"\n{name} failed with code {done.returncode}.")
        except subprocess.TimeoutExpired:
            print(f"\n{name} did not end in {limit} s; what it printed before stands.")
        print(f"\n{time.perf_counter() - start:.0f} s", flush=True)


def machine() -> str:
    """The GPU, or that there is none."""
    if not ON_GPU:
        return "a CPU, with tiny sizes: the numbers say only that the script works"
    return f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"


def versions() -> str:
    """One line: which torch there is, and which is needed."""
    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    older = "" if found >= WANTED else "; this one is older: parts that need more will say that they failed"
    return (
        f"torch {torch.__version__}, CUDA {torch.version.cuda}; wanted torch {WANTED[0]}.{WANTED[1]} or newer{older}."
    )


def tests() -> None:
    """The tests that need a GPU."""
    command = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/models", "tests/training/engine"]
    sys.exit(subprocess.run([sys.executable, *command]).returncode)


def timed(step: Callable[[], object], count: int) -> float:
    """Seconds of one call, on average over `count`, after one that is not measured."""
    for warm in (True, False):
        start = time.perf_counter()
        for _ in range(1 if warm else count):
            step()
        if ON_GPU:
            torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def training() -> None:
    """Forward, loss, backward and AdamW in bfloat16, ours and open_clip's in turns."""
    print("| model | batch | who | samples/s | peak GiB |\n|---|---:|---|---:|---:|", flush=True)
    for size, batch in MODELS.items():
        makers = {"vlm": vlm_step, "open_clip": open_clip_step}
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(ROUNDS):
            for who, make in makers.items():
                try:
                    found.setdefault(who, []).append(measured(make(size, batch)))
                except (ImportError, KeyError) as error:
                    print(f"| {size} | {batch} | {who} | {type(error).__name__}: {error} | |", flush=True)
        for who, numbers in found.items():
            seconds, peak = min(numbers)
            print(f"| {size} | {batch} | {who} | {batch / seconds:.0f} | {peak:.1f} |", flush=True)


def measured(step: Callable[[], object]) -> tuple[float, float]:
    """(seconds of a step, GiB at the peak)."""
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(step, 10 if ON_GPU else 1)
    return seconds, torch.cuda.max_memory_allocated() / 2**30 if ON_GPU else 0.0


def example(image_size: int, context: int, eot: int, batch: int) -> tuple[Tensor, Tensor]:
    """Random images, and captions of 8 to 24 tokens, on the host."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, image_size, image_size), dtype=torch.uint8, generator=generator)
    ids = torch.randint(1, eot, (batch, min(context, 24)), generator=generator)
    ids[torch.arange(batch), torch.randint(7, ids.shape[1], (batch,), generator=generator)] = eot
    ids[:, -1] = eot
    return images, ids


def vlm_step(size: str, batch: int) -> Callable[[], object]:
    """One step as training makes it: text packed on the host."""
    from vlm.config import named_size
    from vlm.loss import clip_loss
    from vlm.models.clip import CLIP
    from vlm.training.engine.precision import autocast

    config = named_size(size)
    model = CLIP(config).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images, host_ids = example(config.vision.image_shape[0], config.text.context_length, config.text.eot_id, batch)
    images, ids = images.to(DEVICE), host_ids.to(DEVICE)

    def step() -> None:
        packing = model.text.packing(host_ids)
        with autocast("bfloat16", DEVICE):
            image_embeds, text_embeds = model(images / 255, ids, None, packing.to(DEVICE) if packing else None)
        clip_loss(image_embeds, text_embeds, model.logit_scale).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def open_clip_step(size: str, batch: int) -> Callable[[], object]:
    """The same by open_clip, whose text rows are padded to 77."""
    import open_clip
    from open_clip.loss import ClipLoss

    name = {"B/32": "ViT-B-32", "B/16": "ViT-B-16", "L/14": "ViT-L-14", "mini": "ViT-S-32-alt"}[size]
    model: Any = open_clip.create_model(name, device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images, ids = example(224, 77, 49407, batch)
    ids = torch.nn.functional.pad(ids, (0, 77 - ids.shape[1])).to(DEVICE)
    images, loss = images.to(DEVICE), ClipLoss()

    def step() -> None:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            image_embeds, text_embeds, scale = model(images / 255, ids)
            value = loss(image_embeds, text_embeds, scale)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def loss() -> None:
    """Forward and backward of both losses, by tile."""
    from vlm.loss import clip_loss, siglip_loss, tile_side

    n = 32768 if ON_GPU else 256
    print(f"N = {n}, E = 512, float32; chosen tile {tile_side(DEVICE, n, n)}\n")
    print("| loss | tile | ms | peak GiB |\n|---|---:|---:|---:|", flush=True)
    x, y = (torch.nn.functional.normalize(torch.randn(n, 512, device=DEVICE), dim=1).requires_grad_() for _ in range(2))
    scale, bias = (torch.tensor(value, device=DEVICE, requires_grad=True) for value in (4.0, -10.0))
    for tile in (1024, 8192, 32768, None):
        for name, step in (
            ("clip_loss", lambda tile=tile: clip_loss(x, y, scale, tile=tile).backward()),
            ("siglip_loss", lambda tile=tile: siglip_loss(x, y, scale, bias, tile=tile).backward()),
        ):
            try:
                seconds, peak = measured(step)
                print(f"| {name} | {tile or 'chosen'} | {1000 * seconds:.1f} | {peak:.1f} |", flush=True)
            except torch.OutOfMemoryError:
                print(f"| {name} | {tile} | out of memory | |", flush=True)


def embedding() -> None:
    """Images a second through the image encoder, by the weights' type."""
    from vlm.config import named_size
    from vlm.models.clip import CLIP

    print("| model | batch | type | images/s |\n|---|---:|---|---:|", flush=True)
    for size, batch in MODELS.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            model = CLIP(named_size(size)).to(DEVICE, dtype).eval()
            images = torch.randn(batch, 3, *model.config.vision.image_shape, device=DEVICE, dtype=dtype)
            with torch.inference_mode():
                seconds = timed(lambda model=model, images=images: model.encode_image(images), 10 if ON_GPU else 1)
            print(f"| {size} | {batch} | {str(dtype).removeprefix('torch.')} | {batch / seconds:.0f} |", flush=True)


def loader() -> None:
    """Batches a second from the bundled data to the device, with one worker a core."""
    from vlm.training.data.stream import batches
    from vlm.training.engine.distributed import Processes
    from vlm.training.recipe.reading import read_recipe
    from vlm.training.tasks.contrastive import open_embedder, open_pairs_of, open_stream

    recipe = read_recipe(Path("training/recipes/mini-picture-words.toml"))
    processes = Processes(rank=0, size=1, device=DEVICE)
    embedder = open_embedder(recipe, processes)
    stream = open_stream(recipe, embedder, open_pairs_of(recipe, embedder)[0], processes)
    workers, steps = min(16, os.cpu_count() or 1), 40 if ON_GPU else 4
    start = time.perf_counter()
    for step, batch in enumerate(batches(stream, 0, steps, workers, pin=ON_GPU)):
        batch.to(DEVICE)
        if step == 0:
            first, start = time.perf_counter() - start, time.perf_counter()
    rate = recipe.run.batch_size * (steps - 1) / (time.perf_counter() - start)
    print(json.dumps({"workers": workers, "first batch, s": round(first, 1), "images/s": round(rate)}))


PARTS = {"tests": tests, "training": training, "loss": loss, "embedding": embedding, "loader": loader}

if __name__ == "__main__":
    main()
