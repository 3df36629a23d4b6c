"""From a mirror that is a folder: no test needs the network."""

import gzip
import hashlib
import sys
from pathlib import Path

import pytest

from vlm.training import fetch_fashion_mnist
from vlm.training.fetch_fashion_mnist import FILES, fetch, main


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Path:
    """Four small files in place of the big ones."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(gzip.compress(name.encode()))
    monkeypatch.setattr(
        fetch_fashion_mnist, "FILES", {name: hashlib.sha256(name.encode()).hexdigest() for name in FILES}
    )
    return folder


def test_all_files_arrive_and_whole_ones_are_not_fetched_again(mirror, tmp_path):
    out = tmp_path / "data/fashion-mnist"
    fetch(out, mirror.as_uri())
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    for path in mirror.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
        path.unlink()
    fetch(out, mirror.as_uri())


def test_only_what_is_missing_or_wrong_is_fetched(mirror, tmp_path, monkeypatch, capsys):
    out, names = tmp_path / "out", list(FILES)
    out.mkdir()
    for name in (names[0], names[2]):
        (out / name).write_bytes((mirror / name).read_bytes())
        (mirror / name).unlink()
    (out / names[3]).write_bytes(gzip.compress(b"old"))
    monkeypatch.setattr(sys, "argv", ["fetch", str(out), "--site", mirror.as_uri()])
    assert main() == 0
    output = capsys.readouterr()
    assert output.out == f"{out}\n"
    assert output.err.splitlines() == [f"{mirror.as_uri()}/{name}" for name in (names[1], names[3])]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert gzip.decompress((out / names[3]).read_bytes()) == names[3].encode()


def test_a_mirror_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    site = (tmp_path / "none").as_uri()
    monkeypatch.setattr(sys, "argv", ["fetch", str(tmp_path / "out"), "--site", site])
    assert main() == 1
    address, error = capsys.readouterr().err.splitlines()
    assert address == f"{site}/{next(iter(FILES))}"
    assert error.startswith("fetch_fashion_mnist: error: ")


def test_another_archive_of_the_same_contents_is_the_same_file(mirror, tmp_path):
    name = next(iter(FILES))
    (mirror / name).write_bytes(gzip.compress(name.encode(), compresslevel=1, mtime=5))
    fetch(tmp_path / "out", mirror.as_uri())


WHOLE = gzip.compress(bytes(range(256)), mtime=0)


@pytest.mark.parametrize(
    "data",
    [gzip.compress(b"other"), b"<html>not found</html>", WHOLE[:-5], WHOLE[:12] + b"\xff" * 9 + WHOLE[21:], b""],
)
def test_what_is_not_the_file_is_refused_and_not_kept(mirror, tmp_path, monkeypatch, capsys, data):
    name = list(FILES)[2]
    (mirror / name).write_bytes(data)
    monkeypatch.setattr(sys, "argv", ["fetch", str(tmp_path / "out"), "--site", mirror.as_uri()])
    assert main() == 1
    assert f"{name} is not the file of Fashion-MNIST" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob(f"{name}*"))


def test_the_sums_are_those_of_the_installed_files():
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.exists():
        pytest.skip("dataset-fashion-mnist is not installed")
    for name, expected in FILES.items():
        assert hashlib.sha256(gzip.decompress((folder / name).read_bytes())).hexdigest() == expected
