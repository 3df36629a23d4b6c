"""Random mixes of what people keep, in tables, folders and tars: what is read is what was written."""

import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.kept_data import captions, images, png, tar
from vlm.training.data.formats.cells import EMPTY
from vlm.training.data.sources import open_rows

Spelling = Callable[[list[str]], str]


class Sample(NamedTuple):
    captions: list[str]
    labels: list[str]
    split: str


def as_numpy(texts: list[str]) -> str:
    return "[" + "\n ".join(map(repr, texts)) + "]"


SPELLINGS: list[Spelling] = [json.dumps, lambda texts: json.dumps(texts, ensure_ascii=False), repr, as_numpy]
LETTERS = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters=["\ufeff"])
MARKS = st.sampled_from(list(",;|\t\"'\\[](){}: "))


def is_plain(text: str) -> bool:
    """A caption that no reader may take for a list or for nothing."""
    return text not in EMPTY and not text.startswith(("[", "array("))


TEXT = st.text(st.one_of(LETTERS, MARKS), min_size=1, max_size=10).map(str.strip).filter(bool).filter(is_plain)
SAMPLE = st.builds(
    Sample,
    st.lists(TEXT, max_size=3, unique=True),
    st.lists(st.sampled_from(["cat", "dog", "red fox", "犬"]), max_size=2, unique=True),
    st.sampled_from(["", "train", "validation"]),
)
SAMPLES = st.lists(SAMPLE, min_size=1, max_size=5).map(lambda rest: [Sample(["a"], ["cat"], "train"), *rest])


def cell(texts: list[str], spelling: Spelling) -> str:
    """Empty, the text itself, or a list as a program prints it."""
    return texts[0] if len(texts) == 1 else spelling(texts) if texts else ""


def write_csv(place: Path, samples: list[Sample], spelling: Spelling, mark: str) -> Path:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=mark)
    writer.writerow(["image", "caption", "label", "split"])
    for number, own in enumerate(samples):
        writer.writerow([f"{number}.png", cell(own.captions, spelling), cell(own.labels, spelling), own.split])
    path = place / ("d.csv" if mark == "," else "d.tsv")
    path.write_bytes(file.getvalue().encode())
    return path


def write_rows(place: Path, samples: list[Sample], spelling: Spelling, mark: str) -> Path:
    """A row for each caption of an image."""
    single = [Sample([text], own.labels, own.split) for own in samples for text in own.captions or [""]]
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=mark, quoting=csv.QUOTE_ALL)
    writer.writerow(["image", "caption", "label", "split"])
    numbers = [number for number, own in enumerate(samples) for _ in own.captions or [""]]
    for number, own in zip(numbers, single, strict=True):
        writer.writerow([f"{number}.png", own.captions[0], cell(own.labels, spelling), own.split])
    path = place / ("d.csv" if mark == "," else "d.tsv")
    path.write_bytes(file.getvalue().encode())
    return path


def write_jsonl(place: Path, samples: list[Sample], spelling: Spelling, mark: str) -> Path:
    lines = [
        json.dumps({"image": f"{n}.png", "caption": own.captions, "label": own.labels, "split": own.split},
                   ensure_ascii=mark == ",")
        for n, own in enumerate(samples)
    ]  # fmt: skip
    (place / "d.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return place / "d.jsonl"


def write_parquet(place: Path, samples: list[Sample], spelling: Spelling, mark: str) -> Path:
    texts = pa.list_(pa.string()) if mark == "," else pa.string()
    columns = {"image": pa.array([png(n) for n in range(len(samples))])}
    for name, lists in (("caption", [own.captions for own in samples]), ("label", [own.labels for own in samples])):
        columns[name] = pa.array(lists if mark == "," else [cell(own, spelling) for own in lists], texts)
    columns["split"] = pa.array([own.split for own in samples])
    pq.write_table(pa.table(columns), place / "d.parquet")
    return place / "d.parquet"


def write_tar(place: Path, samples: list[Sample], spelling: Spelling, mark: str) -> Path:
    """Texts beside their images, or behind all of them; classes and lists in .json."""
    members = [(f"{number}.png", png(number)) for number in range(len(samples))]
    texts = [
        (f"{number}.json", json.dumps({"caption": own.captions, "label": own.labels}).encode())
        for number, own in enumerate(samples)
    ]
    pairs = [member for both in zip(members, texts, strict=True) for member in both]
    return tar(place / "d.tar", *(pairs if mark == "," else members + texts))


WRITERS = {
    "cells": write_csv,
    "rows": write_rows,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "tar": write_tar,
}


def check_table(kind: str, samples: list[Sample], spelling: Spelling, mark: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = open_rows(WRITERS[kind](Path(folder), samples, spelling, mark))
        wanted = [
            own.captions or (own.labels if kind == "tar" else []) for own in samples
        ]  # a tar's class is a caption
        assert captions(rows) == [own or "no caption" for own in wanted]
        assert [rows.labels(i) for i in range(len(rows))] == [own.labels for own in samples]
        splits = [rows.split(i) for i in range(len(rows))]
        assert splits == ([""] * len(samples) if kind == "tar" else [own.split for own in samples])


def check_folder(samples: list[Sample], divided: bool) -> None:
    """A class folder each, perhaps below the folder of a split, perhaps with texts beside the images."""
    with tempfile.TemporaryDirectory() as folder:
        wanted: dict[str, Sample] = {}
        for number, own in enumerate([*samples, Sample(["b"], ["dog"], "validation")]):
            label, split = (own.labels or ["cat"])[0], (own.split or "train") if divided else ""
            path = f"{split}/{label}/{number}.png".removeprefix("/")
            images(Path(folder), path)
            if own.captions:
                (Path(folder) / path).with_suffix(".txt").write_text("\n".join(own.captions), encoding="utf-8")
            wanted[path] = Sample(own.captions, [label], split)
        rows = open_rows(folder)
        found = {rows.uid(i): Sample(text if isinstance(text, list) else [], rows.labels(i), rows.split(i))
                 for i, text in enumerate(captions(rows))}  # fmt: skip
        assert found == wanted


ARGUMENTS = {"samples": SAMPLES, "spelling": st.sampled_from(SPELLINGS), "mark": st.sampled_from([",", "\t"])}
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=4, deadline=None, suppress_health_check=SLOW, derandomize=True)
@given(**ARGUMENTS)
def test_a_few_random_tables_and_tars_are_read_as_written(kind: str, samples, spelling, mark):
    check_table(kind, samples, spelling, mark)


@settings(max_examples=5, deadline=None, suppress_health_check=SLOW, derandomize=True)
@given(samples=SAMPLES, divided=st.booleans())
def test_a_few_random_folders_are_read_as_written(samples, divided):
    check_folder(samples, divided)


@pytest.mark.long
@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=80, deadline=None, suppress_health_check=SLOW)
@given(**ARGUMENTS)
def test_random_tables_and_tars_are_read_as_written(kind: str, samples, spelling, mark):
    check_table(kind, samples, spelling, mark)


@pytest.mark.long
@settings(max_examples=100, deadline=None, suppress_health_check=SLOW)
@given(samples=SAMPLES, divided=st.booleans())
def test_random_folders_are_read_as_written(samples, divided):
    check_folder(samples, divided)
