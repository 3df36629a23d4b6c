"""What `vlm check` says of data that may be read otherwise than meant, each kind in two spellings or more."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.check_sets import noise_image
from tests.support.kept_data import tar
from vlm.cli import main
from vlm.training.audit.check import check, open_tokenizer


def noise(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise_image(number).save(folder / name)
    return folder


def table(folder: Path, text: str) -> Path:
    noise(folder, *(f"{n}.png" for n in range(4)))
    (folder / "d.csv").write_text(text, encoding="utf-8")
    return folder / "d.csv"


def rows(folder: Path, *cells: str, column: str = "caption") -> Path:
    return table(folder, "".join([f"image,{column}\n", *(f'{n}.png,"{cell}"\n' for n, cell in enumerate(cells))]))


def text_in(encoding: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        noise(folder, "cat/1.png", "dog/2.png", "dog/3.png")
        text = "赤いリンゴの絵" if encoding == "cp932" else "café noir"
        (folder / "cat" / "1.txt").write_bytes(text.encode(encoding))
        for name in ("2", "3"):
            (folder / "dog" / f"{name}.txt").write_text(f"a dog {name}")
        return folder

    return write


def link(to: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        noise(folder.with_name("elsewhere"), "3.png")
        noise(folder, "cat/1.png", "dog/2.png")
        (folder / "cat" / "link.png").symlink_to(folder.with_name("elsewhere") / "3.png")
        return folder

    def write_folder(folder: Path) -> Path:
        write(folder)
        (folder / "cat" / "link.png").unlink()
        (folder / "ant").symlink_to(folder.with_name("elsewhere"))
        return folder

    return write if to == "file" else write_folder


def shards(*names: str, ending: str = "txt", text: bytes = b"") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        noise(folder.with_name("source"), *(f"{n}.png" for n in range(len(names))))
        folder.mkdir()
        for n, name in enumerate(names):
            image = (folder.with_name("source") / f"{n}.png").read_bytes()
            tar(folder / name, (f"{n}.png", image), (f"{n}.{ending}", text or b"text %d" % n))
        return folder

    return write


KINDS: list[tuple[str, str, Callable[[Path], Path], list[str]]] = [
    ("caption by row", "one caption", lambda f: rows(f, *["images"] * 4), ["All 4 images", '"images"']),
    ("caption by text", "one caption", lambda f: f.with_name("same"), ["All 3 images", '"a photo"']),
    ("class by column", "one class", lambda f: rows(f, *["pets"] * 4, column="label"), ["All 4 images", "pets"]),
    ("class in tars", "one class", shards("0.tar", "1.tar", ending="cls", text=b"pets"), ["All 2 images", "pets"]),
    ("numpy cut", "cells", lambda f: rows(f, "a dog", "['a' 'b' ... 'z']"), ["1 bad row", "1.png", "numpy"]),
    ("open list", "cells", lambda f: rows(f, "a dog", "['a', 'b'"), ["1 bad row", "does not end"]),
    ("dict", "cells", lambda f: rows(f, "a dog", "{'text': 'a cat'}"), ["1 bad row", "1.png"]),
    ("tensor", "printed values", lambda f: rows(f, "a dog", "tensor(3)", "tensor(4)"), ["2 captions"]),
    ("some shards", "mixed splits", shards("00000.tar", "val-00000.tar"), ["1 samples have no split", "validation"]),
    ("empty split", "mixed splits",
     lambda f: table(f, "image,caption,split\n0.png,a,train\n1.png,b,\n2.png,c,test\n"), ["1 samples", "train, test"]),
    ("two names", "mixed splits",
     lambda f: table(f, "image,caption,split\n0.png,a,train\n1.png,b,val\n2.png,c,dev\n"), ["val and dev"]),
    ("class train", "mixed splits", lambda f: noise(f, "train/1.png", "car/2.png"), ["train is read", "car"]),
    ("ids of rows", "repeated ids",
     lambda f: table(f, "id,image,caption\n0,0.png,a\n1,1.png,b\n0,2.png,c\n"), ["1 rows", "0 (2)"]),
    ("ids of uids", "repeated ids",
     lambda f: table(f, "uid,image,caption\nx,0.png,a\nx,1.png,b\nx,2.png,c\n"), ["2 rows", "x (2)"]),
    ("link to a file", "links", link("file"), ["1 links", "cat/link.png", "root"]),
    ("link to a folder", "links", link("folder"), ["1 links", "ant", "root"]),
    ("Latin-1", "encoding", text_in("latin-1"), ["1 texts", "Latin-1", "iconv -f LATIN1"]),
    ("UTF-16", "encoding", text_in("utf-16"), ["1 texts", "UTF-16", "iconv -f UTF-16"]),
    ("Shift-JIS", "encoding", text_in("cp932"), ["1 texts", "Shift-JIS", "iconv -f CP932"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "facts"), [kind[1:] for kind in KINDS], ids=[kind[0] for kind in KINDS])
def test_each_kind_is_a_finding_with_its_facts(
    name: str, write: Callable[[Path], Path], facts: list[str], tmp_path: Path
):
    noise(tmp_path / "same", "1.png", "2.png", "3.png")
    for number in "123":
        (tmp_path / "same" / f"{number}.txt").write_text("a photo")
    found = check([str(write(tmp_path / "data"))], open_tokenizer("mini"))["findings"]
    texts = {finding["name"]: finding["text"] for finding in found}
    assert name in texts
    assert [fact for fact in facts if fact not in texts[name]] == []


def test_sound_data_in_splits_has_no_finding(tmp_path: Path):
    names = [f"{split}/{kind}/{split}{kind}.png" for split in ("train", "val") for kind in ("cat", "dog")]
    found = check([str(noise(tmp_path, *names))], open_tokenizer("mini"))["findings"]
    assert found == []


def test_the_table_names_the_first_broken_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    noise(tmp_path, *(f"dog/{n}.png" for n in range(3)), "cat/9.png")
    for number in range(5):
        (tmp_path / "cat" / f"{number}.png").write_text("no image")
    (tmp_path / "dog" / "2.png").write_bytes(b"")
    assert main(["check", str(tmp_path), "--workers", "0"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("broken"))
    assert "not an image 5 (cat/0.png, cat/1.png, cat/2.png, ...)" in line
    assert "empty file 1 (dog/2.png)" in line
    assert main(["check", str(tmp_path), "--workers", "0", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["first_broken"]
    assert [sample["uid"] for sample in first["empty file"]] == ["dog/2.png"]
