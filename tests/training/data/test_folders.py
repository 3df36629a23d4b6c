"""Images in folders: class, split and captions are where people put them."""

import os
from pathlib import Path

import pytest

from vlm.training.data.rows import Rows
from vlm.training.data.sources import open_rows


def touch(folder: Path, *names: str) -> Path:
    """Empty files; none of these tests decodes."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def every(rows: Rows) -> list[tuple[str, str | None, str]]:
    return [(rows.uid(i), rows.label(i), rows.split(i)) for i in range(len(rows))]


def test_class_and_split_are_read_off_the_path(tmp_path):
    touch(tmp_path, "cat/2.png", "cat/10.JPG", "dog/brown/1.webp", "Train/dog/1.png", "valid/cat/old/1.png", "cat/x.md")
    rows = open_rows(tmp_path)
    assert every(rows) == [
        ("Train/dog/1.png", "dog", "Train"),
        ("cat/10.JPG", "cat", ""),
        ("cat/2.png", "cat", ""),
        ("dog/brown/1.webp", "dog", ""),
        ("valid/cat/old/1.png", "cat", "valid"),
    ]
    assert rows.splits() == ["Train", "valid"]
    assert rows.captions(3) == {"": (["dog"], [])}  # no texts: the class is the caption
    assert rows.image(1) == str(tmp_path.resolve() / "cat/10.JPG")
    assert every(open_rows(tmp_path, ["valid"])) == [("valid/cat/old/1.png", "cat", "valid")]


@pytest.mark.parametrize("name", ["train", "training", "val", "valid", "validation", "dev", "test", "testing"])
def test_a_part_is_no_class(name, tmp_path):
    touch(tmp_path, f"{name}/cat/1.png", f"other/{name}/2.png")
    found = [(f"{name}/cat/1.png", "cat", name), (f"other/{name}/2.png", "other", "")]
    assert every(open_rows(tmp_path)) == sorted(found)


def test_a_image_right_in_a_part_has_a_split_and_no_class(tmp_path):
    touch(tmp_path, "1.png", "cat/1.png", "test/1.png")
    assert every(open_rows(tmp_path)) == [("1.png", None, ""), ("cat/1.png", "cat", ""), ("test/1.png", None, "test")]


def test_hidden_files_and_folders_are_not_looked_at(tmp_path):
    touch(tmp_path, ".git/cat/1.png", "cat/.thumbs/2.png", "cat/.3.png", "cat/4.png")
    assert every(open_rows(tmp_path)) == [("cat/4.png", "cat", "")]
    (tmp_path / "cat/4.png").unlink()
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
    for index in range(1, 5):
        with pytest.raises(ValueError, match=rf"cat/{index}\.png: no caption"):
            rows.captions(index)
    assert [rows.label(i) for i in range(6)] == ["cat"] * 6


def test_texts_alone_are_no_classes(tmp_path):
    touch(tmp_path, "1.png", "2.png")
    (tmp_path / "2.txt").write_text("a dog")
    rows = open_rows(tmp_path)
    assert [rows.label(i) for i in (0, 1)] == [None, None]
    assert rows.captions(1) == {"": (["a dog"], [])}
    (tmp_path / "2.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"images, but neither captions nor classes\. Give each class a folder"):
        open_rows(tmp_path)


def test_a_folder_that_changed_is_read_again(tmp_path):
    touch(tmp_path, "cat/1.png")
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
    assert len(open_rows(tmp_path)) == 2
    assert open_rows(tmp_path).fingerprint != before.fingerprint
