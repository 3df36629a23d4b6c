"""Embeddings in files that other programs read and write: import and export of an index.

There are two layouts.  clip-retrieval's is `img_emb/img_emb_0.npy` (float16) beside `metadata/metadata_0.parquet`
(`image_path` and more), row by row the same images.  The shards of `vlm embed` are `part-*.parquet` with `uid` and
`embedding`.  Our parquet files name the model in their schema.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlm.errors import InputError, missing_package
from vlm.index.records import Content, Record

_BATCH = 4096  # rows in memory, and in one commit
_PER_FILE = 250_000
_FINGERPRINT, _EMBED_DIM = b"vlm.fingerprint", b"vlm.embed_dim"


class EmbeddingBatch(NamedTuple):
    """Some rows of a folder of embeddings."""

    records: list[Record]
    vectors: np.ndarray  # float32 (B, E), unit length


def read(folder: Path, fingerprint: str, embed_dim: int) -> Iterator[EmbeddingBatch]:
    """Read either layout, in file order.

    Args:
        folder: holds the files.
        fingerprint: of the model that the embeddings must be of.
        embed_dim: E.

    Returns:
        Batches of records and unit vectors (B, E).

    Raises:
        InputError: for files that cannot be read or are of another model, before the first batch.
    """
    shards, arrays = sorted(folder.glob("part-*.parquet")), sorted(folder.glob("img_emb/img_emb_*.npy"))
    if bool(shards) == bool(arrays):
        both = "both" if shards else "neither"
        raise InputError(f"'{folder}' has {both} of img_emb/img_emb_*.npy and part-*.parquet. Name a folder with one.")
    files = shards or [_metadata_of(array) for array in arrays]
    for file in files:
        _check_model(file, fingerprint, embed_dim, named=bool(shards))
    for file, array in zip(files, arrays or [None] * len(files), strict=True):
        yield from _read_shard(file, embed_dim) if array is None else _read_pair(file, array, embed_dim)


def names_its_model(folder: Path) -> bool:
    """Returns True if every parquet file names the model of its embeddings."""
    files = [*folder.glob("part-*.parquet"), *folder.glob("metadata/metadata_*.parquet")]
    return all(_FINGERPRINT in (_parquet(file).schema_arrow.metadata or {}) for file in files)


def write(
    folder: Path, rows: Iterable[tuple[Record, np.ndarray]], fingerprint: str, embed_dim: int
) -> tuple[int, list[str]]:
    """Write clip-retrieval's layout.

    Args:
        folder: new or empty.
        rows: records with content, and their vectors (E,).
        fingerprint: of the model that made them.
        embed_dim: E.

    Returns:
        Rows written, and the paths left out because they are no UTF-8, which parquet files need.

    Raises:
        InputError: if the folder is not empty.
    """
    arrow, parquet = _pyarrow()
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"'{folder}' is not empty. Name a folder that is, or does not exist yet.")
    for part in ("img_emb", "metadata"):
        (folder / part).mkdir(parents=True)
    kinds = {"image_path": arrow.string(), "sha256": arrow.string(), "size": arrow.int64(), "mtime_ns": arrow.int64()}
    kinds |= {"width": arrow.int32(), "height": arrow.int32(), "taken": arrow.string()}
    schema = arrow.schema(kinds, {_FINGERPRINT: fingerprint, _EMBED_DIM: str(embed_dim)})
    left_out: list[str] = []
    count, remaining = 0, _with_utf8_paths(rows, left_out)
    for number in itertools.count():
        if not (part := list(itertools.islice(remaining, _PER_FILE))):
            break
        about = [_describe(record) for record, _ in part]
        np.save(folder / f"img_emb/img_emb_{number:04d}.npy", np.stack([vector for _, vector in part]).astype("<f2"))
        parquet.write_table(arrow.Table.from_pylist(about, schema), folder / f"metadata/metadata_{number:04d}.parquet")
        count += len(part)
    return count, left_out


def _with_utf8_paths(
    rows: Iterable[tuple[Record, np.ndarray]], left_out: list[str]
) -> Iterator[tuple[Record, np.ndarray]]:
    for record, vector in rows:
        try:
            record.path.encode()
        except UnicodeEncodeError:
            left_out.append(record.path)
        else:
            yield record, vector


def _describe(record: Record) -> dict[str, Any]:
    content = record.content
    if content is None:
        raise InputError(f"{record.path} has no content: only images have embeddings.")
    return {
        "image_path": record.path,
        "sha256": content.digest.hex(),
        "size": record.size,
        "mtime_ns": record.mtime,
        "width": content.width,
        "height": content.height,
        "taken": content.taken,
    }


def _read_pair(metadata: Path, array: Path, embed_dim: int) -> Iterator[EmbeddingBatch]:
    try:
        vectors = np.lib.format.open_memmap(array, mode="r")
    except (ValueError, OSError) as error:
        raise InputError(f"'{array}' is no array that can be read: {error}") from error
    opened = _parquet(metadata)
    wanted = opened.metadata.num_rows, embed_dim
    if vectors.shape != wanted or vectors.dtype.kind != "f":
        raise InputError(f"'{array}' is {vectors.dtype} {vectors.shape}, wanted floats {wanted}, as '{metadata}' says.")
    columns, start = opened.schema_arrow.names, 0
    if "image_path" not in columns:
        raise InputError(f"'{metadata}' has no column image_path. It has: {', '.join(columns)}.")
    for batch in opened.iter_batches(_BATCH):
        rows = batch.to_pylist()
        yield _batch([row["image_path"] for row in rows], rows, vectors[start : start + len(rows)], metadata)
        start += len(rows)


def _read_shard(file: Path, embed_dim: int) -> Iterator[EmbeddingBatch]:
    opened, types = _parquet(file), _pyarrow()[0].types
    schema = opened.schema_arrow
    if missing := {"uid", "embedding"} - {*schema.names}:
        raise InputError(f"'{file}' has no column {', '.join(sorted(missing))}. It has: {', '.join(schema.names)}.")
    kind = schema.field("embedding").type
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not listed or not types.is_floating(kind.value_type):
        raise InputError(f"'{file}' has embeddings of type {kind}, wanted lists of {embed_dim} floats.")
    for batch in opened.iter_batches(_BATCH, columns=["uid", "embedding"]):
        column = batch.column("embedding")
        flat = column.flatten().to_numpy(zero_copy_only=False)
        if {*column.value_lengths().to_pylist()} != {embed_dim}:
            raise InputError(f"'{file}' has {flat.size} numbers in {len(batch)} rows, wanted {embed_dim} in each.")
        uids = batch.column("uid").to_pylist()
        yield _batch(uids, [{}] * len(uids), flat.reshape(-1, embed_dim), file)


def _batch(names: list[Any], rows: list[dict[str, Any]], stored: np.ndarray, file: Path) -> EmbeddingBatch:
    vectors = stored.astype(np.float32)  # (B, E)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    wrong = [str(name) for name, length in zip(names, lengths[:, 0], strict=True) if not 0 < length < np.inf]
    if wrong:
        some = ", ".join(wrong[:5])
        raise InputError(f"'{file}' has {len(wrong)} vectors without a direction (zero, NaN or infinite): {some}.")
    records = [_record(name, row, file) for name, row in zip(names, rows, strict=True)]
    return EmbeddingBatch(records, vectors / lengths)


def _record(name: Any, row: dict[str, Any], file: Path) -> Record:
    """An existing file is identified by its bytes, so that it is not embedded again; anything else by its name."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"'{file}' names an image {name!r}. Wanted a path or a name.")
    size, mtime = row.get("size") or 0, row.get("mtime_ns") or 0
    digest = _from_hex(row.get("sha256"))
    if os.path.isfile(name):
        name, info = os.path.abspath(name), os.stat(name)
        if digest is None or (info.st_size, info.st_mtime_ns) != (size, mtime):
            here = hashlib.sha256(Path(name).read_bytes()).digest()
            if digest in (None, here):  # else it was edited since, and is embedded anew by the next run
                digest, size, mtime = here, info.st_size, info.st_mtime_ns
    digest = digest or hashlib.sha256(b"no bytes, only a name: " + name.encode()).digest()
    width, height = row.get("width") or 0, row.get("height") or 0
    content = Content(digest=digest, size=size, width=width, height=height, taken=row.get("taken"))
    return Record(path=name, size=size, mtime=mtime, digest=digest, content=content)


def _from_hex(text: Any) -> bytes | None:
    return bytes.fromhex(text) if isinstance(text, str) and len(text) == 64 else None


def _metadata_of(array: Path) -> Path:
    number = array.stem.removeprefix("img_emb_")
    metadata = array.parent.parent / "metadata" / f"metadata_{number}.parquet"
    if not metadata.exists():
        raise InputError(f"'{metadata}' is not there, so nothing says what the rows of '{array}' are.")
    return metadata


def _check_model(file: Path, fingerprint: str, embed_dim: int, *, named: bool) -> None:
    about: dict[bytes, bytes] = _parquet(file).schema_arrow.metadata or {}
    made_by, width = about.get(_FINGERPRINT), about.get(_EMBED_DIM, str(embed_dim).encode())
    if made_by is None and named:
        raise InputError(f"'{file}' does not say which model made it (vlm.fingerprint). Make it with vlm embed.")
    if (made_by or fingerprint.encode(), width) != (fingerprint.encode(), str(embed_dim).encode()):
        theirs = f"model {made_by.decode() if made_by else '?'} with {width.decode()} numbers"
        raise InputError(f"'{file}' is of {theirs}, this index of model {fingerprint} with {embed_dim}. Give --model.")


def _parquet(file: Path) -> Any:
    arrow, parquet = _pyarrow()
    try:
        return parquet.ParquetFile(file)
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"'{file}' is no parquet file that can be read: {error}") from error


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_package("reading and writing parquet files", "pyarrow", "retrieval") from error
    return pyarrow, pyarrow.parquet
