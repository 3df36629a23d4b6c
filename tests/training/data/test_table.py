"""A table's rows as samples: what each cell may hold, and rows that name the same file."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from tests.support.data_formats import only
from vlm.training.data.formats.arrow_cache import generated, stamp
from vlm.training.data.formats.cells import texts_of
from vlm.training.data.formats.columns import Columns
from vlm.training.data.formats.table import Table
from vlm.training.data.rows import BrokenSample, Rows
from vlm.training.data.sources import open_rows


def table(folder: Path, **columns: Any) -> Rows:
    """Opened from parquet."""
    pq.write_table(pa.table(columns), folder / "data.parquet")
    return open_rows(folder / "data.parquet")


def all_of(rows: Rows, what: str) -> list[Any]:
    return [getattr(rows, what)(index) for index in range(len(rows))]


def test_rows_of_one_file_are_one_sample_where_it_comes_first(tmp_path):
    rows = table(
        tmp_path,
        image=["b.png", "a.png", None, "b.png", "a.png", None, "c.png", "b.png"],
        caption=["b0", "a1", "n2", "b3", "a1", "n5", "c6", "b0"],
        keywords=[["x"], [], [], ["y", "x"], [], [], [], ["z"]],
        concept=["B", "A", "N", "other", "", None, "", "B"],
        split=["p", "q", None, "r", "q", "", "q", "p"],
        label=["u", "v", "w", "x", "y", None, "", "z"],
        number=[0, 1, 2, 3, 4, 5, 6, 7],
    )
    assert len(rows) == 5
    assert all_of(rows, "uid") == ["b.png", "a.png", "row 2", "row 5", "c.png"]
    assert all_of(rows, "captions") == [
        {"": (["b0", "b3"], ["x", "y", "z"])},
        {"": (["a1"], [])},
        {"": (["n2"], [])},
        {"": (["n5"], [])},
        {"": (["c6"], [])},
    ]
    assert all_of(rows, "group") == ["B", "A", "N", "n5", "c6"]
    assert all_of(rows, "split") == ["p", "q", "", "", "q"]
    assert all_of(rows, "labels") == [["u", "x", "z"], ["v", "y"], ["w"], [], []]
    assert rows.splits() == ["p", "q", "r"]
    assert rows.column("number") == [0, 1, 2, 5, 6]
    assert [rows.image(i) for i in (0, 1, 4)] == [str(tmp_path.resolve() / f"{name}.png") for name in "bac"]
    with pytest.raises(BrokenSample, match=r"5: missing.*image"):
        rows.image(3)


def test_a_row_for_each_file_stays_as_it_is(tmp_path):
    rows = table(tmp_path, image=["b.png", None, "a.png", None], caption=["b", "n", "a", "m"], more=[4, 3, 2, 1])
    assert all_of(rows, "uid") == ["b.png", "row 1", "a.png", "row 3"]
    assert [captions[""][0] for captions in all_of(rows, "captions")] == [["b"], ["n"], ["a"], ["m"]]
    assert rows.column("more") == [4, 3, 2, 1]
    with pytest.raises(ValueError, match=r"data\.parquet.*less.*image, caption, more"):
        rows.column("less")


def test_images_that_are_no_paths_are_never_joined(tmp_path):
    same = b"the same bytes"
    rows = table(tmp_path, image=[same, same, b""], caption=["a", "b", "c"])
    assert all_of(rows, "uid") == ["row 0", "row 1", "row 2"]
    assert rows.image(1) == same
    with pytest.raises(BrokenSample, match=r"2: missing.*image"):
        rows.image(2)


def test_a_cell_may_hold_bytes_or_a_path_or_pixels(tmp_path):
    there = tmp_path.resolve() / "x.png"
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": b"12", "path": "y.png"}, {"bytes": None, "path": "x.png"}, {"bytes": b"", "path": ""}, None]
    rows = table(tmp_path, image=pa.array(cells, kind), caption=["a", "b", "c", "d"])
    assert [rows.image(i) for i in (0, 1)] == [b"12", str(there)]
    for index in (2, 3):
        with pytest.raises(BrokenSample, match=f"row {index}: missing"):
            rows.image(index)
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    rows = table(tmp_path, image=[pixels.tolist()], caption=["a"])
    read = np.asarray(rows.image(0))
    assert read.dtype == np.uint8 and np.array_equal(read, pixels)
    long = table(tmp_path, image=pa.array(["x.png", "x.png"], pa.large_string()), caption=["a", "b"])
    assert (len(long), long.uid(0), long.image(0)) == (1, "x.png", str(there))


def test_images_of_datasets_stay_as_they_are_stored(tmp_path):
    from datasets import Image

    features = Features({"image": Image(), "caption": Value("string")})
    stored = Dataset.from_dict({"image": [{"bytes": b"no image", "path": None}], "caption": ["a"]}, features)
    assert Table("t", stored, Columns(image="image", captions={"": ["caption"]})).image(0) == b"no image"


def test_a_name_that_no_file_can_have_is_a_broken_sample(tmp_path):
    with pytest.raises(BrokenSample, match=r"missing.*file"):
        table(tmp_path, image=["a\0.png"], caption=["a"]).image(0)
    inside = table(tmp_path, image=["deep/../a.png", "../a.png"], caption=["a", "b"])
    assert inside.image(0) == str(tmp_path.resolve() / "a.png")
    outside = rf"outside the folder: {tmp_path.resolve().parent}/a\.png is not below {tmp_path.resolve()}$"
    with pytest.raises(BrokenSample, match=outside):
        inside.image(1)


def test_ids_name_samples_and_those_without_have_their_row(tmp_path):
    rows = table(tmp_path, image=["a.png", "b.png", "a.png"], caption=["x", "y", "z"], id=[7, None, 9])
    assert all_of(rows, "uid") == ["7", "row 1"]


def test_captions_are_of_the_language_of_their_column_or_else_of_their_row(tmp_path):
    rows = table(
        tmp_path,
        image=["1", "2", "3", "1"],
        caption=["one", None, " ", "uno"],
        caption_ja=["一", "二", "", "一"],
        keywords_ja=[["い", ""], None, [], ["ろ"]],
        lang=["en", "en", None, "es"],
    )
    assert rows.captions(0) == {"en": (["one"], []), "ja": (["一"], ["い", "ろ"]), "es": (["uno"], [])}
    assert rows.captions(1) == {"ja": (["二"], [])}
    with pytest.raises(BrokenSample, match=r"3.*caption: lang, caption, caption_ja, keywords_ja"):
        rows.captions(2)


def test_keywords_alone_are_enough_for_a_sample(tmp_path):
    rows = table(tmp_path, image=["1", "2"], caption=["", "x"], tags=[["a", "b", "a"], []])
    assert all_of(rows, "captions") == [{"": ([], ["a", "b"])}, {"": (["x"], [])}]


def test_classes_are_captions_only_where_there_are_no_others(tmp_path):
    rows = table(tmp_path, image=["1", "2", "3"], label=["guide_dog", None, "cat"], language=["en", "ja", None])
    assert all_of(rows, "labels") == [["guide_dog"], [], ["cat"]]
    assert [rows.captions(i) for i in (0, 2)] == [{"en": (["guide dog"], [])}, {"": (["cat"], [])}]
    with pytest.raises(BrokenSample, match="2: no caption: label, language: empty"):
        rows.captions(1)
    assert all_of(rows, "group") == ["guide dog", "2", "cat"]
    both = table(tmp_path, image=["1", "2"], label=["cat", ""], caption=["x", "y"])
    assert all_of(both, "captions") == [{"": (["x"], [])}, {"": (["y"], [])}]
    assert all_of(both, "group") == ["x", "y"]  # what a caption says is more than its class
    assert all_of(both, "labels") == [["cat"], []]


def test_numbered_classes_have_the_names_that_datasets_keeps():
    features = Features({"image": Value("string"), "label": ClassLabel(names=["cat", "dog"])})
    stored = Dataset.from_dict({"image": list("abcd"), "label": [1, 0, -1, None]}, features)
    rows = Table("t", stored, Columns(image="image", label="label"))
    assert all_of(rows, "labels") == [["dog"], ["cat"], [], []]
    numbers = Dataset.from_dict({"image": list("abc"), "label": [1, 0, -1]})
    assert all_of(Table("t", numbers, Columns(image="image", label="label")), "labels") == [["1"], ["0"], ["-1"]]


def test_a_table_without_splits_has_none(tmp_path):
    rows = table(tmp_path, image=["a.png"], caption=["a"])
    assert (rows.split(0), rows.splits(), only(rows.labels(0))) == ("", [], None)


def test_splits_are_chosen_by_name_in_the_order_of_the_rows(tmp_path):
    splits = ["b", "a", None, "c", "a", "b"]
    table(tmp_path, image=list("012345"), caption=list("012345"), split=splits)
    path = tmp_path / "data.parquet"
    for chosen, wanted in ((["a"], "14"), (["a", "b"], "0145"), (["c"], "3")):
        assert "".join(all_of(open_rows(path, chosen), "uid")) == wanted
    with pytest.raises(ValueError, match=r"data\.parquet.*split x, y.*a, b, c"):
        open_rows(path, ["x", "a", "y"])
    assert open_rows(path).fingerprint == open_rows(path).fingerprint
    assert open_rows(path, ["a"]).fingerprint != open_rows(path).fingerprint
    assert open_rows(path, root=tmp_path / "x").fingerprint != open_rows(path).fingerprint


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("['a dog', 'a pet']", ["a dog", "a pet"]),
        ('["a dog"]', ["a dog"]),
        ("['a', 3, ' ', None, 'b']", ["a", "3", "b"]),
        ("['a' 1]", ["a", "1"]),
        ("[1]", ["1"]),
        ("'a', 'b']", ["'a', 'b']"]),
        (["a", "", 1, "b"], ["a", "1", "b"]),
        (" a ", [" a "]),
        (" \n", []),
        (None, []),
        (3, ["3"]),
    ],
)
def test_a_cell_holds_one_caption_or_a_list(cell, texts):
    assert texts_of(cell) == texts


def yield_rows(file: Any, count: int, version: int) -> Any:
    for number in range(count):
        if number == 3:
            raise RuntimeError("three is\ntoo many")
        yield {"text": f"{Path(file[0]).read_text()} {number}"}


def test_what_was_generated_is_kept_until_the_file_changes(tmp_path):
    file, features = tmp_path / "a.txt", Features({"text": Value("string")})
    file.write_text("ab")
    before = stamp(file)
    rows = generated("t", yield_rows, features, file=before, count=2)
    assert rows["text"][:] == ["ab 0", "ab 1"]
    file.write_text("cd")
    os.utime(file, ns=(0, before[2]))
    assert generated("t", yield_rows, features, file=stamp(file), count=2)["text"][:] == ["ab 0", "ab 1"]
    os.utime(file, ns=(0, before[2] + 1))
    assert generated("t", yield_rows, features, file=stamp(file), count=2)["text"][:] == ["cd 0", "cd 1"]
    file.write_text("abc")
    os.utime(file, ns=(0, before[2]))
    assert generated("t", yield_rows, features, file=stamp(file), count=2)["text"][:] == ["abc 0", "abc 1"]


def test_what_a_reader_raises_is_one_line(tmp_path):
    (tmp_path / "a.txt").touch()
    features = Features({"text": Value("string")})
    with pytest.raises(ValueError, match=r"read.*many\)"):
        generated("t", yield_rows, features, file=stamp(tmp_path / "a.txt"), count=4)
    with pytest.raises(ValueError, match=r"^t has no rows\."):
        generated("t", yield_rows, features, file=stamp(tmp_path / "a.txt"), count=0)


def test_a_stamp_names_the_file_whole(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("abc")
    monkeypatch.chdir(tmp_path)
    assert stamp("a.txt") == (str(tmp_path / "a.txt"), 3, (tmp_path / "a.txt").stat().st_mtime_ns)
