"""A data set as a model sees it: each image decoded when it should be, and its words as they are."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlm.config import PreprocessConfig
from vlm.images.open import ImageSource
from vlm.images.preprocess import Preprocess
from vlm.training.data.pairs import Pairs, open_pairs
from vlm.training.data.rows import BrokenSample, Rows
from vlm.training.data.sources import open_rows

PREPROCESS = Preprocess(PreprocessConfig(image_size=(6, 4), resize="squash"))  # high, wide
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 4, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, text: str = "image,caption,concept\n0.png,a,x\n1.png,b,y\n2.png,c,x\n3.png,d,z\n") -> Path:
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "a.csv").write_text(text, encoding="utf-8")
    return folder / "a.csv"


def truth(*numbers: int) -> torch.Tensor:
    return torch.from_numpy(PIXELS[list(numbers)]).permute(0, 3, 1, 2)


class Counted:
    """`rows`, and how often each image was asked for."""

    def __init__(self, rows: Rows):
        self._rows, self.asked = rows, Counter[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, index: int) -> ImageSource:
        self.asked[index] += 1
        return self._rows.image(index)


@pytest.mark.parametrize(
    ("cache", "at_once", "later"),
    [("auto", [1, 1, 1, 1], [0, 0, 0]), ("memory", [1, 1, 1, 1], [0, 0, 0]), ("none", [0] * 4, [2, 2, 1]),
     ("disk", [0] * 4, [1, 1, 1])],
)  # fmt: skip
def test_images_are_decoded_when_the_cache_says_so(cache, at_once, later, tmp_path):
    rows: Any = Counted(open_rows(write(tmp_path)))
    pairs = Pairs(rows, PREPROCESS, cache)
    assert [rows.asked[i] for i in range(4)] == at_once
    rows.asked.clear()
    assert torch.equal(pairs.images([2, 0, 1]), truth(2, 0, 1))
    assert torch.equal(pairs.images(np.array([0, 2])), truth(0, 2))  # type: ignore[arg-type]
    assert [rows.asked[i] for i in (0, 2, 1)] == later
    assert rows.asked[3] == 0


def test_a_cache_on_disk_outlives_the_run_and_knows_data_and_preprocessing(tmp_path):
    source = write(tmp_path)
    first = open_pairs(source, PREPROCESS, cache="disk")
    assert torch.equal(first.pixels(3), truth(3)[0])
    for preprocess, asked in ((PREPROCESS, 0), (Preprocess(PreprocessConfig(image_size=(6, 4), resize="pad")), 1)):
        rows: Any = Counted(open_rows(source))
        Pairs(rows, preprocess, "disk").pixels(3)
        assert rows.asked[3] == asked
    write(tmp_path, "image,caption\n3.png,d\n2.png,c\n1.png,b\n0.png,a\n")
    assert torch.equal(open_pairs(source, PREPROCESS, cache="disk").pixels(3), truth(0)[0])
    assert sum(path.stat().st_size for path in (tmp_path / "cache/pixels").glob("*.pixels")) == 3 * 4 * 6 * 4 * 3


class Unreadable:
    """`count` samples without images; says how many were asked for."""

    def __init__(self, count: int):
        self.count, self.asked, self.name = count, 0, "unreadable"

    def __len__(self) -> int:
        return self.count

    def uid(self, index: int) -> str:
        return str(index)

    def image(self, index: int) -> ImageSource:
        self.asked += 1
        raise BrokenSample(str(index), "missing", "always")

    def read_ahead(self, index: Sequence[int]) -> None:
        pass


def test_up_to_256_mebibytes_of_pixels_are_decoded_ahead():
    three = Preprocess(PreprocessConfig(image_size=1024))  # 3 MiB an image
    for count, ahead in ((85, 85), (86, 0)):
        rows: Any = Unreadable(count)
        Pairs(rows, three)
        assert rows.asked == ahead
        Pairs(rows, three, "memory")
        assert rows.asked == ahead + count


@pytest.mark.parametrize("cache", ["memory", "none", "disk"])
def test_broken_samples_say_why_and_are_left_out(cache, tmp_path):
    source = write(tmp_path, "image,caption\n0.png,a\n1.png,b\n2.png,\n../3.png,d\n3.png,e\n")
    (tmp_path / "1.png").write_text("no image")
    pairs = open_pairs(source, PREPROCESS, cache=cache)
    for index, reason in ((1, "not an image"), (3, "outside the folder")):
        with pytest.raises(BrokenSample) as caught:
            pairs.pixels(index)
        assert (caught.value.uid, caught.value.reason) == (pairs.rows.uid(index), reason)
    sound, broken = pairs.sound()
    assert sound.uids == ["0.png", "3.png"]
    assert torch.equal(sound.images([0, 1]), truth(0, 3))
    assert [(error.uid, error.reason) for error in broken] == [
        ("1.png", "not an image"), ("2.png", "no caption"), ("../3.png", "outside the folder")
    ]  # fmt: skip
    assert len(pairs) == 5 and len(sound) == 2
    assert sound.sound() == (sound, [])


def test_samples_that_are_chosen_keep_what_was_decoded(tmp_path):
    pairs = open_pairs(write(tmp_path), PREPROCESS, cache="memory")
    (tmp_path / "2.png").unlink()
    part = pairs.select([3, 2])
    assert torch.equal(part.images([1, 0]), truth(2, 3))
    assert (part.uids, part.captions(0)) == (["3.png", "2.png"], [(["d"], [])])
    lazy = open_pairs(tmp_path / "a.csv", PREPROCESS, cache="none").select([3, 2])
    assert torch.equal(lazy.pixels(0), truth(3)[0])
    with pytest.raises(BrokenSample, match=r"2\.png: missing"):
        lazy.pixels(1)


def test_groups_are_numbered_as_they_appear(tmp_path):
    assert open_pairs(write(tmp_path), PREPROCESS).groups.tolist() == [0, 1, 0, 2]


def test_languages_are_those_of_captions_as_they_appear(tmp_path):
    header = "image,caption_fr,caption_ja,caption_en,keywords_de\n"
    rows = "0.png,,犬,,Hund\n1.png,,,,\n2.png,,,a dog,\n3.png,,猫,,\n"
    pairs = open_pairs(write(tmp_path, header + rows), PREPROCESS)
    assert pairs.languages == ["ja", "en"]
    assert pairs.texts("ja") == [["犬"], [], [], ["猫"]]
    assert pairs.texts("en") == [[], [], ["a dog"], []]
    assert pairs.texts("de") == pairs.texts("it") == [[]] * 4
    assert pairs.captions(0) == [(["犬"], []), ([], ["Hund"])]


def test_a_data_set_is_opened_with_its_splits_and_columns(tmp_path):
    text = "image,caption,note,split\n0.png,a,b,x\n1.png,c,d,y\n"
    pairs = open_pairs(write(tmp_path, text), PREPROCESS, ["y"], {"caption": "note"})
    assert (pairs.uids, pairs.captions(0)) == (["1.png"], [(["d"], [])])
