"""A data set's vectors as parquet shards.  Each is whole or absent: a run may be killed anywhere, and goes on there.

    part-00000.parquet   uid (string), embedding (E numbers, unit length), row by row; broken samples left out
    broken.jsonl         those, with reasons, written when all shards are there

What the bits depend on stands in every shard's metadata (`vlm.` ...): a shard of another model, data set or setting is
never mixed in.  A shard is computed in the same batches whoever does it, so processes need no talk.
"""

import hashlib
import json
import math
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vlm import atomic
from vlm.checkpoint.load import load
from vlm.errors import ImageError
from vlm.images.open import MAX_BYTES
from vlm.images.preprocess import Preprocess
from vlm.training.data.rows import BrokenSample, Rows, open_rows

_PROBES = 32  # samples whose images are hashed to know a data set again


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is embedded, how, and to where."""

    model: str  # as for vlm.load
    data: str  # as for open_rows
    out: Path
    splits: tuple[str, ...] = ()
    rows_per_shard: int = 10_000
    batch_size: int = 64
    dtype: Literal["float16", "float32"] = "float16"
    device: str = "cpu"
    threads: int = 1  # of one process; sums come out differently in the last bit with another number
    workers: int = 1  # processes that decode ahead for each that embeds; the result does not depend on it

    def __post_init__(self) -> None:
        for name in ("rows_per_shard", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 or more, got {self.workers}.")


class Done(NamedTuple):
    """What was done; sums up by `+`-ing the fields."""

    shards: int  # written
    found: int  # whole already
    rows: int  # of all these shards
    broken: int  # of those rows, left out


class _Read(NamedTuple):
    rows: range
    uids: list[str]  # of the sound ones
    pixels: Tensor  # uint8 (B, 3, H, W), of the sound ones
    broken: list[dict[str, str | int]]


class ShardWriter:
    """A job, opened: `write(numbers)` makes those shards of `range(count)` that are not there yet."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.embedder = load(job.model, device=job.device)
        self.rows = open_rows(job.data, job.splits)
        if not len(self.rows):
            raise ValueError(f"{job.data} has no samples to embed.")
        self.count = math.ceil(len(self.rows) / job.rows_per_shard)
        job.out.mkdir(parents=True, exist_ok=True)
        self.identity = {
            "fingerprint": self.embedder.fingerprint,
            "embed_dim": str(self.embedder.embed_dim),
            "data": data_hash(self.rows),
            "rows": str(len(self.rows)),
            "rows_per_shard": str(job.rows_per_shard),
            "batch_size": str(job.batch_size),
            "dtype": job.dtype,
            "device": torch.device(job.device).type,
            "threads": str(job.threads),
        }
        self._refuse_others()

    def write(self, numbers: Sequence[int], *, progress: bool = False) -> Done:
        """Shards are written in the order of `numbers`; one that is there and whole is left alone."""
        missing, rows, broken = [], 0, 0
        for number in numbers:
            reasons = self._whole(number)
            if reasons is None:
                missing.append(number)
            else:
                rows, broken = rows + len(self._rows_of(number)), broken + len(reasons)
        found = len(numbers) - len(missing)
        with _threads(self.job.threads), self._bar(missing, progress) as bar:
            collected: list[_Read] = []
            embeds: list[Tensor] = []
            for read in self._read(missing):
                if len(read.uids):
                    pixels = self.embedder.preprocess.normalize(read.pixels.to(self.embedder.device))
                    embeds.append(self.embedder.embed_pixels(pixels))
                collected.append(read)
                broken += len(read.broken)
                bar.update(len(read.rows))
                bar.set_postfix(broken=broken, refresh=False)
                number = read.rows.start // self.job.rows_per_shard
                if read.rows.stop == self._rows_of(number).stop:
                    self._save(number, collected, embeds)
                    rows += len(self._rows_of(number))
                    collected, embeds = [], []
        return Done(len(missing), found, rows, broken)

    def finish(self) -> bool:
        """Writes broken.jsonl and returns True if all shards are there; whoever ends last finds them so."""
        paths = [self.path(number) for number in range(self.count)]
        if not all(path.exists() for path in paths):
            return False
        lines = [json.dumps(broken, ensure_ascii=False) for path in paths for broken in _broken(_metadata(path))]
        atomic.write(self.job.out / "broken.jsonl", "".join(f"{line}\n" for line in lines))
        return True

    def path(self, number: int) -> Path:
        return self.job.out / f"part-{number:05d}.parquet"

    def _rows_of(self, number: int) -> range:
        first = number * self.job.rows_per_shard
        return range(first, min(first + self.job.rows_per_shard, len(self.rows)))

    def _batches(self, numbers: Sequence[int]) -> Iterator[range]:
        for number in numbers:
            rows = self._rows_of(number)
            for first in range(rows.start, rows.stop, self.job.batch_size):
                yield range(first, min(first + self.job.batch_size, rows.stop))

    def _read(self, numbers: Sequence[int]) -> Iterator[_Read]:
        """In order, decoded ahead."""
        reader: Any = _Reader(self.rows, self.embedder.preprocess)
        sampler: Any = self._batches(numbers)
        workers = self.job.workers if numbers else 0
        as_it_is: Any = _as_it_is
        yield from DataLoader(reader, batch_size=None, sampler=sampler, num_workers=workers, collate_fn=as_it_is)

    def _save(self, number: int, reads: Sequence[_Read], embeds: Sequence[Tensor]) -> None:
        E = self.embedder.embed_dim
        vectors = torch.cat([torch.empty(0, E), *embeds]).numpy().astype(self.job.dtype)
        kind = pa.list_(pa.from_numpy_dtype(vectors.dtype), E)
        broken = json.dumps([found for read in reads for found in read.broken], ensure_ascii=False)
        metadata = {**self.identity, "model": self.embedder.name, "shard": str(number), "broken": broken}
        schema = pa.schema(
            [("uid", pa.string()), ("embedding", kind)],
            metadata={f"vlm.{name}": value for name, value in metadata.items()},
        )
        columns = [
            pa.array([uid for read in reads for uid in read.uids], pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=kind),
        ]
        table = pa.Table.from_arrays(columns, schema=schema)
        with atomic.replacing(self.path(number)) as new:
            pq.write_table(table, new, use_dictionary=False, compression="none", write_page_checksum=True)

    def _whole(self, number: int) -> list[dict[str, Any]] | None:
        """What is broken in a shard that is there and whole, by its checksums; None: it has to be made."""
        path, rows = self.path(number), self._rows_of(number)
        if not path.exists():
            return None
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            print(f"{path} is damaged and made again ({' '.join(str(error).split())})", file=sys.stderr)
            return None
        broken = _broken(table.schema.metadata)
        left_out = {found["row"] for found in broken}
        if table["uid"].to_pylist() != [self.rows.uid(index) for index in rows if index not in left_out]:
            raise ValueError(
                f"{path} has other samples than rows {rows.start} to {rows.stop - 1} of {self.rows.name}: the data "
                "has changed. Name another folder."
            )
        return broken

    def _refuse_others(self) -> None:
        """`ValueError` if a readable shard in the folder is of another job."""
        for path in sorted(self.job.out.glob("part-*.parquet")):
            try:
                there = _metadata(path)
            except (OSError, pa.ArrowException):
                continue  # damaged: made again
            for name, wanted in self.identity.items():
                found = there.get(f"vlm.{name}".encode(), b"nothing").decode()
                if found != wanted:
                    raise ValueError(
                        f"{path} has {name} {found}, this run {wanted}: {_WHAT_DIFFERS.get(name, 'other settings')}. "
                        "Name another folder."
                    )

    def _bar(self, missing: Sequence[int], progress: bool) -> Any:
        total = sum(len(self._rows_of(number)) for number in missing)
        return tqdm(total=total, desc="embedding", unit="image", disable=not progress, file=sys.stderr, smoothing=0.1)


_WHAT_DIFFERS = {"fingerprint": "another model", "embed_dim": "another model", "data": "other data",
                 "rows": "other data"}  # fmt: skip


class _Reader(Dataset[_Read]):
    """range of rows -> what their images hold."""

    def __init__(self, rows: Rows, preprocess: Preprocess) -> None:
        self.rows, self.preprocess = rows, preprocess

    def __getitem__(self, batch: range) -> _Read:
        uids, pixels, broken = [], [], []
        for row in batch:
            uid = self.rows.uid(row)
            try:
                pixels.append(self.preprocess.pixels(self.rows.image(row)))
                uids.append(uid)
            except (BrokenSample, ImageError) as error:
                broken.append({"row": row, "uid": uid, "reason": error.reason, "detail": error.detail})
        return _Read(batch, uids, torch.stack(pixels) if pixels else torch.empty(0), broken)


def _as_it_is(read: _Read) -> _Read:
    return read


def data_hash(rows: Rows) -> str:
    """16 hex digits of a data set: how many samples, and name and image of 32 of them."""
    digest = hashlib.sha256(str(len(rows)).encode())
    for row in np.linspace(0, len(rows) - 1, min(_PROBES, len(rows))).astype(int).tolist():
        digest.update(json.dumps(rows.uid(row)).encode())
        try:
            image = rows.image(row)
            match image:
                case bytes():
                    digest.update(image)
                case str() | os.PathLike():
                    digest.update(_file_digest(image))
                case _:
                    digest.update(np.asarray(image).tobytes())
        except (BrokenSample, OSError) as error:
            digest.update(type(error).__name__.encode())
    return digest.hexdigest()[:16]


def _file_digest(path: str | os.PathLike[str]) -> bytes:
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_BYTES:
        return b"nothing to decode"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def embed_with_ray(job: Job, *, progress: bool = False) -> tuple[Done, bool]:
    """The same shards, each a task of the Ray cluster that RAY_ADDRESS names, else of one on this machine.

    As many actors as the cluster has room for (one GPU each with device cuda, else threads + workers processors); one
    that dies is started again.  All machines see model, data and `out` under the same paths.
    """
    import ray
    from ray.exceptions import RayTaskError
    from ray.util import ActorPool

    writer = ShardWriter(job)  # here too: it says at once what cannot be
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        gpu = torch.device(job.device).type == "cuda"
        need = {"GPU": 1.0} if gpu else {"CPU": float(job.threads + job.workers)}
        room = min(int(ray.cluster_resources().get(name, 0) // amount) for name, amount in need.items())
        if not room:
            raise ValueError(f"The Ray cluster has no room for one process: it needs {need}.")
        actor = ray.remote(num_cpus=job.threads + job.workers, num_gpus=int(gpu), max_restarts=3, max_task_retries=3)(
            ShardWriter
        )
        actors: list[Any] = [actor.remote(job) for _ in range(min(room, writer.count))]
        done = Done(0, 0, 0, 0)
        numbers = list(range(writer.count))
        tasks: Any = ActorPool(actors).map_unordered(lambda actor, number: actor.write.remote([number]), numbers)
        for part in tqdm(tasks, total=writer.count, desc="embedding", unit="shard", disable=not progress):
            done = add(done, part)
        return done, writer.finish()
    except RayTaskError as error:
        raise error.cause from None  # what it is without Ray
    finally:
        if started:
            ray.shutdown()


def add(one: Done, other: Done) -> Done:
    return Done(*(a + b for a, b in zip(one, other, strict=True)))


def embed(job: Job, rank: int = 0, size: int = 1, *, progress: bool = False) -> tuple[Done, bool]:
    """This process's part of the shards, every `size`-th from `rank` on; and whether all of them are there now."""
    writer = ShardWriter(job)
    done = writer.write(range(rank, writer.count, size), progress=progress)
    return done, writer.finish()


def _metadata(path: Path) -> dict[bytes, bytes]:
    return pq.read_schema(path).metadata or {}


def _broken(metadata: dict[bytes, bytes]) -> list[dict[str, Any]]:
    return json.loads(metadata[b"vlm.broken"])


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch computes with that many, whatever OMP_NUM_THREADS, torchrun or Ray set."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
