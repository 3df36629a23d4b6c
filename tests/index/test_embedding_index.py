import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.odd_images import ODD_IMAGES, four_corners, noise, write_odd_images
from vlm.calibration import Calibration
from vlm.commands.contact_sheet import contact_sheet
from vlm.embedder import Embedder
from vlm.errors import InputError
from vlm.index.embedding_index import EmbeddingIndex
from vlm.index.indexing import Added
from vlm.index.query import Query
from vlm.index.vector_store import VectorStore

LONG = "dog " * 25_000_000  # 100 MB


@pytest.fixture
def embedded(tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the model has been given, batch by batch."""
    sizes: list[int] = []
    inner = tiny_embedder.embed_pixels

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return inner(pixels)

    monkeypatch.setattr(tiny_embedder, "embed_pixels", counted)
    return sizes


def counts(added: Added) -> tuple[int, int, int, int, int]:
    return added.embedded, added.recognised, added.unchanged, len(added.vanished), len(added.skipped)


def images_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.*") if path.is_file())


def ranking(index: EmbeddingIndex, query: str = "赤いりんご", k: int = 99) -> list[tuple[Path, float]]:
    return [(hit.path, round(hit.score, 5)) for hit in index.search(query, k)]


# ---- search --------------------------------------------------------------------------------------------------------


def test_search_is_the_ranking_by_cosine(index: EmbeddingIndex, tiny_embedder: Embedder, image_folder: Path):
    index.add_folder(image_folder)
    hits = index.search("赤いりんご", k=4)
    paths = images_of(image_folder)
    exact = tiny_embedder.embed_images(paths) @ tiny_embedder.embed_texts(["赤いりんご"])[0]
    stored = tiny_embedder.embed_images(paths).half().float() @ tiny_embedder.embed_texts(["赤いりんご"])[0]
    expected = sorted(zip(stored.tolist(), paths, strict=True), reverse=True)[:4]
    assert [hit.path for hit in hits] == [path for _, path in expected]
    assert [hit.score for hit in hits] == pytest.approx([score for score, _ in expected], abs=1e-6)
    assert [hit.score for hit in hits] == pytest.approx(exact.sort(descending=True).values[:4].tolist(), abs=1e-3)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]


def test_terms_are_summed_with_their_signs(index: EmbeddingIndex, tiny_embedder: Embedder, image_folder: Path):
    red, car, bird = tiny_embedder.embed_texts(["赤い", "車", "鳥"])
    expected = torch.nn.functional.normalize(red + car - bird, dim=0)
    torch.testing.assert_close(index.embed_query("赤い + 車 - 鳥"), expected)
    torch.testing.assert_close(index.embed_query("2*赤い + 2*車 - 2*鳥"), expected)
    torch.testing.assert_close(index.embed_query([(2, "赤い"), (2, "車"), (-2, "鳥")]), expected)
    image = tiny_embedder.embed_images([image_folder / "a.png"])[0]
    mixed = torch.nn.functional.normalize(0.5 * image + red, dim=0)
    torch.testing.assert_close(index.embed_query([(0.5, image_folder / "a.png"), (1, "赤い")]), mixed)


def test_a_image_in_the_index_is_found_by_its_stored_vector_until_it_changes(
    index: EmbeddingIndex, embedded: list[int], image_folder: Path
):
    index.add_folder(image_folder)
    embedded.clear()
    query = image_folder / "deeper" / "f.png"
    first = index.search(query)[0]
    assert (first.path, embedded) == (query, [])
    assert first.score == pytest.approx(1, abs=1e-3)
    noise(30, 30, seed=9).save(query)
    index.search(query)
    assert embedded == [1]


def test_a_probability_is_that_of_the_model_and_only_for_a_single_text(
    index: EmbeddingIndex, tiny_embedder: Embedder, image_folder: Path
):
    index.add_folder(image_folder)
    assert {hit.probability for hit in index.search("犬")} == {None}
    tiny_embedder.calibration = Calibration(scale=20, bias=-10)
    expected = tiny_embedder.match_probability(torch.tensor([hit.score for hit in index.search("犬")]))
    assert expected is not None
    assert [hit.probability for hit in index.search("犬")] == pytest.approx(expected.tolist(), abs=1e-6)
    assert {hit.probability for hit in index.search("犬 + 猫")} == {None}  # no validation data is like this
    assert {hit.probability for hit in index.search([(1, "犬")])} == {None}
    assert {hit.probability for hit in index.search(image_folder / "a.png")} == {None}


@pytest.mark.parametrize(
    ("query", "limits", "fact"),
    [
        (LONG, {}, "100,000,000"),
        ([(1, "dog"), (1, "x" * 10_001)], {}, "10,001"),
        ("a\0dog", {}, "NUL"),
        (Path("a\0dog.png"), {}, "NUL"),
        (" ", {}, "empty"),
        ([], {}, "empty"),
        ("犬 +  ", {}, "term"),
        ("犬 - 犬", {}, "cancel out"),
        ("dog", {"glob": LONG}, "100,000,000"),
        ("dog", {"glob": "a\0b"}, "NUL"),
        ("dog", {"since": LONG}, "not a date"),
        ("dog", {"since": "2025", "until": "2024"}, "after"),
        ("dog", {"min_side": 2**70}, "pixels"),
        ("dog", {"literal": True}, "glob"),
    ],
    ids=range(14),
)
def test_what_cannot_be_meant_is_refused_in_one_short_line(
    index: EmbeddingIndex, image_folder: Path, query: Query, limits: dict[str, Any], fact: str
):
    index.add_folder(image_folder)
    with pytest.raises(InputError, match=fact) as error:
        index.search(query, **limits)
    assert len(str(error.value)) < 220


def test_filters_keep_what_they_say(index: EmbeddingIndex, tmp_path: Path):
    folder = tmp_path / "images"
    for name, year, side in [("2023/a.jpg", 2023, 40), ("2024/b.jpg", 2024, 50), ("2024/deeper/c.jpg", 2024, 60)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0132] = f"{year}:05:01 12:00:00"
        noise(side, 70, seed=side).save(folder / name, exif=exif)
    noise(80, 80).save(folder / "undated.png")
    os.utime(folder / "undated.png", (0, 86400 * 366))  # the file is of 1971
    index.add_folder(folder)

    def found(**limits: str | int) -> list[str]:
        return sorted(hit.path.name for hit in index.search("犬", 99, **limits))  # type: ignore[arg-type]

    assert found(glob="2024/*") == ["b.jpg", "c.jpg"]
    assert found(glob=f"{folder}/2023/*") == ["a.jpg"]
    assert found(glob="*.jpg", min_side=45) == ["b.jpg", "c.jpg"]
    assert found(since="2024") == ["b.jpg", "c.jpg"]
    assert found(since="2023-05-01", until="2023-05-01") == ["a.jpg"]
    assert found(until="1980") == ["undated.png"]
    assert found(glob="nowhere/*") == []
    assert found(glob="[!ab].jpg") == found(glob="[^ab].jpg") == ["c.jpg"]
    assert len(index.search("犬", 1, glob="2024/*")) == 1


def test_copies_are_one_vector_and_all_found(index: EmbeddingIndex, embedded: list[int], image_folder: Path):
    shutil.copy(image_folder / "a.png", image_folder / "z.png")
    added = index.add_folder(image_folder)
    assert (sum(embedded), counts(added)) == (6, (6, 1, 0, 0, 0))
    assert len(index) == len(index.search("犬", 99)) == 7
    assert index.duplicates(1) == [[image_folder / "a.png", image_folder / "z.png"]]


# ---- keeping up ----------------------------------------------------------------------------------------------------


def test_nothing_changed_embeds_nothing(index: EmbeddingIndex, embedded: list[int], image_folder: Path):
    assert counts(index.add_folder(image_folder)) == (6, 0, 0, 0, 0)
    assert counts(index.add_folder(image_folder)) == (0, 0, 6, 0, 0)
    assert embedded == [6]


def test_renamed_and_moved_files_are_recognised(index: EmbeddingIndex, embedded: list[int], image_folder: Path):
    index.add_folder(image_folder)
    before = dict(ranking(index))
    (image_folder / "a.png").rename(image_folder / "deeper" / "moved.png")
    os.utime(image_folder / "b.png")  # touched: another time, the same bytes
    added = index.add_folder(image_folder)
    assert counts(added) == (0, 2, 4, 1, 0)
    assert added.vanished == [image_folder / "a.png"]
    assert sum(embedded) == 6
    after = dict(ranking(index))
    assert after.pop(image_folder / "deeper" / "moved.png") == before.pop(image_folder / "a.png")
    assert after == before


def test_an_edited_image_is_embedded_anew(index: EmbeddingIndex, tiny_embedder: Embedder, image_folder: Path):
    index.add_folder(image_folder)
    edited = image_folder / "a.png"
    noise(50, 50, seed=7).save(edited)
    assert counts(index.add_folder(image_folder)) == (1, 0, 5, 0, 0)
    expected = tiny_embedder.embed_images([edited])[0].half().float() @ tiny_embedder.embed_texts(["犬"])[0]
    assert dict(ranking(index, "犬"))[edited] == pytest.approx(expected.item(), abs=1e-5)
    assert len(index) == 6


def test_vanished_files_are_not_found_and_come_back_for_nothing(
    index: EmbeddingIndex, embedded: list[int], image_folder: Path
):
    index.add_folder(image_folder)
    before = ranking(index)
    shutil.move(image_folder / "deeper", image_folder.parent / "away")
    assert counts(index.add_folder(image_folder)) == (0, 0, 5, 1, 0)
    assert len(index.search("犬", 99)) == len(index) == 5
    shutil.move(image_folder.parent / "away", image_folder / "deeper")
    assert counts(index.add_folder(image_folder)) == (0, 1, 5, 0, 0)
    assert (ranking(index), sum(embedded)) == (before, 6)


def test_prune_takes_vanished_and_deleted_images_off_the_disk(index: EmbeddingIndex, image_folder: Path):
    index.add_folder(image_folder)
    vectors = index._store.folder.glob  # pyright: ignore[reportPrivateUsage]
    (image_folder / "a.png").unlink()
    index.add_folder(image_folder)
    assert index.delete([image_folder / "b.png", image_folder / "never.png"]) == 1
    before = ranking(index)
    assert [path.stat().st_size for path in vectors("*.f16")] == [6 * 24 * 2]
    assert index.prune(image_folder) == 1
    assert [path.stat().st_size for path in vectors("*.f16")] == [4 * 24 * 2]
    assert ranking(index) == before
    assert counts(index.add_folder(image_folder)) == (1, 0, 4, 0, 0)  # b.png was forgotten altogether


def test_prune_of_one_folder_leaves_the_missing_of_others(index: EmbeddingIndex, image_folder: Path, tmp_path: Path):
    index.add_folder(image_folder)
    (image_folder / "a.png").unlink()
    (image_folder / "deeper" / "f.png").unlink()
    index.add_folder(image_folder)
    assert index.prune(image_folder / "deeper") == 1
    assert index.prune(tmp_path / "pict") == 0  # a name that only begins alike
    assert index.prune() == 1


def test_broken_images_are_listed_and_not_tried_again_until_they_change(
    index: EmbeddingIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "odd"
    folder.mkdir()
    write_odd_images(folder)
    added = index.add_folder(folder)
    reasons = {name: reason for name, reason in ODD_IMAGES.items() if reason}
    assert {Path(error.name).name: error.reason for error in added.skipped} == reasons
    assert counts(added) == (12 - len(reasons), 0, 0, 0, len(reasons))
    with monkeypatch.context() as patch:
        patch.setattr("vlm.index.image_reading.read_file", None)  # whoever calls it fails
        again = index.add_folder(folder)
    assert counts(again) == (0, 0, 12, 0, len(reasons))
    four_corners().save(folder / "empty.jpg")
    assert counts(index.add_folder(folder)) == (1, 0, 11, 0, len(reasons) - 1)


def test_a_folder_that_cannot_be_listed_keeps_its_images(
    index: EmbeddingIndex, image_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    index.add_folder(image_folder)
    listed = os.scandir

    def scandir(folder: Path) -> Iterator[os.DirEntry[str]]:
        if Path(folder).name == "deeper":
            raise PermissionError
        return listed(folder)

    monkeypatch.setattr("os.scandir", scandir)
    added = index.add_folder(image_folder)
    assert added.vanished == []
    assert [(error.name, error.reason) for error in added.skipped] == [(str(image_folder / "deeper"), "unreadable")]
    assert len(index.search("犬", 99)) == 6


def test_an_interruption_loses_one_batch_at_most(
    index: EmbeddingIndex, tiny_embedder: Embedder, image_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    inner, calls = tiny_embedder.embed_pixels, iter([True, True, False])

    def interrupted(pixels: torch.Tensor) -> torch.Tensor:
        if not next(calls):
            raise KeyboardInterrupt
        return inner(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(tiny_embedder, "embed_pixels", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.add_folder(image_folder, batch_size=2)
    assert len(index) == 4
    assert counts(index.add_folder(image_folder, batch_size=2)) == (2, 0, 4, 0, 0)


def test_worker_processes_read_the_same(tiny_embedder: Embedder, image_folder: Path, tmp_path: Path):
    write_odd_images(image_folder)
    with EmbeddingIndex.open(tmp_path / "one", tiny_embedder) as one:
        alone = one.add_folder(image_folder, workers=0, batch_size=4)
        with EmbeddingIndex.open(tmp_path / "two", tiny_embedder) as two:
            together = two.add_folder(image_folder, workers=2, batch_size=4)
            assert counts(together) == counts(alone)
            assert list(map(str, together.skipped)) == list(map(str, alone.skipped))
            assert ranking(two) == ranking(one)


def test_every_model_has_its_own_vectors(tiny_embedder: Embedder, image_folder: Path, tmp_path: Path):
    with EmbeddingIndex.open(tmp_path / "index", tiny_embedder) as index:
        index.add_folder(image_folder)
        before = ranking(index)
    with torch.no_grad():
        weight = tiny_embedder.model.vision.patch_embed.proj.weight
        old = weight.clone()
        weight.neg_()
    with EmbeddingIndex.open(tmp_path / "index", tiny_embedder) as index:
        assert (len(index), index.search("犬")) == (0, [])
        assert counts(index.add_folder(image_folder)) == (6, 0, 0, 0, 0)
        assert ranking(index) != before
        (image_folder / "a.png").unlink()
        index.add_folder(image_folder)
        index.prune()
    with torch.no_grad():
        weight.copy_(old)
    with EmbeddingIndex.open(tmp_path / "index", tiny_embedder) as index:
        assert ranking(index) == [hit for hit in before if hit[0].name != "a.png"]
        assert counts(index.add_folder(image_folder)) == (0, 0, 5, 0, 0)


def test_a_saved_copy_answers_as_the_index(
    index: EmbeddingIndex, tiny_embedder: Embedder, image_folder: Path, tmp_path: Path
):
    index.add_folder(image_folder)
    index.save(tmp_path / "copy")
    with EmbeddingIndex.open(tmp_path / "copy", tiny_embedder) as copy:
        assert ranking(copy) == ranking(index)
    with pytest.raises(InputError, match="exists already"):
        index.save(tmp_path / "copy")


def test_a_search_while_another_process_prunes_answers(
    index: EmbeddingIndex, tiny_embedder: Embedder, image_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    index.add_folder(image_folder)
    index.delete([image_folder / "a.png"])
    before = ranking(index)
    folder = index._store.folder  # pyright: ignore[reportPrivateUsage]
    inner, pruned = VectorStore.embed_dim, list[bool]()

    def embed_dim(store: VectorStore, model: int) -> int:
        if store.folder == folder and not pruned:  # the search has seen the old rows, and then
            pruned.append(True)
            other = VectorStore(folder)
            other.prune()
            other.close()
        return inner(store, model)

    monkeypatch.setattr(VectorStore, "embed_dim", embed_dim)
    assert ranking(index) == before
    assert (pruned, len(index._store.vectors(1))) == ([True], 5)  # pyright: ignore[reportPrivateUsage]


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_links_that_lead_outside_are_skipped_and_listed(index: EmbeddingIndex, image_folder: Path, tmp_path: Path):
    noise(20, 20).save(tmp_path / "secret.png")
    (image_folder / "link.png").symlink_to(tmp_path / "secret.png")
    (image_folder / "up").symlink_to(tmp_path, target_is_directory=True)
    added = index.add_folder(image_folder)
    assert (counts(added), added.found) == ((6, 0, 0, 0, 2), 8)
    assert {Path(error.name).name: error.reason for error in added.skipped} == dict.fromkeys(
        ("link.png", "up"), "outside the folder"
    )


def test_one_file_has_one_name_however_it_is_written(index: EmbeddingIndex, image_folder: Path):
    index.add_folder(image_folder / "deeper" / "..")
    added = index.add([image_folder / "deeper" / ".." / "a.png", str(image_folder / "b.png")])
    assert counts(added) == (0, 0, 2, 0, 0)
    assert len(index) == 6


def test_names_that_no_file_can_have_are_refused(index: EmbeddingIndex, image_folder: Path):
    for action in (index.add_folder, lambda name: index.add([name]), lambda name: index.delete([name])):
        with pytest.raises(InputError, match=r"a\\x00b"):
            action(f"{image_folder}/a\0b")
    with pytest.raises(InputError, match=r"a\.png"):
        index.add_folder(image_folder / "a.png")
    assert counts(index.add([image_folder / "nowhere.png"])) == (0, 0, 0, 0, 1)


def test_file_names_that_are_not_utf8_are_kept(index: EmbeddingIndex, image_folder: Path):
    odd = image_folder / os.fsdecode(b"caf\xe9.png")
    (image_folder / "a.png").rename(odd)
    index.add_folder(image_folder)
    assert odd in [hit.path for hit in index.search("犬", 99, glob="images/*")]
    assert "caf\\udce9.png" in contact_sheet([index.search(odd, 1)], "犬")
