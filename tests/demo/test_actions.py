"""Classification and heat maps, without Gradio, against the library."""

from pathlib import Path

import pytest
import torch

import vlm
from tests.support.demo_pages import DOG
from tests.support.odd_images import ODD_IMAGES, write_odd_images
from vlm.calibration import Calibration
from vlm.demo.actions import PageActions
from vlm.demo.page.texts import PageError
from vlm.inspect.relevance import relevance, text_score
from vlm.zero_shot import class_embeddings


def test_the_ranking_is_the_softmax_of_the_library_sorted(actions: PageActions, tiny_embedder: vlm.Embedder) -> None:
    names = ["犬", "a cat", "車", "鳥"]
    expected = dict(zip(names, vlm.classify(tiny_embedder, [DOG], names)[0].tolist(), strict=True))
    ranking = actions.classify(DOG, "犬, a cat, 車, 鳥")
    assert [ranked.label for ranked in ranking] == sorted(names, key=lambda name: -expected[name])
    assert {ranked.label: ranked.probability for ranked in ranking} == pytest.approx(expected, abs=1e-6)


def test_templates_are_the_visitors_or_those_of_the_language(actions: PageActions, tiny_embedder: vlm.Embedder) -> None:
    given = ["a {} here", "{}!"]
    expected = dict(zip("ab", vlm.classify(tiny_embedder, [DOG], ["a", "b"], given)[0].tolist(), strict=True))
    ranking = actions.classify(DOG, "a, b", " a {} here\n\n{}! ")
    assert {ranked.label: ranked.probability for ranked in ranking} == pytest.approx(expected, abs=1e-6)


def test_none_of_these_is_said_exactly_below_the_calibrated_line(actions: PageActions) -> None:
    embedder, unit = actions.embedder, torch.tensor(0.0)
    ranking = actions.classify(DOG, "a, b")
    assert [ranked.match for ranked in ranking] == [None, None]
    assert not actions.none_fits(ranking)  # no line was drawn for this model
    for bias, weak in ((-9.0, True), (9.0, False)):
        embedder.calibration = Calibration(scale=1e-6, bias=bias)
        ranking = actions.classify(DOG, "a, b")
        expected = float((unit + bias).sigmoid())
        assert [ranked.match for ranked in ranking] == pytest.approx([expected] * 2, abs=1e-5)
        assert actions.none_fits(ranking) is weak
        assert actions.no_good_match(actions.search("a")) is weak


def test_where_a_label_is_is_how_much_each_patch_moves_the_cosine(
    actions: PageActions, tiny_embedder: vlm.Embedder
) -> None:
    images = tiny_embedder.preprocess(DOG)[None]
    vector = class_embeddings(tiny_embedder, ["犬"])[0]
    score = text_score(tiny_embedder.model.vision_proj, vector)
    expected = relevance(tiny_embedder.model.vision, images, score)[0]
    torch.testing.assert_close(actions.locate(DOG, "犬").grid, expected)


def test_odd_images_get_an_answer_or_one_line(actions: PageActions, tmp_path: Path) -> None:
    for name, path in write_odd_images(tmp_path).items():
        reason = ODD_IMAGES[name]
        if reason is None:
            assert sum(ranked.probability for ranked in actions.classify(path, "犬、猫")) == pytest.approx(1)
            continue
        with pytest.raises(PageError) as no:
            actions.classify(path, "犬、猫")
        assert no.value.key == reason
