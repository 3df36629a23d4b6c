"""From a mirror that is a folder: no test needs the network."""

import gzip
import hashlib
import sys
from pathlib import Path

import pytest

from training import fetch_fashion_mnist
from training.fetch_fashion_mnist import FILES, fetch, main


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


def test_another_archive_of_the_same_contents_is_the_same_file(mirror, tmp_path):
    name = next(iter(FILES))
    (mirror / name).write_bytes(gzip.compress(name.encode(), compresslevel=1, mtime=5))
    fetch(tmp_path / "out", mirror.as_uri())


@pytest.mark.parametrize("data", [gzip.compress(b"other"), b"<html>not found</html>", gzip.compress(b"x" * 99)[:-5]])
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
