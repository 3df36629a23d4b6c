"""`open_rows(source)`: a data set of any format -> `Rows`.

A format is recognised by what is there; its reader is a module of training/data/formats/:

    folder      metadata.jsonl / metadata.csv beside the images (Hugging Face imagefolder); a folder per class;
                images with a .txt of the same name; .tar shards (WebDataset); .parquet shards; Fashion-MNIST's idx
                files; what `datasets` saved with save_to_disk
    file        .csv, .tsv, .jsonl, .parquet, .tar
    org/name    a data set of the Hugging Face hub
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlm.errors import DataError, machine_error
from vlm.training.data.formats.columns import recognise
from vlm.training.data.formats.folders import has_images, open_folder
from vlm.training.data.formats.idx import IdxRows, is_idx
from vlm.training.data.formats.table import Table, with_splits
from vlm.training.data.formats.tars import open_tars
from vlm.training.data.formats.text_files import open_text_file
from vlm.training.data.rows import ColumnNames, Rows

WANTED = (
    "Wanted a folder of images (with metadata.csv, metadata.jsonl, or a folder per class), a .csv, .tsv, .jsonl or "
    ".parquet file, a folder of .tar or .parquet shards, idx files, or a data set's name on the Hugging Face hub."
)


def open_rows(
    source: str | Path,
    splits: Sequence[str] = (),
    columns: ColumnNames | None = None,
    root: str | Path | None = None,
) -> Rows:
    """Open a data set.

    Args:
        source: a folder, a file, or the name of a data set on the Hugging Face hub.
        splits: only these; empty takes all.
        columns: names of columns that would not be recognised, {"image": "photo"}.
        root: where the paths of a table begin, and what they may not leave; default: the table's folder.

    Raises:
        DataError: one line that says what was found and what to do.
    """
    return _open(str(source), splits, columns or {}, None if root is None else Path(root))


def _open(source: str, splits: Sequence[str], named: ColumnNames, root: Path | None) -> Rows:
    path = Path(source).expanduser()
    try:
        if path.is_file():
            return _open_files([path], source, splits, named, root)
        if path.is_dir():
            return _open_folder(path, splits, named, root)
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror}).") from error
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.parent.exists():
        return _open_hub(source, splits, named)
    raise DataError(f"There is no data {source}. {WANTED}")


def _open_files(
    files: Sequence[Path], source: str, splits: Sequence[str], named: ColumnNames, root: Path | None
) -> Rows:
    match files[0].suffix.lower():
        case ".parquet":
            return _table(source, _read_parquet(source, files), splits, named, root or files[0].parent)
        case ".tar":
            return open_tars(source, files, splits, named)
        case ".csv" | ".tsv" | ".jsonl" | ".ndjson" if len(files) == 1:
            return open_text_file(files[0], splits, named, root)
        case ".csv" | ".tsv" | ".jsonl" | ".ndjson":
            raise DataError(f"{source} has several tables: {', '.join(f.name for f in files[:5])}. Name one of them.")
        case ".gz" | ".tgz" | ".zip" | ".zst":
            raise DataError(f"{source} is packed ({files[0].name}). Unpack it: its parts are read in random order.")
    raise DataError(f"{source} is of no known format. {WANTED}")


def _open_folder(folder: Path, splits: Sequence[str], named: ColumnNames, root: Path | None) -> Rows:
    source, there = str(folder), sorted(path for path in folder.iterdir() if path.is_file())
    names = {path.name for path in there}
    if is_idx(folder):
        return IdxRows(folder, splits)
    if names & {"dataset_dict.json", "state.json"}:
        return _open_saved(source, splits, named)
    for name in ("metadata.jsonl", "metadata.csv", "metadata.parquet"):
        if name in names:
            return _open_files([folder / name], source, splits, named, root or folder)
    for suffixes in ((".tar",), (".parquet",), (".csv", ".tsv", ".jsonl", ".ndjson")):
        if files := [path for path in there if path.suffix.lower() in suffixes]:
            return _open_files(files, source, splits, named, root)
    if divided := [path.name for path in sorted(folder.iterdir()) if any(path.glob("metadata.*"))]:
        raise DataError(f"{source} is divided. Name a part of it: {', '.join(f'{source}/{name}' for name in divided)}.")
    if has_images(folder):
        return open_folder(folder, splits)
    raise DataError(f"{source} is a folder without images or data files. {WANTED}")


def _open_saved(source: str, splits: Sequence[str], named: ColumnNames) -> Rows:
    """Opens what `datasets` wrote with save_to_disk."""
    from datasets import load_from_disk

    try:
        return _joined(source, load_from_disk(source), splits, named, Path(source))
    except (OSError, LookupError, TypeError, pa.ArrowInvalid) as error:
        if (trouble := machine_error(error, Path(source).rglob("*"))) is not None:
            raise trouble from None
        raise DataError(f"{source} cannot be read as saved by datasets ({' '.join(str(error).split())}).") from error


def _open_hub(source: str, splits: Sequence[str], named: ColumnNames) -> Rows:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return _joined(source, load_dataset(source), splits, named, None)
    except (OSError, DatasetsError, RuntimeError) as error:
        if (trouble := machine_error(error, ())) is not None:
            raise trouble from None
        reason = str(error).splitlines()[0]
        raise DataError(
            f"There is no folder {source}, and as a data set of the hub it is out of reach ({reason})."
        ) from error


def _joined(source: str, found: Any, splits: Sequence[str], named: ColumnNames, root: Path | None) -> Rows:
    """Split by split, with a column that says which."""
    from datasets import DatasetDict, concatenate_datasets

    if not isinstance(found, DatasetDict):
        return _table(source, found, splits, named, root)
    if missing := [split for split in splits if split not in found]:
        raise DataError(f"{source} has no split {', '.join(missing)}. It has: {', '.join(map(str, found))}.")
    chosen = {split: found[split].remove_columns([n for n in found[split].column_names if n == "split"])
              for split in splits or found}  # fmt: skip
    parts: list[Any] = [rows.add_column("split", pa.array([split] * len(rows))) for split, rows in chosen.items()]
    return _table(source, concatenate_datasets(parts), (), named, root)


def _table(source: str, rows: Any, splits: Sequence[str], named: ColumnNames, root: Path | None) -> Table:
    columns = recognise(source, rows.column_names, named)
    rows = with_splits(source, rows, columns.split, splits)
    if not len(rows):
        raise DataError(f"{source} has no rows.")
    return Table(source, rows, columns, root)


def _read_parquet(source: str, files: Sequence[Path]) -> Any:
    from datasets import disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow.parquet import read_metadata

    disable_progress_bars()
    try:
        filled = [str(file) for file in files if read_metadata(file).num_rows]  # datasets stumbles over empty ones
        rows: Any = load_dataset("parquet", data_files=filled, split="train") if filled else None
    except (DatasetGenerationError, OSError, ValueError) as error:
        if (trouble := machine_error(error, files)) is not None:  # datasets writes a cache
            raise trouble from None
        reason = str(error.__cause__ or error).splitlines()[0]
        raise DataError(f"{source} cannot be read as parquet ({reason}).") from error
    if rows is None:
        raise DataError(f"{source} has no rows.")
    return rows
