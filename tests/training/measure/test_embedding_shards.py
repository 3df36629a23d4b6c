"""Shards of vectors: right, complete, and the same bytes whoever made them and however often they were interrupted."""

import csv
import hashlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import vlm
from vlm.cli import main
from vlm.embedder import Embedder
from vlm.images.open import ImageSource
from vlm.training.data.rows import BrokenSample
from vlm.training.measure.embedding_shards import ShardCounts, ShardJob, data_hash, embed

ROOT = Path(__file__).parents[3]
COUNT, BROKEN = 23, {4: "truncated", 11: "missing", 22: "not an image"}


def write_images(folder: Path, count: int, seed: int = 0) -> Path:
    """metadata.csv and images, three of them broken as BROKEN says."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "caption"])
        for number in range(count):
            name = f"{number:04d}.png"
            table.writerow([name, f"image {number}"])
            Image.fromarray(rng.integers(0, 256, (40, 30 + number % 9, 3), dtype=np.uint8)).save(folder / name)
    (folder / "0004.png").write_bytes((folder / "0004.png").read_bytes()[:1000])
    (folder / "0011.png").unlink()
    (folder / "0022.png").write_text("no image")
    return folder


@pytest.fixture
def job(tmp_path: Path, tiny_embedder: Embedder) -> ShardJob:
    vlm.save(tiny_embedder, tmp_path / "model")
    data = write_images(tmp_path / "data", COUNT)
    return ShardJob(
        model=str(tmp_path / "model"),
        data=str(data),
        out=tmp_path / "shards",
        rows_per_shard=5,
        batch_size=2,
        workers=0,
    )


def read(out: Path) -> pa.Table:
    return pq.read_table(sorted(out.glob("*.parquet")))


def hashes(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def test_vectors_are_the_embedders_own_and_broken_samples_are_listed(job, tiny_embedder):
    done, complete = embed(replace(job, dtype="float32"))
    assert (done, complete) == (ShardCounts(shards=5, found=0, rows=COUNT, broken=3), True)
    table = read(job.out)
    sound = [f"{number:04d}.png" for number in range(COUNT) if number not in BROKEN]
    assert table["uid"].to_pylist() == sound
    found = np.array(table["embedding"].to_pylist())
    wanted = tiny_embedder.embed_images([Path(job.data) / name for name in sound], batch_size=1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    listed = [json.loads(line) for line in (job.out / "broken.jsonl").read_text().splitlines()]
    assert {entry["row"]: entry["reason"] for entry in listed} == BROKEN
    assert [entry["uid"] for entry in listed] == [f"{number:04d}.png" for number in BROKEN]


def test_names_of_broken_samples_can_be_read(job):
    table = Path(job.data) / "metadata.csv"
    table.write_text(table.read_text().replace("0011.png", "犬.png"), encoding="utf-8")
    embed(job)
    entries = (job.out / "broken.jsonl").read_text(encoding="utf-8").splitlines()
    assert entries[1].startswith('{"row": 11, "uid": "犬.png", "reason": "missing", "detail": "')
    assert sorted(path.name for path in job.out.iterdir()) == [
        "broken.jsonl",
        *(f"part-0000{n}.parquet" for n in range(5)),
    ]


class Images:
    """Samples of a data set, as `data_hash` sees them."""

    def __init__(self, *found: ImageSource | Exception):
        self.found = found

    def __len__(self) -> int:
        return len(self.found)

    def uid(self, index: int) -> str:
        return f"p{index}"

    def image(self, index: int) -> ImageSource:
        image = self.found[index]
        if isinstance(image, Exception):
            raise image
        return image


def test_a_data_set_is_known_by_its_images_wherever_they_are(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")  # nobody writes: reading it would never end
    grey = np.zeros((2, 2), np.uint8)
    different: list[Sequence[ImageSource | Exception]] = [
        [b"1"], [b"2"], [tmp_path / "a"], [str(tmp_path / "b")], [tmp_path / "pipe"], [grey], [grey + 1], [],
        [grey, b"1"],
        [BrokenSample("p0", "missing", "")], [tmp_path / "none"],
        [b"x"] * 40, [b"x"] * 39 + [b"y"], [b"y"] + [b"x"] * 39,
    ]  # fmt: skip
    hashes = [data_hash(Images(*found)) for found in different]  # type: ignore[arg-type]
    assert len(set(hashes)) == len(different)
    assert all(len(found) == 16 and int(found, 16) >= 0 for found in hashes)
    same = (tmp_path / "c", str(tmp_path / "c"))
    assert [data_hash(Images(path)) for path in same] == [hashes[2]] * 2  # type: ignore[arg-type]


def test_a_shard_says_what_it_holds(job, tiny_embedder):
    embed(job)
    schema = pq.read_schema(job.out / "part-00004.parquet")
    assert str(schema.field("embedding").type) == f"fixed_size_list<element: halffloat>[{tiny_embedder.embed_dim}]"
    metadata = {name.decode(): value.decode() for name, value in schema.metadata.items()}
    assert metadata["vlm.fingerprint"] == tiny_embedder.fingerprint
    assert int(metadata["vlm.embed_dim"]) == tiny_embedder.embed_dim
    assert (metadata["vlm.model"], metadata["vlm.rows"], metadata["vlm.shard"]) == ("model", str(COUNT), "4")


def test_half_precision_is_the_nearest_to_single(job):
    embed(job)
    other = job.out.with_name("new") / "single"
    embed(replace(job, out=other, dtype="float32"))
    half, single = (np.array(read(out)["embedding"].to_pylist()) for out in (job.out, other))
    np.testing.assert_array_equal(half, single.astype(np.float32).astype(np.float16))


def test_workers_and_ranks_do_not_change_a_byte(job):
    embed(job)
    for out, ranks, workers in (("two ranks", 2, 0), ("seven ranks", 7, 0), ("workers", 1, 2)):
        other = replace(job, out=job.out.with_name(out), workers=workers)
        parts = [embed(other, rank, ranks) for rank in reversed(range(ranks))]
        assert [complete for _, complete in parts] == [False] * (ranks - 1) + [True]
        assert [sum(column) for column in zip(*(done for done, _ in parts), strict=True)] == [5, 0, COUNT, 3]
        assert hashes(other.out) == hashes(job.out)


def test_threads_that_the_environment_sets_do_not_change_a_byte(job):
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            embed(replace(job, out=job.out.with_name(f"{count}")))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert hashes(job.out.with_name("1")) == hashes(job.out.with_name("2"))


def test_a_second_run_keeps_whole_shards_and_makes_lost_and_damaged_ones_again(job, capsys, caplog):
    embed(job)
    wanted = hashes(job.out)
    times = {path.name: path.stat().st_mtime_ns for path in job.out.glob("*.parquet")}
    (job.out / "part-00000.parquet").unlink()
    cut, flipped = job.out / "part-00001.parquet", job.out / "part-00002.parquet"
    cut.write_bytes(cut.read_bytes()[:-20])
    data = bytearray(flipped.read_bytes())
    vector = pq.read_metadata(flipped).row_group(0).column(1)
    data[vector.data_page_offset + vector.total_compressed_size - 1] ^= 1  # of the last vector
    flipped.write_bytes(data)
    (job.out / f".part-00000.parquet.{2**22 + 1}.new").write_bytes(b"half a shard")  # what a killed process leaves
    done, complete = embed(job)
    assert (done, complete) == (ShardCounts(shards=3, found=2, rows=COUNT, broken=3), True)
    assert hashes(job.out) == wanted
    assert any("part-00002.parquet is damaged" in message for message in caplog.messages)
    assert "embedding:" not in capsys.readouterr().err  # no bar unless asked for
    for name in ("part-00003.parquet", "part-00004.parquet"):
        assert (job.out / name).stat().st_mtime_ns == times[name]


def test_shards_of_another_model_or_data_set_or_setting_are_refused(job, tiny_embedder, tmp_path):
    embed(job)
    wanted = hashes(job.out)
    tiny_embedder.model.logit_scale.data += 1
    vlm.save(tiny_embedder, tmp_path / "other-model")
    same_names = write_images(tmp_path / "same-names", COUNT, seed=1)
    longer = write_images(tmp_path / "longer", COUNT + 1)
    for change, message in (
        (
            {"model": str(tmp_path / "other-model")},
            "has fingerprint .* this run .*: another model. Name another",
        ),
        ({"data": str(longer)}, "other data"),
        ({"data": str(same_names)}, "other data"),
        ({"rows_per_shard": 6}, "has rows_per_shard 5, this run 6: other settings"),
        ({"batch_size": 3}, "has batch_size 2, this run 3: other settings"),
        ({"dtype": "float32"}, "has dtype float16, this run float32: other settings"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            embed(replace(job, **change))
        assert "\n" not in str(caught.value)
    assert hashes(job.out) == wanted
    first = sorted(job.out.glob("part-*.parquet"))[0]
    first.write_bytes(b"damaged")  # says nothing of its job; those behind it still do
    with pytest.raises(ValueError, match="has batch_size 2, this run 3"):
        embed(replace(job, batch_size=3))


def test_a_parquet_file_of_somebody_else_is_refused(job):
    job.out.mkdir()
    table = pq.read_table(ROOT / "training/picture_words/validation.parquet", columns=["uid"])
    pq.write_table(table, job.out / "part-00000.parquet")
    with pytest.raises(ValueError, match="has fingerprint nothing"):
        embed(job)


def test_renamed_samples_between_the_probes_are_noticed(job, tmp_path):
    many = write_images(tmp_path / "many", 70)
    other = replace(job, data=str(many), rows_per_shard=20)
    embed(other)
    lines = (many / "metadata.csv").read_text().splitlines()
    lines[1 + 1], lines[3 + 1] = lines[3 + 1], lines[1 + 1]  # rows 1 and 3 are no probes of 32 among 70
    (many / "metadata.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"part-00000\.parquet.*samples.*0.*19.*the"):
        embed(other)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    return main(["embed", *words])


def test_the_command_counts_what_it_did(job, monkeypatch, capsys):
    words = [job.model, job.data, "--out", str(job.out), "--rows-per-shard", "10", "--workers", "0", "--json"]
    assert run(monkeypatch, *words, "--batch-size", "3", "--store", "float32") == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer.pop("seconds") > 0
    assert answer == {"shards": 3, "found": 0, "rows": COUNT, "broken": 3, "complete": True}
    assert "3 shards written, 0 already there: 20 embeddings, 3 broken samples skipped" in err
    assert err.endswith(f" s. {job.out} is complete.\n")
    assert "embedding: 100%" in err and "23/23" in err and "broken=3" in err
    metadata = pq.read_schema(job.out / "part-00002.parquet").metadata
    said = [metadata[f"vlm.{name}".encode()].decode() for name in ("batch_size", "dtype", "rows_per_shard", "device")]
    assert said == ["3", "float32", "10", "cpu"]


def test_each_of_two_processes_does_its_part_and_the_first_one_shows_it(job, monkeypatch, capsys):
    words = [job.model, job.data, "--out", str(job.out), "--rows-per-shard", "10", "--workers", "0"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, ended in (
        (1, "1 shards written, 0 already there: 9 embeddings, 1 "),
        (0, "2 shards written, 0 already there: 11 "),
    ):
        monkeypatch.setenv("RANK", str(rank))
        assert run(monkeypatch, *words) == 0
        out, err = capsys.readouterr()
        assert out == "" and ended in err
        assert ("embedding: 100%" in err) == (rank == 0)
        assert ("Other processes still write shards." in err) == (rank == 1)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *words, "--ray")
    assert caught.value.code == 2
    assert "--ray and torchrun both" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere"}, "vlm: error: There is no data nowhere: "),
        ({"model": "nowhere"}, "vlm: error: "),
        ({"more": ["--workers", "-1"]}, "vlm: error: workers must be 0 or more, got -1."),
        ({"more": ["--split", "a", "b"]}, "vlm: error: "),
    ],
)
def test_what_the_user_can_put_right_is_one_line_and_code_1(job, monkeypatch, capsys, change, message):
    words = [change.get("model", job.model), change.get("data", job.data), "--out", str(job.out)]
    assert run(monkeypatch, *words, *change.get("more", [])) == 1
    err = capsys.readouterr().err
    assert err.startswith(message) and err.count("\n") == 1


@pytest.mark.long
def test_a_run_that_was_killed_ten_times_equals_one_that_was_not(job, tmp_path):
    data = write_images(tmp_path / "many", 400)
    job = replace(job, data=str(data), rows_per_shard=4, batch_size=2, workers=1)
    embed(job)
    killed = replace(job, out=tmp_path / "killed")
    context = multiprocessing.get_context("forkserver")  # imports once for all
    context.set_forkserver_preload(["vlm.training.measure.embedding_shards"])
    rng, kills, amid = random.Random(0), 0, 0
    while kills < 10:
        there = len(list(killed.out.glob("part-*")))
        process = context.Process(target=embed, args=(killed,))
        process.start()
        wanted = there + rng.randrange(5)
        while len(list(killed.out.glob("part-*"))) < wanted and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.join()
        kills += process.exitcode == -9
        shards = sorted(killed.out.glob("part-*"))
        amid += there < len(shards) < 100
        if len(shards) == 100:  # too fast: some are lost again
            for path in rng.sample(shards, 60):
                path.unlink()
    assert amid >= 3
    assert embed(killed)[1]
    assert hashes(killed.out) == hashes(job.out)


@pytest.mark.long
def test_torchrun_gives_the_files_of_one_process(job, tmp_path):
    embed(job)
    words = [job.model, job.data, "--out", str(tmp_path / "ranks"), "--rows-per-shard", "5", "--batch-size", "2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    subprocess.run([*torchrun, "training.embed", *words], cwd=ROOT, check=True, capture_output=True)
    assert hashes(tmp_path / "ranks") == hashes(job.out)


@pytest.mark.long
def test_a_ray_cluster_gives_the_files_of_one_process(job, tmp_path):
    embed(job)
    script = (
        "import ray, sys, dataclasses, pathlib\n"
        "from training.shards import ShardJob, embed_with_ray\n"
        "ray.init(num_cpus=2, include_dashboard=False)\n"
        f"job = ShardJob(model={job.model!r}, data={job.data!r}, out=pathlib.Path({str(tmp_path / 'ray')!r}),\n"
        "          rows_per_shard=5, batch_size=2, workers=0)\n"
        "print(embed_with_ray(job))\n"
    )
    environment = os.environ | {"RAY_worker_niceness": "0"}  # Ray's 15 starves on a busy machine
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True, env=environment
    )
    assert answer.stdout.strip() == str((ShardCounts(shards=5, found=0, rows=COUNT, broken=3), True))
    assert hashes(tmp_path / "ray") == hashes(job.out)
