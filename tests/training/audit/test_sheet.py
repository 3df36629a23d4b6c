"""The contact sheet, read back: which images it shows, where, and what is written below."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.check_sets import Row, divided, encoded, noise_image, row
from vlm.inspect import drawing
from vlm.inspect.drawing import Language, choose_lettering
from vlm.training.audit.check import open_tokenizer
from vlm.training.audit.numbers import LEVELS, Twins, find_twins
from vlm.training.audit.scan import Seen, scan
from vlm.training.audit.sheet import WORDS, draw_sheet

HEADING, WIDTH, HEIGHT, SIDE = 46, 162, 230, 150


def drawn(rows: list[Row], path: Path, language: Language = "en", twins: Twins | None = None) -> np.ndarray:
    seen: Seen = scan(divided(rows), open_tokenizer("mini"), sample=1000, workers=0)
    draw_sheet(seen, twins or find_twins(seen.facts), path / "sheet.png", language)
    with Image.open(path / "sheet.png") as sheet:
        assert sheet.mode == "RGB"
        return np.asarray(sheet).astype(int)


def cell(sheet: np.ndarray, top: int, number: int) -> np.ndarray:
    """(230, 150, 3): an image and the words below it, of the section that begins at `top`."""
    y, x = top + HEADING + number // 8 * HEIGHT, 6 + number % 8 * WIDTH
    return sheet[y : y + HEIGHT, x : x + SIDE]


def colour(number: int) -> tuple[int, int, int]:
    return 20 + 9 * number, 250 - 9 * number, 37 * number % 250


def shown(sheet: np.ndarray, top: int, count: int, colours: int) -> list[int | None]:
    """Which image of one colour has its middle in each of the first cells; None: the page is white there."""
    known = {colour(n): n for n in range(colours)}
    return [known.get(tuple(cell(sheet, top, n)[75, 75].tolist())) for n in range(count)]


def flat(sizes: list[tuple[int, int]], **more: Any) -> list[Row]:
    return [row(n, encoded(Image.new("RGB", size, colour(n))), f"no. {n}", **more) for n, size in enumerate(sizes)]


def test_the_smallest_and_the_longest_come_in_their_order_a_row_of_each(tmp_path: Path):
    """Ten images: at random all of them, on two rows."""
    sides = [90, 30, 70, 20, 40, 80, 60, 50, 100, 21]
    sheet = drawn(flat([(side, side) for side in sides[:9]] + [(21, 42)]), tmp_path)
    smallest, longest = HEADING + 2 * HEIGHT, 2 * HEADING + 3 * HEIGHT
    assert sheet.shape == (3 * HEADING + 4 * HEIGHT, 8 * WIDTH, 3)  # no twins; all are equally uniform
    assert sorted(shown(sheet, 0, 10, 10), key=str) == list(range(10))
    assert shown(sheet, 0, 10, 10) != list(range(10))  # drawn at random
    assert shown(sheet, smallest, 8, 10) == sorted(range(10), key=lambda n: sides[n])[:8]
    assert shown(sheet, longest, 8, 10) == [9, 0, 1, 2, 3, 4, 5, 6]
    for top in (0, smallest, longest):
        assert (sheet[top : top + 10] == 255).all()
        assert (sheet[top + 10 : top + HEADING - 6, 6:200] < 100).any()  # its heading


def test_three_rows_at_random_are_enough_and_none_is_shown_twice(tmp_path: Path):
    sheet = drawn(flat([(30, 30)] * 23 + [(30, 40)] * 3), tmp_path)
    assert sheet.shape[0] == 2 * HEADING + 4 * HEIGHT  # three rows, and the longest
    found = shown(sheet, 0, 24, 26)
    assert len({*found} - {None}) == 24


def test_a_image_keeps_its_shape_in_the_middle_of_a_grey_square(tmp_path: Path):
    sheet = drawn([row(n, encoded(Image.new("RGB", (300, 100), "red")), "x") for n in range(2)], tmp_path)
    square = cell(sheet, 0, 1)[:SIDE]
    red = (square == (255, 0, 0)).all(-1)
    assert red[50:100].all()
    assert not red[:50].any() | red[100:].any()
    assert (square[~red] == 0xF3).all()
    beside = sheet[HEADING : HEADING + SIDE]
    assert (beside[:, :6] == 255).all() and (beside[:, 6 + SIDE : 6 + WIDTH] == 255).all()


def test_the_most_uniform_are_those_with_the_least_spread(tmp_path: Path):
    def two(number: int, apart: int) -> bytes:
        """Right half `apart` levels from the left one, which is what the middle of the left shows."""
        levels = np.full((40, 40, 3), colour(number), np.uint8)
        levels[:, 30:] = np.clip(levels[:, 30:].astype(int) + apart, 0, 255)
        return encoded(Image.fromarray(levels))

    apart = [9, 3, 6, 1, 5, 8, 2, 7, 4]
    alone = np.arange(9)
    sheet = drawn(
        [row(n, two(n, far), "x") for n, far in enumerate(apart)], tmp_path, twins=Twins((alone, alone, alone))
    )
    assert sheet.shape[0] == 2 * HEADING + 3 * HEIGHT
    assert shown(sheet, HEADING + 2 * HEIGHT, 8, 9) == [apart.index(far) for far in range(1, 9)]


def test_pairs_stand_side_by_side_and_the_least_alike_come_first(tmp_path: Path):
    """Each image once, and of a group of three only two."""
    file = np.array([0, 1, 2, 3, 4, 5, 0, 6, 7, 8])
    pixels = np.array([0, 1, 2, 3, 4, 5, 0, 1, 6, 7])
    near = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2, 2])
    sheet = drawn(flat([(30, 30)] * 10), tmp_path, twins=Twins((file, pixels, near)))
    top = HEADING + 2 * HEIGHT
    assert sheet.shape[0] == top + HEADING + HEIGHT
    assert shown(sheet, top, 8, 10) == [2, 8, 1, 7, 0, 6, None, None]  # nearly the same, same pixels, same file


def test_four_pairs_fill_the_row(tmp_path: Path):
    labels = np.arange(10) % 5
    sheet = drawn(flat([(30, 30)] * 10), tmp_path, twins=Twins((np.arange(10), labels, labels)))
    top = HEADING + 2 * HEIGHT
    assert sheet.shape[0] == top + HEADING + HEIGHT
    assert shown(sheet, top, 8, 10) == [0, 5, 1, 6, 2, 7, 3, 8]


def inked(words: np.ndarray) -> list[bool]:
    """Which of the lines below an image hold anything, but for what hangs down from the line above."""
    return [bool((words[5 + 16 * line : 14 + 16 * line] < 200).any()) for line in range(4)]


def test_below_a_image_stand_its_split_and_size_a_note_and_two_captions(tmp_path: Path):
    rows = [
        {"uid": str(n), "image": {"bytes": encoded(Image.new("RGB", (30 + n, 30 + n), colour(n))), "path": None}, **own}
        for n, own in enumerate(
            [
                {"caption_en": "a dog", "caption_ja": "犬", "caption_de": "ein Hund", "keywords_en": [], "split": "x"},
                {"caption_en": "a cat", "caption_ja": "", "caption_de": "", "keywords_en": ["fur"], "split": "x"},
                {
                    "caption_en": "",
                    "caption_ja": "",
                    "caption_de": "",
                    "keywords_en": ["i", "sky over sea"],
                    "split": "x",
                },
            ]
        )
    ]
    sheet = drawn(rows, tmp_path)
    smallest = HEADING + HEIGHT
    assert shown(sheet, smallest, 3, 3) == [0, 1, 2]
    lines = [inked(cell(sheet, smallest, n)[SIDE:]) for n in range(3)]
    assert lines == [[True] * 4, [True, True, True, False], [True, True, True, False]]
    place = shown(sheet, 0, 3, 3).index(0)
    assert inked(cell(sheet, 0, place)[SIDE:]) == [True, True, True, False]  # drawn at random: no note
    first = cell(sheet, smallest, 0)[SIDE:]
    ink = np.flatnonzero((cell(sheet, smallest, 2)[SIDE + 37 : SIDE + 46] < 200).any((0, 2)))
    assert len(ink) and ink.max() < 10  # of several keywords the first
    darkest = [int(first[5 + 16 * line : 14 + 16 * line].min()) for line in range(4)]
    assert darkest[0] > 0x60 > max(darkest[1:])  # what it is in grey, what is said in black


@pytest.mark.parametrize("caption", ["a very long caption of many words " * 9, "長い説明" * 40, "a\ttab\nand lines"])
def test_no_line_reaches_over_the_next_image_or_holds_what_no_font_can_write(caption: str, tmp_path: Path):
    sheet = drawn([row(n, encoded(noise_image(n)), caption) for n in range(2)], tmp_path)
    beside = sheet[HEADING : HEADING + HEIGHT, 6 + SIDE : WIDTH + 6]
    assert (beside == 255).all()
    assert inked(cell(sheet, 0, 0)[SIDE:]) == [True, True, False, False]


def test_words_are_those_of_the_language_where_a_font_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    english, japanese = WORDS["en"], WORDS["ja"]
    assert english.keys() == japanese.keys() > set(LEVELS)
    assert not set(english.values()) & set(japanese.values())
    rows = flat([(30, 30)] * 2)
    one = drawn(rows, tmp_path, "en")
    with_font = choose_lettering("ja").japanese
    assert (one.shape == (other := drawn(rows, tmp_path, "ja")).shape) and bool((one != other).any()) == with_font
    monkeypatch.setattr(drawing, "FONTS", ())
    np.testing.assert_array_equal(drawn(rows, tmp_path, "en"), drawn(rows, tmp_path, "ja"))
