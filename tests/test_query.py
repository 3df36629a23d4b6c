import pytest

from vlm.index.query import is_one_text, parse_terms, read_query


@pytest.mark.parametrize(
    "text",
    [
        "T-shirt",
        "赤い+車",
        "-5 degrees",
        "C++ code",
        "a-b +c",
        "3 dogs",
        "4*4 car",
        "0.5*車",
        " dog ",
        "- ",
        "スーパーマン",
        "a +",
    ],
)
def test_signs_and_numbers_inside_a_single_text_are_letters(text: str):
    assert parse_terms(text) == [(1.0, text)]
    assert is_one_text(text)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("赤い + 車 - 人", [(1, "赤い"), (1, "車"), (-1, "人")]),
        ("赤い + 0.5*車 - 人", [(1, "赤い"), (0.5, "車"), (-1, "人")]),
        ("2 * red car - 1.5 × people", [(2, "red car"), (-1.5, "people")]),
        ("赤い　＋　０．５＊車　－　人", [(1, "赤い"), (0.5, "車"), (-1, "人")]),
        ("- people + beach", [(-1, "people"), (1, "beach")]),
        ("3 dogs + T-shirt", [(1, "3 dogs"), (1, "T-shirt")]),
        ("sea\n - \t people", [(1, "sea"), (-1, "people")]),
    ],
)
def test_signs_between_spaces_join_terms_and_numbers_times_a_term_weigh_it(text: str, terms: list[tuple[float, str]]):
    assert parse_terms(text) == terms
    assert not is_one_text(text)


def test_terms_in_python_are_taken_as_they_are():
    terms = [(0.3, "a + b"), (-1.0, b"bytes of a picture")]
    assert read_query(terms) == terms
    assert read_query(b"bytes of a picture") == [(1.0, b"bytes of a picture")]
    assert not is_one_text(terms)
