"""An index follows its folders: no image is lost to a trouble of access, a move or an empty mount."""

import os
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from tests.support.odd_images import noise
from tests.support.rights import ordinary_rights
from vlm.embedder import Embedder
from vlm.errors import InputError
from vlm.index import indexing
from vlm.index.embedding_index import EmbeddingIndex


def names(index: EmbeddingIndex, query: str = "犬", **limits: object) -> list[str]:
    return sorted(hit.path.name for hit in index.search(query, 999, **limits))  # type: ignore[arg-type]


# ---- access --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
@pytest.mark.parametrize("rights", [0o000, 0o222], ids=oct)
def test_a_file_that_may_not_be_read_for_a_while_is_found_as_soon_as_it_may(
    index: EmbeddingIndex, image_folder: Path, known: bool, rights: int
):
    """It was stored as broken, and never tried again."""
    locked = image_folder / "d.webp"
    if known:
        index.add_folder(image_folder, workers=0)
    os.utime(locked, (1, 1))  # known, but changed
    locked.chmod(rights)
    with ordinary_rights():
        added = index.add_folder(image_folder, workers=0)
    assert [(error.name, error.reason) for error in added.skipped] == [(str(locked), "unreadable")]
    assert ("d.webp" in names(index)) is known  # what is known is not replaced
    assert index.broken() == []
    locked.chmod(0o644)
    added = index.add_folder(image_folder, workers=0)
    assert (added.embedded, added.recognised, added.skipped) == (not known, known, [])
    assert "d.webp" in names(index)


def test_an_error_of_the_disk_is_reported_and_not_stored(
    index: EmbeddingIndex, image_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    index.add_folder(image_folder, workers=0)
    os.utime(image_folder / "a.png")
    real = os.stat

    def stat(path: str | Path, *given: object, **named: object) -> os.stat_result:
        if str(path).endswith(("a.png", "b.png")):
            raise OSError(5 if str(path).endswith("a.png") else 116, "a stale handle")  # EIO, ESTALE
        return real(path, *given, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        added = index.add_folder(image_folder, workers=0)
    assert {Path(error.name).name: error.reason for error in added.skipped} == dict.fromkeys(
        ("a.png", "b.png"), "unreadable"
    )
    assert len(names(index)) == 6
    assert index.add_folder(image_folder, workers=0).skipped == []


def test_a_folder_behind_a_wall_keeps_its_images(index: EmbeddingIndex, image_folder: Path):
    index.add_folder(image_folder, workers=0)
    (image_folder / "deeper").chmod(0o000)
    try:
        with ordinary_rights():
            added = index.add_folder(image_folder, workers=0)
    finally:
        (image_folder / "deeper").chmod(0o755)
    assert [(error.name, error.reason) for error in added.skipped] == [(str(image_folder / "deeper"), "unreadable")]
    assert (added.vanished, len(names(index))) == ([], 6)


def test_a_root_that_may_not_be_listed_is_an_error_and_loses_nothing(index: EmbeddingIndex, image_folder: Path):
    index.add_folder(image_folder, workers=0)
    image_folder.chmod(0o000)
    try:
        with ordinary_rights(), pytest.raises(InputError, match="cannot be listed"):
            index.add_folder(image_folder, workers=0)
    finally:
        image_folder.chmod(0o755)
    assert len(names(index)) == 6


# ---- what was refused ----------------------------------------------------------------------------------------------


def test_refused_files_are_read_again_by_a_newer_reader_and_when_asked(
    index: EmbeddingIndex, image_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (image_folder / "text.png").write_text("no image")
    assert index.add_folder(image_folder, workers=0).unchanged == 0
    assert index.add_folder(image_folder, workers=0).unchanged == 7
    assert index.add_folder(image_folder, workers=0, retry_skipped=True).unchanged == 6
    monkeypatch.setattr(indexing, "reader_version", lambda: "the next")
    assert index.add_folder(image_folder, workers=0).unchanged == 6


def test_everything_is_embedded_again_by_force(index: EmbeddingIndex, image_folder: Path):
    shutil.copy(image_folder / "a.png", image_folder / "copy.png")
    index.add_folder(image_folder, workers=0)
    before = {hit.path: hit.score for hit in index.search("犬", 99)}
    store = index._store  # pyright: ignore[reportPrivateUsage]
    for batch_size in (32, 2):  # copies in one batch, and in several
        added = index.add_folder(image_folder, workers=0, force=True, batch_size=batch_size)
        assert (added.found, added.unchanged) == (7, 0)
        after = {hit.path: hit.score for hit in index.search("犬", 99)}
        assert after == pytest.approx(before, abs=1e-3)  # float16 vectors; another batch size rounds differently
    assert store.rows(1) > 6  # until prune
    index.prune()
    assert store.rows(1) == 6


def test_files_without_a_suffix_are_images_by_their_first_bytes_or_only_counted(
    index: EmbeddingIndex, image_folder: Path
):
    shutil.copy(image_folder / "c.jpg", image_folder / "IMG_0001")
    (image_folder / "README").write_text("words")
    (image_folder / "LICENSE").write_text("words")
    (image_folder / "notes.txt").write_text("words")
    added = index.add_folder(image_folder, workers=0)
    assert "IMG_0001" in names(index)
    assert added.skipped == []
    assert added.others == Counter({"no suffix": 2, ".txt": 1})
    assert added.found == 7
    again = index.add_folder(image_folder, workers=0)
    assert (again.others, again.unchanged) == (added.others, 9)


# ---- roots ---------------------------------------------------------------------------------------------------------


def filled(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for number in range(count):
        noise(20, 20, number).save(folder / f"{number}.png")
    return folder


def paths(index: EmbeddingIndex) -> list[Path]:
    return sorted(hit.path for hit in index.search("犬", 999))


@pytest.mark.parametrize("pruned", [False, True])
def test_a_disk_that_moved_is_in_the_index_once(index: EmbeddingIndex, tmp_path: Path, pruned: bool):
    index.add_folder(filled(tmp_path / "diskA"), workers=0)
    (tmp_path / "diskA").rename(tmp_path / "diskB")
    assert [(root.path, root.images, root.state) for root in index.roots()] == [(tmp_path / "diskA", 4, "gone")]
    with pytest.raises(InputError, match=r"diskA.*gone.*4 images.*--move.*--forget"):
        index.add_folder(tmp_path / "diskA")
    added = index.add_folder(tmp_path / "diskB", workers=0)
    if pruned:
        index.prune(tmp_path / "diskB")
    assert (added.embedded, added.recognised, added.moved, added.found) == (0, 4, 4, 4)
    assert paths(index) == [tmp_path / "diskB" / f"{number}.png" for number in range(4)]
    assert index.duplicates(1) == []
    assert [(root.path, root.images, root.state) for root in index.roots()] == [(tmp_path / "diskB", 4, "present")]


def test_copies_on_a_disk_that_is_there_stay(index: EmbeddingIndex, tmp_path: Path):
    index.add_folder(filled(tmp_path / "one"), workers=0)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert index.add_folder(tmp_path / "two", workers=0).moved == 0
    assert len(paths(index)) == 8


def test_a_file_that_moved_between_two_roots_is_found_at_its_new_place(index: EmbeddingIndex, tmp_path: Path):
    one, two = filled(tmp_path / "one"), filled(tmp_path / "two", 1)
    (two / "0.png").unlink()
    noise(30, 30, 99).save(two / "own.png")
    index.add_folder(one, workers=0)
    (one / "2.png").rename(two / "renamed.png")
    assert index.add_folder(two, workers=0).moved == 1
    assert paths(index) == [one / "0.png", one / "1.png", one / "3.png", two / "own.png", two / "renamed.png"]


@pytest.mark.parametrize("empty", ["no files", "only others"])
def test_an_empty_mount_is_not_a_folder_of_vanished_images(index: EmbeddingIndex, tmp_path: Path, empty: str):
    disk = filled(tmp_path / "disk")
    index.add_folder(disk, workers=0)
    for file in disk.iterdir():
        file.unlink()
    if empty == "only others":
        (disk / "NOT_MOUNTED.txt").touch()
    with pytest.raises(InputError, match=r"had 4 images.*none now.*mount.*--allow-empty"):
        index.add_folder(disk, workers=0)
    assert len(paths(index)) == 4
    added = index.add_folder(disk, workers=0, allow_empty=True)
    assert (len(added.vanished), paths(index)) == (4, [])


def test_an_empty_mount_below_the_folder_keeps_its_images(index: EmbeddingIndex, tmp_path: Path):
    home = filled(tmp_path / "home", 2)
    disk = home / "disk"
    disk.mkdir()
    for number in range(3):
        noise(9, 9, 50 + number).save(disk / f"of the disk {number}.png")
    index.add_folder(disk, workers=0)  # the disk alone, then all of home
    index.add_folder(home, workers=0)
    for file in disk.iterdir():
        file.unlink()
    added = index.add_folder(home, workers=0)
    assert (added.vanished, len(paths(index))) == ([], 5)
    assert len(added.notes) == 1 and str(disk) in added.notes[0]
    assert len(index.add_folder(home, workers=0, allow_empty=True).vanished) == 3


def test_a_root_is_moved_without_reading_a_file(index: EmbeddingIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    index.add_folder(filled(tmp_path / "old"), workers=0)
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.setattr(indexing, "read_batches", None)  # whoever calls it fails
    assert index.move_root(tmp_path / "old", tmp_path / "new") == 4
    assert paths(index) == [tmp_path / "new" / f"{number}.png" for number in range(4)]
    assert [(root.path, root.images) for root in index.roots()] == [(tmp_path / "new", 4)]
    with pytest.raises(InputError, match=r"no file below.*old.*new"):
        index.move_root(tmp_path / "old", tmp_path / "new")
    with pytest.raises(InputError, match="nowhere"):
        index.move_root(tmp_path / "new", tmp_path / "nowhere")


@pytest.mark.parametrize(("old", "new"), [("a", "a/a"), ("a/a", "a")])
def test_a_root_is_moved_into_its_own_folder_and_out_of_it(index: EmbeddingIndex, tmp_path: Path, old: str, new: str):
    noise(9, 9, 0).save(filled(tmp_path / "a") / "here.png")
    filled(tmp_path / "a" / "a")  # so that old places are new places of others
    index.add_folder(tmp_path / "a", workers=0)
    below = [path for path in paths(index) if path.is_relative_to(tmp_path / old)]
    (tmp_path / new).mkdir(exist_ok=True, parents=True)
    assert index.move_root(tmp_path / old, tmp_path / new) == len(below)
    moved = {tmp_path / new / path.relative_to(tmp_path / old) for path in below}
    assert moved <= set(paths(index))
    with pytest.raises(InputError, match="both"):
        index.move_root(tmp_path / new, tmp_path / new)
    assert moved <= set(paths(index))


def test_a_root_that_is_forgotten_leaves_nothing_behind(index: EmbeddingIndex, tmp_path: Path):
    index.add_folder(filled(tmp_path / "one"), workers=0)
    index.add_folder(filled(tmp_path / "one more", 1), workers=0)
    shutil.rmtree(tmp_path / "one")
    assert index.forget_root(tmp_path / "one") == 4
    assert paths(index) == [tmp_path / "one more" / "0.png"]
    assert [root.path for root in index.roots()] == [tmp_path / "one more"]
    assert index._store.rows(1) == 1  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(InputError, match="one more"):
        index.forget_root(tmp_path / "one")


def test_a_folder_below_a_root_is_no_other_root(index: EmbeddingIndex, image_folder: Path):
    index.add_folder(image_folder, workers=0)
    index.add_folder(image_folder / "deeper", workers=0)
    assert [root.path for root in index.roots()] == [image_folder]


# ---- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_a_pattern_finds_names_however_accents_and_kana_are_composed(
    index: EmbeddingIndex, tmp_path: Path, stored: str, asked: str
):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(["café.png", "がぎぐ.png", "plain.png"]):
        noise(9, 9, number).save(folder / unicodedata.normalize(stored, name))  # type: ignore[arg-type]
    index.add_folder(folder, workers=0)

    def found(pattern: str) -> int:
        return len(names(index, glob=unicodedata.normalize(asked, pattern)))  # type: ignore[arg-type]

    assert [found(pattern) for pattern in ("café.*", "がぎぐ.png", "*がぎ*", "??ぐ.png", "caf?.png")] == [1] * 5
    assert found("*.png") == 3
    moved = tmp_path / "moved"
    folder.rename(moved)
    index.move_root(folder, moved)
    assert found("caf?.png") == 1


@pytest.mark.parametrize("name", ["[2024] x", "100% * y", "what?"])
def test_literal_takes_every_sign_of_a_pattern_as_it_is(index: EmbeddingIndex, tmp_path: Path, name: str):
    for number, folder in enumerate([name, "2 x", "100% z y", "whats"]):
        (tmp_path / "images" / folder).mkdir(parents=True, exist_ok=True)
        noise(9, 9, number).save(tmp_path / "images" / folder / f"{number}.png")
    index.add_folder(tmp_path / "images", workers=0)
    assert names(index, glob=name, literal=True) == ["0.png"]
    assert names(index, glob=f"{name}/0", literal=True) == ["0.png"]


def test_two_thousand_renames_embed_nothing(index: EmbeddingIndex, tmp_path: Path, tiny_embedder: Embedder):
    """The promise of docs/retrieval.md, with files of one byte more than a small image."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise(2, 2).save(folder / "seed.png")
    data = (folder / "seed.png").read_bytes()
    for number in range(300):
        (folder / f"{number}.png").write_bytes(data + number.to_bytes(2, "big"))
    index.add_folder(folder, workers=0)
    for file in list(folder.iterdir()):
        file.rename(folder / f"renamed {file.name}")
    added = index.add_folder(folder, workers=0)
    assert (added.embedded, added.recognised, len(added.vanished), len(index)) == (0, 301, 301, 301)
