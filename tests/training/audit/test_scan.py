"""What a scan keeps of images and of texts, against pixels and words that are known."""

import io
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.check_sets import THINGS, Row, divided, encoded, examine, noise_image, row, sound
from tests.support.data_formats import idx
from vlm.training.audit.check import open_tokenizer
from vlm.training.audit.scan import Divided, Doubt, Seen, scan, script
from vlm.training.data.sources import open_rows


def seen_in(rows: list[Row], sample: int = 1000) -> Seen:
    return scan(divided(rows), open_tokenizer("mini"), sample=sample, workers=0)


def animation(kind: str) -> bytes:
    return encoded(noise_image(1), kind, save_all=True, append_images=[noise_image(2)])


def glass() -> Image.Image:
    clear = noise_image(3).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    return clear


IMAGES: dict[str, tuple[bytes, str]] = {
    "colours": (encoded(noise_image(0)), ""),
    "grey": (encoded(noise_image(0).convert("L")), "grey"),
    "glass": (encoded(glass()), "transparent"),
    "grey glass": (encoded(glass().convert("LA")), "grey transparent"),
    "gif": (encoded(noise_image(0), "gif"), ""),
    "moving gif": (animation("gif"), "animated"),
    "moving png": (animation("png"), "animated"),
    "moving webp": (animation("webp"), "animated"),
    "pages": (animation("tiff"), ""),  # are no film
    "red and black": (encoded(Image.fromarray(np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8))), ""),
}


def test_kinds_of_images_are_told():
    seen = seen_in([row(n, data, "a dog") for n, (data, _) in enumerate(IMAGES.values())])
    kinds = ("grey", "transparent", "animated")
    found = [" ".join(kind for kind in kinds if fact[kind]) for fact in seen.facts]
    assert dict(zip(IMAGES, found, strict=True)) == {name: kind for name, (_, kind) in IMAGES.items()}


def test_a_fact_is_what_the_pixels_say():
    faint = Image.new("RGB", (48, 40), "teal")
    faint.paste((1, 128, 128), (6, 5, 12, 10))  # one level in one of the 64 parts
    images = [
        noise_image(0),
        noise_image(1, (64, 24)),
        Image.new("RGB", (8, 8), "teal"),
        faint,
        Image.effect_noise((16, 16), 90),
    ]
    seen = seen_in([row(n, encoded(image), "a dog") for n, image in enumerate(images)])
    for fact, image in zip(seen.facts, images, strict=True):
        pixels = np.asarray(image.convert("RGB"), np.float64)
        assert (fact["width"], fact["height"]) == image.size
        assert fact["spread"] == pytest.approx(pixels.std((0, 1)).max(), abs=1e-4)
        blocks = pixels.reshape(8, image.height // 8, 8, image.width // 8, 3).mean((1, 3))  # (8, 8, 3)
        apart = (blocks - blocks.mean((0, 1))).ravel()
        expected = apart / (np.linalg.norm(apart) or 1)
        np.testing.assert_allclose(fact["thumbnail"], expected, atol=0.01)  # its levels were rounded
        assert np.linalg.norm(fact["thumbnail"].astype(float)) == pytest.approx(1.0 if apart.any() else 0.0, abs=1e-3)


def test_the_same_levels_in_another_shape_are_other_pixels():
    levels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    shapes = [levels, levels.reshape(4, 6, 3), levels.reshape(4, 6, 3)]
    seen = seen_in([row(n, encoded(Image.fromarray(shape)), "a dog") for n, shape in enumerate(shapes)])
    for name in ("file", "pixels"):
        one, other, again = seen.facts[name].tolist()
        assert one != other == again


def test_images_that_are_arrays_are_told_apart(tmp_path: Path):
    rows = Divided([open_rows(idx(tmp_path))])
    seen = scan(rows, open_tokenizer("mini"), sample=1000, workers=0)
    assert len(set(seen.facts["file"].tolist())) == len(set(seen.facts["pixels"].tolist())) == len(rows) == 24
    assert seen.facts["grey"].all()
    assert not (seen.facts["transparent"] | seen.facts["animated"]).any()
    assert (seen.split_names, set(seen.splits.tolist())) == (["train"], {0})


def test_what_is_broken_in_the_middle_costs_only_itself():
    rows = [{**own, "split": ("train", "held")[n // 2 % 2]} for n, own in enumerate(sound()[:9])]
    rows[2] = rows[2] | {"image": {"bytes": b"no image", "path": None}}
    rows[5] = rows[5] | {"caption": " "}
    seen = seen_in(rows)
    kept = [0, 1, 3, 4, 6, 7, 8]
    assert (seen.looked, seen.facts["index"].tolist()) == (9, kept)
    assert [seen.split_names[split] for split in seen.splits] == [rows[n]["split"] for n in kept]
    assert [(sample.uid, sample.reason) for sample in seen.broken] == [
        ("sample 2", "not an image"),
        ("sample 5", "no caption"),
    ]
    assert seen.broken[0].detail
    assert seen.counts["caption"] == Counter(rows[n]["caption"] for n in kept)


def test_a_sample_is_drawn_from_the_whole_set_in_its_order():
    drawn = seen_in(sound(), 10).facts["index"].tolist()
    assert drawn == sorted(set(drawn)) != list(range(10))
    assert len(drawn) == 10
    assert max(drawn) > 20
    assert seen_in(sound(), 40).facts["index"].tolist() == list(range(40))


def test_the_bar_ends_at_the_number_of_samples(capsys: pytest.CaptureFixture[str]):
    again = [own | {"uid": f"again {n}"} for n, own in enumerate(sound())]
    seen = seen_in([*sound(), *again], 70)  # more than one chunk
    assert (seen.looked, len(seen.facts)) == (70, 70)
    assert re.search(r"looking: 100%.*\b70/70 \[", capsys.readouterr().err)


class Traced(Divided):
    """Samples are called like the process that reads them."""

    def uid(self, index: int) -> str:
        return str(os.getpid())


def test_processes_see_what_one_process_sees_where_there_is_enough_to_see():
    images = [encoded(noise_image(n, (16, 16))) for n in range(8)]
    rows = [row(n, images[n % 8] if n % 50 else b"", f"<b>a {THINGS[n % 8]} {n}") for n in range(200)]
    whole, few = divided(rows), divided(rows[:60])
    alone, together = (scan(whole, open_tokenizer("mini"), sample=1000, workers=workers) for workers in (0, 1))
    assert alone.facts.tobytes() == together.facts.tobytes()
    assert [str(one) for one in alone.broken] == [str(one) for one in together.broken]
    assert (alone.counts, alone.doubts, alone.split_names) == (together.counts, together.doubts, together.split_names)
    for part, workers, here in ((whole, 1, False), (few, 1, True), (whole, 0, True)):
        doubts = scan(Traced(part.parts), open_tokenizer("mini"), sample=1000, workers=workers).doubts
        assert ({doubt.uid for doubt in doubts} == {str(os.getpid())}) == here


def test_words_are_counted_by_image_text_and_language():
    texts: list[dict[str, Any]] = [
        {"captions_en": ["a dog", "a pet", "a dog"], "captions_ja": ["いぬ"], "keywords_en": ["fur", "tail"]},
        {"captions_en": ["a dog"], "captions_ja": [], "keywords_en": ["fur"]},
        {"captions_en": [], "captions_ja": [], "keywords_en": ["sky", "sea", "sun"]},
        {"captions_en": ["x" * 250], "captions_ja": ["12"], "keywords_en": []},
    ]
    rows = [
        {"uid": f"no. {n}", "image": {"bytes": encoded(noise_image(n)), "path": None}, "label": "ab"[n // 3], **own}
        for n, own in enumerate(texts)
    ]
    for n in (0, 1):
        rows[n]["concept"] = "dogs"
    rows[2]["concept"], rows[3]["concept"] = None, "rows of x"
    counts = seen_in(rows).counts
    long = "x" * 200
    assert counts["caption"] == {"a dog": 2, "a pet": 1, "いぬ": 1, long: 1, "12": 1}
    of_dogs = {("a dog", "dogs"): 2, ("a pet", "dogs"): 1, ("いぬ", "dogs"): 1}
    assert counts["caption of group"] == of_dogs | {(long, "rows of x"): 1, ("12", "rows of x"): 1}
    assert counts["captions per image"] == {3: 1, 1: 1, 0: 1, 2: 1}
    assert counts["keywords"] == {"en": 6, "ja": 0}
    assert counts["class"] == {"a": 3, "b": 1}
    # keywords are looked at where there is no caption
    looked = ["a dog", "a pet", "いぬ", "a dog", "sky", "sea", "sun", "x" * 250, "12"]
    assert counts["letters of a text"] == Counter(map(len, looked))
    assert counts["script"] == {("en", "latin"): 7, ("ja", "kana"): 1, ("ja", "no letters"): 1}
    tokenizer = open_tokenizer("mini")
    tokenizer.context_length = 10_000
    assert counts["ids of a text"] == Counter(len(tokenizer.encode(text)) for text in looked)


def test_the_share_that_is_lost_is_that_of_the_tokenizers_own_count():
    texts = ["a dog ᚠ", "ᚢᚦ", "a green tree", "鰯"]
    found = examine([row(n, encoded(noise_image(n)), text) for n, text in enumerate(texts)])
    assert found["tokens"]["lost_share"] == pytest.approx(open_tokenizer("mini").byte_share(texts))  # type: ignore[attr-defined]
    assert set(found["tokens"]["lost_letters"]) >= set("ᚠᚢᚦ")
    assert not set(found["tokens"]["lost_letters"]) & set("adogrent ")


def test_very_long_texts_count_as_1024_letters_and_ids():
    found = examine([row(0, encoded(noise_image(0)), "a dog " * 900), row(1, encoded(noise_image(1)), "a" * 1023)])
    assert found["tokens"]["ids"]["max"] == found["captions"]["letters"]["max"] == 1024
    assert found["captions"]["letters"]["min"] == 1023


ODDITIES: dict[str, tuple[str, list[str]]] = {  # of the image photos/dog_12.jpeg
    "IMG_2041.JPG": ("", ["caption is a file name"]),
    "dog_12": ("", ["caption is a file name"]),
    "dog": ("photos/dog.jpeg", []),  # a name that says what is there
    "dog_13": ("", []),
    "version 2.0": ("", []),
    "a caf\ufffd": ("", ["garbled caption"]),
    "a cafÃ© and a crÃ¨me": ("", ["garbled caption"]),
    "a café, una señora, ein Mädchen": ("", []),
    "the <b>dog": ("", ["markup in caption"]),
    "dog</B>": ("", ["markup in caption"]),
    "cats &amp; dogs": ("", ["markup in caption"]),
    "the dog&#39;s tail": ("", ["markup in caption"]),
    "see http://a.org": ("", ["markup in caption"]),
    "see HTTPS://A.ORG": ("", ["markup in caption"]),
    "1 < 2 > 0 & R&D; AT&T": ("", []),
    "<b>caf\ufffd.png": ("", ["caption is a file name", "garbled caption", "markup in caption"]),
}


@pytest.mark.parametrize("text", ODDITIES)
def test_what_is_odd_about_a_caption_is_said(text: str):
    name, expected = ODDITIES[text]
    own = row(0, encoded(noise_image(0)), text) | {"uid": name or "photos/dog_12.jpeg", "split": "train"}
    more = row(1, encoded(noise_image(1)), "a cat", split="train")
    seen = seen_in([own, more])
    assert seen.doubts == [Doubt(own["uid"], "train", what, text) for what in expected]
    together = Divided([divided([own]), divided([more])])  # uids are then "set: photos/..."
    found = scan(together, open_tokenizer("mini"), sample=10, workers=0).doubts
    assert [(doubt.uid, doubt.what) for doubt in found] == [(f"set: {own['uid']}", what) for what in expected]


def test_of_a_long_odd_caption_the_beginning_is_shown():
    (doubt,) = seen_in([row(0, encoded(noise_image(0)), "<b>" + "x" * 300)]).doubts
    assert doubt.detail == "<b>" + "x" * 197


def test_what_is_not_divided_is_a_split_called_like_its_file(tmp_path: Path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for n in range(2):
            noise_image(n).save(tmp_path / name / f"{n}.png")
            (tmp_path / name / f"{n}.txt").write_text(f"a {THINGS[n]}")
    one, other = open_rows(tmp_path / "first"), open_rows(tmp_path / "second")
    assert [Divided([one]).split(n) for n in range(2)] == ["first"] * 2
    assert [Divided([one]).uid(n) for n in range(2)] == [one.uid(n) for n in range(2)]
    both = Divided([one, other])
    assert [both.split(n) for n in range(4)] == ["first", "first", "second", "second"]
    assert [both.uid(n) for n in range(4)] == [f"{part.name}: {part.uid(n)}" for part in (one, other) for n in (0, 1)]


SCRIPTS = {
    "Tシャツ": "kana", "犬": "kanji only", "강아지 犬": "kanji only", "강아지": "hangul", "собака": "cyrillic",
    "كلب": "arabic", "कुत्ता": "devanagari", "หมา": "thai", "כלב": "hebrew", "σκύλος": "greek", "a dog": "latin",
    "ձուկ": "other letters", "12!": "no letters",
}  # fmt: skip


@pytest.mark.parametrize("text", SCRIPTS)
def test_a_script_is_told_by_its_letters(text: str):
    assert script(text) == SCRIPTS[text]
    assert script(f"12 {text}?") == SCRIPTS[text]


def test_a_image_with_all_levels_has_the_spread_of_numpy():
    ramp = np.stack([np.arange(256), np.full(256, 7), np.arange(256)[::-1] // 2], -1)[None].astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "png")
    (fact,) = seen_in([row(0, file.getvalue(), "a ramp")]).facts
    assert fact["spread"] == pytest.approx(np.arange(256).std(), rel=1e-6)
