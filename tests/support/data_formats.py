"""The same images and words in every format, written by the tools that people write them with."""

import gzip
import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

CLASSES = ["bird", "cat", "dog"]
SIDE = 16


def sample_images(count: int = 24) -> list[tuple[str, bytes, list[str]]]:
    """(file name, PNG, two captions)."""
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, "png")
        word = CLASSES[number % 3]
        found.append((f"{number:04d}.png", file.getvalue(), [f"a {word} no. {number}", f"{number}, 犬 and {word}"]))
    return found


def _files(folder: Path, below: str = "") -> list[tuple[str, list[str]]]:
    """The images as files; (path below the folder, captions)."""
    (folder / below).mkdir(parents=True, exist_ok=True)
    for name, data, _ in sample_images():
        (folder / below / name).write_bytes(data)
    return [(str(Path(below) / name), captions) for name, _, captions in sample_images()]


def _frame(rows: list[tuple[str, Any]], *names: str) -> pd.DataFrame:
    return pd.DataFrame([dict(zip(names, row, strict=True)) for row in rows])


def _long(folder: Path) -> pd.DataFrame:
    """A row for every caption."""
    rows = [(path, text) for path, captions in _files(folder, "img") for text in captions]
    return _frame(rows, "filepath", "title")


def csv_of_repeated_rows(folder: Path) -> Path:
    _long(folder).to_csv(folder / "data.csv", index=False)
    return folder / "data.csv"


def tsv(folder: Path) -> Path:
    _long(folder).to_csv(folder / "data.tsv", index=False, sep="\t")
    return folder / "data.tsv"


def csv_with_semicolons_and_other_names(folder: Path) -> Path:
    _long(folder).rename(columns={"filepath": "image", "title": "text"}).to_csv(folder / "d.csv", index=False, sep=";")
    return folder / "d.csv"


def csv_with_numbered_captions(folder: Path) -> Path:
    rows = [{"image": path, "caption_0": texts[0], "caption_1": texts[1]} for path, texts in _files(folder)]
    pd.DataFrame(rows).to_csv(folder / "data.csv", index=False)
    return folder / "data.csv"


def csv_with_lists_in_cells(folder: Path) -> Path:
    _frame(_files(folder), "path", "captions").to_csv(folder / "data.csv", index=False)
    return folder / "data.csv"


def jsonl(folder: Path) -> Path:
    frame = _frame(_files(folder, "img"), "image", "captions")
    frame.to_json(folder / "data.jsonl", orient="records", lines=True, force_ascii=False)
    return folder / "data.jsonl"


def imagefolder_jsonl(folder: Path) -> Path:
    frame = _frame(_files(folder), "file_name", "text")
    frame.to_json(folder / "metadata.jsonl", orient="records", lines=True)
    return folder


def imagefolder_csv(folder: Path) -> Path:
    rows = [(path, text) for path, captions in _files(folder) for text in captions]
    _frame(rows, "file_name", "text").to_csv(folder / "metadata.csv", index=False)
    return folder


def texts_beside_images(folder: Path) -> Path:
    for path, captions in _files(folder):
        (folder / path).with_suffix(".txt").write_text("\n".join(captions), encoding="utf-8")
    return folder


def parquet_of_paths(folder: Path) -> Path:
    _frame(_files(folder), "image_path", "captions").to_parquet(folder / "data.parquet")
    return folder / "data.parquet"


def parquet_shards_of_bytes(folder: Path) -> Path:
    rows = [{"image": data, "caption": captions} for _, data, captions in sample_images()]
    for shard in range(3):
        pd.DataFrame(rows[shard * 8 : shard * 8 + 8]).to_parquet(folder / f"part-{shard}.parquet")
    return folder


def saved_by_datasets(folder: Path) -> Path:
    from datasets import Dataset, Features, Image, List, Value

    rows = [{"image": {"bytes": data, "path": None}, "captions": captions} for _, data, captions in sample_images()]
    features = Features({"image": Image(), "captions": List(Value("string"))})
    Dataset.from_list(rows, features).save_to_disk(folder / "saved")
    return folder / "saved"


def tars(folder: Path, shards: int = 3) -> Path:
    """As img2dataset lays them out; the second caption, which it does not know, in the .json."""
    from webdataset.writer import TarWriter

    for shard, part in enumerate(np.array_split(np.arange(len(sample_images())), shards)):
        with TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for number in part:
                _, data, captions = sample_images()[number]
                facts = {
                    "caption": captions,
                    "width": SIDE,
                    "height": SIDE,
                    "status": "success",
                    "key": f"{number:09d}",
                }
                writer.write({"__key__": f"{number:09d}", "png": data, "txt": captions[0], "json": facts})
    return folder


CAPTIONED: list[Callable[[Path], Path]] = [
    parquet_of_paths, parquet_shards_of_bytes, csv_of_repeated_rows, tsv, csv_with_semicolons_and_other_names,
    csv_with_numbered_captions, csv_with_lists_in_cells, jsonl, imagefolder_jsonl, imagefolder_csv,
    texts_beside_images, saved_by_datasets, tars,
]  # fmt: skip


def _labelled() -> Iterator[tuple[str, np.ndarray]]:
    """(class, grey image), by class."""
    rng = np.random.default_rng(1)
    for name in CLASSES:
        for _ in range(8):
            yield name, rng.integers(0, 256, (28, 28), dtype=np.uint8)


def folder_per_class(folder: Path) -> Path:
    for number, (name, pixels) in enumerate(_labelled()):
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{number:04d}.png")
    return folder


def idx(folder: Path) -> Path:
    """As Fashion-MNIST is published, packed."""
    rows = list(_labelled())
    pixels, labels = np.stack([row[1] for row in rows]), bytes(CLASSES.index(row[0]) for row in rows)
    images = struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">2I", 0x801, len(labels)) + labels))
    (folder / "labels.txt").write_text("\n".join(CLASSES))
    return folder


def csv_of_classes(folder: Path) -> Path:
    folder_per_class(folder)
    paths = sorted(folder.glob("*/*.png"))
    rows: list[dict[str, Any]] = [{"file": str(p.relative_to(folder)), "label": p.parent.name} for p in paths]
    pd.DataFrame(rows).to_csv(folder / "classes.csv", index=False)
    return folder / "classes.csv"


LABELLED: list[Callable[[Path], Path]] = [folder_per_class, idx, csv_of_classes]


def only(labels: list[str]) -> str | None:
    """The one class of a sample, None where it has none."""
    assert len(labels) < 2
    return labels[0] if labels else None
