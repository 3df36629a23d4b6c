"""Which format a source has, and what is said where it has none."""

import os
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from tests.support.messages import refused
from vlm.errors import DataError, HubError
from vlm.training.data.rows import BrokenSample, Rows
from vlm.training.data.sources import open_rows

TABLE = "image,caption\n"


def names(rows: Rows) -> list[str]:
    return [rows.uid(index) for index in range(len(rows))]


def put(folder: Path, **files: str) -> Path:
    """csv="1" writes files.csv with an image 1.png."""
    for suffix, name in files.items():
        path = folder / f"files.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.table({"image": [f"{name}.png"], "caption": ["x"]}), path)
        elif suffix == "jsonl":
            path.write_text(f'{{"image": "{name}.png", "caption": "x"}}\n')
        else:
            path.write_text(f"{TABLE}{name}.png,x\n".replace(",", "\t" if suffix == "tsv" else ","))
    return folder


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "ndjson", "parquet"])
@pytest.mark.parametrize("upper", [False, True])
def test_one_table_is_a_data_set_by_its_name_and_by_its_folder(suffix, upper, tmp_path):
    kind = "jsonl" if suffix == "ndjson" else suffix
    put(tmp_path, **{kind: "1"})
    path = tmp_path / f"Files.{suffix.upper() if upper else suffix}"
    (tmp_path / f"files.{kind}").rename(path)
    for source in (path, tmp_path):
        rows = open_rows(source)
        assert names(rows) == ["1.png"]
        assert rows.image(0) == str(tmp_path.resolve() / "1.png")
    assert open_rows(path, root=tmp_path / "img").image(0) == str(tmp_path.resolve() / "img/1.png")


def test_home_is_written_with_a_tilde(tmp_path, monkeypatch):
    put(tmp_path, csv="1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names(open_rows("~/files.csv")) == ["1.png"]


def test_metadata_come_before_other_tables_and_shards_before_loose_tables(tmp_path):
    put(tmp_path, csv="csv", jsonl="jsonl", parquet="parquet")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.png").touch()
    assert names(open_rows(tmp_path)) == ["parquet.png"]
    for suffix in ("parquet", "csv", "jsonl"):  # each before those that were there
        (tmp_path / f"files.{suffix}").rename(tmp_path / f"metadata.{suffix}")
        put(tmp_path, **{suffix: "other"})
        assert names(open_rows(tmp_path)) == [f"{suffix}.png"]
        assert open_rows(tmp_path).image(0) == str(tmp_path.resolve() / f"{suffix}.png")
        assert open_rows(tmp_path, root=tmp_path / "cat").image(0) == str(tmp_path.resolve() / f"cat/{suffix}.png")


def test_shards_of_parquet_are_read_in_the_order_of_their_names(tmp_path):
    for number in (2, 0, 1):
        put(tmp_path, parquet=str(number))
        (tmp_path / "files.parquet").rename(tmp_path / f"part-{number}.parquet")
    (tmp_path / "more.parquet").mkdir()  # a folder is no shard
    assert names(open_rows(tmp_path)) == ["0.png", "1.png", "2.png"]


def test_several_tables_are_named_up_to_five(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.csv").write_text(TABLE)
    with pytest.raises(ValueError, match=r"several.*0\.csv, 1\.csv, 2\.csv, 3\.csv, 4\.csv"):
        open_rows(tmp_path)


def test_a_folder_of_parts_says_what_they_are_called(tmp_path):
    for part in ("train", "other", "validation"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "1.png").touch()
    for part in ("other", "train"):
        (tmp_path / part / "metadata.csv").touch()
    with pytest.raises(ValueError, match=r"is divided\. Name a part of it: (.*)/other, \1/train\.$"):
        open_rows(tmp_path)


def test_a_folder_without_any_table_may_hold_images(tmp_path):
    with pytest.raises(ValueError, match=r"folder without.*files"):
        open_rows(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    assert names(open_rows(tmp_path)) == ["cat/1.png", "dog/1.png"]


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz", "zip", "csv.zst"])
def test_what_is_packed_has_to_be_unpacked(suffix, tmp_path):
    (tmp_path / f"a.{suffix}").touch()
    with pytest.raises(ValueError, match=rf"/a\.{suffix}.*packed \(a\.{suffix}\)"):
        open_rows(tmp_path / f"a.{suffix}")


def test_what_is_unknown_or_not_there_is_told_all_that_is_known(tmp_path):
    (tmp_path / "a.docx").touch()
    with pytest.raises(ValueError, match=r"a\.docx.*format\. Wanted"):
        open_rows(tmp_path / "a.docx")
    for source in ("none.csv", str(tmp_path / "none"), "a/b/c", "training/none.csv"):  # none may be asked of the hub
        with pytest.raises(
            ValueError,
            match=rf"{re.escape(source)}.*file.* Wanted",
        ):
            open_rows(source)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="a file that cannot be read, also not by root")
def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "a.csv").symlink_to("/proc/self/mem")
    with pytest.raises(ValueError, match=r"/a\.csv.*\(Input/output error\)"):
        open_rows(tmp_path / "a.csv")


def test_parquet_that_does_not_fit_together_or_is_damaged_is_one_line(tmp_path):
    put(tmp_path, parquet="1")
    (tmp_path / "a.parquet").symlink_to(tmp_path / "files.parquet")
    pq.write_table(pa.table({"image": ["2.png"], "other": [2]}), tmp_path / "part.parquet")
    with pytest.raises(ValueError, match=r"part\.parquet.*caption.*a\.parquet") as caught:
        open_rows(tmp_path)
    assert "\n" not in str(caught.value)
    data = bytearray((tmp_path / "files.parquet").read_bytes())
    data[4:60] = b"\xff" * 56  # of the pages; names and counts stand at the end
    (tmp_path / "files.parquet").write_bytes(data)
    with pytest.raises(ValueError, match=r"files\.parquet.*parquet \(.*\)") as caught:
        open_rows(tmp_path / "files.parquet")
    assert "\n" not in str(caught.value)


def test_empty_shards_beside_others_hold_nothing(tmp_path):
    put(tmp_path, parquet="1")
    empty = pq.read_table(tmp_path / "files.parquet").slice(0, 0)
    for name in ("a", "z"):
        pq.write_table(empty, tmp_path / f"{name}.parquet")
    assert names(open_rows(tmp_path)) == ["1.png"]
    (tmp_path / "files.parquet").unlink()
    with pytest.raises(ValueError, match=rf"{tmp_path}.*rows.*another file"):
        open_rows(tmp_path)


PARTS = DatasetDict(
    {
        "train": Dataset.from_dict({"image": ["1.png", "2.png"], "caption": ["a", "b"], "split": ["x", "y"]}),
        "test": Dataset.from_dict({"image": ["3.png"], "caption": ["c"], "split": ["z"]}),
        "more": Dataset.from_dict({"image": ["4.png"], "caption": ["d"], "split": ["z"]}),
    }
)


def check_parts(source: str, uids: list[str], splits: list[str], wanted: list[str]) -> None:
    rows = open_rows(source, wanted)
    assert (rows.name, names(rows)) == (source, uids)
    assert [rows.split(i) for i in range(len(rows))] == splits


def test_parts_that_datasets_saved_are_splits(tmp_path):
    PARTS.save_to_disk(tmp_path / "saved")
    source = str(tmp_path / "saved")
    check_parts(source, ["1.png", "2.png", "3.png", "4.png"], ["train", "train", "test", "more"], [])
    check_parts(source, ["4.png", "1.png", "2.png"], ["more", "train", "train"], ["more", "train"])
    assert open_rows(source).image(2) == str(tmp_path.resolve() / "saved/3.png")
    with pytest.raises(ValueError, match=r"saved.*val, dev.*more, test, train"):
        open_rows(source, ["val", "train", "dev"])


def test_one_part_that_datasets_saved_has_the_splits_of_its_column(tmp_path):
    PARTS["train"].save_to_disk(tmp_path)
    check_parts(str(tmp_path), ["2.png"], ["y"], ["y"])
    Dataset.from_dict({"image": [], "caption": []}).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"empty (cannot be read as saved by datasets \(.*\)|has no rows)\."):
        open_rows(tmp_path / "empty")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "state.json").write_text("null"), "not subscriptable"),
        (lambda folder: (folder / "state.json").write_text("{}"), "_data_files|_fingerprint"),
        (lambda folder: next(folder.glob("*.arrow")).unlink(), "No such file|Failed to open"),
        (lambda folder: next(folder.glob("*.arrow")).write_bytes(b"no arrow" * 9), "."),
    ],
)
def test_a_saved_set_that_is_damaged_is_one_line(damage, words, tmp_path):
    PARTS["train"].save_to_disk(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=rf"cannot be read as saved by datasets \(.*({words}).*\)\.$") as caught:
        open_rows(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_name_of_the_hub_is_asked_of_the_hub(monkeypatch):
    asked: list[str] = []

    def hub(name: str) -> Any:
        asked.append(name)
        return PARTS

    monkeypatch.setattr("vlm.training.data.formats.hub._answers", lambda endpoint: True)
    monkeypatch.setattr("datasets.load_dataset", hub)
    check_parts("some.body/photos-1", ["3.png"], ["test"], ["test"])
    assert asked == ["some.body/photos-1"]
    for path in ("1.png", "2.png"):  # it names no files of ours
        with refused(BrokenSample, path, "outside the folder"):
            open_rows("some.body/photos-1").image(int(path[0]) - 1)
    monkeypatch.setattr("datasets.load_dataset", lambda name: PARTS["test"].select([]))
    with pytest.raises(ValueError, match=r"a/b.*rows.*another file"):
        open_rows("a/b")


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "", "nonsense"])
def test_a_hub_that_does_not_answer_is_said_at_once(proxy: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://127.0.0.1:9")
    begin = time.perf_counter()
    with refused(HubError, "no folder photos/train", "127.0.0.1:9"):
        open_rows("photos/train")
    assert time.perf_counter() - begin < 20  # 3 s and what a loaded machine adds


def _of_datasets() -> Exception:
    from datasets.exceptions import DatasetNotFoundError

    return DatasetNotFoundError("It is not there\nor private")


ERRORS = [_of_datasets(), ConnectionError("It is not there\n"), RuntimeError("It is not there")]


@pytest.mark.parametrize("error", ERRORS)
def test_a_hub_out_of_reach_is_one_line(error, monkeypatch):
    def hub(name: str) -> Any:
        raise error

    monkeypatch.setattr("vlm.training.data.formats.hub._answers", lambda endpoint: True)
    monkeypatch.setattr("datasets.load_dataset", hub)
    with pytest.raises(DataError, match=r"folder no/body.*there\)"):
        open_rows("no/body")
