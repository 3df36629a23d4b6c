import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.index_vectors import image_record
from tests.support.odd_images import noise
from vlm.embedder import Embedder
from vlm.errors import IndexFileError
from vlm.index.embedding_index import EmbeddingIndex
from vlm.index.filters import make_filter
from vlm.index.records import Record
from vlm.index.vector_store import VectorStore


def test_a_batch_whose_transaction_fails_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = VectorStore(tmp_path / "index")
    model = store.model("fingerprint", "model", 4)

    def add(name: str, level: float) -> None:
        store.add(model, [image_record(name)], {name.encode(): np.full(4, level)})

    add("/a", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError("the disk is full")))
        with pytest.raises(OSError, match="the disk is full"):
            add("/b", 2)
    assert store.vectors(model).tolist() == [[1] * 4]
    assert present_below(store, "/") == {"/a"}
    add("/c", 3)
    assert store.vectors(model).tolist() == [[1] * 4, [3] * 4]
    store.close()


def test_what_is_no_index_is_left_alone(tiny_embedder: Embedder, image_folder: Path, tmp_path: Path):
    with pytest.raises(IndexFileError, match="is not an index"):
        EmbeddingIndex.open(image_folder, tiny_embedder)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "index.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(IndexFileError, match=r"index\.sqlite.*damaged.*not a database.*delete the index"):
        EmbeddingIndex.open(tmp_path / "broken", tiny_embedder)

    (tmp_path / "file").touch()
    with pytest.raises(IndexFileError, match="is not an index"):
        EmbeddingIndex.open(tmp_path / "file", tiny_embedder)


def test_an_index_of_a_later_program_is_left_as_it_is(store: VectorStore):
    with closing(sqlite3.connect(store.folder / "index.sqlite")) as database:
        database.execute("PRAGMA user_version = 3")
    before = (store.folder / "index.sqlite").read_bytes()
    with pytest.raises(IndexFileError, match=r"format 3\b.* 2\b.*Update vlm"):
        VectorStore(store.folder)
    assert (store.folder / "index.sqlite").read_bytes() == before


def test_a_vector_file_that_was_cut_is_said_to_be(index: EmbeddingIndex, image_folder: Path):
    index.add_folder(image_folder)
    (file,) = index._store.folder.glob("*.f16")  # pyright: ignore[reportPrivateUsage]
    os.truncate(file, 287)
    noise(20, 20).save(image_folder / "new.png")
    for action in (lambda: index.search("犬"), lambda: index.add_folder(image_folder), index.check_files):
        with pytest.raises(IndexFileError, match=r"287 bytes.* 288\b.*delete the index"):
            action()
    file.unlink()
    for action in (lambda: index.search("犬"), lambda: index.add_folder(image_folder), index.check_files):
        with pytest.raises(IndexFileError, match=r"missing.*delete the index"):
            action()
    with pytest.raises(IndexFileError, match="missing"):
        EmbeddingIndex.open(index._store.folder, index.embedder)  # pyright: ignore[reportPrivateUsage]


# ---- the store alone -----------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    """New, in a folder below one that is not there yet, with two models of 4 and 6 numbers."""
    with closing(VectorStore(tmp_path / "below" / "index")) as opened:
        assert (opened.model("first", "model", 4), opened.model("second", "model", 6)) == (1, 2)
        yield opened


def add(store: VectorStore, model: int, *images: Record, level: float = 1) -> None:
    """Vectors of `level`, `level` + 1 ..."""
    width = store.vectors(model).shape[1]
    vectors = {p.digest: np.full(width, level + n) for n, p in enumerate(images) if p.digest}
    store.add(model, images, vectors)


def present_below(store: VectorStore, folder: str) -> set[str]:
    return {path for path, state in store.states_below(0, folder).items() if not state.missing}


def found(store: VectorStore, model: int, **limits: Any) -> list[str]:
    """Paths, in the order they come in."""
    allowed = make_filter(**limits)
    rows = store.allowed_rows(model, allowed).tolist()
    assert rows == sorted({found.row for found in store.files_at(model, range(99), allowed)})
    return [found.path for found in store.files_at(model, rows, allowed)]


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        ({}, "/a/2024/x.jpg /b/2024/x.png name.gif"),
        ({"glob": "2024/*"}, "/a/2024/x.jpg /b/2024/x.png"),
        ({"glob": "x.*"}, "/a/2024/x.jpg /b/2024/x.png"),
        ({"glob": "/a/*"}, "/a/2024/x.jpg"),
        ({"glob": "/2024/*"}, ""),
        ({"glob": "*"}, "/a/2024/x.jpg /b/2024/x.png name.gif"),
        ({"since": "2024-05"}, "/a/2024/x.jpg /b/2024/x.png"),
        ({"since": "2024-05-01T12:00:30"}, "/a/2024/x.jpg /b/2024/x.png"),
        ({"since": "2024-05-01T12:00:31"}, "/b/2024/x.png"),
        ({"since": "2024-05-02 00:00"}, "/b/2024/x.png"),
        ({"since": "2024-05-02T00:00:01"}, ""),
        ({"until": "2024"}, "/a/2024/x.jpg /b/2024/x.png name.gif"),
        ({"until": "2024-05-01"}, "/a/2024/x.jpg name.gif"),
        ({"until": "2024-05-01T12:00"}, "/a/2024/x.jpg name.gif"),
        ({"until": "2024-05-01T12:00:29"}, "name.gif"),
        ({"until": "2024-04-29"}, ""),
        ({"min_side": 40}, "/a/2024/x.jpg /b/2024/x.png name.gif"),
        ({"min_side": 41}, "name.gif"),
        ({"glob": "*/x.*", "since": "2024-05-01", "until": "2024-05-01", "min_side": 1}, "/a/2024/x.jpg"),
    ],
    ids=str,
)
def test_a_filter_passes_what_it_says(store: VectorStore, limits: dict[str, Any], names: str):
    midnight = int(datetime(2024, 5, 2).timestamp()) * 10**9
    jpg = image_record("/a/2024/x.jpg", taken="2024-05-01 12:00:30")
    png = image_record("/b/2024/x.png", mtime=midnight, width=50, height=40)  # no EXIF: the date of the file
    gif = image_record("name.gif", taken="2024-04-30 23:59:59", width=60, height=60)
    add(store, 2, gif, jpg, png)
    assert found(store, 2, **limits) == names.split()
    assert found(store, 1, **limits) == []


def test_below_a_folder_is_what_is_in_it_and_not_what_begins_alike(store: VectorStore):
    names = ["/a.b/x", "/a/x", "/a/y", "/a/z/x", "/a0", "/a0x"]
    broken = [Record(path=f"{name}.svg", size=1, mtime=1, reason="empty file", detail=name) for name in names]
    store.add(1, [*map(image_record, names), *broken], {name.encode(): np.ones(4) for name in names})
    inside = ["/a/x", "/a/y", "/a/z/x"]
    for folder in ("/a", "/a/"):
        assert present_below(store, folder) == {*inside, *(f"{name}.svg" for name in inside)}
        assert store.refused(folder) == [(f"{name}.svg", "empty file", name) for name in inside]
    assert [path for path, *_ in store.refused()] == [f"{name}.svg" for name in names]
    store.mark_missing(["/a.b/x", "/a/x", "/a/y", "/a0x", "/a/z/x.svg"])
    assert present_below(store, "/a") == {"/a/z/x", "/a/x.svg", "/a/y.svg"}
    assert [path for path, *_ in store.refused("/a")] == ["/a/x.svg", "/a/y.svg"]
    assert [store.prune(folder) for folder in ("/a", "/a", None)] == [3, 0, 2]


def test_each_model_counts_and_knows_its_own(store: VectorStore):
    images = [
        image_record("/a"),
        image_record("/b", size=8),
        image_record("/c"),
        image_record("/b again", digest=b"/b", size=8),
    ]
    store.add(1, images, {b"/a": np.ones(4), b"/b": np.ones(4)})
    store.add(2, [], {b"/b": np.zeros(6), b"/c": np.ones(6)})
    assert [store.rows(model) for model in (1, 2)] == [2, 2]
    assert [store.count(model) for model in (1, 2)] == [3, 3]
    assert [store.vectors(model).shape for model in (1, 2)] == [(2, 4), (2, 6)]
    assert [store.digests_of_size(1, size) for size in (8, 9)] == [{b"/b"}, {b"/a"}]
    assert [store.digests_of_size(2, size) for size in (8, 9)] == [{b"/b"}, {b"/c"}]
    assert [[store.has_vector(model, name) for name in (b"/a", b"/b", b"/c")] for model in (1, 2)] == [
        [True, True, False],
        [False, True, True],
    ]
    with store.reading():
        shown = [(row, record.path, record.digest) for row, record in store.shown(2)]
    assert shown == [
        (0, "/b", b"/b"),
        (0, "/b again", b"/b"),
        (1, "/c", b"/c"),
    ]
    store.add(2, images, {b"/b": np.full(6, 5), b"/a": np.full(6, 7)})  # one that it has already: as it was
    assert store.vectors(2)[:, 0].tolist() == [0, 1, 7]


def test_the_state_of_a_path_says_what_is_known_and_by_which_model(store: VectorStore):
    add(store, 1, image_record("/a"), image_record("/b"))
    store.add(1, [Record(path="/broken", size=9, mtime=1, reason="truncated", reader="7"), image_record("/c")], {})
    for model, embedded in ((1, {"/a", "/b"}), (2, set[str]())):
        states = store.states_below(model, None)
        assert states == {path: store.state_of(model, path) for path in ("/a", "/b", "/broken", "/c")}
        assert {path for path, state in states.items() if state.embedded} == embedded
    state = store.state_of(1, "/broken")
    assert state is not None and (state.refused, state.reader, state.size, state.mtime) == (True, "7", 9, 1)
    assert store.state_of(1, "/d") is None
    store.mark_missing(["/b"])
    assert [path for path, state in store.states_below(1, None).items() if state.missing] == ["/b"]


def test_pruning_closes_the_gaps_of_every_model_and_takes_strays_along(store: VectorStore):
    names = [f"/{n}" for n in range(5)]
    add(store, 1, *map(image_record, names))
    add(store, 2, *map(image_record, names[1:]), level=7)
    (store.folder / "vectors-2-1.f16").write_bytes(b"a compaction that crashed" * 99)
    (store.folder / "vectors-3-0.f16").touch()
    (store.folder / "ann-1-7.safetensors").touch()
    store.ann_file(1).touch()
    store.ann_file(2).touch()
    assert store.delete(["/1", "/3", "/never"]) == 2
    assert store.delete(["/1"]) == 0
    assert store.prune() == 0  # none was missing
    assert store.vectors(1)[:, 0].tolist() == [1, 3, 5]
    assert store.vectors(2)[:, 0].tolist() == [8, 10]
    assert [found(store, model) for model in (1, 2)] == [["/0", "/2", "/4"], ["/2", "/4"]]
    files = {path.name: path.stat().st_size for path in store.folder.iterdir() if "sqlite" not in path.name}
    assert files == {"vectors-1-1.f16": 3 * 4 * 2, "vectors-2-1.f16": 2 * 6 * 2}
    store.delete(["/0"])
    store.ann_file(2).touch()
    store.prune()  # the second model has no gap: nothing of it moves, and what was made of it stays
    assert {p.name for p in store.folder.glob("*-*-*")} == {"vectors-1-2.f16", "vectors-2-1.f16", "ann-2-1.safetensors"}
    store.delete(["/2", "/4"])
    store.prune()
    assert [store.vectors(model).shape for model in (1, 2)] == [(0, 4), (0, 6)]
    assert not [*store.folder.glob("*-*-*")]


def test_the_tail_of_a_crash_is_written_over_and_pruned(store: VectorStore):
    add(store, 1, image_record("/a"))
    file = store.folder / "vectors-1-0.f16"
    with file.open("ab") as opened:
        opened.write(b"a batch that was not committed")
    add(store, 1, image_record("/b"), level=2)
    assert file.read_bytes() == np.repeat(np.array([1, 2], "<f2"), 4).tobytes()
    with file.open("ab") as opened:
        opened.write(b"!")
    store.prune()
    assert store.vectors(1)[:, 0].tolist() == [1, 2]
    assert [path.stat().st_size for path in store.folder.glob("*.f16")] == [2 * 4 * 2]


def test_a_copy_has_all_models_and_shares_nothing(store: VectorStore, tmp_path: Path):
    add(store, 1, image_record("/a"), image_record("/b"))
    add(store, 2, image_record("/c"), level=5)
    store.model("third", "model", 8)
    store.ann_file(1).write_text("of the first")
    store.save(tmp_path / "far" / "copy")
    with closing(VectorStore(tmp_path / "far" / "copy")) as copy:
        assert [copy.vectors(model).tolist() for model in (1, 2, 3)] == [
            store.vectors(model).tolist() for model in (1, 2, 3)
        ]
        assert copy.ann_file(1).read_text() == "of the first"
        assert not copy.ann_file(2).exists()
        add(copy, 2, image_record("/d"))
        assert [store.rows(2), copy.rows(2)] == [1, 2]
        assert found(copy, 1) == ["/a", "/b"]


def test_what_is_committed_is_on_the_disk_and_so_is_the_name_of_a_new_file(
    store: VectorStore, monkeypatch: pytest.MonkeyPatch
):
    synced: list[int] = []
    inner = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino) or inner(file))
    add(store, 1, image_record("/a"))
    file, folder = (path.stat().st_ino for path in (store.folder / "vectors-1-0.f16", store.folder))
    assert synced == ([file, folder] if os.name == "posix" else [file])
    add(store, 1, image_record("/b"))
    assert synced[-1] == file
    (store.folder / "any").touch()
    assert (store.folder / "vectors-1-0.f16").stat().st_mode == (store.folder / "any").stat().st_mode


def test_one_program_writes_at_a_time_and_others_read(store: VectorStore):
    add(store, 1, image_record("/a"))
    with closing(VectorStore(store.folder)) as other:
        other.database.execute("PRAGMA busy_timeout = 1")
        with store.writing():
            assert found(other, 1) == ["/a"]
            with pytest.raises(IndexFileError, match=r"written.*another program.*locked.*Wait"):
                other.delete(["/a"])
        assert other.delete(["/a"]) == 1


def test_reading_sees_one_moment_also_when_it_fails(store: VectorStore):
    def fail(other: VectorStore) -> None:
        with store.reading():
            before = store.count(1)
            add(other, 1, image_record("/b"))
            raise KeyError(before, store.count(1), other.count(1))

    add(store, 1, image_record("/a"))
    with closing(VectorStore(store.folder)) as other:
        with pytest.raises(KeyError, match=r"\(1, 1, 2\)"):
            fail(other)
        with store.reading():
            assert store.count(1) == 2
