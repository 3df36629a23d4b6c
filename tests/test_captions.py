import numpy as np

from training.captions import DRAWS, CaptionChoice, ways_of_writing

LANGUAGES = [(["a red dog", "a dog"], ["red", "dog"]), (["赤い犬"], [])]


def drawn(choice: CaptionChoice, languages: list[tuple[list[str], list[str]]], count: int = 2000) -> list[str]:
    draws = np.random.default_rng(0).random((count, choice.per_picture * DRAWS))
    return [text for u in draws for text in choice.choose(languages, u)]


def test_captions_are_names_and_keywords_of_both_languages() -> None:
    assert set(drawn(CaptionChoice(keyword_share=0.5), LANGUAGES)) == {"a red dog", "a dog", "red", "dog", "赤い犬"}


def test_two_captions_of_a_picture_are_of_its_two_languages() -> None:
    pairs = np.array(drawn(CaptionChoice(per_picture=2), LANGUAGES)).reshape(-1, 2)
    assert all(sorted(text.isascii() for text in pair) == [False, True] for pair in pairs)


def test_keyword_share_is_the_share_of_keywords() -> None:
    texts = drawn(CaptionChoice(keyword_share=0.25), LANGUAGES[:1])
    share = np.mean([text in ("red", "dog") for text in texts])
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / len(texts)) ** 0.5


def test_a_picture_with_keywords_alone_is_shown_with_them() -> None:
    assert set(drawn(CaptionChoice(keyword_share=0.0), [([], ["red", "dog"])])) == {"red", "dog"}


def test_template_share_puts_captions_into_sentences() -> None:
    texts = drawn(CaptionChoice(template_share=0.5), [(["犬"], [])])
    share = np.mean([text != "犬" for text in texts])
    assert all("犬" in text for text in texts)
    assert 0.3 < share < 0.51  # one of the sentences may be the word itself


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
