"""A folder of tars with everything wrong that a tar can have."""

import io
import json
import os
import pickle
import re
import tarfile
from pathlib import Path

import pytest

from tests.support.data_formats import only, sample_images, tars
from vlm.config import PreprocessConfig
from vlm.errors import ImageError
from vlm.images.preprocess import Preprocess
from vlm.training.data.rows import BrokenSample
from vlm.training.data.sources import open_rows

PREPROCESS = Preprocess(PreprocessConfig(image_size=16))


class Exploding:
    """A pickle of it writes a file when it is opened."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, link
    tar.addfile(member, io.BytesIO(data))


def damaged_tars(folder: Path, mark: Path) -> dict[str, str]:
    """00000 and 00001 sound but for one end, 00002 with the strange; uid -> reason of all that is broken."""
    tars(folder, 2)
    sound = sample_images()[0][1]
    with tarfile.open(folder / "00002.tar", "w") as tar:
        add(tar, "ok.jpg", sound)  # the name may lie about the kind
        add(tar, "ok.txt", b"fine")
        add(tar, "ok.pkl", pickle.dumps(Exploding(mark)))
        for name, data in {"cut": sound[:300], "text": b"<html>", "void": b""}.items():
            add(tar, f"{name}.png", data)
            add(tar, f"{name}.txt", b"an image")
        add(tar, "../out.png", sound)
        add(tar, "../out.txt", b"climbs")
        add(tar, "/root.png", sound)
        add(tar, "/root.txt", b"climbs")
        add(tar, "pickled.pickle", pickle.dumps(Exploding(mark)))
        add(tar, "link.png", kind=tarfile.SYMTYPE, link="/etc/hostname")
        add(tar, "link.txt", b"a link")
        add(tar, "silent.png", sound)
        add(tar, "blank.png", sound)
        add(tar, "blank.txt", b" \n")
        add(tar, "latin.png", sound)
        add(tar, "latin.txt", "café".encode("latin-1"))
        add(tar, "json.png", sound)
        add(tar, "json.json", b"{")
    whole = (folder / "00001.tar").read_bytes()
    with tarfile.open(folder / "00001.tar") as tar:
        (cut,) = [member for member in tar if member.name == "000000020.png"]
    (folder / "00001.tar").write_bytes(whole[: cut.offset_data + 100])
    reasons = {"00001.tar/000000020": "truncated", "00001.tar": "truncated"}
    strange = {
        "cut": "truncated", "text": "not an image", "void": "empty file", "../out": "outside the folder",
        "root": "outside the folder", "pickled": "missing", "link": "not a file", "silent": "no caption",
        "blank": "no caption", "latin": "bad row", "json": "bad row",
    }  # fmt: skip
    return reasons | {f"00002.tar/{key}": reason for key, reason in strange.items()}


def test_every_broken_sample_has_its_reason_and_no_other_is_broken(tmp_path):
    mark = tmp_path / "unpickled"
    (tmp_path / "tars").mkdir()
    expected = damaged_tars(tmp_path / "tars", mark)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    rows = open_rows(tmp_path / "tars")
    found, sound = {}, []
    for index in range(len(rows)):
        try:
            rows.captions(index)
            PREPROCESS.pixels(rows.image(index))
            sound.append(rows.uid(index))
        except (BrokenSample, ImageError) as error:
            found[rows.uid(index)] = error.reason
    assert found == expected
    assert sound == [f"{n // 12:05d}.tar/{n:09d}" for n in range(20)] + ["00002.tar/ok"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == before  # nothing unpacked
    assert not mark.exists()
    pickle.loads(pickle.dumps(Exploding(mark)))
    assert mark.exists()  # it would have been


def test_a_header_that_is_damaged_in_the_middle_is_said(tmp_path):
    tars(tmp_path, 1)
    path = tmp_path / "00000.tar"
    with tarfile.open(path) as tar:
        (member,) = [member for member in tar if member.name == "000000005.png"]
    data = bytearray(path.read_bytes())
    data[member.offset : member.offset + 512] = b"\xff" * 512
    path.write_bytes(data)
    rows = open_rows(tmp_path)
    with pytest.raises(BrokenSample, match=r"00000\.tar: damaged: .*6"):
        rows.image(len(rows) - 1)


def test_what_is_no_tar_is_a_broken_shard(tmp_path):
    tars(tmp_path, 1)
    (tmp_path / "00001.tar").write_bytes(b"no tar at all" * 100)
    rows = open_rows(tmp_path)
    assert len(rows) == 25
    with pytest.raises(BrokenSample, match=r"00001\.tar: damaged"):
        rows.captions(24)


def test_a_caption_in_json_alone_and_a_class_are_read(tmp_path):
    facts = {"caption_en": "a dog", "caption_ja": "犬", "keywords": ["pet"]}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "deep/1.png", sample_images()[0][1])
        add(tar, "deep/1.json", json.dumps(facts).encode())
        add(tar, "deep/2.webp", sample_images()[1][1])
        add(tar, "deep/2.cls", b"guide_dog")
    rows = open_rows(tmp_path / "a.tar")
    assert rows.captions(0) == {"en": (["a dog"], []), "ja": (["犬"], []), "": ([], ["pet"])}
    assert rows.captions(1) == {"": (["guide dog"], [])}
    assert [only(rows.labels(index)) for index in (0, 1)] == [None, "guide_dog"]
    assert [rows.uid(index) for index in (0, 1)] == ["a.tar/deep/1", "a.tar/deep/2"]


def packed(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add(tar, name, data)
    return path


def why(rows, index: int) -> str:
    with pytest.raises(BrokenSample) as caught:
        rows.image(index)
    return str(caught.value)


def test_neighbours_of_one_key_are_a_sample(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "deep", kind=tarfile.DIRTYPE)
        add(tar, "deep/x.jpg", kind=tarfile.DIRTYPE)  # no image: a folder
        for name, data in [
            ("deep/1.PNG", b"first"), ("README", b"no ending"), ("deep/1.webp", b"other"), ("deep/1.TXT", b"one"),
            ("2.b.jpg", b"two"), ("2.txt", b"2"),
            ("2.TXT", b"again"), ("2.jpg", b"2 again"),
            ("2.JPG", b"2 alone"),
            ("3.jpg", b"three"), ("3.txt", b"3"), ("3.seg.txt", b"no caption"), ("3.npy", b"x"),
        ]:  # fmt: skip
            add(tar, name, data)
    rows = open_rows(tmp_path / "a.tar")
    assert [rows.uid(i) for i in range(len(rows))] == [f"a.tar/{key}" for key in ("deep/1", "2", "2 (2)", "3")]
    assert [rows.captions(i)[""][0] for i in range(4)] == [["one"], ["again"], ["2"], ["3"]]  # the 2 that stood apart
    assert [rows.image(i) for i in range(4)] == [b"first", b"2 again", b"2 alone", b"three"]
    packed(tmp_path / "b.tar", ("2.b.jpg", b"two"), ("2.txt", b"2"), ("3.jpg", b"three"))
    rows = open_rows(tmp_path / "b.tar")
    assert why(rows, 0) == "b.tar/2: missing: no image among its members (b.jpg, txt)"
    with pytest.raises(BrokenSample, match=r"b\.tar/3.*label, captions, keywords"):
        rows.captions(1)


def test_captions_are_of_both_texts_each_once_in_their_languages(tmp_path):
    facts = {"text": [" a", "b", " "], "keywords": ["k", "k"], "lang": "en", "label": 3, "caption_x": "no", "T": "t"}
    named = {"remark_ja": "\u72ac", "note": "n", "label": ["list"], "language": "", "lang": None}
    rows = open_rows(
        packed(
            tmp_path / "a.tar",
            ("1.jpg", b"1"), ("1.txt", "\ufeffb \n".encode()), ("1.json", json.dumps(facts).encode()),
            ("2.jpg", b"2"), ("2.json", json.dumps(named).encode()), ("2.txt", b"c"),
            ("3.jpg", b"3"), ("3.json", b'{"language": "fr", "lang": "en", "caption": "d"}'), ("3.cls", b" a_b \n"),
        )
    )  # fmt: skip
    assert rows.captions(0) == {"": (["b"], []), "en": ([" a", "b"], ["k"])}
    assert rows.captions(1) == {"": (["c"], [])}
    assert rows.captions(2) == {"fr": (["d"], [])}
    assert [only(rows.labels(i)) for i in range(3)] == ["3", "list", "a_b"]
    rows = open_rows(tmp_path / "a.tar", columns={"caption": ["note", "remark_ja"], "keywords": "missing"})
    assert rows.captions(1) == {"": (["n", "c"], []), "ja": (["犬"], [])}
    with pytest.raises(ValueError, match=r"a\.tar.*splits.*train"):
        open_rows(tmp_path / "a.tar", ["train"])


def test_what_is_wrong_with_a_member_is_said(tmp_path):
    sound = sample_images()[0][1]
    deep = b"[" * 100_000
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for key, data in {"a": b"[1]", "b": b"{", "c": deep, "d": b"\xff"}.items():
            add(tar, f"{key}.jpg", sound)
            add(tar, f"{key}.json", data)
        add(tar, "e.jpg", kind=tarfile.FIFOTYPE)
        add(tar, "x/../f.jpg", sound)
        add(tar, "x..y/g.jpg", sound)  # two dots in a name lead nowhere
        add(tar, "x..y/g.txt", b"g")
        add(tar, "h.png", b"x", kind=tarfile.GNUTYPE_SPARSE)
    rows = open_rows(tmp_path / "a.tar")
    assert why(rows, 0) == "a.tar/a: bad row: a.json cannot be read (a JSON list, wanted an object)"
    assert "a.tar/b: bad row: b.json cannot be read (Expecting property name" in why(rows, 1)
    assert "a.tar/c: bad row: c.json cannot be read (" in why(rows, 2)
    assert "a.tar/d: bad row: d.json is not UTF-8: it looks like Latin-1" in why(rows, 3)
    assert why(rows, 4) == "a.tar/e: not a file: e.jpg is a link or a device"
    assert why(rows, 5) == "a.tar/x/../f: outside the folder: x/../f.jpg leads out of the tar"
    assert rows.image(6) == sound
    assert why(rows, 7) == "a.tar/h: not a file: h.png is a link or a device"


@pytest.mark.parametrize("name", ["1.txt", "1.json"])
def test_a_text_of_more_than_a_mebibyte_is_no_caption(name, tmp_path):
    fits = (b"a" if name.endswith(".txt") else b'{"caption": "a"}').ljust(2**20)
    second = ("2.jpg", b"x"), (name.replace("1", "2"), fits + b" ")
    rows = open_rows(packed(tmp_path / "a.tar", ("1.jpg", b"x"), (name, fits), *second))
    assert rows.image(0) == b"x" and rows.captions(0)
    assert why(rows, 1) == f"a.tar/2: bad row: {name.replace('1', '2')} has 1,048,577 bytes; wanted a caption"


def test_a_image_of_more_than_64_mebibytes_is_not_read(tmp_path):
    data = packed(tmp_path / "a.tar", ("1.jpg", b""), ("1.txt", b"a")).read_bytes()
    for size in (2**26, 2**26 + 1):
        member = tarfile.TarInfo("1.jpg")
        member.size = size
        with (tmp_path / "a.tar").open("wb") as file:  # a hole, no bytes
            file.write(member.tobuf(tarfile.GNU_FORMAT))
            file.seek(512 + -(-size // 512) * 512)
            file.write(data[512:])
        rows = open_rows(tmp_path / "a.tar")
        assert rows.captions(0) == {"": (["a"], [])}
        if size == 2**26:
            assert rows.image(0) == bytes(size)
    assert why(rows, 0) == "a.tar/1: too many bytes: 67,108,865; the limit is 67,108,864"


def test_a_tar_that_changes_while_it_is_used_breaks_samples(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("a", "b", "c"):
        packed(tmp_path / f"b/{name}.tar", (f"{name}.jpg", name.encode() * 600), (f"{name}.txt", b"x"))
    rows = open_rows(tmp_path / "b")
    os.truncate(tmp_path / "b/b.tar", 512 + 599)
    (tmp_path / "b/c.tar").unlink()
    assert rows.image(0) == b"a" * 600
    assert why(rows, 1) == f"b.tar/b: truncated: {tmp_path}/b/b.tar ends within this image"
    assert why(rows, 2) == f"c.tar/c: unreadable: {tmp_path}/b/c.tar: No such file or directory"


def sized(name: str, size: bytes) -> bytes:
    """A header whose size is written so, with the right sum."""
    head = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT)[:512])
    head[124:136], head[148:156] = size, b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (b"", r"truncated: a\.tar ends without its end mark; 2 samples were found before$"),
        (bytes(511), r"truncated: a\.tar ends without its end mark; 2 samples"),
        (b"x" * 600, r"damaged: no header at byte 2,048; 2 samples were found before$"),
        (b"x" * 511, r"truncated: a\.tar ends (without its end mark|after 2,559 bytes, in a member); 2 samples"),
        (sized("3.jpg", b"%011o\0" % 1000) + bytes(999), r"truncated: a\.tar ends after 3,559 bytes, in a member; 3 "),
        (sized("3.jpg", b"\x80" + bytes(3) + b"\x7f" * 8), r"(damaged: a\.tar cannot be read|truncated: a\.tar ends)"),
        (sized("3.jpg", b"\x80" + b"\x7f" * 11), r"(damaged: a\.tar cannot be read|truncated: a\.tar ends)"),
        (sized("3.jpg", b"\xff" * 10 + b"\xfc\0"), r"damaged: "),  # minus 1024
        (sized("3.jpg", b"\xff" * 10 + b"\xfa\0"), r"damaged: "),  # minus 1536: back to 2.jpg, a loop
        (sized("3.jpg", b"%011o\0" % 512) + b"z" * 512, r"truncated: a\.tar ends without its end mark; 3 samples"),
    ],
)
def test_an_end_that_is_none_is_a_broken_shard(end, words, tmp_path):
    path = packed(tmp_path / "a.tar", ("1.jpg", b"x"), ("2.jpg", b"y"))
    path.write_bytes(path.read_bytes()[:2048] + end)
    rows = open_rows(path)
    number = {rows.uid(i): i for i in range(len(rows))}
    assert [rows.image(number[f"a.tar/{key}"]) for key in (1, 2)] == [b"x", b"y"]
    assert why(rows, number["a.tar"]).startswith("a.tar: ")
    with pytest.raises(BrokenSample, match=words):
        rows.captions(number["a.tar"])
    if end.endswith(b"z"):
        assert rows.image(number["a.tar/3"]) == b"z" * 512  # whole
    elif len(rows) == 4:
        reason = r"a\.tar/3: (truncated: the tar ends within 3\.jpg$|unreadable: .*Invalid)"
        assert re.match(reason, why(rows, number["a.tar/3"]))


def test_names_of_any_bytes_can_be_printed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        add(tar, "caf\xe9.jpg", b"x")
        add(tar, "caf\xe9.txt", b"a")
    rows = open_rows(tmp_path / "a.tar")
    assert (rows.uid(0), rows.image(0)) == (r"a.tar/caf\udce9", b"x")


@pytest.mark.long
def test_img2datasets_own_tars_are_read(tmp_path):
    """The tool itself, on file:// addresses, in an environment of its own: it wants older packages than we do."""
    import subprocess
    import sys

    import pandas as pd

    def alone(package: str, *command: str) -> "subprocess.CompletedProcess[str]":
        uv = [sys.executable, "-m", "uv", "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable]
        offline = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
        return subprocess.run(
            [*uv, "--with", package, "python", *command], capture_output=True, text=True, timeout=600, env=offline
        )

    if (tried := alone("tqdm", "-c", "import tqdm")).returncode:
        pytest.skip(f"uv reaches no index, so nothing can be installed: {tried.stderr.strip().splitlines()[-1]}")
    rows = []
    for name, data, captions in sample_images():
        (tmp_path / name).write_bytes(data)
        rows.append({"url": (tmp_path / name).as_uri(), "caption": captions[0]})
    pd.DataFrame(rows).to_parquet(tmp_path / "urls.parquet")
    code = (
        "from img2dataset import download\nif __name__ == '__main__':\n"
        f"    download(url_list={str(tmp_path / 'urls.parquet')!r}, input_format='parquet', url_col='url', "
        f"caption_col='caption', output_format='webdataset', output_folder={str(tmp_path / 'out')!r}, "
        "processes_count=1, thread_count=2, number_sample_per_shard=10, resize_mode='no', "
        "encode_format='png', encode_quality=9)\n"
    )
    (tmp_path / "run.py").write_text(code)
    made = alone("img2dataset", str(tmp_path / "run.py"))
    assert made.returncode == 0, made.stderr
    found = open_rows(tmp_path / "out")
    shown = {found.captions(index)[""][0][0]: found.image(index) for index in range(len(found))}  # its threads race
    truth = {captions[0]: data for _, data, captions in sample_images()}
    assert shown.keys() == truth.keys()
    assert all((PREPROCESS.pixels(shown[text]) == PREPROCESS.pixels(truth[text])).all() for text in truth)
