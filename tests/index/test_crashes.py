"""An index whose process is killed at any moment."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.index_vectors import image_record
from vlm.index.ann import load
from vlm.index.exact_search import cosines
from vlm.index.filters import Filter
from vlm.index.vector_store import VectorStore

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


def check_after_crashes(folder: Path, finished: list[str]) -> int:
    """Opens, holds every committed image once, each with its own vector; -> the next number."""
    store = VectorStore(folder)
    model = store.model("fingerprint", "model", 64)
    rows = store.allowed_rows(model, Filter())
    files = store.files_at(model, rows.tolist(), Filter())
    paths = [found.path for found in files]
    assert len(set(paths)) == len(paths) == len(rows)
    vectors = store.vectors(model)
    for row, path in ((found.row, found.path) for found in files):
        expected = np.random.default_rng(list(path.encode())).standard_normal(64).astype(np.float16)
        np.testing.assert_array_equal(vectors[row], expected)
    rebuilt = VectorStore(folder.with_name("rebuilt"))
    again = rebuilt.model("fingerprint", "model", 64)
    rebuilt.add(again, [*map(image_record, paths)], {found.path.encode(): vectors[found.row] for found in files})
    query = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 64))).float()
    fresh = {found.row: found.path for found in rebuilt.files_at(again, range(len(paths)), Filter())}
    old = cosines(vectors[[found.row for found in files]], query)[0].tolist()
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
