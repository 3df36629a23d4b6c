"""What the methods of `EmbeddingIndex` take and count, one by one; test_retrieval.py has what the index promises."""

import os
import shutil
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.index_vectors import add_vectors
from tests.support.odd_images import noise
from vlm.embedder import Embedder
from vlm.errors import IndexFileError, InputError
from vlm.index.ann import Ann
from vlm.index.embedding_index import EmbeddingIndex
from vlm.index.indexing import Added
from vlm.index.search import Hit
from vlm.serving.api_types import SearchRequest


@pytest.fixture
def batches(tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the model has been given, batch by batch."""
    sizes: list[int] = []
    inner = tiny_embedder.embed_pixels
    monkeypatch.setattr(tiny_embedder, "embed_pixels", lambda pixels: sizes.append(len(pixels)) or inner(pixels))
    return sizes


def names(index: EmbeddingIndex, k: int = 99, **limits: Any) -> list[str]:
    return [hit.path.name for hit in index.search("犬", k, **limits)]


# ---- adding --------------------------------------------------------------------------------------------------------


def test_every_file_is_counted_once(index: EmbeddingIndex, image_folder: Path, batches: list[int]):
    """Six known, of which one is renamed, one touched and one gone; three new, one of them twice; two broken."""
    index.add_folder(image_folder)
    (image_folder / "a.png").rename(image_folder / "renamed.png")
    os.utime(image_folder / "b.png")
    (image_folder / "c.jpg").unlink()
    for number, name in enumerate(["new 1.png", "new 2.png", "new 3.png"]):
        noise(20, 30, 50 + number).save(image_folder / name)
    shutil.copy(image_folder / "new 2.png", image_folder / "twin.png")
    (image_folder / "empty.png").touch()
    (image_folder / "no.png").write_text("no image")
    added = index.add_folder(image_folder, batch_size=4, workers=0)
    found = {key: getattr(added, key) for key in ("found", "embedded", "recognised", "unchanged")}
    assert found == {"found": 11, "embedded": 3, "recognised": 3, "unchanged": 3}
    assert added.vanished == [image_folder / "a.png", image_folder / "c.jpg"]
    assert [(Path(e.name).name, e.reason) for e in added.skipped] == [
        ("empty.png", "empty file"),
        ("no.png", "not an image"),
    ]
    assert sum(batches) == 6 + 3
    assert len(index) == 9


def test_nothing_added_is_nothing_of_all_kinds(index: EmbeddingIndex):
    assert index.add([]) == Added()
    assert index.broken() == []


@pytest.mark.parametrize("size", [1, 2, 99])
def test_copies_are_embedded_once_in_whatever_batch_they_come(
    index: EmbeddingIndex, image_folder: Path, batches: list[int], size: int
):
    for copy in ("0.png", "aa.png", "z.png"):
        shutil.copy(image_folder / "a.png", image_folder / copy)
    added = index.add_folder(image_folder, batch_size=size, workers=0)
    assert (added.embedded, added.recognised, sum(batches)) == (6, 3, 6)
    order = names(index)
    assert [name for name in order if name in ("0.png", "a.png", "aa.png", "z.png")] == [
        "0.png",
        "a.png",
        "aa.png",
        "z.png",
    ]
    assert len({hit.score for hit in index.search("犬", 9)}) == 6


def test_a_batch_is_of_32_images_unless_said_otherwise(index: EmbeddingIndex, tmp_path: Path, batches: list[int]):
    """docs/retrieval.md: killed, at most one batch (32 images) is lost."""
    files = [tmp_path / f"{number}.png" for number in range(33)]
    for number, file in enumerate(files):
        noise(8, 8, number).save(file)
    index.add(files, workers=0)
    assert batches == [32, 1]
    index.delete(files)
    index.prune()
    batches.clear()
    index.add_folder(tmp_path, workers=0)
    assert batches == [32, 1]
    index.delete(files)
    index.prune()
    batches.clear()
    index.add(files[:5], batch_size=2, workers=0)
    assert batches == [2, 2, 1]


def test_a_bar_is_drawn_where_it_was_asked_for_and_there_is_something_to_do(
    index: EmbeddingIndex, image_folder: Path, capfd: pytest.CaptureFixture[str]
):
    index.add([image_folder / "a.png"], workers=0)
    index.add_folder(image_folder / "deeper", workers=0)
    assert capfd.readouterr().err == ""
    index.add_folder(image_folder, workers=0, batch_size=3, progress=True)
    shown = capfd.readouterr().err
    assert "indexing" in shown
    assert "4/4 [" in shown.split("\r")[-1]
    index.add_folder(image_folder, workers=0, progress=True)
    assert capfd.readouterr().err == ""


def test_adding_files_lists_only_what_is_wrong_with_these(index: EmbeddingIndex, image_folder: Path):
    broken = [image_folder / name for name in ("0.png", "1.png", "2.png")]
    for file in broken:
        file.touch()
    index.add(broken[::2])
    added = index.add([broken[1], image_folder / "a.png"])
    assert [error.name for error in added.skipped] == [str(broken[1])]
    assert (added.found, added.embedded, added.unchanged) == (2, 1, 0)
    assert [error.name for error in index.broken()] == list(map(str, broken))
    assert index.broken(image_folder / "deeper") == []


def test_a_tilde_is_the_home_folder(index: EmbeddingIndex, image_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(image_folder))
    monkeypatch.setenv("USERPROFILE", str(image_folder))
    index.add_folder("~/deeper")
    index.add(["~/a.png"])
    assert {hit.path for hit in index.search("犬")} == {image_folder / "a.png", image_folder / "deeper" / "f.png"}
    assert index.search(Path("~/a.png"))[0].path == image_folder / "a.png"
    assert index.delete(["~/a.png"]) == 1


def test_a_closed_index_has_let_go_of_its_files(tiny_embedder: Embedder, tmp_path: Path):
    with EmbeddingIndex.open(tmp_path / "index", tiny_embedder) as index:
        assert len(index) == 0
    with pytest.raises(IndexFileError, match="closed"):
        len(index)


# ---- searching -----------------------------------------------------------------------------------------------------


def test_a_hit_is_given_to_programs_under_the_names_of_its_fields():
    row = {"path": "/a", "score": 0.5, "rank": 3, "probability": None, "taken": "2024-05-01 12:00:00"}
    assert Hit(Path("/a"), 0.5, 3, None, "2024-05-01 12:00:00").row() == row
    assert Hit(Path("/a"), 0.5, 3, 0.25).row()["probability"] == 0.25


def test_as_many_are_found_as_were_asked_for_or_as_the_server_gives(index: EmbeddingIndex):
    add_vectors(index, [f"/{number}.png" for number in range(24)], torch.eye(24).numpy())
    every = names(index)
    assert len(every) == 24
    for k in (1, 2, 23):
        assert names(index, k) == every[:k]
    assert [hit.path.name for hit in index.search("犬")] == every[: SearchRequest.model_validate({"text": "犬"}).k]
    for k in (0, -1):
        with pytest.raises(InputError, match=f"k is {k}"):
            index.search("犬", k)


def test_however_many_of_the_nearest_are_deleted_the_next_ones_are_found(index: EmbeddingIndex):
    vectors = torch.nn.functional.normalize(torch.randn(60, 24, generator=torch.Generator().manual_seed(0)), dim=1)
    add_vectors(index, [f"/{number}.png" for number in range(60)], vectors.numpy())
    every = names(index)
    index.delete(f"/{name}" for name in every[:57])
    for k in (1, 2, 3, 4):
        assert names(index, k) == names(index, k, glob="*.png") == every[57:][:k]
    index.delete(f"/{name}" for name in every)
    assert names(index, 1) == names(index, 1, glob="*.png") == []


def test_an_approximate_index_is_asked_unless_exact_is_or_too_few_pass(
    index: EmbeddingIndex, monkeypatch: pytest.MonkeyPatch
):
    vectors = torch.nn.functional.normalize(torch.randn(700, 24, generator=torch.Generator().manual_seed(0)), dim=1)
    add_vectors(index, [f"/{number:03d}.png" for number in range(700)], vectors.numpy())
    index.build_ann(lambda line: None)
    exact = names(index, 20, exact=True)
    far = names(index, 700, exact=True)[-1]
    wanted: list[int] = []

    def worst(ann: Ann, stored: np.ndarray, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The K farthest, to be recognised."""
        wanted.append(k)
        scores, rows = (torch.from_numpy(stored).float() @ queries[0]).topk(min(k, len(stored)), largest=False)
        return scores[None], rows[None]

    monkeypatch.setattr(Ann, "nearest", worst)
    assert names(index, 20, exact=True) == exact
    assert wanted == []
    assert names(index, 3)[-1] != exact[2]
    assert wanted[0] >= 3  # a filter takes some
    assert names(index, 1, glob=f"/{far}") == [far]
    assert names(index, 1, glob=f"/{exact[0]}") == [exact[0]]  # not among those
    assert len(names(index, 700)) == 700


def test_an_approximate_index_is_measured_with_texts_where_the_model_reads_them(
    tiny_embedder: Embedder, tmp_path: Path
):
    vectors = torch.nn.functional.normalize(torch.randn(640, 24, generator=torch.Generator().manual_seed(0)), dim=1)
    mute = Embedder(tiny_embedder.model, None, tiny_embedder.preprocess)
    blind = Embedder(tiny_embedder.model, tiny_embedder.tokenizer, None)
    for folder, embedder, kinds in [("mute", mute, {"images"}), ("blind", blind, {"images", "texts"})]:
        with EmbeddingIndex.open(tmp_path / folder, embedder) as index:
            add_vectors(index, [f"/{number}.png" for number in range(640)], vectors.numpy())
            assert {*index.build_ann(lambda line: None).recall} == kinds


@pytest.mark.parametrize(
    "date", ["2024", "2024-05", "2024-05-01", "2024-05-01 12", "2024-05-01T12:00", "2024-05-01T12:00:30"]
)
def test_dates_may_be_as_short_as_they_are_meant(index: EmbeddingIndex, image_folder: Path, date: str):
    moment = datetime(2024, 5, 1, 12, 0, 30).timestamp()
    os.utime(image_folder / "a.png", (moment, moment))
    index.add([image_folder / "a.png"])
    assert names(index, since=date) == ["a.png"]
    assert names(index, until=date) == ["a.png"]


def test_a_pattern_may_have_a_thousand_characters_and_a_side_one_pixel(index: EmbeddingIndex, image_folder: Path):
    index.add([image_folder / "a.png"])  # 40 x 20
    assert names(index, glob="*" * 1000) == ["a.png"]  # docs/retrieval.md
    with pytest.raises(InputError, match="1,001"):
        names(index, glob="*" * 1001)
    assert [names(index, min_side=side) for side in (1, 20, 21, 2**31 - 1)] == [["a.png"], ["a.png"], [], []]
    for side in (0, -1, 2**31):
        with pytest.raises(InputError, match=f"min_side is {side}"):
            names(index, min_side=side)


# ---- duplicates ----------------------------------------------------------------------------------------------------


def test_duplicates_are_chains_of_cosines_among_files_that_are_there(index: EmbeddingIndex):
    angles = torch.tensor([0.0, 0.1, 0.2, 1.0, 1.05, 2.0, 2.5, 2.505])
    circle = torch.zeros(8, 24)
    circle[:, 5], circle[:, 7] = angles.cos(), angles.sin()
    paths = [Path(f"/{name}") for name in "hgfedcba"]
    add_vectors(index, list(map(str, paths)), circle.numpy())

    def groups(threshold: float) -> list[set[Path]]:
        found = index.duplicates(threshold)
        assert all(group == sorted(group) for group in found)
        assert [group[0] for group in found] == sorted(group[0] for group in found)
        return [set(group) for group in found]

    def chains(angle: float) -> list[set[Path]]:
        """By the definition, of points on an arc."""
        ends = [0, *(n + 1 for n, (a, b) in enumerate(pairwise(angles.tolist())) if b - a > angle), 8]
        parts = [set(paths[start:end]) for start, end in pairwise(ends)]
        return sorted((part for part in parts if len(part) > 1), key=min)

    for angle in (0.04, 0.06, 0.12, 0.9, 1.5):
        assert groups(np.cos(angle)) == chains(angle)
    assert index.duplicates() == [sorted(part) for part in chains(float(np.arccos(0.97)))]
    index.delete([paths[1]])  # g, between f and h
    assert groups(np.cos(0.12)) == [{paths[7], paths[6]}, {paths[4], paths[3]}]


@pytest.mark.parametrize(
    ("threshold", "hint"), [(98, "0.98"), (1.5, "0.015"), (-1, ""), (0, ""), (float("nan"), "nan")]
)
def test_a_threshold_that_is_no_cosine_similarity_is_refused(index: EmbeddingIndex, threshold: float, hint: str):
    with pytest.raises(InputError, match=f"threshold.*{hint}"):
        index.duplicates(threshold)
