"""Atomic writes: an interruption at any moment leaves the old content or the new one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlm import atomic


def test_a_file_is_replaced_and_nothing_else_remains(tmp_path: Path):
    path = tmp_path / "a.json"
    for content in ("one\n", b"two\r\n"):
        atomic.write(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", ["sync", "Path.replace"])
def test_an_interruption_leaves_the_old_file(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.json"
    atomic.write(path, "old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"vlm.atomic.{moment}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            atomic.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path):
    killed = subprocess.Popen([sys.executable, "-c", "pass"])
    killed.wait()
    (tmp_path / f".a[1].json.{killed.pid}.new").write_text("half")
    alive = tmp_path / f".a[1].json.{os.getppid()}.new"
    alive.write_text("being written")
    atomic.write(tmp_path / "a[1].json", "whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a[1].json", alive])


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path):
    folder = tmp_path / "model"
    for name in ("first", "second"):
        with atomic.replacing_folder(folder) as new:
            (new / "deep").mkdir()
            (new / "deep" / name).write_text(name)
    assert [path.name for path in folder.rglob("*")] == ["deep", "second"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failure_inside_leaves_the_old_folder(tmp_path: Path):
    folder = tmp_path / "model"
    with atomic.replacing_folder(folder) as new:
        (new / "a").write_text("old")

    def fail() -> None:
        with atomic.replacing_folder(folder) as new:
            (new / "a").write_text("new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (folder / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_process_that_died_between_the_two_renames_leaves_a_folder_that_can_be_restored(tmp_path: Path):
    folder = tmp_path / "model"
    atomic.set_aside(folder).mkdir()
    atomic.restore(folder)
    assert folder.is_dir() and not atomic.set_aside(folder).exists()
