import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vlm.embedder import Embedder
from vlm.index.ann import load
from vlm.index.exact_search import cosines
from vlm.index.vector_store import Content, Filter, Record, VectorStore
from vlm.retrieval import EmbeddingIndex

CRASHED_WRITER = """
import itertools, sys
from pathlib import Path
import numpy as np
from vlm.index.vector_store import Content, Record, VectorStore

store = VectorStore(Path(sys.argv[1]))
model = store.model("fingerprint", "model", 64)
start = int(sys.argv[2])
print("ready", flush=True)
for number in itertools.count(start):
    names = [f"/{number}/{item}" for item in range(8)]
    digests = [name.encode() for name in names]
    contents = [Content(digest=digest, size=1, width=1, height=1, taken=None) for digest in digests]
    records = [Record(path=n, size=1, mtime=1, digest=c.digest, content=c) for n, c in zip(names, contents)]
    vectors = {digest: np.random.default_rng(list(digest)).standard_normal(64) for digest in digests}
    store.add(model, records, vectors)
    print(number, flush=True)
    if number % 5 == 4:
        store.delete([f"/{number - 2}/{item}" for item in range(0, 8, 2)])
        store.prune()
        print(f"pruned {number}", flush=True)
        file, vectors = store.ann_file(model), store.vectors(model)
        if len(vectors) >= 640:
            from vlm.index.ann import build

            store.put_ann(model, file, build(vectors, None, lambda line: None).save)
            print("built", flush=True)
"""


def crash(folder: Path, start: int, steps: int, after: float) -> list[str]:
    """Let a process add, delete, prune and build, kill it some time after so many steps -> what it said it finished."""
    command = [sys.executable, "-c", CRASHED_WRITER, str(folder), str(start)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        said = [child.stdout.readline().strip() for _ in range(steps)]
        time.sleep(after)
        child.send_signal(signal.SIGKILL)
        return said + child.stdout.read().splitlines()


def shown(path: str) -> Record:
    """A path whose content is named like it."""
    content = Content(digest=path.encode(), size=1, width=1, height=1, taken=None)
    return Record(path=path, size=1, mtime=1, digest=content.digest, content=content)


def check_after_crashes(folder: Path, finished: list[str]) -> int:
    """Opens, holds every committed picture once, each with its own vector; -> the next number."""
    store = VectorStore(folder)
    model = store.model("fingerprint", "model", 64)
    rows = store.allowed_rows(model, Filter())
    files = store.files_at(model, rows.tolist(), Filter())
    paths = [path for _, path in files]
    assert len(set(paths)) == len(paths) == len(rows)
    vectors = store.vectors(model)
    for row, path in files:
        expected = np.random.default_rng(list(path.encode())).standard_normal(64).astype(np.float16)
        np.testing.assert_array_equal(vectors[row], expected)
    rebuilt = VectorStore(folder.with_name("rebuilt"))
    contents = [Content(digest=path.encode(), size=1, width=1, height=1, taken=None) for path in paths]
    records = [
        Record(path=p, size=1, mtime=1, digest=c.digest, content=c) for p, c in zip(paths, contents, strict=True)
    ]
    again = rebuilt.model("fingerprint", "model", 64)
    rebuilt.add(again, records, {path.encode(): vectors[row] for row, path in files})
    query = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 64))).float()
    fresh = dict(rebuilt.files_at(again, range(len(paths)), Filter()))
    old = cosines(vectors[[row for row, _ in files]], query)[0].tolist()
    old_scores = dict(zip(paths, old, strict=True))
    new_scores = {fresh[row]: score for row, score in enumerate(cosines(rebuilt.vectors(again), query)[0].tolist())}
    assert old_scores == pytest.approx(new_scores, abs=1e-5)
    rebuilt.close()
    shutil.rmtree(folder.with_name("rebuilt"))
    if store.ann_file(model).exists():  # whole, and of these vectors
        ann = load(store.ann_file(model), 64)
        assert ann.rows <= store.rows(model)
        itself = torch.nn.functional.normalize(torch.from_numpy(vectors[rows[:200]]).float(), dim=1)
        found = ann.nearest(vectors, itself, 1)[1][:, 0]
        assert (found == torch.from_numpy(rows[:200])).float().mean() >= 0.9  # codes of other vectors would find none
    numbers = [int(line) for line in finished if line.isdecimal()]
    deleted = {int(line.split()[1]) - 2 for line in finished if line.startswith("pruned")}
    for number in numbers:
        kept = {item for item in range(8) if f"/{number}/{item}" in paths}
        assert kept in ({1, 3, 5, 7},) if number in deleted else kept in ({1, 3, 5, 7}, set(range(8)))
    store.close()
    return max((int(path.split("/")[1]) for path in paths), default=-1) + 1


def crash_often(folder: Path, times: int) -> None:
    generator, finished, start = np.random.default_rng(0), [], 0
    for _ in range(times):
        finished += crash(folder, start, int(generator.integers(0, 20)), generator.uniform(0, 0.1))
        start = check_after_crashes(folder, finished)
    assert start > times  # it did get somewhere in between


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
def test_killed_at_any_moment_the_index_holds_what_was_committed(tmp_path: Path):
    crash_often(tmp_path / "index", 4)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
def test_killed_fifty_times_the_index_holds_what_was_committed(tmp_path: Path):
    crash_often(tmp_path / "index", 50)


def test_a_batch_whose_transaction_fails_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = VectorStore(tmp_path / "index")
    model = store.model("fingerprint", "model", 4)

    def add(name: str, level: float) -> None:
        store.add(model, [shown(name)], {name.encode(): np.full(4, level)})

    add("/a", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError("the disk is full")))
        with pytest.raises(OSError, match="the disk is full"):
            add("/b", 2)
    assert store.vectors(model).tolist() == [[1] * 4]
    assert store.present_below("/") == {"/a"}
    add("/c", 3)
    assert store.vectors(model).tolist() == [[1] * 4, [3] * 4]
    store.close()


def test_what_is_no_index_is_left_alone(tiny_embedder: Embedder, picture_folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="is not an index"):
        EmbeddingIndex.open(picture_folder, tiny_embedder)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "index.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(ValueError, match="cannot be opened: file is not a database"):
        EmbeddingIndex.open(tmp_path / "broken", tiny_embedder)


def test_a_vector_file_that_was_cut_is_said_to_be(index: EmbeddingIndex, picture_folder: Path):
    index.add_folder(picture_folder)
    (file,) = index._store.folder.glob("*.f16")  # pyright: ignore[reportPrivateUsage]
    os.truncate(file, 100)
    with pytest.raises(ValueError, match="holds 100 bytes, the index counts on 288"):
        index.search("犬")
