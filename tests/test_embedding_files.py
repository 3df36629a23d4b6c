import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm.embedder import Embedder
from vlm.retrieval import EmbeddingIndex

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
    index: EmbeddingIndex, other: EmbeddingIndex, picture_folder: Path, tmp_path: Path
):
    index.add_folder(picture_folder)
    assert index.save_embeddings(tmp_path / "out") == len(index) > 0
    assert other.add_embeddings(tmp_path / "out") == len(index)
    assert ranking(other) == ranking(index)
    added = other.add_folder(picture_folder)
    assert (added.embedded, added.unchanged) == (0, len(index))


def test_what_is_written_is_clip_retrievals_layout(index: EmbeddingIndex, picture_folder: Path, tmp_path: Path):
    index.add_folder(picture_folder)
    index.save_embeddings(tmp_path / "out")
    (array,), (metadata,) = (sorted((tmp_path / "out" / part).iterdir()) for part in ("img_emb", "metadata"))
    assert (array.name, metadata.name) == ("img_emb_0000.npy", "metadata_0000.parquet")
    vectors, table = np.load(array, allow_pickle=False), pq.read_table(metadata)
    assert vectors.dtype == np.float16
    paths = table.column("image_path").to_pylist()
    scores = vectors.astype(np.float32) @ index.embed_query("赤いりんご").numpy()
    assert dict(zip(paths, scores, strict=True)) == pytest.approx(dict(ranking(index)), abs=1e-3)
    assert table.schema.metadata[b"vlm.fingerprint"].decode() == index.embedder.fingerprint


def test_many_files_are_written_in_parts_that_sort(
    index: EmbeddingIndex, other: EmbeddingIndex, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    index.add_folder(picture_folder)
    monkeypatch.setattr("vlm.index.embedding_files._PER_FILE", 2)
    monkeypatch.setattr("vlm.index.embedding_files._BATCH", 1)
    index.save_embeddings(tmp_path / "out")
    arrays = sorted((tmp_path / "out" / "img_emb").iterdir())
    assert len(arrays) == -(-len(index) // 2) > 1
    other.add_embeddings(tmp_path / "out")
    assert ranking(other) == ranking(index)


def test_the_pictures_of_clip_retrieval_are_found_by_their_names(index: EmbeddingIndex, tmp_path: Path):
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
    with pytest.raises(ValueError, match=f"is of model 0123456789abcdef .*of model {index.embedder.fingerprint}"):
        index.add_embeddings(tmp_path / "in")
    assert len(index) == 0


def test_vectors_that_name_no_model_are_compared_with_a_picture_that_is_here(
    index: EmbeddingIndex, picture_folder: Path, tmp_path: Path
):
    picture = str(picture_folder / "a.png")
    right = index.embedder.embed_images([picture]).numpy()
    write_pair(tmp_path / "wrong", -right, {"image_path": [picture]})
    with pytest.raises(ValueError, match=r"is -1\.00 like the one that .* makes"):
        index.add_embeddings(tmp_path / "wrong")
    write_pair(tmp_path / "right", right, {"image_path": [picture]})
    assert index.add_embeddings(tmp_path / "right") == 1
    assert index.add([picture]).unchanged == 1


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


def unsigned(folder: Path, width: int) -> None:
    write_shard(folder, unit(2, width), ["a", "b"], None, pa.float16())


def empty(folder: Path, width: int) -> None:
    folder.mkdir()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (zero, "2 vectors without a direction .*: a, b"),
        (pickled, "is no array that can be read: .*Python objects"),
        (narrow, "wanted floats"),
        (unequal, "wanted floats"),
        (nameless, "has no column image_path. It has: url"),
        (nul, "names a picture"),
        (alone, "is not there, so nothing says what the rows"),
        (torn, "is no parquet file that can be read"),
        (unsigned, "does not say which model made it"),
        (empty, "has neither of img_emb"),
    ],
)
def test_what_cannot_be_right_is_refused(
    index: EmbeddingIndex, tmp_path: Path, make: Callable[[Path, int], None], complaint: str
):
    make(tmp_path / "in", index.embedder.embed_dim)
    with pytest.raises(ValueError, match=complaint):
        index.add_embeddings(tmp_path / "in")
    assert len(index) == 0


def test_a_folder_that_holds_something_is_not_written_to(index: EmbeddingIndex, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        index.save_embeddings(tmp_path)
