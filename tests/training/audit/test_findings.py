"""What is said of hand-made numbers: when, in which words, and with which of the numbers."""

import copy
from typing import Any

import pytest

from vlm.training.audit.findings import findings, summary_table
from vlm.training.audit.scan import script

NONE = {"same file": 0, "same pixels": 0, "nearly the same": 0}
FINE: dict[str, Any] = {
    "rows": 1200,
    "looked_at": 1000,
    "sound": 990,
    "splits": {"train": 800, "held": 190},
    "broken": {},
    "first_broken": {},
    "encodings": {},
    "remarks": [],
    "duplicates": NONE,
    "leaks": [],
    "images": {
        "width": {"min": 20, "median": 300, "95%": 1024, "99.5%": 1500, "max": 2000},
        "height": {"min": 30, "median": 200, "95%": 700, "99.5%": 900, "max": 1024},
        "shorter_side_below": {"16": 0.0, "32": 0.125, "64": 0.25, "224": 0.5},
        "tiny": 0,
        "long": 0,
        "uniform": 0,
        "median_megapixels": 0.06,
        "grey": 0.25,
        "transparent": 0.0,
        "animated": 0.0,
    },
    "captions": {
        "per_image": {1: 900, 2: 90},
        "keywords": 1234,
        "distinct": 1050,
        "letters": {"min": 1, "median": 20, "95%": 60, "99.5%": 90, "max": 1024},
        "scripts": [
            {"language": "en", "script": "latin", "texts": 1000},
            {"language": "", "script": "kana", "texts": 80},
        ],
        "on_several_images": [{"caption": "a dog", "images": 4, "share": 0.004}],
    },
    "tokens": {
        "context_length": 32,
        "texts": 1080,
        "ids": {"min": 2, "median": 7, "95%": 20, "99.5%": 30, "max": 1024},
        "cut_at": {"16": 0.125, "32": 0.005, "64": 0.0, "77": 0.0},
        "suggested_context_length": 32,
        "lost_share": 0.005,
        "lost_letters": {},
    },
    "classes": {"cat": 70, "dog": 160, "fox": 50},
    "doubts": {},
}


def changed(**parts: Any) -> dict[str, Any]:
    found = copy.deepcopy(FINE)
    for part, values in parts.items():
        found[part] = found[part] | values if isinstance(values, dict) else values
    return found


def said(**parts: Any) -> dict[str, str]:
    return {finding.name: finding.text for finding in findings(changed(**parts), "; there")}


def test_of_what_is_fine_nothing_is_said():
    assert said() == {}


def same(images: int, share: float, caption: str = "a dog") -> dict[str, Any]:
    return {"on_several_images": [{"caption": caption, "images": images, "share": share}]}


@pytest.mark.parametrize(
    ("name", "enough", "too_little"),
    [
        ("same caption", {"captions": same(3, 0.011)}, {"captions": same(2, 0.9)}),
        ("same caption", {"captions": same(3000, 0.011)}, {"captions": same(3000, 0.01)}),
        ("tokenizer", {"tokens": {"lost_share": 0.011}}, {"tokens": {"lost_share": 0.01}}),
        ("context length", {"tokens": {"cut_at": {"32": 0.011}}}, {"tokens": {"cut_at": {"32": 0.01, "16": 0.9}}}),
        ("large", {"images": {"median_megapixels": 1.01}}, {"images": {"median_megapixels": 1.0}}),
        ("balance", {"classes": {"dog": 701, "fox": 70}}, {"classes": {"dog": 700, "fox": 70}}),
    ],
)
def test_what_is_rare_is_left_unsaid(name: str, enough: dict[str, Any], too_little: dict[str, Any]):
    assert [*said(**enough)] == [name]
    assert said(**too_little) == {}


TEXTS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("no caption", {"broken": {"no caption": 5}}, ["5 of 1,000 samples (0.50%) have no caption"]),
    (
        "broken",
        {"broken": {"truncated": 7, "missing": 2}},
        ["9 of 1,000 samples (0.90%) cannot be used (7 truncated, 2 missing); a run passes over so few. Get whole"],
    ),
    (
        "broken",
        {"broken": {"missing": 11}},
        [
            "11 of 1,000 samples (1.10%) cannot be used (11 missing); a run would end",
            "there: more than max_broken = 1%. Get",
        ],
    ),
    ("nothing", {"sound": 0}, ["No sample is sound"]),
    (
        "duplicates",
        {"duplicates": {"same file": 1200, "nearly the same": 30}},
        ["1,230 of 1,000 samples (123.00%) are there already (1,200 same file, 30 nearly the same)", "captions; there"],
    ),
    ("file names", {"doubts": {"caption is a file name": 1500}}, ["1,500 captions are file names", "out; there."]),
    ("garbled", {"doubts": {"garbled caption": 1500}}, ["1,500 captions are garbled", "(ftfy.fix_text); there."]),
    ("markup", {"doubts": {"markup in caption": 1500}}, ["1,500 captions hold HTML", "out; there."]),
    (
        "same caption",
        {"captions": same(1500, 0.125, "x" * 59 + "yz")},
        ['"' + "x" * 59 + 'y" is the caption of 1,500 different images (12.5%)'],
    ),
    (
        "tokenizer",
        {"tokens": {"lost_share": 0.125, "lost_letters": dict.fromkeys("abcdefghijk", 1)}},
        ["12.5% of the tokens", "no piece for a b c d e f g h i j. Train"],
    ),
    (
        "context length",
        {"tokens": {"cut_at": {"32": 0.125}, "suggested_context_length": 48}},
        ["12.5% of the texts", "context_length of 32 and", "48 would hold 99.5% of them", "--context-length 48)"],
    ),
    ("uniform", {"images": {"uniform": 5}}, ["5 of 1,000 samples (0.50%) show a single colour", "ground; there."]),
    ("tiny", {"images": {"tiny": 5}}, ["5 of 1,000 samples (0.50%) are less than 16 pixels", "Delete them; there."]),
    ("long", {"images": {"long": 5}}, ["5 of 1,000 samples (0.50%) are more than 5 times as", "yourself; there."]),
    ("large", {"images": {"median_megapixels": 2.25}}, ["Half of the images have 2.2 megapixels or more"]),
    ("animated", {"images": {"animated": 0.005}}, ["0.5% of the images move"]),
    (
        "balance",
        {"classes": {"cat": 70, "dog": 1600, "fox": 50}},
        ["The class dog has 1,600 images, fox only 50: the model will rarely answer fox."],
    ),
]


@pytest.mark.parametrize(("name", "found", "words"), TEXTS)
def test_the_words_hold_the_numbers(name: str, found: dict[str, Any], words: list[str]):
    text = said(**found)[name]
    assert text.startswith(words[0])
    assert [part for part in words if part not in text] == []


def test_blank_captions_count_among_the_samples_that_end_a_run():
    few, many = ({"broken": {"no caption": blank, "missing": 5}} for blank in (5, 6))
    assert "a run passes over so few" in said(**few)["broken"]
    assert "a run would end there" in said(**many)["broken"]
    assert said(**many)["broken"].startswith("5 of 1,000 samples (0.50%) cannot be used (5 missing)")


def test_each_leak_is_a_finding_that_names_both_splits():
    leaks = [
        {"of": "held", "also_in": "train", "same file": 1, "same pixels": 20, "nearly the same": 0},
        {"of": "train", "also_in": "other", "same file": 0, "same pixels": 0, "nearly the same": 3},
    ]
    texts = [finding.text for finding in findings(changed(leaks=leaks, splits={"other": 2000}), "; there")]
    assert texts == [
        "21 of the 190 images of held are in train too (1 same file, 20 same pixels): what is measured on held will "
        "look better than it is. Remove them from train; there.",
        "3 of the 800 images of train are in other too (3 nearly the same): what is measured on train will "
        "look better than it is. Remove them from other; there.",
    ]


WORDS = {
    "ja": "犬 いぬ イヌ", "zh": "狗", "ko": "개 犬", "ru": "собака", "uk": "собака", "ar": "كلب", "hi": "कुत्ता",
    "th": "หมา", "he": "כלב", "el": "σκύλος", "en": "dog", "de": "Hund", "fr": "chien", "es": "perro", "it": "cane",
    "pt": "cão", "nl": "hond", "sv": "hund", "pl": "pies", "tr": "köpek", "vi": "chó", "id": "anjing",
}  # fmt: skip


@pytest.mark.parametrize("language", WORDS)
def test_a_language_in_another_script_is_said_above_1_of_20(language: str):
    """Texts without letters count as nothing; neither do those of another language."""
    own = [script(word) for word in WORDS[language].split()]
    other, more = ("latin", "greek") if "latin" not in own else ("thai", "greek")
    if language == "el":
        more = "thai"

    def of(*counts: tuple[str, str, int]) -> dict[str, str]:
        scripts = [{"language": code, "script": name, "texts": count} for code, name, count in counts]
        return said(captions={"scripts": scripts})

    right = [(language, name, 190 if number == 0 else 0) for number, name in enumerate(own)]
    beside = [("xx", other, 5000), (language, "no letters", 700)]
    assert of(*beside, *right, (language, other, 10)) == {}
    text = of(*beside, *right, (language, other, 8), (language, more, 3))["language"]
    assert text.startswith(f"11 of 201 texts called {language} are in another script (8 {other}, 3 {more}).")
    assert of(*[(language, name, 10) for name in own]) == {}


def test_the_table_shows_each_number_beside_its_name():
    found = changed(
        broken={"missing": 1500, "no caption": 2, "not an image": 1},
        first_broken={
            "missing": [{"uid": f"{n}.png", "detail": ""} for n in range(3)],
            "not an image": [{"uid": "x.png", "detail": ""}],
        },
        leaks=[
            {"of": "held", "also_in": "train", "same file": 1, "same pixels": 0, "nearly the same": 2},
            {"of": "train", "also_in": "other", "same file": 0, "same pixels": 4000, "nearly the same": 0},
        ],
        classes={"dog": 1600, "cat": 70, "fox": 50},
        captions={
            "on_several_images": [
                {"caption": letter * 31, "images": count}
                for letter, count in zip("abcd", (2000, 3, 2, 2), strict=True)
            ]
        },
        tokens={"lost_letters": {"ᚠ": 2, "ᚢ": 1}},
    )  # fmt: skip
    assert [(line[:23].strip(), line[24:]) for line in summary_table(found).splitlines()] == [
        ("rows", "1,200"),
        ("looked at", "1,000, drawn at random (--sample); of pairs of duplicates about 69.44% can be seen"),  # (5/6)²
        ("splits", "train 800, held 190"),
        ("broken", "missing 1,500 (0.png, 1.png, 2.png, ...), no caption 2, not an image 1 (x.png)"),
        ("duplicates", "none"),
        ("leaks", "held in train: 1 same file, 2 nearly the same; train in other: 4,000 same pixels"),
        ("width", "20 to 2,000 pixels, median 300, 95% within 1,024"),
        ("height", "30 to 1,024 pixels, median 200, 95% within 700"),
        ("shorter side", "below 32 12.5%, below 64 25.0%, below 224 50.0%"),
        ("kinds", "grey 25.0%"),
        ("classes", "3, the largest 1,600, the smallest 50 images"),
        ("captions per image", "1 900, 2 90"),
        ("captions", "1,050 different; 1,234 keywords"),
        ("on several images", f'"{"a" * 30}" 2,000, "{"b" * 30}" 3, "{"c" * 30}" 2'),
        ("script (not language)", "en latin 1,000, kana 80"),
        ("letters of a text", "1 to 1,024+, median 20, 95% within 60"),  # longer ones are counted as 1,024
        ("tokens of a text", "2 to 1,024+, median 7, 95% within 20"),
        ("cut at context length", "16 12.50%, 32 0.50%, 64 0.00%, 77 0.00%"),
        ("suggested", "context_length = 32 (holds 99.5%)"),
        ("tokens without a piece", "0.50%  ᚠ ᚢ"),
    ]


def test_the_table_leaves_out_what_there_is_not():
    letters = FINE["captions"]["letters"] | {"max": 1023}
    found = changed(captions={"letters": letters, "on_several_images": []}) | {"looked_at": 1200, "classes": {}}
    lines = {line[:23].strip(): line[24:] for line in summary_table(found).splitlines()}
    assert not {"looked at", "classes"} & lines.keys()
    assert [lines[name] for name in ("broken", "leaks", "on several images")] == ["none"] * 3
    assert lines["letters of a text"].startswith("1 to 1,023, ")
    assert lines["tokens without a piece"] == "0.50%"
