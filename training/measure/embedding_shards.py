"""Embeddings of a data set as parquet shards.  Writes are atomic: an interrupted run keeps its whole shards.

    part-00000.parquet   uid (string), embedding (E numbers, unit length), one row per sample, without broken samples
    broken.jsonl         the broken samples with reasons, written when all shards are there

The metadata of every shard (`vlm.` ...) holds all settings that its bits depend on, and shards of another model, data
set or setting are refused.  The batches of a shard are the same in any process, so processes need no communication.
"""

import hashlib
import json
import logging
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
from vlm.errors import DataError, ImageError, InputError
from vlm.images.open import MAX_BYTES
from vlm.images.preprocess import Preprocess
from vlm.precision import Precision
from vlm.training.data.rows import BrokenSample, ColumnNames, Rows, broken_sample
from vlm.training.data.sources import open_rows
from vlm.user_folders import check_output

_log = logging.getLogger(__name__)
_HASHED = 32  # samples whose images go into the hash of a data set


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """The model, the data and the settings of a set of shards."""

    model: str  # as for vlm.load
    data: str  # as for open_rows
    trust_remote_code: bool = False  # run code that comes with the model
    out: Path  # folder of the shards
    splits: tuple[str, ...] = ()
    columns: ColumnNames | None = None  # as for open_rows
    root: Path | None = None
    rows_per_shard: int = 10_000
    batch_size: int = 64
    dtype: Literal["float16", "float32"] = "float16"  # of the stored numbers
    device: str = "cpu"
    weights: Precision = "auto"  # of the model, as for vlm.load
    threads: int = 1  # of one process; another number changes the last bit of sums
    workers: int = 1  # loader processes of each process that embeds; the result does not depend on it

    def __post_init__(self) -> None:
        for name in ("rows_per_shard", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if self.workers < 0:
            raise InputError(f"workers must be 0 or more, got {self.workers}.")


class ShardCounts(NamedTuple):
    """Numbers of shards and samples that a run has written or found."""

    shards: int  # written
    found: int  # that were there already
    rows: int  # samples of all these shards
    broken: int  # samples of these that were left out


class _ShardBatch(NamedTuple):
    """Samples of one batch, decoded."""

    rows: range
    uids: list[str]  # of the usable samples
    pixels: Tensor  # uint8 (B, C, H, W), of the usable samples
    broken: list[dict[str, str | int]]


class ShardWriter:
    """Writes the shards of a job: `write(numbers)` those of `range(count)` that are missing."""

    def __init__(self, job: ShardJob) -> None:
        self.job = job
        trusted = job.trust_remote_code
        self.embedder = load(job.model, device=job.device, dtype=job.weights, trust_remote_code=trusted)
        self.rows = open_rows(job.data, job.splits, job.columns, job.root)
        if not len(self.rows):
            raise DataError(f"{job.data} has no samples to embed. Name a data set that has images.")
        self.count = math.ceil(len(self.rows) / job.rows_per_shard)
        check_output(job.out, [job.data])
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
        if job.weights != "auto":
            self.identity["weights"] = job.weights
        self._refuse_others()

    def write(self, numbers: Sequence[int], *, progress: bool = False) -> ShardCounts:
        """Write the missing shards in the order of `numbers`; whole shards stay as they are.

        Args:
            numbers: of the shards, from 0.
            progress: show a progress bar on stderr.
        """
        missing, rows, broken = [], 0, 0
        for number in numbers:
            reasons = self._whole(number)
            if reasons is None:
                missing.append(number)
            else:
                rows, broken = rows + len(self._rows_of(number)), broken + len(reasons)
        found = len(numbers) - len(missing)
        with _threads(self.job.threads), self._bar(missing, progress) as bar:
            collected: list[_ShardBatch] = []
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
        return ShardCounts(len(missing), found, rows, broken)

    def finish(self) -> bool:
        """Write broken.jsonl and return True if all shards are there, which the last process finds.

        Raises:
            DataError: all shards are there and no sample could be embedded.
        """
        paths = [self.path(number) for number in range(self.count)]
        if not all(path.exists() for path in paths):
            return False
        broken = [sample for path in paths for sample in _broken(_metadata(path))]
        lines = [json.dumps(sample, ensure_ascii=False) for sample in broken]
        listed = self.job.out / "broken.jsonl"
        atomic.write(listed, "".join(f"{line}\n" for line in lines))
        if len(broken) == len(self.rows):
            first = broken[0]
            raise DataError(
                f"None of the {len(self.rows)} samples of {self.job.data} could be embedded; {listed} lists them. The "
                f"first: {first['uid']}: {first['reason']}: {first['detail']}. Where paths begin elsewhere, name the "
                "folder: --root."
            )
        return True

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.job.out / f"part-{number:05d}.parquet"

    def _rows_of(self, number: int) -> range:
        first = number * self.job.rows_per_shard
        return range(first, min(first + self.job.rows_per_shard, len(self.rows)))

    def _batches(self, numbers: Sequence[int]) -> Iterator[range]:
        for number in numbers:
            rows = self._rows_of(number)
            for first in range(rows.start, rows.stop, self.job.batch_size):
                yield range(first, min(first + self.job.batch_size, rows.stop))

    def _read(self, numbers: Sequence[int]) -> Iterator[_ShardBatch]:
        """The batches of these shards in order, decoded ahead by the workers."""
        reader: Any = _BatchReader(self.rows, self.embedder.preprocess)
        sampler: Any = self._batches(numbers)
        workers = self.job.workers if numbers else 0
        unchanged: Any = _unchanged
        yield from DataLoader(reader, batch_size=None, sampler=sampler, num_workers=workers, collate_fn=unchanged)

    def _save(self, number: int, reads: Sequence[_ShardBatch], embeds: Sequence[Tensor]) -> None:
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
        """The broken samples of a shard whose checksums are right; None where the shard has to be written."""
        path, rows = self.path(number), self._rows_of(number)
        if not path.exists():
            return None
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            _log.warning("%s is damaged and is written again (%s)", path, " ".join(str(error).split()))
            return None
        broken = _broken(table.schema.metadata)
        left_out = {found["row"] for found in broken}
        if table["uid"].to_pylist() != [self.rows.uid(index) for index in rows if index not in left_out]:
            raise DataError(
                f"{path} has other samples than rows {rows.start} to {rows.stop - 1} of {self.rows.name}: the data "
                "has changed. Name another folder."
            )
        return broken

    def _refuse_others(self) -> None:
        """Raise `DataError` if a readable shard in the folder is of another job."""
        for path in sorted(self.job.out.glob("part-*.parquet")):
            try:
                there = _metadata(path)
            except (OSError, pa.ArrowException):
                continue  # damaged: it is written again
            for name, wanted in self.identity.items():
                found = there.get(f"vlm.{name}".encode(), b"nothing").decode()
                if found != wanted:
                    raise DataError(
                        f"{path} has {name} {found}, this run {wanted}: {_WHAT_DIFFERS.get(name, 'other settings')}. "
                        "Name another folder."
                    )

    def _bar(self, missing: Sequence[int], progress: bool) -> Any:
        total = sum(len(self._rows_of(number)) for number in missing)
        return tqdm(total=total, desc="embedding", unit="image", disable=not progress, file=sys.stderr, smoothing=0.1)


_WHAT_DIFFERS = {"fingerprint": "another model", "embed_dim": "another model", "data": "other data",
                 "rows": "other data"}  # fmt: skip


class _BatchReader(Dataset[_ShardBatch]):
    """Row numbers of a batch -> the batch, decoded."""

    def __init__(self, rows: Rows, preprocess: Preprocess) -> None:
        self.rows, self.preprocess = rows, preprocess

    def __getitem__(self, batch: range) -> _ShardBatch:
        uids, pixels, broken = [], [], []
        self.rows.read_ahead(batch)
        for row in batch:
            uid = self.rows.uid(row)
            try:
                pixels.append(self.preprocess.pixels(self.rows.image(row)))
                uids.append(uid)
            except ImageError as error:
                found = broken_sample(uid, error)
                broken.append({"row": row, "uid": uid, "reason": found.reason, "detail": found.detail})
        return _ShardBatch(batch, uids, torch.stack(pixels) if pixels else torch.empty(0), broken)


def _unchanged(batch: _ShardBatch) -> _ShardBatch:
    return batch


def data_hash(rows: Rows) -> str:
    """Hash of a data set, 16 hex digits: the number of samples, and the uid and the image of 32 of them."""
    digest = hashlib.sha256(str(len(rows)).encode())
    for row in np.linspace(0, len(rows) - 1, min(_HASHED, len(rows))).astype(int).tolist():
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


def embed_with_ray(job: ShardJob, *, progress: bool = False) -> tuple[ShardCounts, bool]:
    """Write the same shards, each as a task of a Ray cluster: that of RAY_ADDRESS, else one on this machine.

    As many actors as the cluster has room for: each takes a GPU with device cuda, else threads + workers processors.
    Actors that die are restarted.  All machines must see the model, the data and `out` under the same paths.

    Args:
        job: the model, the data and the settings.
        progress: show a progress bar on stderr.

    Returns:
        The counts of this run, and whether all shards are there.

    Raises:
        InputError: the cluster has no room for one actor.
    """
    import ray
    from ray.exceptions import RayTaskError
    from ray.util import ActorPool

    writer = ShardWriter(job)  # checks the job before the cluster starts
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        gpu = torch.device(job.device).type == "cuda"
        need = {"GPU": 1.0} if gpu else {"CPU": float(job.threads + job.workers)}
        room = min(int(ray.cluster_resources().get(name, 0) // amount) for name, amount in need.items())
        if not room:
            raise InputError(f"The Ray cluster has no room for one process, which needs {need}. Lower workers.")
        actor = ray.remote(num_cpus=job.threads + job.workers, num_gpus=int(gpu), max_restarts=3, max_task_retries=3)(
            ShardWriter
        )
        actors: list[Any] = [actor.remote(job) for _ in range(min(room, writer.count))]
        done = ShardCounts(0, 0, 0, 0)
        numbers = list(range(writer.count))
        tasks: Any = ActorPool(actors).map_unordered(lambda actor, number: actor.write.remote([number]), numbers)
        for part in tqdm(tasks, total=writer.count, desc="embedding", unit="shard", disable=not progress):
            done = add(done, part)
        return done, writer.finish()
    except RayTaskError as error:
        raise error.cause from None  # the error itself, without Ray's wrapper
    finally:
        if started:
            ray.shutdown()


def add(one: ShardCounts, other: ShardCounts) -> ShardCounts:
    """The sum of two counts, field by field."""
    return ShardCounts(*(a + b for a, b in zip(one, other, strict=True)))


def embed(job: ShardJob, rank: int = 0, size: int = 1, *, progress: bool = False) -> tuple[ShardCounts, bool]:
    """Write this process's part of the shards: every `size`-th from `rank` on.

    Args:
        job: the model, the data and the settings.
        rank: number of this process.
        size: number of processes.
        progress: show a progress bar on stderr.

    Returns:
        The counts of this process, and whether all shards are there now.
    """
    writer = ShardWriter(job)
    done = writer.write(range(rank, writer.count, size), progress=progress)
    return done, writer.finish()


def _metadata(path: Path) -> dict[bytes, bytes]:
    return pq.read_schema(path).metadata or {}


def _broken(metadata: dict[bytes, bytes]) -> list[dict[str, Any]]:
    return json.loads(metadata[b"vlm.broken"])


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch uses so many threads, whatever OMP_NUM_THREADS, torchrun or Ray set."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
