"""Broken samples: each on the list once, others in their place, and an end where there are too many."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.data_formats import csv_of_repeated_rows
from vlm.config import PreprocessConfig
from vlm.images.preprocess import Preprocess
from vlm.training.data.order import Shuffled
from vlm.training.data.pair_stream import PairBatch, PairStream
from vlm.training.data.pairs import Cache, open_pairs
from vlm.training.data.rows import BrokenSample
from vlm.training.data.stream import batches
from vlm.training.engine.distributed import SINGLE_PROCESS, Processes
from vlm.training.engine.quarantine import Quarantine
from vlm.training.recipe.augmentation import AugmentConfig

SAMPLES = [BrokenSample(f"p{n}", "missing", "there is\nno such file") for n in range(50)]
PREPROCESS = Preprocess(PreprocessConfig(image_size=16))


def entries(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_sample_is_listed_once_also_after_a_crash(tmp_path):
    quarantine = Quarantine(tmp_path, 1000, 0.5, SINGLE_PROCESS, resume=False)
    quarantine.add(SAMPLES[:2], 8)
    quarantine.add(SAMPLES[1:3], 16)
    assert quarantine.shown() == {"broken": "3"}
    whole = (tmp_path / "quarantine.jsonl").read_bytes()
    (tmp_path / "quarantine.jsonl").write_bytes(whole + b'{"uid": "p3", "rea')
    again = Quarantine(tmp_path, 1000, 0.5, SINGLE_PROCESS, resume=True)
    assert list(again.known) == ["p0", "p1", "p2"]
    assert (tmp_path / "quarantine.jsonl").read_bytes() == whole
    again.add(SAMPLES[:4], 24)
    assert [entry["uid"] for entry in entries(tmp_path)] == ["p0", "p1", "p2", "p3"]
    assert entries(tmp_path)[0] == {"uid": "p0", "reason": "missing", "detail": "there is no such file"}
    Quarantine(tmp_path, 1000, 0.5, SINGLE_PROCESS, resume=False)
    assert entries(tmp_path) == []
    (tmp_path / "quarantine.jsonl").unlink()
    assert len(Quarantine(tmp_path, 1000, 0.5, SINGLE_PROCESS, resume=True)) == 0


def test_the_list_can_be_read_by_people_and_line_by_line(tmp_path):
    quarantine = Quarantine(tmp_path, 1000, 0.5, SINGLE_PROCESS, resume=False)
    assert (quarantine.shown(), len(quarantine)) == ({}, 0)
    quarantine.add([BrokenSample("犬.png", "missing", "a\u2028b")], 8)
    assert (tmp_path / "quarantine.jsonl").read_text(encoding="utf-8").splitlines() == [
        '{"uid": "犬.png", "reason": "missing", "detail": "a b"}'
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["quarantine.jsonl"]


def test_too_many_end_the_run_once_there_are_enough_to_tell(tmp_path):
    quarantine = Quarantine(tmp_path, 10_000, 0.01, SINGLE_PROCESS, resume=False)
    quarantine.add(SAMPLES[:20], 100)  # 20 %, but few
    with pytest.raises(ValueError, match=r"21.*200 samples .* max_broken = 0.01 .*p20") as caught:
        quarantine.add(SAMPLES[20:21], 200)
    assert "\n" not in str(caught.value)
    assert len(entries(tmp_path)) == 21


def test_once_all_have_been_seen_the_share_is_exact(tmp_path):
    quarantine = Quarantine(tmp_path, 100, 0.02, SINGLE_PROCESS, resume=False)
    quarantine.add(SAMPLES[:2], 1000)  # 2 of 100
    with pytest.raises(ValueError, match="3 of the first 100 samples"):
        quarantine.add(SAMPLES[2:3], 1000)


@pytest.fixture
def damaged(tmp_path):
    """24 images, four of them broken; uids of the four."""
    source = csv_of_repeated_rows(tmp_path)
    for number in (3, 4, 11):
        (tmp_path / "img" / f"{number:04d}.png").write_bytes(b"no image")
    (tmp_path / "img" / "0020.png").unlink()
    return source, {f"img/{number:04d}.png" for number in (3, 4, 11, 20)}


def stream_of(source: Path, tokenizer, cache: Cache = "none", rank: int = 0, world: int = 1) -> PairStream:
    pairs = open_pairs(source, PREPROCESS, cache=cache)
    return PairStream(pairs, tokenizer, AugmentConfig(), seed=0, batch_size=8, num_patches=16, rank=rank, world=world)


def same(one: PairBatch, two: PairBatch) -> bool:
    return one.uids == two.uids and torch.equal(one.images, two.images) and torch.equal(one.ids, two.ids)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_stand_ins_are_the_same_for_any_workers_ranks_cache_and_start(damaged, tiny_tokenizer):
    source, lost = damaged
    stream = stream_of(source, tiny_tokenizer)
    truth = [stream[step] for step in range(6)]
    assert {error.uid for batch in truth for error in batch.broken} == lost
    assert not lost & {uid for batch in truth for uid in batch.uids}
    order = Shuffled(24, seed=0)  # the definition: the next sound one of the epoch
    sound = {index for index in range(24) if f"img/{index:04d}.png" not in lost}
    for number, uid in enumerate(uid for batch in truth for uid in batch.uids):
        place = order.place(number)
        expected = next(i for i in (order.after(place, later) for later in range(24)) if i in sound)
        assert uid == f"img/{expected:04d}.png"
    ways: list[tuple[int, Cache]] = [(2, "none"), (0, "memory")]
    for workers, cache in ways:
        for step, batch in enumerate(batches(stream_of(source, tiny_tokenizer, cache), 2, 6, workers), start=2):
            assert same(batch, truth[step])
            assert {error.uid for error in batch.broken} == {error.uid for error in truth[step].broken}
    halves = [stream_of(source, tiny_tokenizer, rank=rank, world=2) for rank in range(2)]
    for step in range(6):
        assert halves[0][step].uids + halves[1][step].uids == truth[step].uids


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_broken_samples_is_one_line(workers, tmp_path, tiny_tokenizer):
    (tmp_path / "a.csv").write_text("image,caption\n" + "".join(f"{n}.png,x\n" for n in range(9)))
    with pytest.raises(ValueError, match=r"9 samples.*\d\.png") as caught:
        list(batches(stream_of(tmp_path / "a.csv", tiny_tokenizer), 0, 1, workers))
    assert "\n" not in str(caught.value)


def lines_of(*uids: str) -> bytes:
    rows = ({"uid": uid, "reason": "missing", "detail": "there is no such file"} for uid in uids)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("own", "others"),
    [(SAMPLES[:1], ["q"]), (SAMPLES[:1], ["犬", "r", "s"]), (SAMPLES[:3], ["q"]), (SAMPLES[:2], []), ([], ["q", "r"])],
)
def test_two_processes_write_one_list(rank, own, others, tmp_path):
    """Gathering, against what two processes would have found: both know all news, the first one writes."""
    theirs = {uid: line.decode() + "\n" for uid, line in zip(others, lines_of(*others).splitlines(), strict=True)}

    class Two(Processes):
        def gather_objects(self, value: Any) -> list[Any]:
            return [value, theirs if value is not None else None][:: 1 if rank == 0 else -1]

    quarantine = Quarantine(tmp_path, 1000, 0.5, Two(rank=rank, size=2, device=SINGLE_PROCESS.device), resume=False)
    quarantine.add(own, 8)
    both = [[sample.uid for sample in own], others]
    wanted = [uid for part in both[:: 1 if rank == 0 else -1] for uid in part]
    assert list(quarantine.known) == wanted
    assert (tmp_path / "quarantine.jsonl").exists() == (rank == 0)
    if rank == 0:
        assert (tmp_path / "quarantine.jsonl").read_bytes() == lines_of(*wanted)
