import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.odd_images import noise
from vlm.embedder import Embedder
from vlm.errors import InputError, MissingPackageError
from vlm.index.embedding_files import names_its_model, write
from vlm.index.embedding_index import EmbeddingIndex
from vlm.index.records import Record

Ranking = list[tuple[str, float]]


def ranking(index: EmbeddingIndex) -> Ranking:
    return [(str(hit.path), round(hit.score, 3)) for hit in index.search("赤いりんご", 99)]


def unit(count: int, width: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_pair(folder: Path, vectors: np.ndarray, columns: dict[str, list[str]], number: int = 0) -> None:
    """As clip-retrieval inference does."""
    for part in ("img_emb", "metadata"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    np.save(folder / f"img_emb/img_emb_{number}.npy", vectors)
    pq.write_table(pa.table(columns), folder / f"metadata/metadata_{number}.parquet")


def write_shard(
    folder: Path, vectors: np.ndarray, uids: list[str], fingerprint: str | None, dtype: pa.DataType
) -> None:
    """As training.embed does."""
    folder.mkdir(exist_ok=True)
    flat = pa.array(vectors.astype(dtype.to_pandas_dtype()).reshape(-1), dtype)
    about = {} if fingerprint is None else {"vlm.fingerprint": fingerprint, "vlm.embed_dim": str(vectors.shape[1])}
    columns = [pa.array(uids), pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])]
    table = pa.table(columns, names=["uid", "embedding"]).replace_schema_metadata(about)
    pq.write_table(table, folder / f"part-{len(os.listdir(folder)):05d}.parquet")


@pytest.fixture
def other(tiny_embedder: Embedder, tmp_path: Path):
    with EmbeddingIndex.open(tmp_path / "other", tiny_embedder) as opened:
        yield opened


def test_out_and_in_again_is_the_same_index(
    index: EmbeddingIndex,
    other: EmbeddingIndex,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    index.add_folder(image_folder)
    (tmp_path / "new" / "out").mkdir(parents=True)  # empty: as good as new
    assert index.save_embeddings(tmp_path / "new" / "out") == (6, [])
    assert index.save_embeddings(tmp_path / "not yet" / "out") == (6, [])
    with monkeypatch.context() as patch:
        patch.setattr(other.embedder, "embed_pixels", None)  # whoever calls it fails: these files name their model
        assert other.add_embeddings(tmp_path / "new" / "out") == len(index)
        added = other.add_folder(image_folder)
    assert (added.embedded, added.unchanged) == (0, len(index))
    assert ranking(other) == ranking(index)
    limits: list[dict[str, Any]] = [{"min_side": 30}, {"since": "2020"}, {"until": "2020"}]
    for limit in limits:
        assert [h.path for h in other.search("犬", **limit)] == [h.path for h in index.search("犬", **limit)]


def test_what_is_written_is_clip_retrievals_layout(index: EmbeddingIndex, image_folder: Path, tmp_path: Path):
    index.add_folder(image_folder)
    index.save_embeddings(tmp_path / "out")
    (array,), (metadata,) = (sorted((tmp_path / "out" / part).iterdir()) for part in ("img_emb", "metadata"))
    assert (array.name, metadata.name) == ("img_emb_0000.npy", "metadata_0000.parquet")
    vectors, table = np.load(array, allow_pickle=False), pq.read_table(metadata)
    assert vectors.dtype == np.float16
    paths = table.column("image_path").to_pylist()
    scores = vectors.astype(np.float32) @ index.embed_query("赤いりんご").numpy()
    assert dict(zip(paths, scores, strict=True)) == pytest.approx(dict(ranking(index)), abs=1e-3)
    assert table.schema.metadata[b"vlm.fingerprint"].decode() == index.embedder.fingerprint
    for row in table.to_pylist():
        path = Path(row["image_path"])
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (row["size"], row["mtime_ns"]) == (path.stat().st_size, path.stat().st_mtime_ns)
        with Image.open(path) as image:
            assert (row["width"], row["height"]) == image.size


def test_a_image_that_was_edited_after_its_vector_was_written_is_embedded_anew(
    index: EmbeddingIndex, other: EmbeddingIndex, image_folder: Path, tmp_path: Path
):
    index.add_folder(image_folder)
    index.save_embeddings(tmp_path / "out")
    noise(50, 40).save(image_folder / "b.png")
    os.utime(image_folder / "c.jpg", (1, 1))  # touched: the bytes are the same
    assert other.add_embeddings(tmp_path / "out") == 6
    added = other.add_folder(image_folder)
    assert (added.embedded, added.recognised, added.unchanged) == (1, 0, 5)
    index.add_folder(image_folder)
    assert ranking(other) == ranking(index)


def test_names_that_parquet_cannot_hold_are_left_out_and_told(
    index: EmbeddingIndex, image_folder: Path, tmp_path: Path
):
    odd = [image_folder / os.fsdecode(name) for name in (b"caf\xe9.png", b"\xff\xfe.png")]
    for file, source in zip(odd, ("a.png", "b.png"), strict=True):
        (image_folder / source).rename(file)
    index.add_folder(image_folder)
    assert index.save_embeddings(tmp_path / "out") == (4, sorted(map(str, odd)))
    assert pq.read_table(tmp_path / "out" / "metadata").num_rows == 4


def test_only_images_have_embeddings_to_write(tmp_path: Path):
    record = Record(path="/broken", size=1, mtime=1, reason="truncated")
    with pytest.raises(InputError, match="/broken has no content"):
        write(tmp_path / "out", [(record, np.zeros(4, np.float16))], "fingerprint", 4)


def test_many_files_are_written_in_parts_that_sort(
    index: EmbeddingIndex, other: EmbeddingIndex, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    index.add_folder(image_folder)
    monkeypatch.setattr("vlm.index.embedding_files._PER_FILE", 2)
    monkeypatch.setattr("vlm.index.embedding_files._BATCH", 1)
    index.save_embeddings(tmp_path / "out")
    arrays = sorted((tmp_path / "out" / "img_emb").iterdir())
    assert len(arrays) == -(-len(index) // 2) > 1
    assert [array.name for array in arrays] == [f"img_emb_000{number}.npy" for number in range(3)]
    assert {np.load(array).shape for array in arrays} == {(2, 24)}
    other.add_embeddings(tmp_path / "out")
    assert ranking(other) == ranking(index)


def test_the_images_of_clip_retrieval_are_found_by_their_names(index: EmbeddingIndex, tmp_path: Path):
    width = index.embedder.embed_dim
    vectors, names = unit(6, width), [f"s3://bucket/{n}.jpg" for n in range(6)]
    for number in range(2):
        rows = slice(3 * number, 3 * number + 3)
        write_pair(tmp_path / "in", vectors[rows] * 2, {"image_path": names[rows], "caption": ["?"] * 3}, number)
    assert index.add_embeddings(tmp_path / "in") == 6
    expected = dict(
        zip([n.replace("//", "/") for n in names], vectors @ index.embed_query("赤いりんご").numpy(), strict=True)
    )
    assert dict(ranking(index)) == pytest.approx(
        expected, abs=2e-3
    )  # as a Path prints it; twice as long changes nothing


@pytest.mark.parametrize("dtype", [pa.float16(), pa.float32()])
def test_shards_of_training_embed_are_read(index: EmbeddingIndex, tmp_path: Path, dtype: pa.DataType):
    vectors = unit(5, index.embedder.embed_dim)
    for rows in (slice(0, 3), slice(3, 5)):
        uids = [f"uid {n}" for n in range(5)][rows]
        write_shard(tmp_path / "in", vectors[rows], uids, index.embedder.fingerprint, dtype)
    assert index.add_embeddings(tmp_path / "in") == 5
    scores = vectors @ index.embed_query("赤いりんご").numpy()
    assert dict(ranking(index)) == pytest.approx({f"uid {n}": s for n, s in enumerate(scores)}, abs=2e-3)


def test_vectors_of_another_model_are_refused_by_their_fingerprint(index: EmbeddingIndex, tmp_path: Path):
    write_shard(tmp_path / "in", unit(3, index.embedder.embed_dim), ["a", "b", "c"], "0123456789abcdef", pa.float16())
    with pytest.raises(InputError, match=f"model 0123456789abcdef .*of.*{index.embedder.fingerprint}"):
        index.add_embeddings(tmp_path / "in")
    assert len(index) == 0


def test_vectors_that_name_no_model_are_compared_with_a_image_that_is_here(
    index: EmbeddingIndex, image_folder: Path, tmp_path: Path
):
    image = str(image_folder / "a.png")
    right = index.embedder.embed_images([image]).numpy()
    write_pair(tmp_path / "wrong", -right, {"image_path": [image]})
    with pytest.raises(InputError, match=r"-1\.00.*--model"):
        index.add_embeddings(tmp_path / "wrong")
    write_pair(tmp_path / "right", right, {"image_path": [image]})
    assert index.add_embeddings(tmp_path / "right") == 1
    assert index.add([image]).unchanged == 1


@pytest.mark.parametrize(("cosine", "accepted"), [(0.91, True), (0.89, False)])
def test_the_first_image_that_is_here_says_whether_the_model_is_the_same(
    index: EmbeddingIndex, image_folder: Path, tmp_path: Path, cosine: float, accepted: bool
):
    names = ["nowhere.png", str(image_folder / "a.png"), str(image_folder / "b.png")]
    right = index.embedder.embed_images([names[1]])[0].numpy()
    other = unit(1, len(right))[0]
    other = (other - (other @ right) * right) / np.linalg.norm(other - (other @ right) * right)
    near = cosine * right + (1 - cosine**2) ** 0.5 * other
    write_pair(tmp_path / "in", np.stack([other, near, other]), {"image_path": names})
    if accepted:
        assert index.add_embeddings(tmp_path / "in") == 3
    else:
        with pytest.raises(InputError, match=f"'{names[1]}'.*{cosine:.2f}.*tiny"):
            index.add_embeddings(tmp_path / "in")


def test_a_folder_is_only_as_well_named_as_the_least_of_its_files(index: EmbeddingIndex, image_folder: Path):
    index.add_folder(image_folder)
    out = image_folder / "out"
    index.save_embeddings(out)
    assert names_its_model(out)
    write_pair(out, unit(1, 24), {"image_path": [str(image_folder / "a.png")]}, 1)
    assert not names_its_model(out)


def zero(folder: Path, width: int) -> None:
    write_pair(folder, np.zeros((2, width), np.float32), {"image_path": ["a", "b"]})


def pickled(folder: Path, width: int) -> None:
    write_pair(folder, np.array([print] * 2, dtype=object), {"image_path": ["a", "b"]})


def narrow(folder: Path, width: int) -> None:
    write_pair(folder, unit(2, width - 1), {"image_path": ["a", "b"]})


def unequal(folder: Path, width: int) -> None:
    write_pair(folder, unit(3, width), {"image_path": ["a", "b"]})


def nameless(folder: Path, width: int) -> None:
    write_pair(folder, unit(2, width), {"url": ["a", "b"]})


def nul(folder: Path, width: int) -> None:
    write_pair(folder, unit(2, width), {"image_path": ["a", "b\0c"]})


def alone(folder: Path, width: int) -> None:
    write_pair(folder, unit(2, width), {"image_path": ["a", "b"]})
    (folder / "metadata" / "metadata_0.parquet").unlink()


def torn(folder: Path, width: int) -> None:
    write_pair(folder, unit(2, width), {"image_path": ["a", "b"]})
    os.truncate(folder / "metadata" / "metadata_0.parquet", 50)


def whole_numbers(folder: Path, width: int) -> None:
    write_pair(folder, np.ones((2, width), np.int32), {"image_path": ["a", "b"]})


def endless(folder: Path, width: int) -> None:
    vectors = unit(8, width)
    vectors[1], vectors[2, 3], vectors[4:, 0] = 0, np.nan, np.inf
    write_pair(folder, vectors, {"image_path": list("abcdefgh")})


def zipped(folder: Path, width: int) -> None:
    write_pair(folder, unit(2, width), {"image_path": ["a", "b"]})
    np.savez(folder / "img_emb/img_emb_0", unit(2, width))
    (folder / "img_emb/img_emb_0.npz").replace(folder / "img_emb/img_emb_0.npy")


def emptied(folder: Path, width: int) -> None:
    write_pair(folder, unit(2, width), {"image_path": ["a", "b"]})
    os.truncate(folder / "img_emb/img_emb_0.npy", 0)


def unnamed(folder: Path, width: int) -> None:
    write_pair(folder, unit(3, width), {"image_path": ["a", "", "c"]})


def foreign(folder: Path, width: int) -> None:
    write_pair(folder, unit(2, width), {"image_path": ["a", "b"]})
    file = folder / "metadata/metadata_0.parquet"
    pq.write_table(pq.read_table(file).replace_schema_metadata({"vlm.fingerprint": "0123456789abcdef"}), file)


def both(folder: Path, width: int) -> None:
    write_pair(folder, unit(2, width), {"image_path": ["a", "b"]})
    write_shard(folder, unit(2, width), ["a", "b"], None, pa.float16())


def unsigned(folder: Path, width: int) -> None:
    write_shard(folder, unit(2, width), ["a", "b"], None, pa.float16())


def empty(folder: Path, width: int) -> None:
    folder.mkdir()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (zero, "2 vectors without a direction .*: a, b"),
        (pickled, "is no array that can be read: .*Python objects"),
        (endless, r"has 6 vectors without a direction \(zero, NaN or infinite\): b, c, e, f, g\."),
        (narrow, r"is float32 \(2, 23\), wanted floats \(2, 24\)"),
        (unequal, r"is float32 \(3, 24\), wanted floats \(2, 24\)"),
        (whole_numbers, r"is int32 \(2, 24\), wanted floats \(2, 24\)"),
        (zipped, "is no array that can be read"),
        (emptied, "is no array that can be read"),
        (nameless, "has no column image_path. It has: url"),
        (nul, r"names an image 'b\\x00c'"),
        (unnamed, "names an image ''"),
        (foreign, "is of model 0123456789abcdef with 24 numbers, this index of model .* with 24"),
        (alone, "is not there, so nothing says what the rows"),
        (torn, "is no parquet file that can be read"),
        (unsigned, "does not say which model made it"),
        (empty, "has neither of img_emb"),
        (both, "has both of img_emb"),
    ],
)
def test_what_cannot_be_right_is_refused(
    index: EmbeddingIndex, tmp_path: Path, make: Callable[[Path, int], None], complaint: str
):
    make(tmp_path / "in", index.embedder.embed_dim)
    with pytest.raises(InputError, match=complaint):
        index.add_embeddings(tmp_path / "in")
    assert len(index) == 0


def ones(lengths: list[int]) -> list[list[float]]:
    return [[1.0] * length for length in lengths]


@pytest.mark.parametrize(
    ("columns", "about", "complaint"),
    [
        ({"uid": ["a"]}, {}, r"has no column embedding\. It has: uid\."),
        ({"key": ["a"], "vector": ones([24])}, {}, r"has no column embedding, uid\. It has: key, vector\."),
        ({"uid": ["a"], "embedding": [1.0]}, {}, "has embeddings of type double, wanted lists of 24 floats"),
        ({"uid": ["a"], "embedding": [["1"] * 24]}, {}, "of type list<.*: string>, wanted lists of 24 floats"),
        ({"uid": ["a", "b", "c"], "embedding": ones([24, 23, 24])}, {}, "has 71 numbers in 3 rows, wanted 24 in each"),
        ({"uid": ["a", "b", "c"], "embedding": ones([24, 23, 25])}, {}, "has 72 numbers in 3 rows, wanted 24 in each"),
        ({"uid": ["a", "b"], "embedding": [*ones([24]), None]}, {}, "has 24 numbers in 2 rows, wanted 24 in each"),
        ({"uid": ["a", "b"], "embedding": [*ones([24]), [None] * 24]}, {}, "has 1 vectors without a direction .*: b"),
        ({"uid": ["a", None], "embedding": ones([24, 24])}, {}, "names an image None"),
        (
            {"uid": ["a"], "embedding": ones([24])},
            {"vlm.embed_dim": "25"},
            "is of model {0} with 25 numbers, this .*24",
        ),
    ],
)
def test_shards_of_something_else_are_refused(
    index: EmbeddingIndex, tmp_path: Path, columns: dict[str, Any], about: dict[str, str], complaint: str
):
    table = pa.table(columns).replace_schema_metadata({"vlm.fingerprint": index.embedder.fingerprint, **about})
    pq.write_table(table, tmp_path / "part-0.parquet")
    with pytest.raises(InputError, match=complaint.replace("{0}", index.embedder.fingerprint)):
        index.add_embeddings(tmp_path)
    assert len(index) == 0


def test_without_pyarrow_one_line_says_what_to_install(
    index: EmbeddingIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"pyarrow.*pip install .*retrieval"):
        index.save_embeddings(tmp_path / "out")


def test_a_folder_that_holds_something_is_not_written_to(index: EmbeddingIndex, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        index.save_embeddings(tmp_path)
