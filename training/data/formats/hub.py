"""Data sets of the Hugging Face hub, parquet files, and what `datasets` saved with save_to_disk."""

import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pyarrow as pa

from vlm.errors import DataError, HubError, machine_error
from vlm.training.data.formats.arrow_cache import raise_cache_error
from vlm.training.data.formats.columns import recognise
from vlm.training.data.formats.files import roots_of
from vlm.training.data.formats.splits import matching, splits_of_files
from vlm.training.data.formats.table import Table, with_splits
from vlm.training.data.rows import ColumnNames

_SECONDS = 3.0  # to wait for the hub's answer before anything is asked of it


def open_saved(source: str, splits: Sequence[str], named: ColumnNames) -> Table:
    """Opens what `datasets` wrote with save_to_disk; raises `DataError` if it cannot be read."""
    from datasets import load_from_disk

    try:
        return _joined(source, load_from_disk(source), splits, named, Path(source), roots_of(Path(source)))
    except (OSError, LookupError, TypeError, pa.ArrowInvalid) as error:
        if (trouble := machine_error(error, Path(source).rglob("*"))) is not None:
            raise trouble from None
        raise DataError(f"{source} cannot be read as saved by datasets ({' '.join(str(error).split())}).") from error


def open_hub(source: str, splits: Sequence[str], named: ColumnNames) -> Table:
    """A data set by its name, org/name.

    Paths in its tables may only lead to its own files in the cache: a data set of others names no files of ours.

    Raises:
        HubError: the hub is out of reach and the data set is not in the cache.
        DataError: there is no such data set, or it cannot be read.
    """
    from datasets import load_dataset
    from datasets.config import HF_DATASETS_CACHE
    from datasets.exceptions import DatasetsError
    from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE

    kept = Path(HF_DATASETS_CACHE) / source.replace("/", "___")
    if not kept.exists() and not _answers(ENDPOINT):
        raise HubError(
            f"There is no folder {source}, and {ENDPOINT}, where it may be a data set, does not answer. Give the path "
            "of a folder or file that is here."
        )
    own = [Path(HF_HUB_CACHE) / f"datasets--{source.replace('/', '--')}", Path(HF_DATASETS_CACHE) / "downloads"]
    try:
        return _joined(source, load_dataset(source), splits, named, None, own)
    except (OSError, DatasetsError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise_cache_error(error.__cause__ or error)
        if (trouble := machine_error(error, ())) is not None:
            raise trouble from None
        reason = str(error).splitlines()[0]
        raise DataError(
            f"There is no folder {source}, and as a data set of the hub it is out of reach ({reason}). Check its name."
        ) from error


def _answers(endpoint: str) -> bool:
    """Returns True if the host accepts connections, or answers through the proxy that is configured."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")):
        try:
            urlopen(Request(endpoint, method="HEAD"), timeout=_SECONDS).close()
        except HTTPError:  # an answer
            return True
        except (OSError, ValueError):
            return False
        return True
    place = urlsplit(endpoint)
    try:
        with socket.create_connection(
            (place.hostname or "", place.port or (443 if place.scheme == "https" else 80)), _SECONDS
        ):
            return True
    except OSError:
        return False


def open_parquet(
    source: str, files: Sequence[Path], splits: Sequence[str], named: ColumnNames, root: Path | None
) -> Table:
    """Parquet files as one table; their names give splits where no column does."""
    above = Path(os.path.commonpath([file.parent for file in files]))
    rows, filled = _read_parquet(source, files)
    if "split" not in rows.column_names and "split" not in named:
        own = splits_of_files([file.relative_to(above) for file, _ in filled])
        if any(own):
            values = [split for split, (_, count) in zip(own, filled, strict=True) for _ in range(count)]
            rows = rows.add_column("split", pa.array(values))
    folder = root or files[0].parent
    return _table(source, rows, splits, named, folder, roots_of(folder))


def _joined(
    source: str, found: Any, splits: Sequence[str], named: ColumnNames, root: Path | None, within: Sequence[Path]
) -> Table:
    """Split by split, with a column that says which."""
    from datasets import DatasetDict, concatenate_datasets

    if not isinstance(found, DatasetDict):
        return _table(source, found, splits, named, root, within)
    there = list(map(str, found))
    names = [there[number] for number in matching(source, splits, there)] if splits else there
    chosen = {split: found[split].remove_columns([n for n in found[split].column_names if n == "split"])
              for split in names}  # fmt: skip
    parts: list[Any] = [rows.add_column("split", pa.array([split] * len(rows))) for split, rows in chosen.items()]
    return _table(source, concatenate_datasets(parts), (), named, root, within)


def _table(
    source: str,
    rows: Any,
    splits: Sequence[str],
    named: ColumnNames,
    root: Path | None,
    within: Sequence[Path],
) -> Table:
    columns = recognise(source, rows.column_names, named)
    rows = with_splits(source, rows, columns.split, splits)
    if not len(rows):
        raise DataError(f"{source} has no rows. Name another file.")
    return Table(source, rows, columns, root, within)


def _read_parquet(source: str, files: Sequence[Path]) -> tuple[Any, list[tuple[Path, int]]]:
    """(the rows, the files that have any and how many)."""
    from datasets import disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow.parquet import read_metadata

    disable_progress_bars()
    try:
        counts = [(file, read_metadata(file).num_rows) for file in files]
        filled = [(file, count) for file, count in counts if count]  # datasets stumbles over empty ones
        names = [str(file) for file, _ in filled]
        rows: Any = load_dataset("parquet", data_files=names, split="train") if filled else None
    except (DatasetGenerationError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        raise_cache_error(cause)
        if (trouble := machine_error(error, files)) is not None:
            raise trouble from None
        if differing := _differing_columns(files):
            raise DataError(f"{source}: {differing}. Give all shards the same columns.") from error
        raise DataError(f"{source} cannot be read as parquet ({_first_line(cause)}).") from error
    if rows is None:
        raise DataError(f"{source} has no rows. Name another file.")
    return rows, filled


def _differing_columns(files: Sequence[Path]) -> str:
    """The first shard whose columns are not those of the first one, and which; "" where all agree."""
    from pyarrow.parquet import read_schema

    try:
        schemas = [(file.name, read_schema(file)) for file in files]
    except (OSError, pa.ArrowException):
        return ""
    first, wanted = schemas[0]
    for name, schema in schemas[1:]:
        for missing in [column for column in wanted.names if column not in schema.names]:
            return f"{name} has no column {missing}, which {first} has"
        for more in [column for column in schema.names if column not in wanted.names]:
            return f"{name} has a column {more}, which {first} has not"
        for column in wanted.names:
            if schema.field(column).type != wanted.field(column).type:
                kinds = f"{schema.field(column).type} in {name} and {wanted.field(column).type} in {first}"
                return f"the column {column} is {kinds}"
    return ""


def _first_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error).splitlines()[0]) if str(error) else type(error).__name__
