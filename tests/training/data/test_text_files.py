"""CSV, TSV and JSONL files as they really come: other separators, other encodings, broken lines, anything at all."""

import csv
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.data_formats import only
from vlm.training.data.rows import BrokenSample
from vlm.training.data.sources import open_rows


def opened(folder: Path, name: str, data: bytes):
    (folder / name).write_bytes(data)
    return open_rows(folder / name)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.csv", "filepath,title\n1.png,赤い犬\n".encode("cp932"), "is Shift-JIS, wanted UTF-8. .*iconv -f CP932"),
        ("a.csv", "filepath,title\n1.png,a dog\n".encode("utf-16"), "is UTF-16, wanted UTF-8. .*iconv -f UTF-16"),
        ("a.csv", "filepath,title\n1.png,a dog\n".encode("utf-16-le"), "is UTF-16"),
        ("a.jsonl", '{"image": "1.png", "text": "赤い犬"}'.encode("cp932"), "is Shift-JIS"),
        ("a.csv", b"filepath title\n1.png a\n", "one column, 'filepath title': no comma, tab, semicolon, bar"),
        ("a.csv", b"filepath,price\n1.png,3\n", "no column with captions. It has: filepath, price. Name it in"),
        ("a.csv", b"titel,caption\n1.png,3\n", "no column with images. It has: titel, caption"),
        ("a.csv", b"1.png,a dog\n2.png,a cat\n", "begins with an image, '1.png'. Put a header on top"),
        ("a.csv", b"filepath,title\n1.png;a\n2.png;b\n", "none of the first 2 rows can be used; line 2: 1 values"),
        ("a.csv", b"image,image,title\n", "two columns named 'image'"),
        ("a.csv", b"image,title\n", "has no rows"),
        ("a.csv", b"", "has no rows"),
        ("a.jsonl", b"1\n[1, 2]\n", "no JSON objects, one a line .line 1: a JSON int"),
        ("a.jsonl", b"[1, 2]\n3\n", "a.jsonl is no JSON"),
        ("a.jsonl", b'[\n{"image": "a"\n', "a.jsonl is no JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_that_says_what_to_do(name, data, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        opened(tmp_path, name, data)
    assert "\n" not in str(caught.value)


def test_a_broken_line_stays_a_sample_and_says_its_line(tmp_path):
    lines = ["image,caption", "1.png,a", "2.png", "3.png,c,d", '4.png,"d, e"', "5.png,caf\udce9"]
    rows = opened(tmp_path, "a.csv", "\n".join(lines).encode("utf-8", "surrogateescape"))
    assert len(rows) == 5
    assert [rows.captions(index) for index in (0, 3)] == [{"": (["a"], [])}, {"": (["d, e"], [])}]
    for index, words in {1: "line 3: 1 values", 2: "line 4: 3 values", 4: "line 6: not UTF-8"}.items():
        for ask in (rows.captions, rows.image):
            with pytest.raises(BrokenSample, match=words):
                ask(index)
    assert len({rows.uid(index) for index in range(5)}) == 5


def test_a_value_longer_than_the_csv_module_takes_is_a_broken_line(tmp_path):
    rows = opened(tmp_path, "a.csv", b"image,caption\n1.png," + b"a" * (csv.field_size_limit() + 1) + b"\n2.png,b\n")
    assert len(rows) == 2
    with pytest.raises(BrokenSample, match=r"line 2: not a row of a table"):
        rows.captions(0)
    assert rows.captions(1) == {"": (["b"], [])}


def test_a_broken_json_line_stays_a_sample(tmp_path):
    rows = opened(
        tmp_path, "a.jsonl", b'{"image": "1.png", "text": "a"}\n{"image": \n\n{"image": "2.png", "text": ["b", "c"]}\n'
    )
    assert [rows.captions(index) for index in (0, 2)] == [{"": (["a"], [])}, {"": (["b", "c"], [])}]
    with pytest.raises(BrokenSample, match="line 2: no JSON"):
        rows.image(1)


def test_a_byte_order_mark_and_carriage_returns_change_nothing(tmp_path):
    rows = opened(tmp_path, "a.csv", '\ufefffilepath,title\r\n1.png,"two\nlines"\r\n'.encode())
    assert (rows.uid(0), rows.captions(0)) == ("1.png", {"": (["two\nlines"], [])})


def test_a_changed_file_is_read_again(tmp_path):
    assert opened(tmp_path, "a.csv", b"image,caption\n1.png,a\n").captions(0) == {"": (["a"], [])}
    assert opened(tmp_path, "a.csv", b"image,caption\n1.png,other\n").captions(0) == {"": (["other"], [])}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_other_encodings_are_named_with_the_command_that_converts_them(encoding, tmp_path):
    for data in ("filepath,title\n1.png,犬\n", "\ufefffilepath,title\n1.png,犬\n"):
        with pytest.raises(ValueError, match="is UTF-16, wanted UTF-8") as caught:
            opened(tmp_path, "a.tsv", data.encode(encoding))
        path = tmp_path / "a.tsv"
        assert str(caught.value).endswith(f"Convert it: iconv -f UTF-16 -t UTF-8 {path} > utf8.tsv")
    assert opened(tmp_path, "a.csv", "\ufefffilepath,title\n1.png,\0犬\0\n".encode()).captions(0)


def test_half_of_the_lines_make_an_encoding_and_fewer_are_bad_rows(tmp_path):
    lines = [b"image,caption", "1.png,犬".encode(), "2.png,犬".encode("cp932"), "3.png,caf\xe9".encode("latin-1")]
    rows = opened(tmp_path, "a.csv", b"\n".join(lines[:3]))
    assert rows.captions(0) == {"": (["犬"], [])}
    with pytest.raises(BrokenSample, match=r"1.*line 3.*UTF-8"):
        rows.image(1)
    with pytest.raises(ValueError, match="is Shift-JIS"):
        opened(tmp_path, "a.csv", b"\n".join([lines[0], lines[2]]))
    for order in (lines, lines[::-1]):  # not all of them are Shift-JIS
        with pytest.raises(ValueError, match=r"a\.csv.*UTF-8.*bytes b'.*'\).*UTF-8"):
            opened(tmp_path, "a.csv", b"\n".join(order))


def test_a_long_line_is_cut_nowhere_when_the_first_mebibyte_is_looked_at(tmp_path):
    for begin in range(3):  # of the bytes of a letter, wherever the mebibyte ends
        lines = [{"image": "1.png", "text": "x" * begin}, {"image": "2.png", "text": "犬" * 400_000}]
        data = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        assert opened(tmp_path, "a.jsonl", data.encode()).captions(1) == {"": (["犬" * 400_000], [])}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("a" * 100, f"has one column, '{'a' * 80}': no comma, tab, semicolon, bar in its first line. Wanted a header"),
        ("a\x07b", """has one column, "'a\\\\x07b'": no comma"""),
        ("x" * 200_000 + ",caption", "has one column, '': no comma"),  # more than the csv module takes
        ("image,x.PNG", "begins with an image, 'image'. Put a header on top: filepath,caption."),
        (f"{'b' * 90}, {'b' * 90} ,image", f"has two columns named '{'b' * 80}'. Rename one."),
        ("image,b,a,b,a", "has two columns named 'b'. Rename one."),
    ],
)
def test_a_header_that_is_none_is_one_line(header, words, tmp_path):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        opened(tmp_path, "a.csv", f"{header}\n1,2\n".encode())
    assert "\n" not in str(caught.value)


def test_the_separator_is_the_one_that_gives_most_columns(tmp_path):
    rows = opened(tmp_path, "a.csv", b"image ; caption;a, b | x;id\n1.png; a,b | c;x;7\n")
    assert (rows.uid(0), rows.image(0)) == ("7", str(tmp_path.resolve() / "1.png"))
    assert rows.captions(0) == {"": ([" a,b | c"], [])}
    with pytest.raises(ValueError, match=r"x.*image, caption.*x, id"):
        open_rows(tmp_path / "a.csv", columns={"uid": "x"})


def test_values_that_are_no_text_become_text_or_nothing(tmp_path):
    lines = [
        {"id": 7, "image": "1.png", "label": 0, "tags": ["x", 3, None], "more": {"deep": [1]}},
        {"id": 1.5, "image": "2.png", "label": True, "caption": ["a", {"b": 1}], "tags": "y"},
        {"id": {"a": 1}, "image": ["x"], "label": "", "caption": {"a": 1}},
        {"id": "", "image": None, "caption": "c", "split": "p"},
        {"id": "e", "image": "\ud83d", "caption": "e"},
        {"id": "f", "image": "f.png", "caption": ["f", "\ud83d"]},
    ]
    rows = opened(tmp_path, "a.jsonl", ("\n" + "\n\n".join(json.dumps(line) for line in lines)).encode())
    assert [rows.uid(i) for i in range(6)] == ["7", "1.5", "row 2", "row 3", "row 4", "row 5"]
    assert [only(rows.labels(i)) for i in range(4)] == ["0", "True", None, None]
    assert rows.captions(0) == {"": ([], ["x", "3"])}
    assert (rows.captions(3), rows.split(3)) == ({"": (["c"], [])}, "p")
    for index, words in ((2, "bad row: line 6: a cell holds"), (4, "bad row: line 10: not UTF-8")):
        with pytest.raises(BrokenSample, match=f"row {index}: {words}"):
            rows.image(index)
    with pytest.raises(BrokenSample, match="line 4: a list holds"):
        rows.captions(1)
    with pytest.raises(BrokenSample, match="line 12: not UTF-8"):
        rows.captions(5)


def test_json_objects_may_have_different_keys_and_any_space_between_them(tmp_path):
    rows = opened(tmp_path, "a.jsonl", b'\n{"image":\r"1.png"}\n\n[1]\n{"text_en": "a", "image": "2.png"}\r\n')
    assert len(rows) == 3
    assert rows.captions(2) == {"en": (["a"], [])}
    with pytest.raises(BrokenSample, match=r"1.*4.*list, wanted"):
        rows.image(1)
    with pytest.raises(ValueError, match=r"2.*value: .*char 0\)\)\)"):
        opened(tmp_path, "a.jsonl", b"\nx\n[1]\n3\n{}")
    with pytest.raises(ValueError, match=r"JSON objects.*line"):
        opened(tmp_path, "a.jsonl", b"{}\n")
    with pytest.raises(ValueError, match=r"recursion depth exceeded"):
        opened(tmp_path, "a.jsonl", b"[" * 100_000)


def test_line_ends_within_a_cell_stay_as_they_are(tmp_path):
    rows = opened(tmp_path, "a.csv", b'image,caption\n1.png,"two\r\nlines"\n\n2.png\n3.png,\xe2\x80\xa8 b\n')
    assert rows.captions(0) == {"": (["two\r\nlines"], [])}
    with pytest.raises(BrokenSample, match=r"5: 1 values.*2"):
        rows.captions(1)
    assert rows.captions(2) == {"": (["\u2028 b"], [])}


def test_a_table_of_a_hundred_bad_rows_is_none(tmp_path):
    bad, good = b"1.png\n", b"2.png,x\n"
    assert len(opened(tmp_path, "a.csv", b"image,caption\n" + bad * 99 + good)) == 100
    for more in (good, bad):
        with pytest.raises(ValueError, match=r"100.*2: 1 values, .*columns"):
            opened(tmp_path, "a.csv", b"image,caption\n" + bad * 100 + more)


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
NAMES = st.sampled_from(
    ["image", "filepath", "caption", "title", "text_ja", "label", "split", "x", "", "url", "\0", "犬"]
)
CELLS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["1.png", "../2.png", '"', "['a', 'b']", "a,b", "\0", "\ud83d", "x" * 200_000, "1e999", "null"]),
)
BYTES = st.one_of(
    st.lists(st.lists(CELLS, max_size=4).map(lambda row: ",".join(row)), max_size=5).map("\n".join),
    st.text(max_size=60),
)


@st.composite
def tables(draw) -> tuple[str, bytes]:
    """(suffix, content): anything between a right file and noise."""
    suffix = draw(st.sampled_from([".csv", ".tsv", ".jsonl"]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "cp932", "latin-1"]))
    if draw(st.integers(0, 4)) == 0:
        return suffix, draw(st.binary(max_size=80))
    if suffix == ".jsonl":
        leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), CELLS)
        values = leaves | st.lists(leaves, max_size=3) | st.dictionaries(NAMES, leaves, max_size=2)
        rows = draw(st.lists(st.dictionaries(NAMES, values, max_size=4) | values, max_size=5))
        text = "\n".join(json.dumps(row) for row in rows) + draw(st.sampled_from(["", "\n", "{", '\n{"image": ']))
    else:
        separator = draw(st.sampled_from([",", "\t", ";", "|", " "]))
        header = separator.join(draw(st.lists(NAMES, max_size=4)))
        text = header + draw(st.sampled_from(["\n", "\r\n", "\r", ""])) + draw(BYTES).replace(",", separator)
    return suffix, text.encode(encoding, "replace" if encoding != "utf-8" else "surrogatepass")


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
@given(tables())
def test_anything_is_a_clear_error_or_a_right_read(tmp_path, table):
    suffix, data = table
    try:
        rows = opened(tmp_path, f"table{suffix}", data)
    except ValueError as error:
        assert str(error).isprintable(), ascii(str(error))
        assert str(tmp_path) in str(error)
        return
    assert len(rows) > 0
    for index in range(len(rows)):
        assert rows.uid(index)
        try:
            captions = rows.captions(index)
            assert all(text.strip() for own in captions.values() for part in own for text in part)
            assert str(rows.image(index)).startswith(str(tmp_path))
        except BrokenSample as error:
            assert str(error).isprintable()


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
@given(
    st.dictionaries(st.integers(0, 99), WORDS.filter(lambda text: text.strip() and text[0] != "["), min_size=1).map(
        lambda found: list(found.items())
    ),
    st.sampled_from(",;\t|"),
)
def test_what_the_csv_module_writes_is_read_back(tmp_path, table, separator):
    with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([("image", "caption"), *((f"{number}.png", text) for number, text in table)])
    rows = open_rows(tmp_path / "t.csv")
    assert [(rows.uid(i), rows.captions(i)[""][0]) for i in range(len(rows))] == [(f"{n}.png", [t]) for n, t in table]
