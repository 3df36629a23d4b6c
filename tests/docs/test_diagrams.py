"""The diagrams of the guide are those that the script draws."""

import pytest

from docs import draw_diagrams


@pytest.mark.parametrize("language", draw_diagrams.WORDS)
@pytest.mark.parametrize("diagram", ["vit", "clip"])
def test_a_diagram_is_what_the_script_draws(language: str, diagram: str) -> None:
    drawn = getattr(draw_diagrams, diagram)(draw_diagrams.WORDS[language])
    assert (draw_diagrams.OUT / f"{diagram}-{language}.svg").read_text(encoding="utf-8") == drawn


def test_both_languages_label_the_same_parts() -> None:
    assert draw_diagrams.WORDS["en"].keys() == draw_diagrams.WORDS["ja"].keys()
