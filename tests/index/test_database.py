"""The database of an index: older formats, disks that are read-only or full, damage, threads."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.support.index_vectors import image_record
from tests.support.odd_images import noise
from tests.support.rights import ordinary_rights, read_only, small_disk
from vlm.embedder import Embedder
from vlm.errors import IndexFileError
from vlm.index.database_format import FORMAT
from vlm.index.embedding_index import EmbeddingIndex, stored_models
from vlm.index.vector_store import VectorStore

Ranking = list[tuple[str, float]]


def ranking(index: EmbeddingIndex) -> Ranking:
    return [(str(hit.path), round(hit.score, 5)) for hit in index.search("赤いりんご", 999)]


# ---- older formats -------------------------------------------------------------------------------------------------

FORMAT_1 = """
CREATE TABLE model (
    id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
    embed_dim INTEGER NOT NULL, generation INTEGER NOT NULL DEFAULT 0);
CREATE TABLE content (
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, taken TEXT);
CREATE INDEX content_size ON content (size);
CREATE TABLE file (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER NOT NULL, content INTEGER REFERENCES content,
    reason TEXT, detail TEXT, missing INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX file_content ON file (content);
CREATE TABLE vector (
    model INTEGER NOT NULL REFERENCES model, row INTEGER NOT NULL, content INTEGER NOT NULL REFERENCES content,
    PRIMARY KEY (model, row), UNIQUE (model, content)) WITHOUT ROWID;
PRAGMA user_version = 1;
"""


@pytest.fixture
def old_index(index: EmbeddingIndex, image_folder: Path, tmp_path: Path) -> Path:
    """What the first edition wrote for the six images, with its faults: access and dates stored as they came."""
    (image_folder / "e.gif").rename(image_folder / "e\u0301.gif")  # NFD
    (image_folder / "text.png").write_text("no image")
    (image_folder / "locked.png").write_text("not readable then")
    index.add_folder(image_folder, workers=0)
    (vectors,) = index._store.folder.glob("*.f16")  # pyright: ignore[reportPrivateUsage]
    folder = tmp_path / "old.index"
    folder.mkdir()
    shutil.copy(vectors, folder)
    new = sqlite3.connect(index._store.folder / "index.sqlite")  # pyright: ignore[reportPrivateUsage]
    with closing(new), closing(sqlite3.connect(folder / "index.sqlite")) as old:
        old.executescript(FORMAT_1)
        for table, columns in {
            "model": "id, fingerprint, name, embed_dim, generation",
            "content": "id, digest, size, width, height, taken",
            "file": "path, size, mtime, content, reason, detail, missing",
            "vector": "model, row, content",
        }.items():
            rows = new.execute(f"SELECT {columns} FROM {table}").fetchall()
            places = ", ".join("?" * len(columns.split(",")))
            old.executemany(f"INSERT INTO {table} VALUES ({places})", rows)
        old.execute("UPDATE file SET reason = 'not a picture' WHERE path = ?", [os.fsencode(image_folder / "text.png")])
        old.execute("UPDATE file SET reason = 'unreadable' WHERE path = ?", [os.fsencode(image_folder / "locked.png")])
        old.execute("UPDATE content SET taken = '0000-00-00 00:00:00' WHERE id = 1")
        old.execute("UPDATE content SET taken = '2021-02-03 04:05:06' WHERE id = 2")
        old.commit()
        old.execute("PRAGMA journal_mode = WAL")
    return folder


@pytest.mark.parametrize("writable", [True, False])
def test_an_index_of_the_first_edition_opens_and_its_faults_are_gone(
    old_index: Path, index: EmbeddingIndex, image_folder: Path, writable: bool
):
    before = {path.name: path.read_bytes() for path in old_index.iterdir()}
    if not writable:
        for path in (*old_index.iterdir(), old_index):
            path.chmod(0o555)
    with ordinary_rights(), EmbeddingIndex.open(old_index, index.embedder) as old:
        assert ranking(old) == ranking(index)
        assert [(Path(e.name).name, e.reason) for e in old.broken()] == [("text.png", "not an image")]
        dates = sorted(hit.taken[:4] for hit in old.search("犬"))
        assert dates[0] == "2021" and "0000" not in dates
        assert [hit.path.name for hit in old.search("犬", glob="\u00e9.gif")] == ["e\u0301.gif"]
        assert [root.path for root in old.roots()] == [image_folder]
        assert stored_models(old_index)[0].source is None
    if not writable:
        assert {path.name: path.read_bytes() for path in old_index.iterdir()} == before
        return
    (image_folder / "locked.png").unlink()
    noise(9, 9).save(image_folder / "locked.png")
    with EmbeddingIndex.open(old_index, index.embedder) as old:
        added = old.add_folder(image_folder, workers=0)
        assert (added.embedded, added.unchanged) == (1, 6)  # text.png: an older reader refused it


def test_a_later_format_is_left_alone(store_folder: Path):
    with closing(sqlite3.connect(store_folder / "index.sqlite")) as database:
        database.execute(f"PRAGMA user_version = {FORMAT + 1}")
    with pytest.raises(IndexFileError, match=rf"format {FORMAT + 1}.*{FORMAT}.*Update vlm"):
        VectorStore(store_folder)


@pytest.fixture
def store_folder(tmp_path: Path) -> Path:
    """A store with one image of a model of 4 numbers."""
    with closing(VectorStore(tmp_path / "index")) as store:
        store.add(store.model("f", "model", 4), [image_record("/a")], {b"/a": np.array([1, 0, 0, 0])})
    return tmp_path / "index"


# ---- read-only -----------------------------------------------------------------------------------------------------

LEAVES_A_LOG = """
import os, signal, sys
from pathlib import Path
import numpy as np
from tests.support.index_vectors import image_record
from vlm.index.vector_store import VectorStore

store = VectorStore(Path(sys.argv[1]))
model = store.model("f", "model", 4)
for name in "bcd":
    store.add(model, [image_record("/" + name)], {b"/" + name.encode(): np.array([0, 1, 0, 0])})
os.kill(os.getpid(), signal.SIGKILL)
"""


def leave_a_log(folder: Path) -> None:
    """A process adds three images and is killed: what it committed stands in the write-ahead log."""
    subprocess.run([sys.executable, "-c", LEAVES_A_LOG, folder], check=False, cwd=Path(__file__).parents[2])
    assert (folder / "index.sqlite-wal").stat().st_size > 0


@pytest.mark.parametrize("log", [False, True], ids=["clean", "with a log"])
@pytest.mark.parametrize("wall", ["disk", "rights"])
def test_a_read_only_index_is_searched_and_says_so_when_written(store_folder: Path, wall: str, log: bool):
    if log:
        if not hasattr(signal, "SIGKILL"):
            pytest.skip("kill -9 is POSIX")
        leave_a_log(store_folder)
    before = {path.name: path.read_bytes() for path in store_folder.iterdir()}

    def check() -> None:
        with closing(VectorStore(store_folder)) as store:
            assert store.count(1) == (4 if log else 1)
            assert store.vectors(1).shape == (4 if log else 1, 4)
            with pytest.raises(IndexFileError, match="read-only"):
                store.delete(["/a"])
            assert store.count(1) == (4 if log else 1)

    if wall == "disk":
        with read_only(store_folder):
            check()
    else:
        for path in (*store_folder.iterdir(), store_folder):
            path.chmod(0o555)
        with ordinary_rights():
            check()
    assert {path.name: path.read_bytes() for path in store_folder.iterdir()} == before


def test_a_reader_without_rights_sees_what_another_user_adds(store_folder: Path):
    """A server of another user, while `vlm index` runs."""
    store_folder.chmod(0o555)
    for path in store_folder.iterdir():
        path.chmod(0o444)
    with ordinary_rights():
        reader = VectorStore(store_folder)
    try:
        assert reader.count(1) == 1
        for name in ("/b", "/c"):
            with closing(VectorStore(store_folder)) as writer:  # root
                writer.add(1, [image_record(name)], {name.encode(): np.array([0, 1, 0, 0])})
            with ordinary_rights():
                assert reader.count(1) == 2 + (name == "/c")
                assert len(reader.vectors(1)) == reader.count(1)
    finally:
        reader.close()


def test_a_database_that_may_not_be_read_is_one_line(store_folder: Path):
    (store_folder / "index.sqlite").chmod(0o000)
    with ordinary_rights(), pytest.raises(IndexFileError, match=r"cannot be read.*rights"):
        VectorStore(store_folder)


# ---- nothing is left behind ----------------------------------------------------------------------------------------


def test_opening_and_searching_creates_nothing(tiny_embedder: Embedder, tmp_path: Path):
    with EmbeddingIndex.open(tmp_path / "far" / "index", tiny_embedder) as index:
        assert (len(index), index.search("犬"), index.prune(), index.delete(["/a"]), index.roots()) == (0, [], 0, 0, [])
        assert index.add([]).found == 0
    assert not (tmp_path / "far").exists()


def test_a_first_batch_that_fails_leaves_no_index(
    tiny_embedder: Embedder, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with EmbeddingIndex.open(tmp_path / "far" / "index", tiny_embedder) as index:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(IndexFileError, match="full"):
                index.add_folder(image_folder, workers=0)
        assert not (tmp_path / "far").exists()
        assert index.add_folder(image_folder, workers=0).embedded == 6
        assert len(index) == 6


@pytest.mark.parametrize("kilobytes", [60, 200, 400])
def test_a_full_disk_is_one_line_and_the_rest_is_added_later(
    tiny_embedder: Embedder, index: EmbeddingIndex, tmp_path: Path, kilobytes: int
):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(1500):
        (folder / f"{'a long name ' * 15}{number}.bmp").write_bytes(bmp(number))
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        with (
            EmbeddingIndex.open(disk / "index", tiny_embedder) as full,
            pytest.raises(IndexFileError, match="full"),
        ):
            full.add_folder(folder, workers=0)
        with EmbeddingIndex.open(disk / "index", tiny_embedder) as full:
            some = len(full)
            assert some < 1500 and len(full.search("犬", 2000)) == some
        if kilobytes == 60:
            assert not (disk / "index").exists()
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        with EmbeddingIndex.open(disk / "index", tiny_embedder) as full:
            added = full.add_folder(folder, workers=0)
            assert added.unchanged == some
            index.add_folder(folder, workers=0)
            assert ranking(full) == ranking(index)


def bmp(number: int) -> bytes:
    """2 x 1 pixels; every number is another file."""
    header = b"BM" + (62).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    size = (2).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"\1\0\x18\0" + bytes(24)
    return header + size + number.to_bytes(6, "little") + bytes(2)


# ---- damage --------------------------------------------------------------------------------------------------------


def zero(file: Path, start: float, length: int) -> None:
    """Zeros from a share of the file on."""
    with file.open("r+b") as opened:
        opened.seek(int(start * file.stat().st_size) // 512 * 512)
        opened.write(bytes(length))


def overwrite(file: Path, at: int, content: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(content)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "header of the database": lambda database, vectors: zero(database, 0, 100),
    "table of tables": lambda database, vectors: zero(database, 0, 4096),
    "a page": lambda database, vectors: zero(database, 0.4, 4096),
    "another page": lambda database, vectors: zero(database, 0.7, 4096),
    "the last page": lambda database, vectors: zero(database, 0.95, 4096),
    "half of the database": lambda database, vectors: os.truncate(database, database.stat().st_size // 2),
    "an empty database": lambda database, vectors: os.truncate(database, 0),
    "text as database": lambda database, vectors: database.write_text("not a database at all" * 100),
    "zeros among the vectors": lambda database, vectors: zero(vectors, 0.3, 100),
    "half of the vectors": lambda database, vectors: os.truncate(vectors, vectors.stat().st_size // 2),
    "no version in the header": lambda database, vectors: overwrite(database, 60, b"\0\0\0\0"),
    "no numbers": lambda database, vectors: overwrite(vectors, 0, b"\xff" * 480),  # NaN
    "no vectors": lambda database, vectors: vectors.unlink(),
    "no database": lambda database, vectors: database.unlink(),
    "noise as vectors": lambda database, vectors: (
        vectors.write_bytes(np.full(48 * 60, 60000, "<f2").tobytes()) and None
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_says_so_and_is_built_again(tiny_embedder: Embedder, tmp_path: Path, damage: str):
    folder, place = tmp_path / "images", tmp_path / "index"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02d}.bmp").write_bytes(bmp(number))
    with EmbeddingIndex.open(place, tiny_embedder) as index:
        index.add_folder(folder, workers=0)
        sound = ranking(index)
    (vectors,) = place.glob("*.f16")
    DAMAGES[damage](place / "index.sqlite", vectors)

    def update() -> None:
        with EmbeddingIndex.open(place, tiny_embedder) as index:
            index.add_folder(folder, workers=0)

    if damage == "an empty database":  # SQLite takes it for a new one; so it is filled again
        update()
    else:
        with pytest.raises(IndexFileError) as caught:
            update()
        assert str(place) in str(caught.value)
        assert "delete the index" in str(caught.value) or "is not an index" in str(caught.value)
        shutil.rmtree(place)  # as it says
        update()
    with EmbeddingIndex.open(place, tiny_embedder) as index:
        assert ranking(index) == sound


@pytest.mark.parametrize("damage", ["zeros among the vectors", "noise as vectors", "no numbers"])
def test_a_search_never_answers_from_damaged_vectors(index: EmbeddingIndex, image_folder: Path, damage: str):
    index.add_folder(image_folder, workers=0)
    (vectors,) = index._store.folder.glob("*.f16")  # pyright: ignore[reportPrivateUsage]
    DAMAGES[damage](vectors, vectors)
    with pytest.raises(IndexFileError, match="damaged"):
        index.search("犬", 99)
    with pytest.raises(IndexFileError, match="damaged"):
        index.duplicates(0.9)


# ---- threads -------------------------------------------------------------------------------------------------------


def test_one_index_serves_many_threads_while_another_adds(index: EmbeddingIndex, image_folder: Path):
    index.add_folder(image_folder, workers=0)
    expected, failures = ranking(index)[:3], list[BaseException]()

    def search() -> None:
        try:
            for _ in range(10):
                found = ranking(index)
                assert [hit for hit in found if hit in expected] == expected
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(10):
        noise(9, 9, 100 + number).save(image_folder / f"new {number}.png")
        index.add([image_folder / f"new {number}.png"], workers=0)
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(index) == 16
