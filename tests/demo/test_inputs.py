"""Labels and templates as typed."""

from typing import Any

import pytest

from vlm.demo.inputs import MAX_LABELS, read_image, read_labels, read_templates, read_text
from vlm.demo.page.texts import PageError


@pytest.mark.parametrize(
    ("typed", "labels"),
    [
        (" 犬、猫\nred apple,  bird ，\n\n鳥；車", ("犬", "猫", "red apple", "bird", "鳥", "車")),
        (["one, two", "three"], ("one, two", "three")),  # a list is not split
        ("犬 猫 鳥", ("犬", "猫", "鳥")),
        ("犬\u3000ネコ", ("犬", "ネコ")),
        ("犬/猫/鳥", ("犬", "猫", "鳥")),
        ("dog／cat", ("dog", "cat")),
        ("dog|cat|bird", ("dog", "cat", "bird")),
        ("犬｜猫", ("犬", "猫")),
        ("dog\tcat", ("dog", "cat")),
        ("red apple", ("red apple",)),  # spaces separate Japanese words only
        ("赤い apple", ("赤い apple",)),
        ("T-shirt/top, coat", ("T-shirt/top", "coat")),  # slashes only without any other separator
        ("犬\u200b\n\u200b\n\ufeff猫", ("犬", "猫")),  # invisible characters
        ("が、か\u3099、犬", ("が", "犬")),  # composed and decomposed: one label
        ("犬、猫、犬", ("犬", "猫")),
        (["ＤＯＧ", "DOG"], ("ＤＯＧ",)),
        ("犬・猫・鳥", ("犬", "猫", "鳥")),
        ("りんご･みかん トマト", ("りんご", "みかん", "トマト")),
        ("コーヒー・カップ 皿", ("コーヒー・カップ", "皿")),  # middle dots between katakana belong to the name
        ("dog\r\ncat\u2028bird､cow", ("dog", "cat", "bird", "cow")),
        ("犬\u200d\n犬\n\u3164\n犬\ufe0f", ("犬",)),  # joiners, fillers and selectors are invisible too
        ("👩\u200d🚒, dog", ("👩\u200d🚒", "dog")),  # the joiner inside an emoji stays
    ],
)
def test_labels_are_split_normalised_and_distinct(typed: str | list[str], labels: tuple[str, ...]) -> None:
    assert read_labels(typed) == labels


@pytest.mark.parametrize(
    ("labels", "key"),
    [
        ("", "no_labels"),
        (" ,\n、", "no_labels"),
        ("\u200b", "no_labels"),
        ("\u200d,\u200e,\ufe0f,\u3164,\u034f", "no_labels"),
        ([str(number) for number in range(MAX_LABELS + 1)], "too_many_labels"),
        ("x" * 501, "text_too_long"),
        ({"label": "犬"}, "not_text"),
        ([1, 2], "not_text"),
    ],
)
def test_labels_that_cannot_be_used_name_their_error(labels: Any, key: str) -> None:
    with pytest.raises(PageError) as error:
        read_labels(labels)
    assert error.value.key == key
    assert "\n" not in str(error.value)


def test_templates_need_a_place_for_the_label() -> None:
    assert read_templates("  \n") is None
    assert read_templates(" a {} here\n\n{}! ") == ("a {} here", "{}!")
    for templates, key in (("an image", "no_place_for_label"), (["{}"] * 21, "too_many_templates")):
        with pytest.raises(PageError) as error:
            read_templates(templates)
        assert error.value.key == key


def test_a_path_that_is_no_file_is_an_error_of_the_page() -> None:
    for path, key in (("/no/such/file", "missing"), ("/", "not a file"), ("a\0b", "unreadable")):
        with pytest.raises(PageError) as error:
            read_image(path)
        assert error.value.key in (key, "missing")
    assert read_text(" a\u200bb ") == "ab"
