import unicodedata

import numpy as np

from vlm.training.data.captions import DRAWS, CaptionChoice, ways_of_writing
from vlm.zero_shot import label_sentences

LANGUAGES = [(["a red dog", "a dog"], ["red", "dog"]), (["赤い犬"], [])]


def drawn(choice: CaptionChoice, languages: list[tuple[list[str], list[str]]], count: int = 2000) -> list[str]:
    draws = np.random.default_rng(0).random((count, choice.per_image * DRAWS))
    return [text for u in draws for text in choice.choose(languages, u)]


def test_captions_are_names_and_keywords_of_both_languages() -> None:
    assert set(drawn(CaptionChoice(keyword_share=0.5), LANGUAGES)) == {"a red dog", "a dog", "red", "dog", "赤い犬"}


def test_two_captions_of_a_image_are_of_its_two_languages() -> None:
    pairs = np.array(drawn(CaptionChoice(per_image=2), LANGUAGES)).reshape(-1, 2)
    assert all(sorted(text.isascii() for text in pair) == [False, True] for pair in pairs)


def test_keyword_share_is_the_share_of_keywords() -> None:
    texts = drawn(CaptionChoice(keyword_share=0.25), LANGUAGES[:1])
    share = np.mean([text in ("red", "dog") for text in texts])
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / len(texts)) ** 0.5


def test_a_image_with_keywords_alone_is_shown_with_them() -> None:
    assert set(drawn(CaptionChoice(keyword_share=0.0), [([], ["red", "dog"])])) == {"red", "dog"}


def test_template_share_puts_captions_into_sentences() -> None:
    texts = drawn(CaptionChoice(template_share=0.5), [(["犬"], [])])
    share = np.mean([text != "犬" for text in texts])
    assert all("犬" in text for text in texts)
    assert 0.3 < share < 0.51  # one of the sentences may be the word itself


def test_each_draw_decides_what_it_should() -> None:
    three = [(["a0", "a1", "a2"], ["k0", "k1"]), (["b0", "b1"], []), ([], ["x0", "x1", "x2"])]

    def chosen(*draws: float, languages: list[tuple[list[str], list[str]]] = three, **shares: float) -> list[str]:
        choice = CaptionChoice(per_image=len(draws) // DRAWS, **shares)  # type: ignore[arg-type]
        return choice.choose(languages, np.array(draws))

    rest = (0.9, 0.9, 0.9)  # kana, template, wording
    for first, kind, which, wanted in (
        (0.0, 0.3, 0.0, "a0"), (0.33, 0.9, 0.99, "a2"), (0.1, 0.29, 0.49, "k0"), (0.1, 0.0, 0.5, "k1"),
        (0.34, 0.0, 0.5, "b1"), (0.66, 0.9, 0.1, "b0"), (0.67, 0.9, 0.4, "x1"), (0.99, 0.0, 0.99, "x2"),
    ):  # fmt: skip
        assert chosen(first, kind, which, *rest, keyword_share=0.3) == [wanted]
    slots = [number for first in (0.7, 0.0, 0.5, 0.9) for number in (first, 0.9, 0.0, *rest)]
    assert chosen(*slots) == ["x0", "a0", "b0", "x0"]  # the first draw of the first slot alone
    word = [(["赤リンゴ"], [])]
    for kana, wanted in ((0.0, "赤りんご"), (0.2, "赤いリンゴ"), (0.59, "赤いりんご"), (0.6, "赤リンゴ")):
        assert chosen(0.0, 0.0, 0.0, kana, 0.9, 0.9, languages=word, kana_share=0.6) == [wanted]
    sentences = label_sentences("赤りんご")
    assert len(sentences) > 1
    for template, wording, wanted in ((0.0, 0.0, sentences[0]), (0.39, 0.999, sentences[-1]), (0.4, 0.5, "赤りんご")):
        draws = (0.0, 0.0, 0.0, 0.0, template, wording)  # first the kana, then the sentence
        assert chosen(*draws, languages=word, template_share=0.4, kana_share=0.1) == [wanted]
    assert chosen(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, languages=word) == ["赤リンゴ"]


def test_kana_have_the_sound_that_unicode_names() -> None:
    for code in range(0x3041, 0x3097):
        katakana = unicodedata.lookup(unicodedata.name(chr(code)).replace("HIRAGANA", "KATAKANA"))
        assert ways_of_writing(chr(code)) == [katakana]
        assert ways_of_writing(katakana) == [chr(code)]
    for letter in "ヷヺー・":  # of no hiragana
        assert ways_of_writing(letter) == [letter]
    for colour in "赤青白黒":
        for begin in "ァヺ":
            assert f"{colour}い{begin}" in ways_of_writing(colour + begin)
    assert ways_of_writing("緑リンゴ") == ["緑りんご"]


def test_ways_of_writing_are_what_people_write_too() -> None:
    ways = {
        "赤リンゴ": ["赤りんご", "赤いリンゴ", "赤いりんご"],
        "りんご": ["リンゴ"],
        "ケーキ": ["けーき"],
        "赤い丸": ["赤い丸"],
        "木の実": ["木の実"],
        "dog": ["dog"],
    }
    assert {word: ways_of_writing(word) for word in ways} == ways
