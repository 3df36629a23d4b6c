"""Hand-made sets of 40 sound images: every planted problem is found, and no other one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from tests.support.check_sets import THINGS, Row, divided, encoded, examine, noise_image, row, sound
from tests.support.odd_images import ODD_IMAGES, write_odd_images
from vlm.training.audit.check import check, check_rows, open_tokenizer
from vlm.training.audit.scan import script


def found_in(rows: list[Row]) -> list[str]:
    return [finding["name"] for finding in examine(rows)["findings"]]


def with_image(data: bytes) -> list[Row]:
    return [*sound(), row(40, data, "a green tree")]


def with_captions(*captions: str) -> list[Row]:
    return [*sound(), *(row(40 + n, encoded(noise_image(40 + n)), caption) for n, caption in enumerate(captions))]


def animated() -> bytes:
    return encoded(noise_image(50), "gif", save_all=True, append_images=[noise_image(51)])


def of_two_languages() -> list[Row]:
    rows = [{**own, "caption_en": own["caption"], "caption_ja": own["caption"]} for own in sound()]
    return [{name: value for name, value in own.items() if name != "caption"} for own in rows]


PLANTED: dict[str, tuple[Callable[[], list[Row]], list[str]]] = {
    "nothing": (sound, []),
    "a truncated file": (lambda: with_image(encoded(noise_image(60))[:-200]), ["broken"]),
    "text for an image": (lambda: with_image(b"not an image"), ["broken"]),
    "no file": (lambda: with_image(b""), ["broken"]),
    "a blank caption": (lambda: with_captions("  "), ["no caption"]),
    "a file twice": (lambda: with_image(encoded(noise_image(3))), ["duplicates"]),
    "a file name": (lambda: with_captions("IMG_2041.JPG"), ["file names"]),
    "mojibake": (  # whose letters no tokenizer has
        lambda: with_captions("a caf\u00c3\u00a9 and a cr\u00c3\u00a8me"),
        ["garbled", "tokenizer"],
    ),
    "markup": (lambda: with_captions("<b>a green tree</b>"), ["markup"]),
    "one caption for many": (lambda: with_captions(*["a green tree"] * 4), ["same caption"]),
    "letters nobody knows": (lambda: with_captions("ᚠᚢᚦᚨᚱᚲ", "ᚷᚹᚺᚾᛁᛃ"), ["tokenizer"]),
    "long captions": (lambda: with_captions("a green tree and " * 12), ["context length"]),
    "Japanese that is English": (of_two_languages, ["language"]),
    "one colour": (lambda: with_image(encoded(Image.new("RGB", (48, 40), "red"))), ["uniform"]),
    "white on nothing": (
        lambda: with_image(encoded(Image.new("RGBA", (48, 40), (255, 255, 255, 0)))),
        ["uniform"],
    ),
    "a tracking pixel": (lambda: with_image(encoded(noise_image(70, (9, 9)))), ["tiny"]),
    "a banner": (lambda: with_image(encoded(noise_image(71, (400, 40)))), ["long"]),
    "an animation": (lambda: with_image(animated()), ["animated"]),
    "a rare class": (lambda: [{**own, "label": "b" if n < 3 else "a"} for n, own in enumerate(sound())], ["balance"]),
    "large files": (lambda: [row(n, encoded(noise_image(n, (1100, 1000)), "jpeg"), f"a {THINGS[n]}") for n in (0, 1)],
                    ["large"]),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_what_was_planted_is_found_and_nothing_else(planted: str):
    rows, expected = PLANTED[planted]
    assert found_in(rows()) == expected


COPIES: dict[str, Callable[[int], bytes]] = {
    "same file": lambda seed: encoded(noise_image(seed)),
    "same pixels": lambda seed: encoded(noise_image(seed), "bmp"),
    "nearly the same": lambda seed: encoded(noise_image(seed).resize((36, 30)), "jpeg", quality=60),
}


@pytest.mark.parametrize("level", COPIES)
def test_copies_are_told_apart_by_how_equal_they_are(level: str, tmp_path: Path):
    copies = [row(40 + n, COPIES[level](n), "a green tree") for n in (5, 9)]
    found = examine([*sound(), *copies], tmp_path)
    assert found["duplicates"] == {name: 2 * (name == level) for name in COPIES}
    lines = [json.loads(line) for line in (tmp_path / "doubtful.jsonl").read_text().splitlines()]
    assert [(line["uid"], line["what"], line["detail"]) for line in lines] == [
        (f"sample {40 + n}", "duplicate", f"{level}: sample {n} (set)") for n in (5, 9)
    ]


@pytest.mark.parametrize("level", COPIES)
def test_a_copy_in_another_split_is_a_leak_and_no_duplicate(level: str):
    held_back = [row(100 + n, encoded(noise_image(100 + n)), "a green tree", split="validation") for n in range(2)]
    copies = [row(40 + n, COPIES[level](n), f"tree {n}", split="validation") for n in (5, 9, 11)]
    found = examine([*sound(split="train"), *held_back, *copies])
    assert [finding["name"] for finding in found["findings"]] == ["leak"]
    (leak,) = found["leaks"]
    assert (leak.pop("of"), leak.pop("also_in")) == ("validation", "train")
    assert leak == {name: 3 * (name == level) for name in COPIES}
    assert not any(found["duplicates"].values())


def test_images_of_one_concept_may_share_a_caption():
    rows = [{**own, "concept": own["uid"]} for own in with_captions(*["a green tree"] * 4)]
    assert found_in(rows) == ["same caption"]
    for own in rows[40:]:
        own["concept"] = "tree"
    assert found_in(rows) == []


def test_lengths_and_shares_are_those_of_the_tokenizer_and_of_the_definition():
    texts = ["a dog", "a green tree and " * 12, "赤いりんご"]
    found = examine([row(n, encoded(noise_image(n)), text) for n, text in enumerate(texts)])
    tokenizer = open_tokenizer("mini")
    tokenizer.context_length = 10_000
    lengths = sorted(len(tokenizer.encode(text)) for text in texts)
    tokens = found["tokens"]
    assert (tokens["ids"]["min"], tokens["ids"]["median"], tokens["ids"]["max"]) == tuple(lengths)
    assert tokens["cut_at"] == {str(limit): sum(length > limit for length in lengths) / 3 for limit in (16, 32, 64, 77)}
    assert tokens["suggested_context_length"] >= lengths[-1] > tokens["suggested_context_length"] - 8


@pytest.mark.parametrize("name", ["mini", "clip"])
def test_a_letter_is_lost_where_its_bytes_are_all_that_is_left(name: str):
    rows = [row(0, encoded(noise_image(0)), "dog ᚠ"), row(1, encoded(noise_image(1)), "cat")]
    assert list(check_rows(divided(rows), open_tokenizer(name))["tokens"]["lost_letters"]) == ["ᚠ"]


def test_scripts_are_told_by_their_letters():
    assert [script(text) for text in ("Tシャツ", "犬", "a dog", "강아지", "собака", "12!")] == [
        "kana", "kanji only", "latin", "hangul", "cyrillic", "no letters",
    ]  # fmt: skip


def test_odd_images_are_counted_by_the_reasons_of_open_image(tmp_path: Path):
    (tmp_path / "odd").mkdir()
    for name, path in write_odd_images(tmp_path / "odd").items():
        path.with_suffix(".txt").write_text(f"the image {name.split('.')[0]}")
    found = check([str(tmp_path / "odd")], open_tokenizer("mini"), out=tmp_path / "out")
    expected = [reason for reason in ODD_IMAGES.values() if reason]
    assert sorted(found["broken"]) == sorted(expected) and sum(found["broken"].values()) == len(expected)
    names = [finding["name"] for finding in found["findings"]]
    assert names == ["broken", "duplicates", "uniform", "tiny", "long", "animated"]  # three show the corners
    assert found["images"]["animated"] == pytest.approx(1 / (len(ODD_IMAGES) - len(expected)))
    with Image.open(tmp_path / "out" / "contact-sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_the_sheet_shows_each_image_whole_with_its_words_below(tmp_path: Path):
    rows = [row(n, encoded(Image.new("RGB", (300, 300), "red")), "a red square") for n in range(2)]
    examine(rows, tmp_path)
    sheet = np.asarray(Image.open(tmp_path / "contact-sheet.png").convert("RGB"))
    first = sheet[46 : 46 + 230, 6 : 6 + 150]  # the first cell under the first heading: image, then words
    assert (first[:150] == (255, 0, 0)).all()
    assert (first[150:] < 128).all(-1).any()


def test_a_sample_is_the_same_each_time_and_says_so():
    rows = sound()
    first, second = (check_rows(divided(rows), open_tokenizer("mini"), sample=10) for _ in range(2))
    assert first == second
    assert (first["rows"], first["looked_at"], first["sound"]) == (40, 10, 10)


@pytest.mark.long
def test_the_command_checks_two_files_as_one_set(tmp_path: Path):
    for name, part in (("train", range(40)), ("held", range(36, 40))):
        Dataset.from_list([sound()[n] for n in part]).to_parquet(tmp_path / f"{name}.parquet")
    files = [str(tmp_path / f"{name}.parquet") for name in ("train", "held")]
    command = [sys.executable, "-m", "training.check", *files, "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "out" / "check.json").read_text())
    assert found["leaks"] == [
        {"of": "held", "also_in": "train", "same file": 4, "same pixels": 0, "nearly the same": 0}
    ]
    assert (
        "4 of the 4 images of held are in train too"
        in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    wrong = subprocess.run([*command[:3], "nowhere"], capture_output=True, text=True)
    assert wrong.returncode == 1 and len(wrong.stderr.splitlines()) == 1


def test_a_share_is_of_the_samples_looked_at():
    text = next(finding["text"] for finding in examine(with_captions(" "))["findings"])
    assert text.startswith("1 of 41 samples (2.44%) ")
