"""Images in folders: class, split and captions are where people put them."""

import os
from pathlib import Path

import pytest

from tests.support.data_formats import only
from vlm.training.data.rows import BrokenSample, Rows
from vlm.training.data.sources import open_rows


def touch(folder: Path, *names: str) -> Path:
    """Empty files; none of these tests decodes."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def every(rows: Rows) -> list[tuple[str, str | None, str]]:
    return [(rows.uid(i), only(rows.labels(i)), rows.split(i)) for i in range(len(rows))]


def test_class_and_split_are_read_off_the_path(tmp_path):
    touch(tmp_path, "Train/cat/2.png", "Train/cat/10.JPG", "Train/dog/brown/1.webp", "valid/cat/old/1.png", "x.md")
    rows = open_rows(tmp_path)
    assert every(rows) == [
        ("Train/cat/10.JPG", "cat", "train"),
        ("Train/cat/2.png", "cat", "train"),
        ("Train/dog/brown/1.webp", "dog", "train"),
        ("valid/cat/old/1.png", "cat", "validation"),
    ]
    assert rows.splits() == ["train", "validation"]
    assert rows.captions(2) == {"": (["dog"], [])}  # no texts: the class is the caption
    assert rows.image(0) == str(tmp_path.resolve() / "Train/cat/10.JPG")
    for name in ("valid", "validation", "val", "dev"):
        assert every(open_rows(tmp_path, [name])) == [("valid/cat/old/1.png", "cat", "validation")]


def test_a_image_beside_class_folders_has_no_class(tmp_path):
    touch(tmp_path, "1.png", "cat/1.png", "dog/1.png")
    assert every(open_rows(tmp_path)) == [("1.png", None, ""), ("cat/1.png", "cat", ""), ("dog/1.png", "dog", "")]


def test_hidden_files_and_folders_are_not_looked_at(tmp_path):
    touch(tmp_path, ".git/cat/1.png", "cat/.thumbs/2.png", "cat/.3.png", "cat/4.png", "dog/5.png")
    assert every(open_rows(tmp_path)) == [("cat/4.png", "cat", ""), ("dog/5.png", "dog", "")]
    (tmp_path / "cat/4.png").unlink()
    (tmp_path / "dog/5.png").unlink()
    with pytest.raises(ValueError, match="is a folder without images"):
        open_rows(tmp_path)


def test_a_text_beside_a_image_holds_a_caption_a_line(tmp_path):
    touch(tmp_path, *(f"cat/{number}.png" for number in range(6)))
    (tmp_path / "cat/0.txt").write_bytes("\ufeff a cat \r\n\n猫\n".encode())
    (tmp_path / "cat/2.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "cat/3.txt").mkdir()
    (tmp_path.parent / "outside.txt").write_text("secret")
    (tmp_path / "cat/4.txt").symlink_to(tmp_path.parent / "outside.txt")
    (tmp_path / "cat/5.txt").write_text("another" * 99)
    rows = open_rows(tmp_path)
    assert rows.captions(0) == {"": (["a cat", "猫"], [])}
    assert rows.captions(5) == {"": (["another" * 99], [])}
    reasons = {1: "no caption", 2: "bad row: not UTF-8: 2.txt looks like Latin-1", 3: "no caption",
               4: "bad row: 4.txt is a link to"}  # fmt: skip
    for index, reason in reasons.items():
        with pytest.raises(BrokenSample, match=rf"cat/{index}\.png: {reason}"):
            rows.captions(index)


def test_texts_alone_are_no_classes(tmp_path):
    touch(tmp_path, "1.png", "2.png")
    (tmp_path / "2.txt").write_text("a dog")
    rows = open_rows(tmp_path)
    assert [only(rows.labels(i)) for i in (0, 1)] == [None, None]
    assert rows.captions(1) == {"": (["a dog"], [])}
    (tmp_path / "2.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"images.*captions.*classes"):
        open_rows(tmp_path)


def test_a_folder_that_changed_is_read_again(tmp_path):
    touch(tmp_path, "cat/1.png", "dog/2.png")
    text = tmp_path / "cat/1.txt"
    text.write_text("a cat")
    before = open_rows(tmp_path)
    assert open_rows(tmp_path).fingerprint == before.fingerprint
    text.write_text("one cat")  # longer
    assert open_rows(tmp_path).captions(0) == {"": (["one cat"], [])}
    text.write_text("two cat")  # as long, later
    os.utime(text, ns=(0, text.stat().st_mtime_ns + 1))
    assert open_rows(tmp_path).captions(0) == {"": (["two cat"], [])}
    touch(tmp_path, "cat/2.png")
    assert len(open_rows(tmp_path)) == 3
    assert open_rows(tmp_path).fingerprint != before.fingerprint
