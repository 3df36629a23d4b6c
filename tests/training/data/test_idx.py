"""Fashion-MNIST's and MNIST's own files: what is in them is read, and what is not whole is said."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.support.data_formats import only
from vlm.training.data.sources import open_rows

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 7), dtype=np.uint8)  # n, H, W
LABELS = [2, 0, 1, 2, 0]


def packed(*shape: int, data: bytes) -> bytes:
    """LeCun's format: two zeros, the type (8: bytes), how many dimensions, each as four bytes, then all."""
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + data


def write(folder: Path, begin: str, pixels: np.ndarray, labels: list[int], suffix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, content in (
        ("images-idx3", packed(*pixels.shape, data=pixels.tobytes())),
        ("labels-idx1", packed(len(labels), data=bytes(labels))),
    ):
        (folder / f"{begin}-{kind}-ubyte{suffix}").write_bytes(gzip.compress(content) if suffix else content)


def both(folder: Path) -> Path:
    """Three of the images to train on, packed, and two to test on, as they are."""
    write(folder, "train", PIXELS[:3], LABELS[:3], ".gz")
    write(folder, "t10k", PIXELS[3:], LABELS[3:])
    return folder


def test_every_sample_is_its_image_and_class_in_its_split(tmp_path):
    rows = open_rows(both(tmp_path / "digits"))
    assert rows.name == str(tmp_path / "digits") and len(rows) == 5
    assert [rows.uid(i) for i in range(5)] == ["train/0", "train/1", "train/2", "test/0", "test/1"]
    assert [rows.split(i) for i in range(5)] == ["train"] * 3 + ["test"] * 2
    assert rows.splits() == ["test", "train"]
    assert [only(rows.labels(i)) for i in range(5)] == [rows.group(i) for i in range(5)] == ["2", "0", "1", "2", "0"]
    assert [rows.captions(i) for i in (0, 1)] == [{"": (["2"], [])}, {"": (["0"], [])}]
    for index in range(5):
        assert np.array_equal(np.asarray(rows.image(index)), PIXELS[index])


@pytest.mark.parametrize(("splits", "wanted"), [(["test"], [3, 4]), (["test", "train"], [3, 4, 0, 1, 2])])
def test_splits_are_read_in_the_order_they_are_asked_for(splits, wanted, tmp_path):
    rows = open_rows(both(tmp_path), splits)
    assert [only(rows.labels(i)) for i in range(len(rows))] == [str(LABELS[i]) for i in wanted]
    assert np.array_equal(np.stack([np.asarray(rows.image(i)) for i in range(len(rows))]), PIXELS[wanted])
    assert rows.splits() == sorted(splits)


@pytest.mark.parametrize("begin", ["train", "t10k"])
def test_one_split_alone_is_a_data_set_and_the_other_is_missed(begin, tmp_path):
    write(tmp_path, begin, PIXELS, LABELS)
    there, missing = ("train", "test") if begin == "train" else ("test", "train")
    assert open_rows(tmp_path).splits() == [there]
    with pytest.raises(ValueError, match=rf"split {missing}, val.*{there}"):
        open_rows(tmp_path, [there, missing, "val"])


def test_a_file_that_was_unpacked_is_read_before_the_packed_one(tmp_path):
    write(tmp_path, "train", PIXELS[:3], LABELS[:3], ".gz")
    write(tmp_path, "train", PIXELS, LABELS)
    assert len(open_rows(tmp_path)) == 5


def test_other_images_in_the_same_place_are_another_data_set(tmp_path):
    found = []
    for pixels in (PIXELS, PIXELS, PIXELS[::-1]):
        write(tmp_path, "train", pixels, LABELS)
        found.append(open_rows(tmp_path).fingerprint)
    assert found[0] == found[1] != found[2]
    write(tmp_path / "copy", "train", PIXELS[::-1], LABELS)
    assert open_rows(tmp_path / "copy").fingerprint != found[2]


def test_classes_are_named_by_labels_txt_by_the_folder_or_are_digits(tmp_path):
    folder = tmp_path / "My-Fashion"
    write(folder, "train", PIXELS, [9, 0, 1, 2, 3])
    rows = open_rows(folder)
    assert [only(rows.labels(i)) for i in (0, 1)] == ["ankle boots", "t-shirt or top"]
    assert rows.captions(0) == {"en": (["ankle boots"], []), "ja": (["ブーツ"], [])}
    with pytest.raises(ValueError, match=r"column concept.*images"):
        rows.column("concept")
    write(folder, "train", PIXELS, LABELS)
    (folder / "labels.txt").write_text("犬\n\n  cat \nbird\n", encoding="utf-8")
    rows = open_rows(folder)
    assert [only(rows.labels(i)) for i in range(5)] == ["bird", "犬", "cat", "bird", "犬"]
    assert rows.captions(2) == {"": (["cat"], [])}
    (folder / "labels.txt").write_text("dog\ncat\n")
    with pytest.raises(ValueError, match=r"3 classes.*2.*labels\.txt"):
        open_rows(folder)


def test_there_are_ten_digits(tmp_path):
    write(tmp_path, "train", PIXELS, [9, 8, 7, 6, 0])
    assert [open_rows(tmp_path).labels(i)[0] for i in range(5)] == ["9", "8", "7", "6", "0"]
    write(tmp_path, "train", PIXELS, [9, 10, 7, 6, 0])
    with pytest.raises(ValueError, match="has 11 classes, and names for 10"):
        open_rows(tmp_path)


IMAGES = packed(*PIXELS.shape, data=PIXELS.tobytes())
HEAD, BYTES = 16, 16 + PIXELS.size


@pytest.mark.parametrize(
    ("suffix", "content", "words"),
    [
        ("", IMAGES[:-1], rf"begins with 00000803 and has {BYTES - 1} bytes; wanted 00000803 and {BYTES} bytes\."),
        ("", IMAGES + b"x", rf"has {BYTES + 1} bytes; wanted 00000803 and {BYTES} bytes"),
        ("", b"\0\0\x0d\3" + IMAGES[4:], rf"begins with 00000d03 and has {BYTES} bytes; wanted 00000803"),  # floats
        ("", b"\0\0\7\3" + IMAGES[4:], "begins with 00000703"),
        ("", packed(1 << 10, 1, 1, data=b""), r"has 16 bytes; wanted 00000803 and 1,040 bytes"),
        ("", IMAGES[:9], "cannot be read as an idx file .unpack requires"),
        ("", b"", "cannot be read as an idx file .cannot mmap|is no whole idx file"),
        (".gz", gzip.compress(IMAGES)[:-9], "cannot be read as an idx file .Compressed file ended"),
        (".gz", b"no gzip at all", "cannot be read as an idx file .Not a gzipped file"),
        (".gz", gzip.compress(b"")[:10] + b"\xff" * 30, "cannot be read as an idx file .Error -3"),
    ],
)
def test_a_file_that_is_not_whole_is_one_line(suffix, content, words, tmp_path):
    write(tmp_path, "train", PIXELS, LABELS, suffix)
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte{suffix} .*{words}") as caught:
        open_rows(tmp_path)
    assert "\n" not in str(caught.value)


def test_images_without_labels_or_with_another_number_of_them_are_one_line(tmp_path):
    for count in (4, 6):
        write(tmp_path, "train", PIXELS, (LABELS * 2)[:count])
        wanted = rf"images-idx3-ubyte has 5 images, .*labels-idx1-ubyte has {count} labels\.$"
        with pytest.raises(ValueError, match=wanted):
            open_rows(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.*train-labels-idx1-ubyte.*\.gz\)"):
        open_rows(tmp_path)
