"""docs/api-examples: every public name is used, both languages run the same code, the outputs are what it prints."""

import re

import pytest

import vlm
from docs.api_examples import PAGES, SESSION, filled

ENGLISH, JAPANESE = (page.read_text(encoding="utf-8") for page in PAGES)


def code(page: str) -> list[str]:
    lines = [line for session in SESSION.findall(page) for line in session.splitlines()]
    return [re.sub(r"\s+#.*", "", line) for line in lines]


def test_every_public_name_has_an_example() -> None:
    used = set(re.findall(r"\bvlm\.(\w+)", "\n".join(code(ENGLISH)))) | {"Hit"}  # a Hit is what search returns
    assert set(vlm.__all__) <= used


def test_both_languages_run_the_same_code_and_print_the_same() -> None:
    assert code(ENGLISH) == code(JAPANESE)


def test_the_outputs_are_those_of_the_code_above_them() -> None:
    page = "```pycon\n>>> x = 2\n>>> x + 1\n9\n>>> for i in range(2):\n...     print(i)\n```\n\n```pycon\n>>> x\n```\n"
    assert filled(page) == page.replace("9\n", "3\n").replace("print(i)\n", "print(i)\n0\n1\n").replace(
        ">>> x\n```", ">>> x\n2\n```"
    )


def test_an_example_that_fails_is_named() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        filled("```pycon\n>>> 1 / 0\n```\n")


@pytest.mark.long
def test_the_examples_print_what_the_page_says() -> None:
    """python -m docs.api_examples puts it right."""
    assert filled(ENGLISH) == ENGLISH
