"""Data as people keep it: each kind of trouble in two spellings or more, with the value that is right."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.kept_data import captions, images, labels, png, tar
from tests.support.messages import refused
from vlm.errors import DataError
from vlm.training.data.formats.cells import CellError, texts_of
from vlm.training.data.formats.encodings import ICONV
from vlm.training.data.formats.labels import labels_of
from vlm.training.data.labelled import classes_of, open_labelled
from vlm.training.data.rows import BrokenSample
from vlm.training.data.sources import open_rows


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("['a red dog' 'a brown cat']", ["a red dog", "a brown cat"]),  # numpy
        ("['a red dog'\n 'a brown cat']", ["a red dog", "a brown cat"]),
        ('["a red dog", "a brown cat"]', ["a red dog", "a brown cat"]),  # JSON
        ("['a red dog', 'a brown cat']", ["a red dog", "a brown cat"]),  # Python
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("[]", []), ("[ ]", []), ("[nan]", []), ("[None]", []), ('[null]', []), ("nan", []), ("None", []),
        ('["x", null]', ["x"]), ("['x', None, nan]", ["x"]), ("['x' nan]", ["x"]),
        ('["\\u72ac", "a\\nb"]', ["犬", "a\nb"]), ("['it\\'s', \"it's\"]", ["it's", "it's"]),
        ("['a\nb', 'c']", ["a\nb", "c"]),
        ("[untitled]", ["[untitled]"]), ("[2023] a photo", ["[2023] a photo"]), ("(a dog)", ["(a dog)"]),
        ("('a', 'b')", ["a", "b"]), ("('a', None)", ["a"]), ("{'a', 'b'}", ["a", "b"]), ("frozenset({'a'})", ["a"]),
        ('("Hello") she said', ['("Hello") she said']), ("N/A", []), ("#N/A", []),
        ("[a dog, a cat]", None), ('{"en": "a"}', None), ("[['a'], ['b']]", None), ('[["a", "b"]]', None),
        (["x", None, float("nan"), 3], ["x", "3"]), (123, ["123"]), (float("nan"), []),
        ("['a' 'b' ... 'z']", None), ("['a', 'b'", None), ("['a',, 'b']", None), ("['a'] and more", None),
        ([["a"]], None), ([{"raw": "a"}], None), ({"raw": "a"}, None),
        ("[np.str_('a red dog'), np.str_(\"it's\")]", ["a red dog", "it's"]), ("[np.float64(nan)]", []),  # numpy 2
        ("Index(['a', 'b'], dtype='object')", ["a", "b"]), ("deque(['a'], maxlen=3)", ["a"]), ("array([nan])", []),
        ("array([], dtype=object)", []), ("set()", []), ("[pd.NA, 'x']", ["x"]), ("[NULL]", []), ("[NaT]", []),
        ("[“a red dog”, “it’s”]", ["a red dog", "it’s"]), ('"[\'a\', \'b\']"', ["a", "b"]), ('"[\\"a\\"]"', ["a"]),
        ("NaN", []), ("Null", []), ("NA", []), ("\\N", []), ("1.#QNAN", []), ("no", ["no"]), ("-", ["-"]),
        ("[]]", None), ("[ ... ]", None), ("(['a'],)", None), ('[\\"a\\"]', None), ("['a';'b']", None),
        ('"A quote," she said', ['"A quote," she said']), ("[sic]", ["[sic]"]), ("Figure (a [1])", ["Figure (a [1])"]),
    ],
)  # fmt: skip
def test_a_cell_is_a_text_a_list_or_a_bad_row(cell: Any, texts: list[str] | None):
    if texts is None:
        with pytest.raises(CellError):
            texts_of(cell)
    else:
        assert texts_of(cell) == texts


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("dog", ["dog"]), ("None", ["None"]), ("nan", []), ("NULL", []), ("[]", []), ("['dog' 'car']", ["dog", "car"]),
        ("{'dog', 'car'}", ["dog", "car"]), ("('dog',)", ["dog"]), ("array(['dog'], dtype=object)", ["dog"]),
        ("[np.str_('dog'), np.str_('car')]", ["dog", "car"]), (["dog", None, "dog"], ["dog"]), (3, ["3"]),
        ("[dog, car]", None), ("{'dog': 1}", None),
    ],
)  # fmt: skip
def test_a_cell_is_classes_or_a_bad_row(cell: Any, labels: list[str] | None):
    if labels is None:
        with pytest.raises(CellError):
            labels_of(cell)
    else:
        assert labels_of(cell) == labels


@pytest.mark.parametrize("cell", ["['a red dog' 'a brown cat']", '["a red dog", "a brown cat"]'])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_list_in_a_cell_is_a_list_in_every_table(cell: str, kind: str, tmp_path: Path):
    rows = [{"image": "1.png", "caption": cell}, {"image": "2.png", "caption": "['a', 'b"}]
    path = tmp_path / f"d.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        mark = "," if kind == "csv" else "\t"
        quoted = [row["image"] + mark + '"' + row["caption"].replace('"', '""') + '"' for row in rows]
        path.write_text("\n".join(["image" + mark + "caption", *quoted]))
    assert captions(open_rows(path)) == [["a red dog", "a brown cat"], "bad row"]


@pytest.mark.parametrize("mark", [",", "\t"])
@pytest.mark.parametrize("close", ["", '"', '"more"'])
def test_a_quote_that_stays_open_spoils_one_row(mark: str, close: str, tmp_path: Path):
    lines = [f"{n}.png{mark}caption {n}" for n in range(40)]
    lines[2] = f'2.png{mark}"caption 2'
    lines[20] += close
    path = tmp_path / ("d.csv" if mark == "," else "d.tsv")
    path.write_text("\n".join([f"image{mark}caption", *lines]))
    rows = open_rows(path)
    found = captions(rows)
    assert len(rows) == 40 and found[2] == "bad row"
    assert [text for n, text in enumerate(found) if n not in (2, 20)] == [
        [f"caption {n}"] for n in range(40) if n not in (2, 20)
    ]
    with refused(BrokenSample, "line 4", "quote"):
        rows.image(2)


@pytest.mark.parametrize(
    ("line", "text"),
    [(r'1.png,"a \"red\" dog"', 'a "red" dog'), (r'1.png,"a \"red\", dog"', 'a "red", dog'), (r"1.png,a\b", r"a\b"),
     ('1.png,"a ""red"" dog"', 'a "red" dog'), ('1.png,a 12" disc', 'a 12" disc')],
)  # fmt: skip
def test_quotes_inside_a_cell_are_read_as_they_are_written(line: str, text: str, tmp_path: Path):
    path = tmp_path / "d.csv"
    path.write_text(f"image,caption\n{line}\n2.png,b\n")
    assert captions(open_rows(path)) == [[text], ["b"]]


def test_a_space_behind_every_comma_is_no_part_of_the_text(tmp_path: Path):
    path = tmp_path / "d.csv"
    path.write_text('image, caption\n1.png, a dog\n2.png, "b, c"\n')
    assert captions(open_rows(path)) == [["a dog"], ["b, c"]]


def test_a_cell_in_quotes_may_hold_lines_and_separators(tmp_path: Path):
    path = tmp_path / "d.csv"
    path.write_text('image,caption\n1.png,"a dog,\nand ""two"" cats\n"\n2.png,b\n')
    assert captions(open_rows(path)) == [['a dog,\nand "two" cats\n'], ["b"]]


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        (["images/cat/1.png", "images/dog/2.png"], [("cat", ""), ("dog", "")]),
        (["a/b/c/cat/x/1.png", "a/b/c/dog/2.png"], [("cat", ""), ("dog", "")]),
        (["images/train/cat/1.png", "images/val/dog/2.png"], [("cat", "train"), ("dog", "validation")]),
        (["Train/images/cat/1.png", "dev/images/dog/2.png"], [("cat", "train"), ("dog", "validation")]),
        (["cat/train/1.png", "dog/test/2.png"], [("cat", "train"), ("dog", "test")]),
        (["car/1.png", "ship/2.png", "train/3.png"], [("car", ""), ("ship", ""), ("train", "")]),
        (["train/car/1.png", "train/train/2.png"], [("car", "train"), ("train", "train")]),
        (["train2017/cat/1.png", "val2017/dog/2.png"], [("cat", "train"), ("dog", "validation")]),
        (["training_set/cat/1.png", "test_set/dog/2.png"], [("cat", "train"), ("dog", "test")]),
        (["images-train/cat/1.png", "images-val/dog/2.png"], [("cat", "train"), ("dog", "validation")]),
        (["seg_train/seg_train/sea/1.png", "seg_test/seg_test/sky/2.png"], [("sea", "train"), ("sky", "test")]),
        (["train_station/1.png", "test_tube/2.png"], [("train_station", ""), ("test_tube", "")]),
        (["test_tube/1.png", "test_strip/2.png"], [("test_tube", ""), ("test_strip", "")]),
        (["validation/1.png", "cat/2.png", "dog/3.png"], [("validation", ""), ("cat", ""), ("dog", "")]),
        (["__MACOSX/cat/1.png", "pets/cat/2.png", "pets/dog/3.png"], [("cat", ""), ("dog", "")]),
    ],
)
def test_the_class_is_the_first_folder_below_what_all_share(
    paths: list[str], wanted: list[tuple[str, str]], tmp_path: Path
):
    found = labels(open_rows(images(tmp_path, *paths)))
    assert sorted(found) == sorted(([label], split) for label, split in wanted)


@pytest.mark.parametrize("loose", ["logo.png", "pets/logo.png", "pets/images/logo.png"])
def test_an_image_beside_the_folders_has_no_class_and_changes_no_other(loose: str, tmp_path: Path):
    rows = open_rows(images(tmp_path, loose, "pets/images/cat/1.png", "pets/images/dog/2.png"))
    assert sorted(labels(rows)) == [([], ""), (["cat"], ""), (["dog"], "")]
    assert captions(rows)[[rows.uid(i) for i in range(3)].index(loose)] == "no caption"


@pytest.mark.parametrize("name", ["images", "train", "cat"])
def test_one_folder_of_images_has_no_classes(name: str, tmp_path: Path):
    with refused(DataError, "neither captions nor classes"):
        open_rows(images(tmp_path, f"{name}/1.png", f"{name}/2.png"))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["data/train-00000-of-00002", "data/validation-00000-of-00001", "data/test-00000-of-00001"],
         ["train", "validation", "test"]),
        (["train-00000", "val-00000", "dev-00001"], ["train", "validation", "validation"]),
        (["Train/00000", "eval/00000"], ["train", "validation"]),
        (["00000", "00001"], ["", ""]),
        (["train-00000", "car-00000", "ship-00000"], ["", "", ""]),
        (["00000", "val-00000"], ["", "validation"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_splits_are_read_off_the_names_of_files(names: list[str], splits: list[str], kind: str, tmp_path: Path):
    for number, name in enumerate(names):
        path = tmp_path / f"{name}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "tar":
            tar(path, (f"{number}.png", png(number)), (f"{number}.txt", str(number).encode()))
        else:
            pq.write_table(pa.table({"image": [png(number)], "caption": [str(number)]}), path)
    rows = open_rows(tmp_path)
    found = {captions(rows)[i][0]: rows.split(i) for i in range(len(rows))}
    assert found == {str(number): split for number, split in enumerate(splits)}
    if "validation" in splits:
        held = open_rows(tmp_path, ["val"])
        assert sorted(text for (text,) in captions(held)) == [
            str(n) for n, split in enumerate(splits) if split == "validation"
        ]


@pytest.mark.parametrize("place", ["{}.csv", "data/{}.csv", "{}/table.csv"])
def test_tables_named_like_splits_are_splits(place: str, tmp_path: Path):
    for name in ("train", "validation"):
        path = tmp_path / place.format(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"image,caption\n{name}.png,{name}\n")
    rows = open_rows(tmp_path)
    assert [(captions(rows)[i][0], rows.split(i)) for i in range(2)] == [
        ("train", "train"),
        ("validation", "validation"),
    ]
    assert captions(open_rows(tmp_path, ["dev"])) == [["validation"]]


MANY = {
    "rows.csv": "image,label\n0.png,dog\n0.png,car\n1.png,dog\n",
    "cell.csv": "image,label\n0.png,\"['dog', 'car']\"\n1.png,dog\n",
    "list.jsonl": '{"image": "0.png", "label": ["dog", "car"]}\n{"image": "1.png", "label": "dog"}\n',
    "coco.json": json.dumps(
        {"images": [{"id": 7, "file_name": "0.png"}, {"id": 8, "file_name": "1.png"}],
         "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "car"}],
         "annotations": [{"image_id": 7, "category_id": 1}, {"image_id": 7, "category_id": 2},
                         {"image_id": 7, "category_id": 1}, {"image_id": 8, "category_id": 1}]}),
}  # fmt: skip


@pytest.mark.parametrize("name", [*MANY, "lists.parquet", "several.tar"])
def test_several_labels_are_a_list_in_every_format(name: str, tmp_path: Path):
    path = tmp_path / name
    if name in MANY:
        path.write_text(MANY[name])
    elif name.endswith("parquet"):
        pq.write_table(pa.table({"image": [png(0), png(1)], "label": [["dog", "car"], ["dog"]]}), path)
    else:
        tar(path, ("0.png", png(0)), ("0.json", b'{"label": ["dog", "car"]}'), ("1.png", png(1)), ("1.cls", b"dog"))
    rows = open_rows(path)
    assert [rows.labels(i) for i in range(2)] == [["dog", "car"], ["dog"]]
    classes = classes_of(str(path))
    assert classes.keys == ("car", "dog")
    with refused(DataError, "several classes", "dog, car", "multi-label"):
        open_labelled(str(path), None, classes)


def test_lines_of_texts_may_be_labels(tmp_path: Path):
    images(tmp_path, "1.png", "2.png")
    (tmp_path / "1.txt").write_text("dog\ncar\n")
    (tmp_path / "2.txt").write_text("dog")
    rows = open_rows(tmp_path, columns={"label": "txt"})
    assert [rows.labels(i) for i in range(2)] == [["dog", "car"], ["dog"]]


ENCODED = [
    ("latin-1", "Latin-1", "café"), ("cp1252", "Latin-1", "naïve “cafés”"), ("utf-16", "UTF-16", "café"),
    ("utf-16-be", "UTF-16", "café"), ("utf-32", "UTF-32", "café"), ("cp932", "Shift-JIS", "赤いリンゴの絵"),
    ("euc_jp", "EUC-JP", "赤いリンゴの絵"), ("iso2022_jp", "ISO-2022-JP", "赤いリンゴの絵"),
    ("euc_kr", "EUC-KR", "빨간 사과 그림"), ("gbk", "GB2312", "红苹果的图片"),
    ("cp1251", "Windows-1251", "красное яблоко"),
]  # fmt: skip


@pytest.mark.parametrize(("encoding", "seen", "text"), ENCODED)
def test_a_text_in_another_encoding_is_a_bad_row_and_not_its_class(encoding: str, seen: str, text: str, tmp_path: Path):
    images(tmp_path, "cat/1.png", "dog/2.png", "dog/3.png")
    (tmp_path / "cat/1.txt").write_bytes(text.encode(encoding))
    (tmp_path / "dog/2.txt").write_text("a dog")
    rows = open_rows(tmp_path)
    assert captions(rows) == ["bad row", ["a dog"], "no caption"]
    with refused(BrokenSample, "1.txt", "not UTF-8", seen):
        rows.captions(0)


@pytest.mark.parametrize(("encoding", "seen", "text"), ENCODED)
def test_a_table_in_another_encoding_is_refused_with_its_name(encoding: str, seen: str, text: str, tmp_path: Path):
    path = tmp_path / "d.csv"
    path.write_bytes(f"image,caption\n1.png,{text}\n2.png,{text}\n".encode(encoding))
    with refused(DataError, "d.csv", seen, f"iconv -f {ICONV[seen]}"):
        open_rows(path)


def test_links_inside_are_followed_and_those_outside_are_named(tmp_path: Path):
    data = images(tmp_path / "data", "cat/1.png")
    images(tmp_path / "data" / "kept", ".hidden/2.png")
    images(tmp_path / "elsewhere", "3.png")
    (data / "dog").symlink_to(data / "kept" / ".hidden")  # inside
    (data / "ant").symlink_to(tmp_path / "elsewhere")  # outside
    (data / "cat" / "4.png").symlink_to(tmp_path / "elsewhere" / "3.png")
    (data / "cat" / "ring").symlink_to(data / "cat")
    rows = open_rows(data)
    found = {rows.uid(i): (rows.labels(i), captions(rows)[i]) for i in range(len(rows))}
    assert found["dog/2.png"] == (["dog"], ["dog"])
    assert found["cat/1.png"] == (["cat"], ["cat"])
    assert {uid for uid, (_, texts) in found.items() if texts == "outside the folder"} == {
        "ant",
        "cat/4.png",
        "cat/ring",
    }
    assert any("3 links lead outside" in remark.text for remark in rows.remarks())
    allowed = open_rows(data, root=tmp_path / "elsewhere")
    assert {tuple(allowed.labels(i)) for i in range(len(allowed)) if allowed.uid(i) == "ant/3.png"} == {("ant",)}


def test_a_snapshot_of_the_hubs_cache_is_read_through_its_links(tmp_path: Path):
    repository = tmp_path / "datasets--org--name"
    images(repository, "blobs/aa", "blobs/bb")
    snapshot = repository / "snapshots" / "0123"
    for name, blob in (("cat/1.png", "aa"), ("dog/2.png", "bb")):
        (snapshot / name).parent.mkdir(parents=True)
        (snapshot / name).symlink_to(Path("../../../blobs") / blob)
    rows = open_rows(snapshot)
    assert [rows.labels(i) for i in range(2)] == [["cat"], ["dog"]]
    assert [Path(str(rows.image(i))).read_bytes() for i in range(2)] == [png(0), png(1)]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_repeated_id_of_another_image_gets_a_name_of_its_own(kind: str, tmp_path: Path):
    for shard in range(2):
        if kind == "parquet":
            rows = {
                "id": [0, 1],
                "image": [png(10 * shard), png(10 * shard + 1)],
                "caption": [f"{shard}a", f"{shard}b"],
            }
            pq.write_table(pa.table(rows), tmp_path / f"{shard}.parquet")
    if kind == "csv":
        (tmp_path / "d.csv").write_text("id,image,caption\n0,a.png,0a\n1,b.png,0b\n0,c.png,1a\n1,d.png,1b\n")
    rows = open_rows(tmp_path if kind == "parquet" else tmp_path / "d.csv")
    assert [rows.uid(i) for i in range(4)] == ["0", "1", "0 (2)", "1 (2)"]
    assert len({rows.group(i) for i in range(4)}) == 4
    assert any("another image" in remark.text for remark in rows.remarks())


def test_rows_of_one_id_and_one_image_are_one_sample(tmp_path: Path):
    rows = {"id": [5, 5, 6], "image": [png(1), png(1), png(2)], "caption": ["a", "b", "c"]}
    pq.write_table(pa.table(rows), tmp_path / "d.parquet")
    opened = open_rows(tmp_path / "d.parquet")
    assert captions(opened) == [["a", "b"], ["c"]]
    assert opened.remarks() == []


@pytest.mark.parametrize("kind", ["csv", "folder", "tar"])
def test_images_with_the_same_text_are_one_group(kind: str, tmp_path: Path):
    if kind == "csv":
        texts = ["cat", "ｃａｔ ", "dog", "cat  dog"]
        (tmp_path / "d.csv").write_text(
            "image,caption\n" + "".join(f"{n}.png,{text}\n" for n, text in enumerate(texts))
        )
        rows = open_rows(tmp_path / "d.csv")
    elif kind == "folder":
        rows = open_rows(images(tmp_path, "cat/0.png", "cat/1.png", "dog/2.png", "cat_dog/3.png"))
    else:
        names = ["cat", "cat", "dog", "cat_dog"]
        path = tar(
            tmp_path / "d.tar",
            *[m for n, name in enumerate(names) for m in ((f"{n}.png", png(n)), (f"{n}.cls", name.encode()))],
        )
        rows = open_rows(path)
    groups = sorted(rows.group(i) for i in range(4))
    assert groups == ["cat", "cat", "cat dog", "dog"]


def test_a_data_set_names_no_files_outside_of_it(tmp_path: Path):
    images(tmp_path, "outside.png", "data/inside.png")
    for path in ("../outside.png", str(tmp_path / "outside.png")):
        pq.write_table(
            pa.table({"image": ["inside.png", path], "caption": ["a", "b"]}), tmp_path / "data" / "d.parquet"
        )
        rows = open_rows(tmp_path / "data" / "d.parquet")
        assert rows.image(0) == str(tmp_path.resolve() / "data/inside.png")
        with refused(BrokenSample, "outside the folder", "outside.png"):
            rows.image(1)
