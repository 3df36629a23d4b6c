"""A folder of tars with everything wrong that a tar can have."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from data_formats import pictures, tars

from training.rows import BrokenSample, open_rows
from vlm.config import PreprocessConfig
from vlm.preprocess import ImageError, Preprocess

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
    sound = pictures()[0][1]
    with tarfile.open(folder / "00002.tar", "w") as tar:
        add(tar, "ok.jpg", sound)  # the name may lie about the kind
        add(tar, "ok.txt", b"fine")
        add(tar, "ok.pkl", pickle.dumps(Exploding(mark)))
        for name, data in {"cut": sound[:300], "text": b"<html>", "void": b""}.items():
            add(tar, f"{name}.png", data)
            add(tar, f"{name}.txt", b"a picture")
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
        "cut": "truncated", "text": "not a picture", "void": "empty file", "../out": "outside the folder",
        "/root": "outside the folder", "pickled": "missing", "link": "not a file", "silent": "no caption",
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
            PREPROCESS.pixels(rows.picture(index))
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
    with pytest.raises(BrokenSample, match=r"00000\.tar: damaged: .*6 samples were found before"):
        rows.picture(len(rows) - 1)


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
        add(tar, "deep/1.png", pictures()[0][1])
        add(tar, "deep/1.json", json.dumps(facts).encode())
        add(tar, "deep/2.webp", pictures()[1][1])
        add(tar, "deep/2.cls", b"guide_dog")
    rows = open_rows(tmp_path / "a.tar")
    assert rows.captions(0) == {"en": (["a dog"], []), "ja": (["犬"], []), "": ([], ["pet"])}
    assert rows.captions(1) == {"": (["guide dog"], [])}
    assert [rows.label(index) for index in (0, 1)] == [None, "guide_dog"]
    assert [rows.uid(index) for index in (0, 1)] == ["a.tar/deep/1", "a.tar/deep/2"]


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
    for name, data, captions in pictures():
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
    shown = {found.captions(index)[""][0][0]: found.picture(index) for index in range(len(found))}  # its threads race
    truth = {captions[0]: data for _, data, captions in pictures()}
    assert shown.keys() == truth.keys()
    assert all((PREPROCESS.pixels(shown[text]) == PREPROCESS.pixels(truth[text])).all() for text in truth)
