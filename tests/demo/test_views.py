"""Texts in both languages, and answers as HTML."""

import csv
import io
import string
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest

from tests.support.demo_pages import DOG
from vlm.demo.actions import PageActions, ScoredLabel
from vlm.demo.page.texts import TEXTS, both
from vlm.demo.views import classification, layout
from vlm.errors import ImageReason


def test_many_images_are_a_row_each_and_the_csv_says_the_same(actions: PageActions, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("not an image")
    rows = actions.classify_all([("dog", DOG), ("<b>broken", broken)], ["a, b", "c"])
    assert rows[0].ranking == actions.classify(DOG, ["a, b", "c"])
    read = list(csv.DictReader(io.StringIO(classification.csv_of(rows, "en").removeprefix("\ufeff"))))
    assert [row["image"] for row in read] == ["dog", "<b>broken"]
    assert read[0]["best"] == rows[0].ranking[0].label
    assert float(read[0]["a, b"]) + float(read[0]["c"]) == pytest.approx(1, abs=2e-6)
    assert read[1]["error"] == TEXTS["not an image"]["en"]
    assert "<b>" not in classification.table(rows)
    header, _, broken_row = classification.csv_of(rows, "ja").removeprefix("\ufeff").splitlines()
    assert header.split(",")[:3] == [TEXTS[key]["ja"] for key in ("csv_image", "csv_best", "csv_error")]
    assert TEXTS["not an image"]["ja"] in broken_row


def test_every_text_says_the_same_in_both_languages() -> None:
    fields = string.Formatter()
    for key, said in TEXTS.items():
        assert set(said) == {"en", "ja"}, key
        placeholders = {language: {name for _, name, _, _ in fields.parse(said[language]) if name} for language in said}
        assert placeholders["en"] == placeholders["ja"], key
        assert said["en"].isascii(), key
        assert not said["ja"].isascii(), key


def test_every_reason_to_refuse_an_image_has_its_text() -> None:
    of_data_sets = {"no caption", "bad row"}
    assert set(get_args(ImageReason)) - of_data_sets <= set(TEXTS)


class _Read(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_what_visitors_type_never_becomes_html_or_a_template() -> None:
    typed = "<img src=x onerror=alert(1)> ${alert(2)} {{value}} `x` & \"'"
    for page in (
        classification.ranking_part([ScoredLabel(typed, 1.0)]),
        both("only_listed", name=typed),
        layout.model_note(typed),
    ):
        read = _Read(page)
        assert typed in "".join(read.words)
        assert "img" not in read.tags
        assert not set("${`") & set(page)


def test_no_text_has_the_name_of_a_group_of_gradio_s_own_texts() -> None:
    """Gradio would then show "[object Object]"."""
    groups = "3D_model annotated_image audio blocks chat_interface chatbot checkbox code color_picker common dataframe"
    groups += " dropdown errors file highlighted_text image image_editor label login number plot queue radio slider"
    assert not set(f"{groups} upload_text video".split()) & set(TEXTS)
