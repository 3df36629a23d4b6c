import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from tests.support.index_vectors import add_vectors
from vlm.embedder import Embedder
from vlm.errors import IndexFileError, InputError, MissingPackageError
from vlm.index.ann import Ann, OpenedAnn, build, load, recall_of
from vlm.index.embedding_index import EmbeddingIndex
from vlm.index.exact_search import nearest

WIDTH = 32


def clusters(count: int, seed: int, width: int = WIDTH) -> Tensor:
    """Unit vectors around 50 centres that do not depend on the seed."""
    centres = torch.randn(50, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    member = torch.randint(50, (count,), generator=generator)
    return torch.nn.functional.normalize(centres[member] + 0.5 * torch.randn(count, width, generator=generator), dim=1)


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clusters(5000, 0).half().numpy()


@pytest.fixture(scope="module")
def ann(vectors: np.ndarray) -> Ann:
    return build(vectors, clusters(100, 1), quiet)


def test_queries_that_were_held_out_find_what_exact_search_finds(ann: Ann, vectors: np.ndarray):
    queries = clusters(200, 2)
    scores, rows = ann.nearest(vectors, queries, 10)
    exact_scores, exact_rows = nearest(vectors, queries, 10)
    shared = [len({*a} & {*b}) for a, b in zip(rows.tolist(), exact_rows.tolist(), strict=True)]
    assert sum(shared) / 2000 >= 0.98
    assert abs(recall_of(scores, exact_scores) - sum(shared) / 2000) < 0.005
    stored = torch.from_numpy(vectors).double()
    true_scores = (stored[rows] @ queries.double()[:, :, None])[:, :, 0]
    torch.testing.assert_close(scores.double(), true_scores, atol=1e-6, rtol=0)  # no score is an approximation
    assert all(len({*row}) == 10 for row in rows.tolist())


def test_the_recall_that_is_reported_is_that_of_other_queries_too(ann: Ann, vectors: np.ndarray):
    assert set(ann.recall) == {"images", "texts"}
    queries = clusters(300, 3)
    measured = recall_of(ann.nearest(vectors, queries, 10)[0], nearest(vectors, queries, 10)[0])
    assert measured == pytest.approx(ann.recall["texts"], abs=0.02)


def hard(count: int) -> np.ndarray:
    """No clusters: half of the lists find too little."""
    vectors = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(vectors, dim=1).half().numpy()


def steps(said: list[str]) -> list[tuple[int, list[float]]]:
    """(lists a query, recalls) of each line behind the first."""
    lines = [re.split(r" lists a query: ", line) for line in said[1:]]
    return [(int(probes), [float(value) for value in re.findall(r"\d\.\d{4}", rest)]) for probes, rest in lines]


def test_lists_are_doubled_until_the_harder_queries_reach_the_target_or_half_are_looked_into():
    said: list[str] = []
    vectors, texts = hard(2560), clusters(100, 1)
    full = build(vectors, texts, said.append, target=0.9999)
    assert said[0] == "64 lists, from 2560 of 2560 vectors"  # 40 vectors for each
    assert [probes for probes, _ in steps(said)] == [8, 16, 32]
    assert full.probes == 32
    images, text = full.recall["images"], full.recall["texts"]
    assert said[-1] == f"32 lists a query: recall@10 {images:.4f} (images), recall@10 {text:.4f} (texts)"
    recalls = [recall for _, recall in steps(said)]
    assert min(recalls[0]) < max(recalls[0]) < min(recalls[1]) < max(recalls[1]) < min(recalls[2])
    for target, wanted in [(min(recalls[0]), 8), (sum(recalls[0]) / 2, 16), (sum(recalls[1]) / 2, 32)]:
        assert build(vectors, texts, quiet, target=target - 1e-4).probes == wanted
    for stored in (vectors, clusters(2000, 0).half().numpy()):
        said.clear()
        build(stored, None, said.append)
        enough = [min(recall) >= 0.993 for _, recall in steps(said)]  # docs/retrieval-scale.md
        lists = len(stored) // 40
        assert enough[:-1] == [False] * len(enough[:-1])
        assert enough[-1] or steps(said)[-1][0] * 2 > lists // 2


def test_the_recall_is_measured_as_it_is_defined():
    vectors, texts = hard(1000), clusters(100, 1)
    built = build(vectors, texts, quiet, target=0)
    found, exact = built.nearest(vectors, texts, 10)[0], nearest(vectors, texts, 10)[0]
    assert built.recall["texts"] == recall_of(found, exact)
    every = torch.from_numpy(vectors).float()  # 500 of these were asked for
    found, exact = built.nearest(vectors, every, 11)[1], nearest(vectors, every, 11)[1]
    others = [{*row[1:]} for row in exact.tolist()]  # the nearest is the vector itself
    shared = [len({*row[1:]} & wanted) for row, wanted in zip(found.tolist(), others, strict=True)]
    assert built.recall["images"] == pytest.approx(sum(shared) / 10_000, abs=0.02)
    assert build(vectors, texts[:0], quiet, target=0).recall.keys() == {"images"}


def test_a_large_index_has_four_times_the_root_of_its_size_in_lists(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    stored = clusters(26_000, 0, 4).half().numpy()
    monkeypatch.setattr("vlm.index.ann._BLOCK", 10_000)
    monkeypatch.setattr("vlm.index.ann._TRAIN_PER_LIST", 39)
    built = build(stored, None, said.append, target=0)
    lists = int(4 * 26_000**0.5)  # docs/retrieval-scale.md
    assert said[0] == f"{lists} lists, from {39 * lists} of 26000 vectors"
    assert built.centroids.shape == (lists, 4)
    nearest_list = (torch.from_numpy(stored).float() @ torch.from_numpy(built.centroids).T).max(1)
    chosen = torch.from_numpy(built.lists).long()[:, None]
    own = (torch.from_numpy(stored).float() @ torch.from_numpy(built.centroids).T).gather(1, chosen)[:, 0]
    torch.testing.assert_close(own, nearest_list.values, atol=1e-5, rtol=0)


def test_vectors_added_later_are_found(ann: Ann, vectors: np.ndarray):
    more = np.concatenate([vectors, clusters(300, 4).half().numpy()])
    queries = torch.nn.functional.normalize(torch.from_numpy(more[5000:]).float(), dim=1)
    assert ann.nearest(more, queries, 1)[1][:, 0].tolist() == list(range(5000, 5300))
    few = ann.nearest(more, queries[:1], 6000)  # more than a search looks into: the rest is row -1
    assert {*few[1][0].tolist()} >= {*range(5000, 5300)}
    assert bool((few[0][few[1] < 0] == -torch.inf).all())


@pytest.mark.parametrize("width", [7, 30, 64])
def test_any_width_is_kept_and_read_again(width: int, tmp_path: Path):
    stored = clusters(1000, 0, width).half().numpy()
    built = build(stored, None, quiet)
    built.save(tmp_path / "ann.safetensors")
    again = load(tmp_path / "ann.safetensors", width)
    assert (again.rows, again.probes, again.recall) == (1000, built.probes, built.recall)
    for ours, theirs in zip(
        built.nearest(stored, clusters(20, 1, width), 5), again.nearest(stored, clusters(20, 1, width), 5), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert os.listdir(tmp_path) == ["ann.safetensors"]


def test_too_few_vectors_are_said_to_be(vectors: np.ndarray):
    for few in (0, 1, 100):
        with pytest.raises(InputError, match=f"{few} vectors are too few.*640"):
            build(vectors[:few], None, quiet)
    assert build(vectors[:640], None, quiet).rows == 640  # 40 for each of the 16 numbers that a code can be


def test_without_faiss_one_line_says_what_to_install(vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingPackageError, match=r"faiss-cpu.*pip install .*retrieval"):
        build(vectors, None, quiet)


def test_recall_is_the_share_of_the_best_ten():
    exact = torch.tensor([[1.0 - 0.01 * n for n in range(11)]])
    found = torch.cat([exact[:, :9], torch.tensor([[0.5, 0.4]])], 1)  # the 10th and 11th are missing
    assert recall_of(found, exact) == pytest.approx(0.9)
    assert recall_of(found, exact, left_out=1) == pytest.approx(0.8)  # of the 2nd to the 11th
    assert recall_of(exact, exact, left_out=1) == 1.0
    assert recall_of(torch.cat([found, exact]), torch.cat([exact, exact])) == pytest.approx(0.95)
    assert recall_of(found[:, :4], exact[:, :4]) == recall_of(exact[:, :4], exact[:, :4], left_out=1) == 1.0  # of few
    assert recall_of(found[:, 7:], exact[:, 7:]) == pytest.approx(2 / 4)
    tied = torch.full((1, 10), 0.7)  # which ten of many equals were found does not matter
    assert recall_of(tied, tied) == 1.0


@pytest.mark.parametrize(
    ("changed", "about", "complaint"),
    [
        ({}, {}, "'probes'"),
        ({}, {"probes": "many"}, "invalid literal for int"),
        ({}, {"probes": "8", "recall texts": "good"}, "could not convert string to float: 'good'"),
        ({}, {"probes": "0"}, "it has 125 lists and looks into 0"),
        ({}, {"probes": "126"}, "it has 125 lists and looks into 126"),
        ({"codes": None}, {}, "codes"),
        ({"lists": lambda lists: lists + 125 - lists.max()}, {}, "it names lists that it does not have"),
        ({"lists": lambda lists: lists - 1 - lists.min()}, {}, "it names lists that it does not have"),
        ({"lists": lambda lists: lists[:0], "codes": lambda codes: codes[:0]}, {}, "zero-size"),
        ({"lists": lambda lists: lists[1:]}, {}, r"codes is uint8 \(5000, 8\), wanted uint8 \(4999, 8\)"),
        ({"lists": lambda lists: lists.astype(np.int64)}, {}, r"lists is int64 \(5000,\), wanted int32 \(5000,\)"),
        ({"codes": lambda codes: codes[:, :3]}, {}, r"codes is uint8 \(5000, 3\), wanted uint8 \(5000, 8\)"),
        ({"codes": lambda codes: codes.astype(np.int8)}, {}, r"codes is int8 \(5000, 8\), wanted uint8 \(5000, 8\)"),
        (
            {"codebooks": lambda books: books[:15]},
            {},
            r"codebooks is float32 \(15, 16, 2\), wanted float32 \(16, 16, 2\)",
        ),
        ({"centroids": lambda all: all[:, :31]}, {}, r"centroids is float32 \(125, 31\), wanted float32 \(125, 32\)"),
        ({"centroids": lambda all: all[:0]}, {"probes": "1"}, "it has 0 lists and looks into 1"),
    ],
)
def test_a_file_with_something_else_in_it_is_refused(
    ann: Ann,
    tmp_path: Path,
    changed: dict[str, Callable[[np.ndarray], np.ndarray] | None],
    about: dict[str, str],
    complaint: str,
):
    file = tmp_path / "ann.safetensors"
    ann.save(file)
    arrays = load_file(file)
    for name, change in changed.items():
        array = arrays.pop(name)
        if change:
            arrays[name] = np.ascontiguousarray(change(array))
    save_file(arrays, file, about or ({"probes": "8"} if changed else {"other": "8"}))
    with pytest.raises(IndexFileError, match=rf"{complaint}.*vlm index --ann"):
        load(file, WIDTH)


@pytest.mark.parametrize("damage", ["cut", "foreign", "other width"])
def test_a_file_that_is_not_what_was_written_is_refused(ann: Ann, damage: str, tmp_path: Path):
    file = tmp_path / "ann.safetensors"
    ann.save(file)
    if damage == "cut":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "foreign":
        file.write_bytes(b"IxFI" + os.urandom(100))
    with pytest.raises(IndexFileError, match="vlm index --ann"):
        load(file, WIDTH + 1 if damage == "other width" else WIDTH)


def test_a_file_may_look_into_all_of_its_lists_and_keep_all_in_one(ann: Ann, vectors: np.ndarray, tmp_path: Path):
    file = tmp_path / "ann.safetensors"
    ann.save(file)
    arrays = load_file(file)
    for lists in (arrays["lists"], np.zeros_like(arrays["lists"]), np.full_like(arrays["lists"], 124)):
        save_file({**arrays, "lists": lists}, file, {"probes": "125", "recall both ways": "0.5", "made by": "a test"})
        opened = load(file, WIDTH)
        assert (opened.probes, opened.recall) == (125, {"both ways": 0.5})
        queries = torch.from_numpy(vectors[:50]).float()
        assert (opened.nearest(vectors, queries, 1)[1][:, 0] == torch.arange(50)).float().mean() > 0.9


def test_a_file_is_opened_once_until_it_changes(ann: Ann, tmp_path: Path):
    opened, file = OpenedAnn(), tmp_path / "ann.safetensors"
    assert opened.at(file, WIDTH) is None
    ann.save(file)
    first = opened.at(file, WIDTH)
    assert first is not None and opened.at(file, WIDTH) is first
    ann.save(file)
    os.utime(file, ns=(1, 1))
    assert opened.at(file, WIDTH) is not first


# ---- in an index ---------------------------------------------------------------------------------------------------


@pytest.fixture
def large(index: EmbeddingIndex, tiny_embedder: Embedder) -> EmbeddingIndex:
    """2000 files that need not be there, with an approximate index of them."""
    stored = clusters(2000, 0, tiny_embedder.embed_dim).numpy()
    add_vectors(index, [f"/photos/{n:04d}.png" for n in range(2000)], stored)
    index.build_ann(quiet)
    return index


def paths(index: EmbeddingIndex, k: int = 10, glob: str | None = None, exact: bool = False) -> list[str]:
    return [str(hit.path) for hit in index.search("犬", k, glob=glob, exact=exact)]


def ann_files(index: EmbeddingIndex) -> list[str]:
    return [name for name in os.listdir(index._store.folder) if "ann" in name]  # pyright: ignore[reportPrivateUsage]


def test_search_uses_it_and_finds_what_exact_search_finds(large: EmbeddingIndex, monkeypatch: pytest.MonkeyPatch):
    used: list[int] = []
    inner = Ann.nearest

    def counted(self: Ann, vectors: np.ndarray, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        used.append(k)
        return inner(self, vectors, queries, k)

    monkeypatch.setattr(Ann, "nearest", counted)
    exact = paths(large, exact=True)
    assert not used
    assert len({*paths(large)} & {*exact}) >= 9
    assert used


def test_deleted_files_are_not_found_and_new_ones_are(large: EmbeddingIndex):
    first, second, *_ = paths(large)
    large.delete([first])
    assert first not in paths(large)
    add_vectors(large, ["/new.png"], large.embed_query("犬")[None].numpy())
    assert paths(large)[:2] == ["/new.png", second]


def test_where_a_filter_passes_little_search_is_exact(large: EmbeddingIndex):
    """Twenty files, anywhere in the ranking: candidates cannot hold them all."""
    assert len(paths(large, 20, "*/00[01]?.png")) == 20
    assert paths(large, 20, "*/00[01]?.png") == paths(large, 20, "*/00[01]?.png", exact=True)


def test_prune_takes_it_away_and_search_goes_on(large: EmbeddingIndex):
    assert len(ann_files(large)) == 1
    large.prune()
    assert len(ann_files(large)) == 1  # nothing moved
    large.delete(paths(large, 3))
    large.prune()
    assert not ann_files(large)
    assert paths(large) == paths(large, exact=True)


def test_a_prune_during_the_building_makes_it_void(large: EmbeddingIndex):
    def prune(line: str) -> None:
        large.delete(paths(large, 1, exact=True))
        large.prune()

    with pytest.raises(ValueError, match="pruned"):
        large.build_ann(prune)
    assert not ann_files(large)


def test_an_interruption_while_it_is_written_leaves_the_old_one(large: EmbeddingIndex, monkeypatch: pytest.MonkeyPatch):
    before = paths(large)
    with monkeypatch.context() as patch:
        patch.setattr("vlm.atomic.sync", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            large.build_ann(quiet)
    assert len(ann_files(large)) == 1
    assert paths(large) == before


def test_a_saved_copy_has_it_too(large: EmbeddingIndex, tiny_embedder: Embedder, tmp_path: Path):
    large.save(tmp_path / "copy")
    with EmbeddingIndex.open(tmp_path / "copy", tiny_embedder) as copy:
        assert ann_files(copy) == ann_files(large)
        assert paths(copy) == paths(large)
