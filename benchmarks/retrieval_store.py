"""The store of `vlm/index/vector_store.py` beside LanceDB: time, size and what a crash leaves, at COUNT vectors of 512.

    pip install lancedb && python -m benchmarks.retrieval_store [COUNT] >> benchmarks/retrieval_store.md

Both take the same unit vectors in batches of 1000, one commit each, and find the same ten nearest, exactly, for 20
queries that take turns.  Processor time stands beside the clock, for machines that have other work.  The last line is
the time to add up the same bytes: no exact search can be faster than memory.
"""

import datetime
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import lancedb
import numpy as np
import pyarrow as pa
import torch

from benchmarks.machine import about
from vlm.index.exact_search import nearest
from vlm.index.filters import Filter
from vlm.index.records import Content, Record
from vlm.index.vector_store import VectorStore

EMBED_DIM = 512
BATCH = 1000
QUERIES = 20
KILLS = 5


class Store(Protocol):
    def add(self, first: int, vectors: np.ndarray) -> None: ...
    def delete(self, numbers: range) -> None: ...
    def compact(self) -> None: ...
    def nearest(self, query: np.ndarray) -> list[str]: ...
    def names(self) -> list[str]: ...


class Ours:
    def __init__(self, folder: Path) -> None:
        self.store = VectorStore(folder)
        self.model = self.store.model("fingerprint", "model", EMBED_DIM)

    def add(self, first: int, vectors: np.ndarray) -> None:
        numbers = range(first, first + len(vectors))
        contents = [Content(digest=b"%d" % n, size=n, width=1, height=1, taken=None) for n in numbers]
        records = [Record(path=f"/{c.size}", size=c.size, mtime=0, digest=c.digest, content=c) for c in contents]
        self.store.add(self.model, records, {c.digest: v for c, v in zip(contents, vectors, strict=True)})

    def delete(self, numbers: range) -> None:
        self.store.delete(f"/{n}" for n in numbers)

    def compact(self) -> None:
        self.store.prune()

    def nearest(self, query: np.ndarray) -> list[str]:
        rows = nearest(self.store.vectors(self.model), torch.from_numpy(query)[None], 20)[1][0].tolist()
        path_of = dict(self.store.files_at(self.model, rows, Filter()))
        return [path_of[row] for row in rows if row in path_of][:10]

    def names(self) -> list[str]:
        return sorted(self.store.present_below("/"))


class Lance:
    def __init__(self, folder: Path) -> None:
        schema = pa.schema(
            [
                ("path", pa.string()),
                ("digest", pa.binary()),
                ("size", pa.int64()),
                ("vector", pa.list_(pa.float16(), EMBED_DIM)),
            ]
        )
        self.table = lancedb.connect(folder).create_table("images", schema=schema, exist_ok=True)

    def add(self, first: int, vectors: np.ndarray) -> None:
        numbers = range(first, first + len(vectors))
        flat = pa.array(vectors.astype(np.float16).reshape(-1))
        columns = {
            "path": [f"/{n}" for n in numbers],
            "digest": [b"%d" % n for n in numbers],
            "size": list(numbers),
            "vector": pa.FixedSizeListArray.from_arrays(flat, EMBED_DIM),
        }
        self.table.add(pa.table(columns, schema=self.table.schema))

    def delete(self, numbers: range) -> None:
        self.table.delete(f"size >= {numbers.start} AND size < {numbers.stop}")

    def compact(self) -> None:
        self.table.optimize(cleanup_older_than=datetime.timedelta(0))

    def nearest(self, query: np.ndarray) -> list[str]:
        search = (
            self.table.search(query, vector_column_name="vector").distance_type("dot").select(["path", "_distance"])
        )
        return [row["path"] for row in search.limit(10).to_list()]

    def names(self) -> list[str]:
        return sorted(
            row["path"] for row in self.table.search().select(["path"]).limit(self.table.count_rows()).to_list()
        )


STORES: dict[str, Callable[[Path], Store]] = {"SQLite + float16 file": Ours, "LanceDB": Lance}


def batches(count: int) -> Iterator[tuple[int, np.ndarray]]:
    generator = np.random.default_rng(0)
    for first in range(0, count, BATCH):
        vectors = generator.standard_normal((BATCH, EMBED_DIM), np.float32)
        yield first, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@contextmanager
def timed(row: dict[str, str], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    row[name] = f"{(time.perf_counter() - start) * 1000:,.0f} ms"


def measure(count: int, root: Path) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = {name: {} for name in STORES}
    stores: dict[str, Store] = {}
    for name, open_store in STORES.items():
        stores[name] = open_store(root / name)
        spent = 0.0
        for first, vectors in batches(count):
            start = time.perf_counter()
            stores[name].add(first, vectors)
            spent += time.perf_counter() - start
        rows[name]["add, per 1000"] = f"{spent / count * 1e6:,.0f} ms"
        rows[name]["size"] = f"{size(root / name) / 2**20:,.0f} MiB"
    queries = next(batches(BATCH))[1][:QUERIES]  # they are in there: each finds itself first
    search(stores, queries, rows, "search")
    for name, open_store in STORES.items():
        with timed(rows[name], "open to first answer"):
            open_store(root / name).nearest(queries[0])
        with timed(rows[name], "delete a tenth"):
            stores[name].delete(range(count // 2, count // 2 + count // 10))
        with timed(rows[name], "compact"):
            stores[name].compact()
        rows[name]["size then"] = f"{size(root / name) / 2**20:,.0f} MiB"
    search(stores, queries, rows, "search then")
    return rows


def search(stores: dict[str, Store], queries: np.ndarray, rows: dict[str, dict[str, str]], row: str) -> None:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in stores}
    for query in queries:
        found: list[list[str]] = []
        for name, store in stores.items():
            start, worked = time.perf_counter(), time.process_time()
            found.append(store.nearest(query))
            times[name].append((time.perf_counter() - start, time.process_time() - worked))
        same = len(set(found[0]) & set(found[1]))
        if same < 9:  # float16 rounding may swap the last
            raise ValueError(f"the stores disagree: {found}")
    for name in stores:
        clock, processor = np.median(times[name], axis=0) * 1000
        rows[name][row] = f"{clock:,.0f} ms"
        rows[name][f"{row}, its processor time"] = f"{processor:,.0f} ms"


def crash(root: Path) -> dict[str, str]:
    """Kill a writer KILLS times; a batch is whole or not there at all, and what was reported is there."""
    results: dict[str, str] = {}
    for name, open_store in STORES.items():
        folder, whole = root / f"crash {name}", 0
        for kill in range(KILLS):
            code = f"import benchmarks.retrieval_store as b; b.write_on({name!r}, {str(folder)!r}, {kill * 1_000_000})"
            with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                reported = [child.stdout.readline() for _ in range(2)]
                time.sleep(0.05 + 0.07 * kill)
                child.send_signal(signal.SIGKILL)
                reported += child.stdout.read().splitlines()
            names = open_store(folder).names()
            mine = [n for n in names if int(n[1:]) >= kill * 1_000_000]
            sound = len(set(names)) == len(names) and len(mine) % BATCH == 0 and len(mine) >= BATCH * len(reported)
            whole += sound
        results[name] = f"{whole} of {KILLS} whole"
    return results


def write_on(name: str, folder: str, first: int) -> None:
    store, vectors = STORES[name](Path(folder)), next(batches(BATCH))[1]
    while True:
        store.add(first, vectors)
        print(first, flush=True)
        first += BATCH


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def stream(count: int) -> float:
    """Seconds of processor time to add up the bytes of all vectors, best of 5."""
    numbers = torch.ones(count * EMBED_DIM * 2 // 8, dtype=torch.int64)
    times: list[float] = []
    for _ in range(5):
        start = time.process_time()
        numbers.sum()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    root = Path(tempfile.mkdtemp())
    rows = measure(count, root)
    for name, result in crash(root).items():
        rows[name]["kill -9 while adding"] = result
    shutil.rmtree(root)
    print(about(f"python -m benchmarks.retrieval_store {count}", ["torch", "lancedb"], torch.get_num_threads()))
    print(f"{count:,} x {EMBED_DIM}\n\n|  | {' | '.join(rows)} |\n|---|{'---|' * len(rows)}")
    for measured in next(iter(rows.values())):
        print(f"| {measured} | {' | '.join(row[measured] for row in rows.values())} |")
    print(f"\nStreaming the same bytes through memory: {stream(count) * 1000:,.1f} ms of processor time.")


if __name__ == "__main__":
    main()
