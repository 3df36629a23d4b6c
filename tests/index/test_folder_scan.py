"""What a walk through a folder finds, and that no single entry stops it."""

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.support.odd_images import noise
from tests.support.rights import ordinary_rights
from vlm.errors import InputError
from vlm.index.folder_scan import FolderScan, scan_folder


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(8, 8).save(folder / name, "PNG")


def names(scan: FolderScan, folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in scan.files]


def problems(scan: FolderScan, folder: Path) -> dict[str, str]:
    return {os.path.relpath(error.name, folder): error.reason for error in scan.problems}


def test_files_with_an_images_suffix_and_without_any_are_looked_at_and_others_are_counted(tmp_path: Path):
    write(tmp_path, "a.png", "b.JPG", "deeper/c.webp", "no suffix", ".hidden.png", ".hidden/d.png")
    for other in ("a.txt", "b.TXT", "film.mp4", "notes.txt"):
        (tmp_path / other).touch()
    scan = scan_folder(str(tmp_path))
    assert names(scan, tmp_path) == ["a.png", "b.JPG", "deeper/c.webp", "no suffix"]
    assert scan.others == Counter({".txt": 3, ".mp4": 1})
    assert not scan.problems


@pytest.mark.parametrize("rights", [0o000, 0o600, 0o200], ids=oct)
def test_a_walled_off_folder_is_listed_and_the_rest_is_found(tmp_path: Path, rights: int):
    write(tmp_path, "a.png", "walled/b.png", "z.png", "z/c.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "walled" / "b.png")
    (tmp_path / "walled").chmod(rights)
    try:
        with ordinary_rights():
            scan = scan_folder(str(tmp_path))
    finally:
        (tmp_path / "walled").chmod(0o755)
    assert set(names(scan, tmp_path)) - {"link.png"} == {"a.png", "z.png", "z/c.png"}
    assert problems(scan, tmp_path)["walled"] == "unreadable"
    assert scan.unlisted == [str(tmp_path / "walled")]


def test_links_stay_inside(tmp_path: Path):
    write(tmp_path, "inside/a.png", "inside/b/c.png", "outside/d.png")
    inside = tmp_path / "inside"
    for name, target in [
        ("e.png", "a.png"),
        ("f.png", "../outside/d.png"),
        ("g", "../outside"),
        ("h", "b"),
        ("ring.png", "ring.png"),
        ("nowhere.png", "gone.png"),
    ]:
        (inside / name).symlink_to(target)
    scan = scan_folder(str(inside))
    assert names(scan, inside) == ["a.png", "b/c.png", "e.png", "nowhere.png"]
    assert problems(scan, inside) == dict.fromkeys(["f.png", "g", "ring.png"], "outside the folder")


def test_fifteen_hundred_nested_folders_are_no_recursion(tmp_path: Path):
    deepest = tmp_path.joinpath(*["d"] * 1500)
    subprocess.run(["mkdir", "-p", deepest], check=True)  # os.makedirs is recursive, and so is shutil.rmtree
    try:
        noise(8, 8).save(deepest / "a.png")
        assert scan_folder(str(tmp_path)).files == [str(deepest / "a.png")]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_a_path_longer_than_the_system_takes_is_listed(tmp_path: Path):
    here, name = os.getcwd(), "x" * 200
    os.chdir(tmp_path)
    try:
        for _ in range(25):
            os.mkdir(name)
            os.chdir(name)
    finally:
        os.chdir(here)
    write(tmp_path, "a.png")
    scan = scan_folder(str(tmp_path))
    assert names(scan, tmp_path) == ["a.png"]
    assert {error.reason for error in scan.problems} == {"unreadable"}


# ---- rules ---------------------------------------------------------------------------------------------------------


def test_folders_of_other_programs_are_passed_over(tmp_path: Path):
    hidden = [
        "@eaDir/a.png",
        "x/Thumbnails/b.png",
        "#recycle/c.png",
        "$RECYCLE.BIN/d.png",
        "Trash/e.png",
        "__MACOSX/f.png",
    ]
    write(tmp_path, *hidden, "x/trashcan/g.png", "thumbnails.png")
    scan = scan_folder(str(tmp_path))
    assert names(scan, tmp_path) == ["thumbnails.png", "x/trashcan/g.png"]
    assert scan.excluded == len(hidden)
    taken_in = scan_folder(str(tmp_path), ["!Trash", "!@eaDir"])
    assert {"Trash/e.png", "@eaDir/a.png"} < set(names(taken_in, tmp_path))


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["*.webp"], ["a.png", "b/c.png", "b/d/e.png"]),
        (["b/"], ["a.png", "x.webp"]),
        (["/a.png", "d"], ["b/c.png", "x.webp"]),
        (["*", "!a.png"], ["a.png"]),
        (["b/**/e.*"], ["a.png", "b/c.png", "x.webp"]),
    ],
    ids=str,
)
def test_patterns_are_those_of_gitignore_on_the_command_line_and_in_a_file(
    tmp_path: Path, patterns: list[str], left: list[str]
):
    write(tmp_path, "a.png", "b/c.png", "b/d/e.png", "x.webp")
    assert names(scan_folder(str(tmp_path), patterns), tmp_path) == left
    (tmp_path / ".vlmignore").write_text("\r\n".join([*patterns, "# a comment"]), encoding="utf-8-sig")  # as Notepad
    assert names(scan_folder(str(tmp_path)), tmp_path) == left


def test_an_ignore_file_rules_its_own_folder_and_a_deeper_one_counts_more(tmp_path: Path):
    write(tmp_path, "a.png", "b/a.png", "b/c/a.png", "d/a.png")
    (tmp_path / "b" / ".vlmignore").write_text("a.png")
    (tmp_path / "b" / "c" / ".vlmignore").write_text("!a.png")
    assert names(scan_folder(str(tmp_path)), tmp_path) == ["a.png", "b/c/a.png", "d/a.png"]


def test_an_ignore_file_that_cannot_be_read_hides_nothing_silently(tmp_path: Path):
    write(tmp_path, "a.png", "b/c.png")
    (tmp_path / "b" / ".vlmignore").mkdir()
    scan = scan_folder(str(tmp_path))
    assert names(scan, tmp_path) == ["a.png"]
    assert problems(scan, tmp_path) == {"b": "unreadable"}


@pytest.mark.parametrize("pattern", ["!", "a/\\"])
def test_a_pattern_that_is_none_is_refused(tmp_path: Path, pattern: str):
    try:
        scan_folder(str(tmp_path), [pattern])
    except InputError as error:
        assert "--exclude" in str(error)
