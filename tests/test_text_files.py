"""CSV, TSV and JSONL files as they really come: other separators, other encodings, broken lines, anything at all."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.rows import BrokenSample, open_rows


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
        ("a.csv", b"titel,caption\n1.png,3\n", "no column with pictures. It has: titel, caption"),
        ("a.csv", b"1.png,a dog\n2.png,a cat\n", "begins with a picture, '1.png'. Put a header on top"),
        ("a.csv", b"filepath,title\n1.png;a\n2.png;b\n", "none of the first 2 rows is right; line 2: 1 values"),
        ("a.csv", b"image,image,title\n", "two columns named 'image'"),
        ("a.csv", b"image,title\n", "has no rows"),
        ("a.csv", b"", "has no rows"),
        ("a.jsonl", b"[1, 2]\n3\n", "no JSON objects, one a line .line 1: a JSON list"),
        ("a.jsonl", b'[\n{"image": "a"\n', "no JSON objects, one a line"),
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
        for ask in (rows.captions, rows.picture):
            with pytest.raises(BrokenSample, match=words):
                ask(index)
    assert len({rows.uid(index) for index in range(5)}) == 5


def test_a_value_longer_than_the_csv_module_takes_is_a_broken_line(tmp_path):
    rows = opened(tmp_path, "a.csv", b"image,caption\n1.png," + b"a" * (csv.field_size_limit() + 1) + b"\n2.png,b\n")
    assert len(rows) == 2
    with pytest.raises(BrokenSample, match=r"line 2: no row of a table .field larger than field limit"):
        rows.captions(0)
    assert rows.captions(1) == {"": (["b"], [])}


def test_a_broken_json_line_stays_a_sample(tmp_path):
    rows = opened(
        tmp_path, "a.jsonl", b'{"image": "1.png", "text": "a"}\n{"image": \n\n{"image": "2.png", "text": ["b", "c"]}\n'
    )
    assert [rows.captions(index) for index in (0, 2)] == [{"": (["a"], [])}, {"": (["b", "c"], [])}]
    with pytest.raises(BrokenSample, match="line 2: no JSON"):
        rows.picture(1)


def test_a_byte_order_mark_and_carriage_returns_change_nothing(tmp_path):
    rows = opened(tmp_path, "a.csv", '\ufefffilepath,title\r\n1.png,"two\nlines"\r\n'.encode())
    assert (rows.uid(0), rows.captions(0)) == ("1.png", {"": (["two\nlines"], [])})


def test_a_changed_file_is_read_again(tmp_path):
    assert opened(tmp_path, "a.csv", b"image,caption\n1.png,a\n").captions(0) == {"": (["a"], [])}
    assert opened(tmp_path, "a.csv", b"image,caption\n1.png,other\n").captions(0) == {"": (["other"], [])}


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
            assert str(rows.picture(index)).startswith(str(tmp_path))
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
