"""Names, files and shards as people keep them: read, or named with the remedy."""

import importlib
import json
import os
import unicodedata
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.kept_data import captions, images, png, tar
from tests.support.messages import refused
from vlm.errors import DataError
from vlm.training.data.labelled import classes_of
from vlm.training.data.near_miss import near_miss
from vlm.training.data.rows import broken_sample
from vlm.training.data.sources import open_rows


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        (" 1.png", "1.png (without the space"), ("'1.png'", "without the quotes"), ("img\\2.png", "2.png"),
        (unicodedata.normalize("NFC", "é.png"), "NFD"), ("1.PNG", "did you mean 1.png"), ("3.png", "did you mean"),
        ("https://x.org/1.png", "img2dataset"), ("nowhere/1.png", "no folder"),
    ],
)  # fmt: skip
def test_a_missing_file_is_looked_for_under_the_name_it_may_have(written: str, hint: str, tmp_path: Path):
    from vlm.errors import ImageError
    from vlm.images.open import open_image

    images(tmp_path, "1.png", "33.png", "img/2.png", unicodedata.normalize("NFD", "é.png"))
    (tmp_path / "d.jsonl").write_text(json.dumps({"image": written, "caption": "a"}))
    rows = open_rows(tmp_path / "d.jsonl")
    with pytest.raises(ImageError) as caught:
        open_image(rows.image(0))
    error = broken_sample(rows.uid(0), caught.value)
    assert error.reason == "missing" and hint in error.detail


@pytest.mark.parametrize(
    ("source", "facts"),
    [
        ("photos/cat/*.png", ["2 images", "their folder"]), ("photos/cat/1.png", ["1 images", "their folder"]),
        ("photos/*", ["folders", "above them"]), ("file:///nowhere/photos", ["/nowhere/photos", "path alone"]),
        ("nowhere://a/b", ["Protocol", "URL"]), ("'photos'", ["without the quotes"]),
        ("Photos", ["did you mean photos?"]),
    ],
)  # fmt: skip
def test_what_is_no_data_set_says_what_to_name(
    source: str, facts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    images(tmp_path, "photos/cat/1.png", "photos/cat/2.png", "photos/dog/3.png")
    monkeypatch.chdir(tmp_path)
    with refused(DataError, source, *facts):
        open_rows(source)


def test_a_near_miss_is_of_the_folder_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder, name in (("one", "birds.csv"), ("two", "boats.csv"), ("two", "trees.csv")):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        Path(name).touch()
        assert f"did you mean {name}?" in near_miss(name.upper())


@pytest.mark.parametrize("kind", ["photos", "d.csv", "d.tar"])
def test_a_misspelled_role_is_refused_in_every_format(kind: str, tmp_path: Path):
    images(tmp_path, "photos/cat/1.png", "photos/dog/2.png")
    (tmp_path / "d.csv").write_text("image,caption\n1.png,a\n")
    tar(tmp_path / "d.tar", ("1.png", png(1)), ("1.txt", b"a"))
    with refused(DataError, "imgae", "image"):
        open_rows(tmp_path / kind, columns={"imgae": "photo"})


def test_a_class_set_of_a_folder_goes_by_its_folders(tmp_path: Path):
    images(tmp_path, "cat/1.png", "dog/2.png")
    for columns in ({"label": "label"}, {"label": "breed"}, {}):
        rows = open_rows(tmp_path, columns=columns)
        assert [rows.labels(i) for i in range(2)] == [["cat"], ["dog"]]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_classes_are_the_same_in_both_forms_of_unicode(form: Literal["NFC", "NFD"], tmp_path: Path):
    images(tmp_path, unicodedata.normalize(form, "é/1.png"), "x/2.png")
    assert classes_of(str(tmp_path)).keys == ("x", "é")
    table = tmp_path / "d.jsonl"
    labels = [unicodedata.normalize("NFC", "é"), unicodedata.normalize(form, "é"), "x"]
    table.write_text("\n".join(json.dumps({"image": "1", "label": label}) for label in labels))
    assert classes_of(str(table)).keys == ("x", "é")


@pytest.mark.parametrize("pattern", ["{}/train-{{00000..00001}}.tar", "{}/train-*.tar", "{}/train-{{00000,00001}}.tar"])
def test_patterns_name_several_shards(pattern: str, tmp_path: Path):
    for n in range(3):
        tar(tmp_path / f"train-{n:05d}.tar", (f"{n}.png", png(n)), (f"{n}.txt", str(n).encode()))
    (tmp_path / "train-00002.tar").rename(tmp_path / "other.tar")
    assert captions(open_rows(pattern.format(tmp_path))) == [["0"], ["1"]]
    with refused(DataError, "train-00002.tar", "8 of 10"):
        open_rows(f"{tmp_path}/train-{{00000..00009}}.tar")


@pytest.mark.parametrize(
    "members",
    [
        [("a.png", png(1)), ("b.png", png(2)), ("a.txt", b"one"), ("b.txt", b"two")],  # apart
        [("x.v1.png", png(1)), ("x.v1.txt", b"one"), ("x.v2.png", png(2)), ("x.v2.txt", b"two")],  # dots in keys
    ],
)
def test_members_of_a_tar_find_each_other(members: list[tuple[str, bytes]], tmp_path: Path):
    rows = open_rows(tar(tmp_path / "d.tar", *members))
    assert captions(rows) == [["one"], ["two"]]
    assert [rows.image(i) for i in range(2)] == [png(1), png(2)]


@pytest.mark.parametrize(("packer", "module"), [("gzip", "gzip"), ("bzip2", "bz2"), ("xz", "lzma"), ("zip", "")])
def test_a_packed_tar_is_named(packer: str, module: str, tmp_path: Path):
    packed = importlib.import_module(module).compress(b"x") if module else b"PK\x03\x04more"
    (tmp_path / "a.tar").write_bytes(packed)
    with refused(DataError, "a.tar", packer):
        open_rows(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("text", ["['a red dog' 'a brown cat']", '["a red dog", "a brown cat"]'])
def test_a_list_in_a_text_file_is_a_list(kind: str, text: str, tmp_path: Path):
    if kind == "folder":
        source = images(tmp_path / "d", "1.png", "2.png")
        (source / "1.txt").write_text(text)
        (source / "2.txt").write_text("[a, b]")
    else:
        members = [("1.png", png(1)), ("1.txt", text.encode()), ("2.png", png(2)), ("2.txt", b"[a, b]")]
        source = tar(tmp_path / "d.tar", *members)
    assert captions(open_rows(source)) == [["a red dog", "a brown cat"], "bad row"]


def test_shards_with_other_columns_are_named(tmp_path: Path):
    pq.write_table(pa.table({"image": ["1"], "caption": ["a"]}), tmp_path / "part-0.parquet")
    pq.write_table(pa.table({"image": ["1"], "text": ["a"]}), tmp_path / "part-1.parquet")
    with refused(DataError, "part-1.parquet", "caption"):
        open_rows(f"{tmp_path}/part-*.parquet")


FILES = {
    "u.jsonl": '{"image": "1.png", "caption": "a\u2028b"}\n{"image": "2.png", "caption": "c"}',
    "commas.tsv": 'image\tcaption\n1.png\ta\u2028b\n2.png\tc',
    "array.json": '[{"image": "1.png", "caption": "a\u2028b"}, {"image": "2.png", "caption": "c"}]',
    "lines.json": '{"image": "1.png", "caption": "a\u2028b"}\n{"image": "2.png", "caption": "c"}\n',
    "coco.json": '{"images": [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "2.png"}], "annotations": '
    '[{"image_id": 2, "caption": "c"}, {"image_id": 1, "caption": "a\u2028b"}]}',
    "columns.json": '{"image": ["1.png", "2.png"], "caption": ["a\u2028b", "c"]}',
    "nested.json": '{"version": 1, "data": [{"image": "1.png", "caption": "a\u2028b"}, '
    '{"image": "2.png", "caption": "c"}]}',
    "lists.json": '{"1.png": ["a\u2028b"], "2.png": "c"}',
    "flickr.csv": "image_name| comment_number| comment\n1.png| 0| a\u2028b\n2.png| 0| c\n",
    "pairs.json": '{"1.png": "a\u2028b", "2.png": "c"}',
    "captions.txt": "image,caption\n1.png,a\u2028b\n2.png,c\n",  # Flickr8k
    "token.txt": "1.png#0\ta\u2028b\n2.png#0\tc\n",  # Flickr30k
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_text_files_of_every_kind_are_read(name: str, tmp_path: Path):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    rows = open_rows(tmp_path / name)
    assert captions(rows) == [["a\u2028b"], ["c"]]
    assert [rows.uid(i) for i in range(2)] == ["1.png", "2.png"]


def test_a_tsv_may_have_commas_in_its_header(tmp_path: Path):
    (tmp_path / "d.tsv").write_text("image\tcaption\ta, b, c, d\n1.png\ta dog, a cat\tx\n")
    assert captions(open_rows(tmp_path / "d.tsv")) == [["a dog, a cat"]]


def test_json_of_an_unknown_kind_says_what_can_be_read(tmp_path: Path):
    (tmp_path / "d.json").write_text('{"things": [1], "more": {}}')
    with refused(DataError, "things", "COCO"):
        open_rows(tmp_path / "d.json")


@pytest.mark.parametrize("name", [b"\xe9.png", b"\xff\xfe.png"])
def test_a_file_name_that_is_not_utf8_is_one_bad_row(name: bytes, tmp_path: Path):
    images(tmp_path, "cat/1.png", "dog/2.png")
    Path(os.fsdecode(bytes(tmp_path) + b"/dog/" + name)).write_bytes(png())
    rows = open_rows(tmp_path)
    assert sorted(map(str, captions(rows))) == ["['cat']", "['dog']", "bad row"]


def test_numbers_are_captions(tmp_path: Path):
    (tmp_path / "d.jsonl").write_text('{"image": "1", "caption": 123}\n{"image": "2", "caption": [1.5, "x"]}')
    pq.write_table(pa.table({"image": ["1"], "caption": [123]}), tmp_path / "d.parquet")
    assert captions(open_rows(tmp_path / "d.jsonl")) == [["123"], ["1.5", "x"]]
    assert captions(open_rows(tmp_path / "d.parquet")) == [["123"]]


def test_a_full_cache_does_not_blame_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import errno

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "d.csv").write_text("image,caption\n1.png,a\n")
    monkeypatch.setattr("datasets.Dataset.from_generator", full)
    with refused(DataError, "HF_DATASETS_CACHE", "No space left"):
        open_rows(tmp_path / "d.csv")
