"""`open_rows(source)`: a data set of any format -> `Rows`.

A format is recognised by what is there; its reader is a module of training/data/formats/:

    folder      metadata.jsonl / metadata.csv beside the images (Hugging Face imagefolder); a folder per class;
                images with a .txt of the same name; .tar shards (WebDataset); .parquet shards; Fashion-MNIST's idx
                files; what `datasets` saved with save_to_disk
    file        .csv, .tsv, .jsonl, .json (an array, COCO), captions.txt, .parquet, .tar
    pattern     train-{00000..00003}.tar, shards/*.parquet
    org/name    a data set of the Hugging Face hub
    URL         .tar shards at s3://, gs://, hf:// or what else fsspec knows: a file, a folder, a pattern
"""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from vlm.errors import DataError
from vlm.images.signatures import IMAGE_SUFFIXES
from vlm.training.data.formats.columns import check_roles
from vlm.training.data.formats.folders import has_images, open_folder
from vlm.training.data.formats.hub import open_hub, open_parquet, open_saved
from vlm.training.data.formats.idx import IdxRows, is_idx
from vlm.training.data.formats.shards import is_url, local_shard, remote_shards
from vlm.training.data.formats.splits import canonical_split, matching, split_of_file
from vlm.training.data.formats.tars import open_tars
from vlm.training.data.formats.text_files import TEXT_FILES, open_text_file
from vlm.training.data.near_miss import near_miss
from vlm.training.data.rows import ColumnNames, Joined, OfSplit, Rows
from vlm.user_folders import expanded

_DATA = {*TEXT_FILES, ".parquet", ".tar", ".gz", ".zip"}
WANTED = (
    "Wanted a folder of images (with metadata.csv, metadata.jsonl, or a folder per class), a .csv, .tsv, .jsonl or "
    ".json, .parquet or .tar file, a folder of .tar or .parquet shards, idx files, or a data set's name on the hub."
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
        root: where the paths of a table begin, and what they may not leave; default: the table's folder.  Of images in
            folders: another folder that links may lead to.

    Raises:
        DataError: one line that says what was found and what to do.
    """
    check_roles(columns or {})
    return _open(str(source), splits, columns or {}, None if root is None else Path(root))


def _open(source: str, splits: Sequence[str], named: ColumnNames, root: Path | None) -> Rows:
    if is_url(source):
        return _open_url(source, splits, named)
    path = expanded(source)
    try:
        if path.is_file():
            return _open_files([path], source, splits, named, root)
        if path.is_dir():
            return _open_folder(path, splits, named, root)
        if files := files_of_pattern(source):
            return _open_files(files, source, splits, named, root)
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror}). Check its permissions.") from error
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) and not path.parent.exists() and path.suffix.lower() not in _DATA:
        return open_hub(source, splits, named)
    why = near_miss(source)
    raise DataError(f"There is no data {source}: {why}{'' if why.endswith('?') else '.'} {WANTED}")


def _open_url(source: str, splits: Sequence[str], named: ColumnNames) -> Rows:
    shards = remote_shards(source, _braces(source))
    others = [shard.name for shard in shards if not shard.name.endswith(".tar")]
    if others or not shards:
        came = others[0] if others else "no .tar file"
        raise DataError(
            f"{source} has {came}; from a URL only .tar shards are read. Name them, or copy the files here."
        )
    return open_tars(source, shards, splits, named)


def _open_files(
    files: Sequence[Path], source: str, splits: Sequence[str], named: ColumnNames, root: Path | None
) -> Rows:
    suffixes = {file.suffix.lower() for file in files}
    if len(suffixes) > 1:
        raise DataError(f"{source} has files of several kinds: {', '.join(sorted(suffixes))}. Name those of one kind.")
    match files[0].suffix.lower():
        case ".parquet":
            return open_parquet(source, files, splits, named, root)
        case ".tar":
            return open_tars(source, [local_shard(file) for file in files], splits, named)
        case suffix if suffix in TEXT_FILES and len(files) == 1:
            return open_text_file(files[0], splits, named, root)
        case suffix if suffix in TEXT_FILES:
            return _open_tables(source, files, splits, named, root)
        case ".gz" | ".tgz" | ".zip" | ".zst" | ".bz2" | ".xz" | ".7z":
            raise DataError(f"{source} is packed ({files[0].name}). Unpack it: its parts are read in random order.")
        case suffix if suffix in IMAGE_SUFFIXES:
            raise DataError(f"{source} is {len(files)} images. Name their folder, or a table that lists them.")
    raise DataError(f"{source} is of no known format. {WANTED}")


def _open_tables(
    source: str, files: Sequence[Path], splits: Sequence[str], named: ColumnNames, root: Path | None
) -> Rows:
    """train.csv beside validation.csv, or train/metadata.csv beside validation/metadata.csv: a split each."""
    own = [split_of_file(file.name) or canonical_split(file.parent.name) for file in files]
    if not all(own) or len(set(own)) < len(own):
        raise DataError(f"{source} has several tables: {', '.join(f.name for f in files[:5])}. Name one of them.")
    there = [split or "" for split in own]
    chosen = matching(source, splits, there) if splits else range(len(files))
    parts = [OfSplit(open_text_file(files[number], (), named, root), there[number]) for number in chosen]
    return parts[0] if len(parts) == 1 else Joined(parts)


def _open_folder(folder: Path, splits: Sequence[str], named: ColumnNames, root: Path | None) -> Rows:
    source, there = str(folder), sorted(path for path in folder.iterdir() if path.is_file())
    names = {path.name for path in there}
    if is_idx(folder):
        return IdxRows(folder, splits)
    if names & {"dataset_dict.json", "state.json"}:
        return open_saved(source, splits, named)
    for name in ("metadata.jsonl", "metadata.csv", "metadata.parquet", "captions.txt"):
        if name in names:
            return _open_files([folder / name], source, splits, named, root or folder)
    for suffixes in ((".tar",), (".parquet",), (".csv", ".tsv", ".jsonl", ".ndjson")):
        if files := [path for path in there if path.suffix.lower() in suffixes and not path.name.startswith(".")]:
            return _open_files(files, source, splits, named, root)
    if tables := [path for name in ("metadata.jsonl", "metadata.csv") for path in sorted(folder.glob(f"*/{name}"))]:
        parts = [path.parent.name for path in tables]
        if not all(canonical_split(part) for part in parts):
            raise DataError(
                f"{source} is divided. Name a part of it: {', '.join(f'{source}/{name}' for name in parts)}."
            )
        return _open_tables(source, tables, splits, named, root)
    if shards := _shards_below(folder):
        return _open_files(shards, source, splits, named, root)
    if has_images(folder, root):
        return open_folder(folder, splits, named, root)
    raise DataError(f"{source} is a folder without images or data files. {WANTED}")


def _shards_below(folder: Path) -> list[Path]:
    """Shards as the hub keeps them: data/train-00000-of-00001.parquet, train/00000.tar."""
    for suffix in (".parquet", ".tar", ".csv", ".tsv", ".jsonl"):
        found = sorted(path for path in folder.rglob(f"*{suffix}") if _is_shard(path.relative_to(folder)))
        if found:
            return found
    return []


def _is_shard(path: Path) -> bool:
    if any(part.startswith(".") for part in path.parts):
        return False
    numbered = re.search(r"(^|[-_.])\d{4,}([-_.]|$)", path.stem) is not None
    return numbered or split_of_file(path.name) is not None or canonical_split(path.parent.name) is not None


def files_of_pattern(source: str) -> list[Path]:
    """train-{00000..00003}.tar or train-*.tar -> the files; empty where it is no pattern or nothing matches."""
    names = _braces(source)
    if names == [source] and not re.search(r"[*?\[]", source):
        return []
    found = [path for name in names for path in (sorted(glob.glob(os.path.expanduser(name))) or [name])]
    files = [Path(name) for name in found]
    if files and all(file.is_dir() for file in files):
        raise DataError(f"{source} names folders ({files[0]}, ...). Name the folder above them.")
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(f"{source}: there is no file {missing[0]} ({len(missing)} of {len(files)} are missing).")
    return files


def _braces(source: str) -> list[str]:
    """{00000..00003} counts with leading zeros; {a,b} lists."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", source)
    if found is None:
        return [source]
    if found[3] is not None:
        items = found[3].split(",")
    else:
        first, last = int(found[1]), int(found[2])
        items = [str(number).zfill(len(found[1])) for number in range(first, last + 1)]
    return [name for item in items for name in _braces(source[: found.start()] + item + source[found.end() :])]
