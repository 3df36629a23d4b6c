import pytest
import torch

from vlm.errors import InputError
from vlm.index.query import Query, has_attached_minus, is_one_text, parse_terms, read_query, unit_sum


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
        "スーパーマン",
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
        ("beach – people ‐ .5*dog", [(1, "beach"), (-1, "people"), (-0.5, "dog")]),  # as some keyboards write a minus
        ("beach + -2*people - -0.5*sun", [(1, "beach"), (-2, "people"), (0.5, "sun")]),
        ("beach + 1e1*sun", [(1, "beach"), (10, "sun")]),
    ],
)
def test_signs_between_spaces_join_terms_and_numbers_times_a_term_weigh_it(text: str, terms: list[tuple[float, str]]):
    assert parse_terms(text) == terms
    assert not is_one_text(text)


def test_terms_in_python_are_taken_as_they_are():
    terms = [(0.3, "a + b"), (-1.0, b"bytes of an image")]
    assert read_query(terms) == terms
    assert read_query(b"bytes of an image") == [(1.0, b"bytes of an image")]
    assert not is_one_text(terms)


def test_a_query_of_ten_thousand_characters_is_read_and_one_more_is_not():
    longest = "犬" * 10_000  # docs/retrieval.md
    assert read_query(longest) == [(1.0, longest)]
    assert read_query([(1.0, b"an image" * 2000), (0.5, longest)])[1] == (0.5, longest)
    for query in (longest + "a", [(1.0, "dog"), (1.0, longest + "a"), (1.0, "cat")], "dog + " + "a" * 9995):
        with pytest.raises(InputError, match=r"10,001.*10,000"):
            read_query(query)


@pytest.mark.parametrize("query", ["", " \n", [], [(1.0, "dog"), (1.0, " "), (1.0, "cat")]])
def test_a_query_with_nothing_in_it_is_called_empty(query: Query):
    with pytest.raises(InputError, match="empty"):
        read_query(query)


def test_a_sum_points_where_its_parts_point_together():
    red, car = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    assert unit_sum([red, car]).tolist() == pytest.approx([0.6, 0.8, 0])
    assert unit_sum([red * 1e-5, car * 1e-5]).tolist() == pytest.approx([0.6, 0.8, 0])  # small is not nothing
    with pytest.raises(InputError, match="cancel out"):
        unit_sum([red, car, -(red + car)])


@pytest.mark.parametrize(
    "query",
    [
        *(" - people", "- people", "－ 人 - dogs", "0*sea - people"),  # nothing to subtract from
        *("red -", "- ", "a +", "+ + a", "a + - b", "red － "),  # no term behind a sign
    ],
)
def test_a_sign_without_its_term_and_a_sum_that_only_subtracts_are_refused(query: str):
    """Searched as words, "- people" finds people first."""
    with pytest.raises(InputError, match=r"sign|subtract"):
        read_query(query)


@pytest.mark.parametrize(
    "weight", ["1" + "0" * 39, "1" + "0" * 400, "101", "１０１", "100.5", "1e40", "-1e999", "inf", "nan"]
)
def test_a_weight_beyond_100_is_refused(weight: str):
    """39 zeros overflowed float32, 38 made every score zero."""
    for query in (f"{weight}*dog + cat", f"cat - {weight} × dog"):
        with pytest.raises(InputError, match="weight"):
            read_query(query)
    assert read_query("100*dog + 0.01*cat") == [(100, "dog"), (0.01, "cat")]


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -100.5, 1e39])
def test_a_weight_in_python_is_checked_too(weight: float):
    with pytest.raises(InputError, match="weight"):
        read_query([(1.0, "cat"), (weight, "dog")])


@pytest.mark.parametrize(
    ("text", "attached"),
    [("beach -people", True), ("-人", True), ("beach - people", False), ("-5 degrees", False), ("T-shirt", False)],
)
def test_a_minus_that_is_part_of_a_word_is_noticed(text: str, attached: bool):
    assert has_attached_minus(text) is attached
