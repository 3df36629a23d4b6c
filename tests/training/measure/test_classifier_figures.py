from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlm.inspect.drawing import Language, choose_lettering
from vlm.metrics import reliability
from vlm.training.measure.classifier_figures import (
    Letters,
    Mistake,
    draw_confusion,
    draw_mistakes,
    draw_reliability,
    letters,
)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_words_are_those_of_the_language_and_other_names_give_another_image(language: Language, tmp_path: Path):
    """A missing glyph would be a warning, which is an error here; boxes would be equal images."""
    pen = letters(language)
    if language == "ja" and not choose_lettering("ja").japanese:
        assert pen == letters("en")
        return
    draw_confusion([[3, 1], [0, 2]], ["犬", "猫"] if pen.font else ["dog", "cat"], pen, tmp_path / "a.png")
    draw_confusion([[3, 1], [0, 2]], ["鳥", "魚"] if pen.font else ["bird", "fish"], pen, tmp_path / "b.png")
    a, b = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    assert a.shape != b.shape or bool((a != b).any())


def test_without_a_japanese_font_classes_are_numbered_not_boxes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("vlm.inspect.drawing.FONTS", ("no such font.ttf",))
    pen = letters("ja")
    assert pen.font is None and pen.words["answer"] == "answer"
    assert pen.writable(["犬", "cat"]) == ["class 0", "cat"]
    draw_confusion([[3, 1], [0, 2]], pen.writable(["犬", "cat"]), pen, tmp_path / "a.png")


def test_confusion_is_darkest_where_most_of_a_class_goes(tmp_path: Path):
    pen = Letters(letters("en").words, None)
    draw_confusion([[8, 0, 0], [0, 4, 0], [0, 0, 1]], ["a", "b", "c"], pen, tmp_path / "right.png")
    draw_confusion([[0, 8, 0], [0, 0, 4], [1, 0, 0]], ["a", "b", "c"], pen, tmp_path / "wrong.png")
    right, wrong = pixels(tmp_path / "right.png"), pixels(tmp_path / "wrong.png")
    dark = [((part[..., 2] - part[..., 0]) > 60).nonzero() for part in (right, wrong)]  # "Blues" at its deep end
    corners = [np.corrcoef(rows, columns)[0, 1] for rows, columns in dark]
    assert corners[0] > 0.7 > corners[1]


def test_many_classes_are_drawn_without_names(tmp_path: Path):
    for name, names in (("a", [str(n) for n in range(60)]), ("b", ["dog"] * 60)):
        draw_confusion(np.eye(60, dtype=int).tolist(), names, letters("en"), tmp_path / f"{name}.png")
    a, b = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    np.testing.assert_array_equal(a, b)
    assert a.shape[0] < 2500


def test_a_cell_holds_its_number_white_on_dark_and_black_on_pale_and_nothing_for_none(tmp_path: Path):
    draw_confusion([[8, 0, 0], [0, 3, 1], [2, 2, 2]], ["a", "b", "c"], letters("en"), tmp_path / "a.png")
    page = pixels(tmp_path / "a.png")
    dark = (page[..., 0] < 20) & (abs(page[..., 2] - 107) < 20)  # "Blues" at 1: only the first cell is
    top, left = (int(part.min()) for part in dark.nonzero())
    bottom, right = (int(part.max()) for part in dark.nonzero())
    height, width = bottom - top + 1, right - left + 1

    def inked(row: int, column: int, white: bool) -> bool:
        y, x = top + row * height, left + column * width
        cell = page[y + 4 : y + height - 4, x + 4 : x + width - 4]
        return bool((cell > 220).all(-1).any() if white else (cell < 60).all(-1).any())

    assert inked(0, 0, white=True)
    assert inked(1, 1, white=True)
    assert [inked(*place, white=False) for place in ((1, 2), (2, 0), (2, 1), (2, 2))] == [True] * 4
    assert not any(inked(*place, white=False) for place in ((0, 1), (0, 2), (1, 0)))


def test_six_mistakes_stand_in_a_row(tmp_path: Path):
    mistakes = [Mistake(Image.new("RGB", (8, 8), "red"), "dog", "cat", 0.9)] * 7
    for count in (5, 6, 7):
        draw_mistakes(mistakes[:count], letters("en"), tmp_path / f"{count}.png")
    five, six, seven = (pixels(tmp_path / f"{count}.png").shape[0] for count in (5, 6, 7))
    assert abs(six - five) < 10 < seven - six


def test_reliability_shows_both_curves_and_empty_bins_do_not_matter(tmp_path: Path):
    probabilities = torch.tensor([[0.9, 0.1], [0.95, 0.05], [0.55, 0.45]])
    bins = reliability(probabilities, torch.tensor([0, 1, 0]))
    draw_reliability(bins, bins, (0.2, 0.1), letters("en"), tmp_path / "a.png")
    image = pixels(tmp_path / "a.png")
    red = (image[..., 0] - image[..., 2] > 100).any()
    blue = (image[..., 2] - image[..., 0] > 100).any()
    assert red and blue


def test_the_contact_sheet_shows_each_mistake_and_grows_with_them(tmp_path: Path):
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    mistakes = [Mistake(Image.new("RGB", (16, 16), colour), "dog", "cat", 0.9) for colour in colours]
    draw_mistakes(mistakes, letters("en"), tmp_path / "three.png", columns=2)
    draw_mistakes([], letters("en"), tmp_path / "none.png", columns=2)
    three, none = pixels(tmp_path / "three.png"), pixels(tmp_path / "none.png")
    for colour in colours:
        assert (three == colour).all(-1).sum() > 500
        assert not (none == colour).all(-1).any()
    assert three.shape[0] > none.shape[0]
