"""Shards on disk and at URLs: the same samples in the same order, read in large blocks."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.data_formats import CLASSES, tars
from vlm.config import PreprocessConfig
from vlm.errors import DataError
from vlm.images.preprocess import Preprocess
from vlm.tokenizers.protocol import Tokenizer
from vlm.training.data.formats import shards as shards_module
from vlm.training.data.formats import tar_headers
from vlm.training.data.formats import tars as tars_module
from vlm.training.data.formats.shards import BlockFile, Range, ReadAhead, Shards, blocks_of, local_shard, remote_shards
from vlm.training.data.formats.tars import Tars
from vlm.training.data.order import Shuffled
from vlm.training.data.pair_stream import PairStream
from vlm.training.data.pairs import Pairs
from vlm.training.data.rows import Joined, Rows, Selected
from vlm.training.data.sources import open_rows
from vlm.training.data.stream import batches
from vlm.training.recipe.augmentation import AugmentConfig

PREPROCESS = Preprocess(PreprocessConfig(image_size=16))


class FlakyFileSystem(MemoryFileSystem):
    """Objects in memory; as many reads as `failures` says fail first."""

    protocol = "flaky"
    failures = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        if FlakyFileSystem.failures:
            FlakyFileSystem.failures -= 1
            raise ConnectionResetError("connection reset by peer")
        return super().cat_file(path, start, end, **kwargs)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return tars(tmp_path, 3)


@pytest.fixture
def remote(local: Path) -> Iterator[str]:
    """The same shards at a URL."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    store, folder = fsspec.filesystem("memory"), f"/{local.name}"
    for path in sorted(local.glob("*.tar")):
        store.pipe_file(f"{folder}/{path.name}", path.read_bytes())
    yield f"memory:/{folder}"
    store.rm(folder, recursive=True)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(shards_module.time, "sleep", waits.append)
    return waits


def content(rows: Rows) -> list[tuple[str, object, bytes]]:
    return [(rows.uid(i), rows.captions(i), bytes(rows.image(i))) for i in range(len(rows))]  # type: ignore[arg-type]


def test_blocks_hold_every_place_and_ascend():
    rng = np.random.default_rng(0)
    for gap, largest in ((0, 1), (0, 500), (40, 500), (10**6, 10**6)):
        starts = rng.integers(0, 5000, 60)
        places = [
            Range(int(s) % 3, int(s), int(s) + int(n)) for s, n in zip(starts, rng.integers(1, 90, 60), strict=True)
        ]
        blocks = blocks_of(places, gap, largest)
        assert blocks == sorted(blocks)
        for place in places:
            assert any(b.shard == place.shard and b.start <= place.start and place.end <= b.end for b in blocks)
        assert all(b.end - b.start <= largest or b in places for b in blocks)
        covered = {(p.shard, byte) for p in places for byte in range(p.start, p.end)}
        read = {(b.shard, byte) for b in blocks for byte in range(b.start, b.end)}
        assert gap or read == covered
    assert blocks_of([Range(0, 0, 10), Range(0, 14, 20)], 4, 99) == [Range(0, 0, 20)]
    assert blocks_of([Range(0, 0, 10), Range(0, 15, 20)], 4, 99) == [Range(0, 0, 10), Range(0, 15, 20)]


@pytest.mark.parametrize("block_bytes", [1, 3000, 1 << 20])
@pytest.mark.parametrize("ahead_bytes", [1, 5000, 1 << 20])
def test_reading_ahead_gives_each_member_in_ascending_reads(
    local: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, ahead_bytes: int
):
    monkeypatch.setattr(shards_module, "AHEAD_BYTES", ahead_bytes)
    shards = Shards([local_shard(path) for path in sorted(local.glob("*.tar"))])
    reads: list[list[Range]] = []
    read = shards.read
    monkeypatch.setattr(shards, "read", lambda ranges: (reads.append(list(ranges)), read(ranges))[1])
    places, truth = [], []
    for number, shard in enumerate(shards.files):
        with tarfile.open(shard.name) as tar:
            for member in tar:
                places.append(Range(number, member.offset_data, member.offset_data + member.size))
                truth.append(tar.extractfile(member).read())  # type: ignore[union-attr]
    order = [*np.random.default_rng(1).permutation(len(places)).tolist(), 5, 5]  # and one once more, later
    ahead = ReadAhead(shards, block_bytes)
    for plan in (order[:30], order[30:]):
        ahead.plan([places[number] for number in plan])
        assert [ahead.get(places[number]) for number in plan] == [truth[number] for number in plan]
    assert ahead.get(places[0]) == truth[0]  # not planned
    assert all(group == sorted(group) for group in reads)
    if min(block_bytes, ahead_bytes) == 1 << 20:
        assert len(reads) <= 3 and len(reads[0]) <= 3  # one group a plan, one read a shard


def test_a_damaged_place_does_not_take_its_neighbours_along(local: Path):
    rows = open_rows(local)
    (local / "00001.tar").unlink()
    rows.read_ahead(range(24))
    sound, reasons = 0, set()
    for index in range(24):
        try:
            sound += bool(rows.image(index))
        except DataError as error:
            reasons.add(getattr(error, "reason", None))
    assert (sound, reasons) == (16, {"unreadable"})


def test_shards_at_a_url_are_the_samples_of_the_files(local: Path, remote: str):
    truth = content(open_rows(local))
    assert len(truth) == 24
    for source in (remote, f"{remote}/*.tar", remote + "/{00000..00002}.tar"):
        assert content(open_rows(source)) == truth
    assert content(open_rows(f"{remote}/00001.tar")) == truth[8:16]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("block_bytes", [1, 4096, 16 << 20])
@pytest.mark.parametrize("at_url", [False, True])
def test_the_order_does_not_depend_on_workers_ranks_blocks_or_place(
    local: Path, remote: str, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch,
    workers: int, world: int, block_bytes: int, at_url: bool,
):  # fmt: skip
    def hashes(rows: Rows, workers: int, world: int) -> list[list[tuple[str, bytes]]]:
        """Of each step: names, pixels after augmentation, and ids without padding."""
        pairs = Pairs(rows, PREPROCESS, cache="none")
        ranks = [
            batches(
                PairStream(pairs, tiny_tokenizer, AugmentConfig(), seed=5, batch_size=8, num_patches=4,
                           order=Shuffled(len(rows), 5, window=4), rank=rank, world=world),
                1, 5, workers, largest_item=3)
            for rank in range(world)
        ]  # fmt: skip
        return [
            [(uid, image.numpy().tobytes() + bytes(ids[ids != tiny_tokenizer.pad_id].numpy()))
             for batch in parts for uid, image, ids in zip(batch.uids, batch.images, batch.ids, strict=True)]
            for parts in zip(*ranks, strict=True)
        ]  # fmt: skip

    truth = hashes(open_rows(local), 0, 1)
    rows = open_rows(remote if at_url else local)
    assert isinstance(rows, Tars)
    monkeypatch.setattr(rows, "_ahead", ReadAhead(rows.shards, block_bytes))
    assert hashes(rows, workers, world) == truth


def test_a_read_that_fails_is_tried_again(remote: str, local: Path, no_waiting: list[float]):
    truth, url = content(open_rows(local)), remote.replace("memory:", "flaky:")
    rows = open_rows(url)
    FlakyFileSystem.failures = 3
    rows.read_ahead(range(8))
    assert content(rows) == truth
    assert no_waiting == [0.5] or no_waiting == [0.5, 1.0, 2.0]  # one by one, or several at once
    rows.read_ahead([])  # forgets what was read
    FlakyFileSystem.failures = 10**6
    try:
        with pytest.raises(
            DataError, match=r"flaky://.*/00000\.tar cannot be read after 5 attempts \(connection reset"
        ):
            rows.image(0)
        fsspec.filesystem("memory").rm(url.replace("flaky:/", "") + "/00000.tar")
        FlakyFileSystem.failures = 0
        with pytest.raises(DataError, match=r"00000\.tar cannot be read \("):
            rows.image(1)
    finally:
        FlakyFileSystem.failures = 0


def test_a_store_that_fails_while_headers_are_read_is_no_damaged_shard(remote: str, no_waiting: list[float]):
    url = remote.replace("memory:", "flaky:")
    shards = remote_shards(url, [url])
    FlakyFileSystem.failures = 10**6
    try:
        with pytest.raises(DataError, match="after 5 attempts"):
            list(tar_headers.read_headers(shards[:1], ["0"], [""], {}, 0))
        FlakyFileSystem.failures = 2
        assert len(list(tar_headers.read_headers(shards, ["0", "1", "2"], [""] * 3, {}, 0))) == 24
    finally:
        FlakyFileSystem.failures = 0


def test_headers_are_read_in_parallel_with_the_same_rows_and_kept(
    local: Path, remote: str, monkeypatch: pytest.MonkeyPatch
):
    files = [local_shard(path) for path in sorted(local.glob("*.tar"))]
    names = [f"{number}.tar" for number in range(3)]
    alone = list(tar_headers.read_headers(files, names, ["a", "b", "c"], {}, 0))
    monkeypatch.setattr(tar_headers, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(tar_headers.os, "cpu_count", lambda: 2)
    pools: list[int] = []
    pool = tar_headers.ProcessPoolExecutor
    monkeypatch.setattr(tar_headers, "ProcessPoolExecutor", lambda count: (pools.append(count), pool(count))[1])
    assert list(tar_headers.read_headers(files, names, ["a", "b", "c"], {}, 0)) == alone
    assert (len(alone), pools) == (24, [2])
    at_url = remote_shards(remote, [remote])
    assert list(tar_headers.read_headers(at_url, names, ["a", "b", "c"], {}, 0)) == alone
    truth = content(open_rows(remote))
    monkeypatch.setattr(Shards, "read", lambda *_: pytest.fail("read again"))
    assert [uid for uid, _, _ in truth] == [open_rows(remote).uid(index) for index in range(24)]


@pytest.mark.parametrize("scan_bytes", [100, 1000, 1 << 20])
def test_a_file_in_blocks_is_the_file(local: Path, monkeypatch: pytest.MonkeyPatch, scan_bytes: int):
    monkeypatch.setattr(shards_module, "SCAN_BYTES", scan_bytes)
    path = local / "00000.tar"
    file, rng = BlockFile(Shards([local_shard(path)]), 0), np.random.default_rng(0)
    with path.open("rb") as truth:
        for _ in range(100):
            place, size = int(rng.integers(0, path.stat().st_size + 50)), int(rng.integers(0, 3000))
            assert file.seek(place) == truth.seek(place)
            assert file.read(size) == truth.read(size)
        assert (file.seek(-7, 2), file.read()) == (truth.seek(-7, 2), truth.read())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere://bucket/a.tar", ["nowhere", "listed"]),
        ("memory://none/{00000..00001}.tar", ["no data", "00000.tar"]),
        ("memory://none/*.tar", ["no .tar file"]),
        ("memory://none/a.parquet", ["no data"]),
    ],
)
def test_a_url_without_shards_is_one_line(source: str, words: list[str]):
    with pytest.raises(DataError) as caught:
        open_rows(source)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_other_files_at_a_url_and_packed_shards_are_refused(remote: str):
    store = fsspec.filesystem("memory")
    store.pipe_file("/others/a.csv", b"image,caption\n")
    store.pipe_file("/others/b.tar", b"\x1f\x8b" + bytes(600))
    with pytest.raises(DataError, match=r"a\.csv; from a URL only \.tar"):
        open_rows("memory://others/a.csv")
    with pytest.raises(DataError, match="gunzip"):
        open_rows("memory://others/b.tar")


def test_neighbours_are_read_together_where_any_other_order_would_be_slow(
    local: Path, remote: str, monkeypatch: pytest.MonkeyPatch
):
    at_url, here = open_rows(remote), open_rows(local)
    assert (here.run_length, Selected(here, [3]).run_length) == (1, 1)
    assert at_url.run_length == 256  # the samples are tiny
    assert Joined([here, at_url]).run_length == 256
    size = sum(path.stat().st_size for path in local.glob("*.tar"))
    monkeypatch.setattr(tars_module, "RUN_BYTES", size)
    assert at_url.run_length == 16  # of 24 samples, in powers of two
    monkeypatch.setattr(tars_module, "RUN_BYTES", 1)
    assert at_url.run_length == 8
    monkeypatch.setattr(tars_module, "LOCAL_BYTES", size - 1)
    assert here.run_length == 8


def test_all_wrappers_hand_on_what_will_be_read(remote: str):
    one, two = open_rows(f"{remote}/00000.tar"), open_rows(f"{remote}/00002.tar")
    both = Joined([one, Selected(two, [5, 6, 7])])
    both.read_ahead([9, 0, 8])
    truth = [both.image(9), both.image(0), both.image(8)]
    assert truth == [two.image(6), one.image(0), two.image(5)]
    assert [set(CLASSES) & set(both.captions(0)[""][0][0].split())] == [{"bird"}]
    assert torch.equal(PREPROCESS.pixels(truth[1]), PREPROCESS.pixels(one.image(0)))
