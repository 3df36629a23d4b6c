"""`vlm serve` under load: 50 clients at once, every answer compared with the right one, p99 and memory (Linux).

    python -m benchmarks.serve_load > benchmarks/serve_load.md     # 1,000 requests, then ten minutes of them
    python -m benchmarks.serve_load --quick                        # the second part takes 20 s

Server and clients are processes of this machine and share its processors.  Requests are searches by text and by
image, embeddings and classifications; no text and no image comes twice, so the cache answers none of them.  What
is right is computed afterwards by the library in this process.
"""

import argparse
import asyncio
import base64
import io
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from PIL import Image

import vlm
from benchmarks.machine import about

CLIENTS = 50
REQUESTS = 1000
LABELS = ["犬", "猫", "a red apple", "空を飛ぶ鳥"]
IMAGES = 200  # in the index
SIDE = 96  # pixels of an image that is sent
TOLERANCE = 1e-5  # of a number, for a batch of another size rounds differently


@dataclass
class Tally:
    """What came back."""

    milliseconds: list[float] = field(default_factory=list[float])
    kinds: Counter[str] = field(default_factory=Counter[str])
    lost: int = 0  # no answer, or not 200
    kept: list[tuple[int, Any]] = field(default_factory=list[tuple[int, Any]])  # number and answer, to check later


def main() -> None:
    parser = argparse.ArgumentParser(description="vlm serve under load")
    parser.add_argument("--quick", action="store_true", help="20 seconds instead of ten minutes")
    parser.add_argument("--model", default="mini")
    args = parser.parse_args()
    seconds = 20 if args.quick else 600
    torch.set_num_threads(1)
    embedder = vlm.load(args.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for n in range(IMAGES):
            (folder / "images" / f"{n:03d}.png").write_bytes(image(-1 - n))
        with vlm.EmbeddingIndex.open(folder / "index", embedder) as index:
            index.add_folder(folder / "images", workers=1)
            asyncio.run(measure(embedder, index, folder / "index", args.model, seconds))


async def measure(embedder: vlm.Embedder, index: vlm.EmbeddingIndex, folder: Path, model: str, seconds: float) -> None:
    command = [sys.executable, "-m", "vlm.cli", "serve", "--port", "0", "--model", model]
    command += ["--index", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        (address,) = re.findall(r"http://\S+:\d+", server.stderr.readline())
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
            first = Tally()
            start = time.perf_counter()
            await asyncio.gather(*(ask(client, first, range(n, REQUESTS, CLIENTS), None) for n in range(CLIENTS)))
            took = time.perf_counter() - start
            process, soak = psutil.Process(server.pid), Tally()
            watch = asyncio.create_task(memory(process, seconds))
            until = time.perf_counter() + seconds
            endless = [range(REQUESTS + n, 10**9, CLIENTS) for n in range(CLIENTS)]
            await asyncio.gather(*(ask(client, soak, numbers, until) for numbers in endless))
            sizes = await watch
        server.terminate()
        code = server.wait(60)
    mixed_up = [sum(not is_right(*kept, embedder, index) for kept in tally.kept) for tally in (first, soak)]
    report(model, (first, soak), mixed_up, (took, seconds), sizes, code)


async def ask(client: httpx.AsyncClient, tally: Tally, numbers: range, until: float | None) -> None:
    """One client: the next request when the last is answered.  The long run keeps every tenth answer."""
    for number in numbers:
        if until is not None and time.perf_counter() > until:
            return
        kind, path, body = request(number)
        start = time.perf_counter()
        try:
            answer = await client.post(path, json=body)
        except httpx.HTTPError as error:
            print(f"{path}: {error!r}", file=sys.stderr)
            tally.lost += 1
            continue
        tally.milliseconds.append(1000 * (time.perf_counter() - start))
        tally.kinds[kind] += 1
        if answer.status_code != 200:
            print(f"{path}: {answer.status_code} {answer.text}", file=sys.stderr)
            tally.lost += 1
        elif until is None or number // 4 % 10 == 0:
            tally.kept.append((number, answer.json()))


def request(number: int) -> tuple[str, str, dict[str, Any]]:
    text, file = f"a drawing of the number {number}", image(number)
    sent = base64.b64encode(file).decode()
    match number % 4:
        case 0:
            return "search by text", "/search", {"text": text, "k": 3}
        case 1:
            return "search by image", "/search", {"image": sent, "k": 3}
        case 2:
            return "embed", "/embed", {"texts": [text], "images": [sent]}
        case _:
            return "classify", "/classify", {"images": [sent], "labels": LABELS}


def is_right(number: int, answer: Any, embedder: vlm.Embedder, index: vlm.EmbeddingIndex) -> bool:
    text, file = f"a drawing of the number {number}", image(number)
    match number % 4:
        case 0 | 1:
            hits = index.search(text if number % 4 == 0 else [(1.0, file)], 3)
            return close([row["score"] for row in answer], [hit.score for hit in hits])
        case 2:
            rows = embedder.embed_texts([text]), embedder.embed_images([file])
            return all(
                close(answer[name][0], row[0].tolist()) for name, row in zip(("texts", "images"), rows, strict=True)
            )
        case _:
            found = {row["label"]: row["score"] for row in answer}
            right = vlm.classify(embedder, [file], LABELS)[0].tolist()
            return close([found[label] for label in LABELS], right)


def close(ours: list[float], right: list[float]) -> bool:
    return len(ours) == len(right) and bool(np.allclose(ours, right, rtol=0, atol=TOLERANCE))


def image(number: int) -> bytes:
    """A pattern of its own for each number."""
    small = np.random.default_rng(abs(number) * 2 + (number < 0)).integers(0, 256, (6, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((SIDE, SIDE)).save(file, "PNG")
    return file.getvalue()


async def memory(process: psutil.Process, seconds: float) -> list[float]:
    """MiB resident, at 20 moments."""
    sizes: list[float] = []
    for _ in range(20):
        await asyncio.sleep(seconds / 20)
        sizes.append(process.memory_info().rss / 2**20)
    return sizes


def report(
    model: str,
    tallies: tuple[Tally, Tally],
    mixed_up: list[int],
    seconds: tuple[float, float],
    sizes: list[float],
    code: int,
) -> None:
    command = f"python -m benchmarks.serve_load{' --quick' if seconds[1] < 600 else ''}"
    early, late = np.mean(sizes[:4]), np.mean(sizes[-4:])
    print(f"# vlm serve, {CLIENTS} clients at once, {model}\n")
    print(about(command, ["torch", "fastapi", "uvicorn"]))
    print("Server and clients share the processors.\n")
    print("| | requests | lost | mixed up | requests/s | p50, ms | p99, ms | slowest, ms |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    names = f"{REQUESTS:,} requests", f"{seconds[1]:.0f} s"
    for name, tally, wrong, time_taken in zip(names, tallies, mixed_up, seconds, strict=True):
        p50, p99, slowest = np.percentile(tally.milliseconds, [50, 99, 100])
        count, checked = len(tally.milliseconds), len(tally.kept)
        numbers = (
            f"{count:,} | {tally.lost} | {wrong} of {checked:,} | {count / time_taken:.0f} | {p50:.0f} | {p99:.0f}"
        )
        print(f"| {name} | {numbers} | {slowest:.0f} |")
    print("\nEvery answer of the first row was compared with the library's, every tenth of the second. Kinds: ", end="")
    kinds = tallies[0].kinds + tallies[1].kinds
    print(", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items())) + ".\n")
    print(f"Memory of the server, MiB, the mean of the first and of the last fifth: {early:.1f}, {late:.1f} ", end="")
    print(f"({late / early - 1:+.1%}); 20 moments: {' '.join(f'{size:.0f}' for size in sizes)}.")
    print(f"Exit code after SIGTERM: {code}.")


if __name__ == "__main__":
    main()
