"""Which column is what, by the names people give them."""

import pytest

from vlm.training.data.formats.columns import Columns, recognise


def test_every_role_is_recognised_in_any_case_by_any_of_its_names():
    found = recognise(
        "t",
        ["FileName", "Title", "Tags", "Class_Name", "Locale", "__key__", "Concept", "split", "more"],
        {},
    )
    assert found == Columns(
        image="FileName",
        captions={"": ["Title"]},
        keywords={"": ["Tags"]},
        label="Class_Name",
        language="Locale",
        uid="__key__",
        concept="Concept",
        split="split",
    )
    assert found.texts == ["Class_Name", "Locale", "Title", "Tags"]


def test_the_better_known_name_comes_first_wherever_it_stands():
    found = recognise("t", ["path", "text", "category", "image", "caption", "label", "key", "id"], {})
    assert (found.image, found.captions, found.label, found.uid) == ("image", {"": ["caption"]}, "label", "id")
    assert found.texts == ["label", "caption"]


def test_of_two_columns_that_differ_in_case_the_first_counts():
    assert recognise("t", ["Image", "IMAGE", "caption"], {}).image == "Image"


def test_languages_and_numbers_end_the_names_of_columns():
    present = ["image", "caption_en", "caption_ja_JP", "caption_0", "caption1", "caption_en_2", "captioned", "text_fr"]
    assert recognise("t", present, {}).captions == {
        "en": ["caption_en", "caption_en_2"],
        "ja": ["caption_ja_JP"],
        "": ["caption_0", "caption1"],
    }
    assert recognise("t", ["image", "TEXT_EN", "keywords_ja", "tags"], {}) == Columns(
        image="image", captions={"en": ["TEXT_EN"]}, keywords={"ja": ["keywords_ja"]}
    )


def test_named_columns_are_taken_as_they_are():
    present = ["image", "caption", "a_en", "b", "c_en", "d_eng", "number", "part"]
    named = {"image": ["b", "a_en"], "caption": ["c_en", "d_eng", "a_en"], "keywords": "b", "uid": "number"}
    assert recognise("t", present, named | {"split": "part"}) == Columns(
        image="b",
        captions={"en": ["c_en", "a_en"], "": ["d_eng"]},
        keywords={"": ["b"]},
        uid="number",
        split="part",
    )


def test_classes_are_enough():
    assert recognise("t", ["image", "label"], {}) == Columns(image="image", label="label")
    with pytest.raises(ValueError, match="t has no column with captions"):
        recognise("t", ["image", "keywords"], {})


@pytest.mark.parametrize(
    ("present", "named", "words"),
    [
        (["image", "caption"], {"uid": ["x", "image", "y"]}, r"t has no column x, y\. It has: image, caption\."),
        (["image", "caption"], {"label": "lable"}, r"t has no column lable\. It has: image, caption\."),
        (["image", "labels", "x"], {"label": "label"}, r"It has: image, labels, x\. Did you mean labels\?"),
        (
            ["pic", "images", "caption"],
            {},
            r"It has: pic, images, caption\. Did you mean images\? Name it in the recipe: \[data\] columns = "
            r'\{ image = "\.\.\." \}\.',
        ),
        (["image"], {}, r'captions\. It has: image\. Name it in the recipe: \[data\] columns = { caption = "\.\.\." }'),
        ([], {}, r"t has no column with images\. It has: none\."),
        (["image\x07s", "text"], {}, r"It has: 'image\\x07s', text\. Name it"),
        (["caption", "IMAGE_URL"], {}, r"t has addresses \(IMAGE_URL\), no images\. Fetch them: img2dataset --url"),
        (["text", "img_url", "url"], {}, r"t has addresses \(img_url\), no images"),
    ],
)
def test_what_is_missing_is_said_with_what_there_is(present, named, words):
    with pytest.raises(ValueError, match=words + ".*$") as caught:
        recognise("t", present, named)
    assert str(caught.value).isprintable()


def test_of_many_columns_twenty_are_shown_and_of_long_names_three_hundred_letters():
    with pytest.raises(ValueError, match=r"c18, c19\. Name it"):
        recognise("t", [f"c{number}" for number in range(30)], {})
    for length, shown in ((149, "b" * 149 + r"\."), (150, "b" * 148 + r" \.\.\.\.")):  # 149 + 2 + 149 = 300
        with pytest.raises(ValueError, match=rf"{'a' * length}, {shown}"):
            recognise("t", ["a" * length, "b" * length], {})
