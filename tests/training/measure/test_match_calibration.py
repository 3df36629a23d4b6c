"""The probability of a match: its formula, its home in the model folder, its fit, what it promises."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from vlm.calibration import Calibration
from vlm.checkpoint.load import load
from vlm.checkpoint.save import save, save_calibration
from vlm.cli import run_alone
from vlm.commands.release import calibrate as declare
from vlm.embedder import Embedder
from vlm.metrics import calibration_bins, calibration_error
from vlm.training.data.pairs import open_pairs
from vlm.training.measure.match_calibration import (
    BINS,
    HEADING,
    QueryHits,
    best_hits,
    calibrate,
    fit,
    match_reliability,
    section,
    validation_hits,
)


def made_hits(queries: int = 3000, seed: int = 0) -> QueryHits:
    """A world where P = sigmoid(12 cos - 6), so the fit has a truth to find."""
    generator = torch.Generator().manual_seed(seed)
    cosines = torch.rand(queries, 10, generator=generator).sort(1, descending=True).values
    correct = torch.rand(queries, 10, generator=generator) < (12 * cosines - 6).sigmoid()
    half = torch.arange(queries) % 2 == 0
    return QueryHits("en", cosines, correct, cosines.masked_fill(correct, -1).amax(1), half)


def test_a_probability_is_the_sigmoid_of_the_line():
    calibration = Calibration(scale=20.0, bias=-12.0)
    for cosine in (-1.0, 0.3, 0.6, 1.0):
        expected = 1 / (1 + math.exp(-(20 * cosine - 12)))
        assert calibration.probability(torch.tensor(cosine)).item() == pytest.approx(expected, rel=1e-5)


def test_who_says_how_probable_a_match_is(tiny_embedder: Embedder):
    cosines = torch.tensor([-0.2, 0.4])
    assert tiny_embedder.match_probability(cosines) is None  # a softmax only ranks
    assert not tiny_embedder.no_good_match(None)
    tiny_embedder.model.logit_bias = torch.nn.Parameter(torch.tensor(-2.0))
    own = (tiny_embedder.model.logit_scale.exp() * cosines - 2).sigmoid()
    torch.testing.assert_close(tiny_embedder.match_probability(cosines), own.detach())
    assert not tiny_embedder.no_good_match(0.001)  # no validation data drew a line
    tiny_embedder.calibration = Calibration(scale=20.0, bias=-12.0, line=0.2)
    torch.testing.assert_close(tiny_embedder.match_probability(cosines), (20 * cosines - 12).sigmoid())
    assert [tiny_embedder.no_good_match(p) for p in (0.19, 0.2, 0.9, None)] == [True, False, False, False]


def test_the_line_is_the_one_the_guide_promises():
    guide = Path(__file__).parents[3] / "docs" / "retrieval.md"
    line = Calibration(scale=1.0, bias=0.0).line
    assert f"the best hit of a calibrated model has less than {100 * line:g} %" in guide.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": 0.0, "bias": 0.0}, "scale is 0.0; it must be positive"),
        ({"scale": -0.5, "bias": 0.0}, "scale is -0.5; it must be positive"),
        ({"scale": 1.0, "bias": 0.0, "line": 0.0}, "line is 0.0; it must be"),
        ({"scale": 1.0, "bias": 0.0, "line": -0.1}, "line is -0.1; it must be"),
        ({"scale": 1.0, "bias": 0.0, "line": 1.0}, "line is 1.0; it must be"),
        ({"scale": 1.0, "bias": 0.0, "lines": 0.1}, "Did you mean 'line'"),
    ],
)
def test_nonsense_is_refused(values: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        Calibration.from_dict(values)


def test_it_travels_with_the_model_and_the_weights_stay_as_they_are(tiny_embedder: Embedder, tmp_path: Path):
    folder, calibration = tmp_path / "model", Calibration(scale=20.5, bias=-12.25, data="a test")
    save(tiny_embedder, folder, "# a card", dtype=torch.float16)
    weights, fingerprint = (folder / "model.safetensors").read_bytes(), load(folder).fingerprint
    assert load(folder).calibration is None
    (folder / "metrics.jsonl").touch()  # a run has other files, which stay
    save_calibration(folder, calibration, "# another card")
    assert load(folder).calibration == calibration
    assert load(folder).fingerprint == fingerprint  # vectors do not change, so an index stays valid
    assert (folder / "model.safetensors").read_bytes() == weights
    assert (folder / "README.md").read_text() == "# another card"
    assert {path.name for path in folder.iterdir() if path.name[0] == "."} == set()
    save(load(folder), tmp_path / "copy")
    assert load(tmp_path / "copy").calibration == calibration
    config = json.loads((folder / "config.json").read_text())
    del config["calibration"]  # a folder from before
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is not what was saved"):
        load(folder)


def test_the_fit_finds_the_truth_of_a_made_world_and_is_that_of_scikit_learn():
    answers = made_hits()
    found = fit([answers, answers._replace(language="ja")])
    assert (found.scale, found.bias) == (pytest.approx(12, abs=0.5), pytest.approx(-6, abs=0.3))
    other = LogisticRegression(C=np.inf, max_iter=1000).fit(answers.cosines.reshape(-1, 1), answers.correct.flatten())
    assert found.scale == pytest.approx(other.coef_[0, 0], rel=1e-3)
    with pytest.raises(ValueError, match="0 of 30000 validation hits are correct"):
        fit([answers._replace(correct=torch.zeros_like(answers.correct))])


def test_reliability_is_what_its_names_say():
    answers = made_hits()
    truth = Calibration(scale=12.0, bias=-6.0)
    p = truth.probability(answers.cosines)
    found = match_reliability(answers, p, truth.probability(answers.best_wrong), 0.9)
    assert found.ece < 0.02  # the true probabilities: nothing but chance is left
    assert found.brier == pytest.approx((p * (1 - p)).mean().item(), abs=0.005)
    assert found.brier < found.brier_constant == pytest.approx(found.true * (1 - found.true), abs=1e-6)
    assert found.refused == pytest.approx((p[:, 0] < 0.9).double().mean().item())
    assert found.refused_without >= found.refused > found.refused_right
    shifted = match_reliability(answers, (p + 0.3).clamp(max=1), p[:, 0], 0.9)
    assert shifted.ece > 0.15


def test_reliability_of_three_queries_is_counted_by_hand():
    p = torch.tensor([[0.9, 0.2], [0.3, 0.1], [0.05, 0.02]], dtype=torch.float64)
    correct = torch.tensor([[True, False], [False, False], [True, False]])
    answers = QueryHits("ja", p, correct, p[:, 1], torch.tensor([True, False, True]))
    found = match_reliability(answers, p, torch.tensor([0.2, 0.3, 0.02]), 0.3)
    assert (found.language, found.queries) == ("ja", 3)
    assert found.shown == pytest.approx((0.9 + 0.2 + 0.3 + 0.1 + 0.05 + 0.02) / 6)
    assert found.true == pytest.approx(2 / 6)
    assert found.brier == pytest.approx((0.1**2 + 0.2**2 + 0.3**2 + 0.1**2 + 0.95**2 + 0.02**2) / 6)
    assert (found.first, found.first_true) == (pytest.approx(1.25 / 3), pytest.approx(2 / 3))
    assert found.refused == pytest.approx(1 / 3)  # 0.3 is not less than 0.3
    assert found.refused_right == pytest.approx(1 / 2)
    assert found.refused_without == pytest.approx(2 / 3)


@pytest.mark.parametrize("gallery", [14, 4])
def test_the_best_ten_are_kept_and_the_best_wrong_one(gallery: int):
    scores = torch.rand(5, gallery, generator=torch.Generator().manual_seed(0)) * 2 - 1
    correct = torch.rand(5, gallery, generator=torch.Generator().manual_seed(1)) < 0.4
    found = best_hits(scores, correct, "ja", True)
    assert (found.language, found.half.tolist()) == ("ja", [True] * 5)
    for q in range(5):
        ranked = sorted(zip(scores[q].tolist(), correct[q].tolist(), strict=True), reverse=True)
        assert list(zip(found.cosines[q].tolist(), found.correct[q].tolist(), strict=True)) == ranked[:10]
        assert found.best_wrong[q].item() == next(score for score, right in ranked if not right)
    assert not best_hits(scores, correct, "ja", False).half.any()


class Recording(Embedder):
    """Keeps the texts in the order it was asked for."""

    asked: list[str]

    def embed_texts(self, texts: str | Iterable[str], batch_size: int = 256) -> torch.Tensor:
        listed = [*texts]
        self.asked = [*getattr(self, "asked", []), *listed]
        return super().embed_texts(listed, batch_size)


def test_each_half_of_the_concepts_is_asked_for_in_a_gallery_of_its_own(
    tiny_embedder: Embedder, run_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    pairs, _ = open_pairs(run_folder / "data.parquet", tiny_embedder.preprocess).sound()
    opened: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        "vlm.training.measure.match_calibration.open_unseen", lambda _, splits: opened.append(splits) or pairs
    )
    monkeypatch.setattr("vlm.training.measure.match_calibration.VALIDATION", ("val_style", "val_concept", "val_both"))
    embedder = Recording(tiny_embedder.model, *tiny_embedder.parts())
    answers = validation_hits(embedder)
    assert opened == [("val_style", "val_concept", "val_both")]
    assert [one.language for one in answers] == ["en", "ja"]
    images = tiny_embedder.embed_images([pairs.rows.image(i) for i in range(len(pairs))])
    concepts, asked, halves = pairs.rows.column("concept"), iter(embedder.asked), []
    for one in answers:
        named = {own[0]: concept for own, concept in zip(pairs.texts(one.language), concepts, strict=True) if own}
        texts = [next(asked) for _ in one.half]
        assert sorted(texts) == sorted(named)
        for half in (True, False):
            own = [named[text] for text, which in zip(texts, one.half.tolist(), strict=True) if which is half]
            assert len(own) == len(named) // 2
            halves.append(set(own))
            gallery = torch.tensor([concept in own for concept in concepts])
            for concept, query in zip(own, (one.half == half).nonzero()[:, 0].tolist(), strict=True):
                scores = images @ tiny_embedder.embed_texts([texts[query]])[0]
                right = torch.tensor([other == concept for other in concepts])
                best_ten, places = scores[gallery].topk(10)
                torch.testing.assert_close(one.cosines[query], best_ten)
                assert one.correct[query].tolist() == right[gallery][places].tolist()
                torch.testing.assert_close(one.best_wrong[query], scores[gallery & ~right].max())
    assert halves[0] == halves[2] != sorted(set(concepts))[: len(halves[0])]  # shuffled
    assert not halves[0] & halves[1]


def test_the_calibration_error_is_the_weighted_distance_of_the_bins():
    probabilities = torch.tensor([0.05, 0.05, 0.95, 1.0], dtype=torch.float64)
    correct = torch.tensor([0, 1, 1, 1], dtype=torch.float64)
    expected = 2 / 4 * abs(0.5 - 0.05) + 2 / 4 * abs(1 - 0.975)
    assert calibration_error(calibration_bins(probabilities, correct, BINS)) == pytest.approx(expected, abs=1e-12)


def test_the_card_has_one_row_per_language_and_as_many_cells_as_heads():
    answers = made_hits(100)
    p = answers.cosines
    text = section(Calibration(scale=12.0, bias=-6.0), [match_reliability(answers, p, p[:, 0], 0.1)] * 2)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert text.startswith(HEADING)
    assert len(rows) == 4
    assert {row.count("|") for row in rows} == {13}
    cells = [float(cell) for cell in rows[3].split("|")[3:-1]]
    one = match_reliability(answers, p, p[:, 0], 0.1)
    assert cells == pytest.approx(list(one[2:]), abs=0.006)
    assert rows[3].startswith("| en | 100 |")
    assert "sigmoid(12.00 cos -6.00)" in text and "has less than 10%" in text


def test_the_command_writes_it_into_the_model_and_keeps_the_rest_of_the_card(
    tiny_embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder, answers = tmp_path / "model", made_hits(100)
    save(tiny_embedder, folder, "# a card\n\nwhat it says\n")
    found = Calibration(scale=20.5, bias=-12.25, data="a test")
    reliable = [match_reliability(answers, answers.cosines, answers.best_wrong, 0.1)]
    monkeypatch.setattr("vlm.training.measure.match_calibration.calibrate", lambda embedder: (found, reliable))
    monkeypatch.setattr("sys.argv", ["calibrate", str(folder)])
    for _ in range(2):  # the second time takes the place of the first
        assert run_alone(declare, "calibrate") == 0
        assert (folder / "README.md").read_text() == "# a card\n\nwhat it says\n\n" + section(found, reliable)
    assert load(folder).calibration == found
    monkeypatch.setattr("sys.argv", ["calibrate", str(tmp_path / "none")])
    assert run_alone(declare, "calibrate") == 1
    output = capsys.readouterr()
    assert output.err.startswith("vlm: error: ") and output.err.count("\n") == 1
    assert output.out == 2 * (section(found, reliable) + "\n")


def test_each_language_is_measured_with_what_was_fitted_to_the_other_half(monkeypatch: pytest.MonkeyPatch):
    answers = [made_hits(600), made_hits(400, seed=1)._replace(language="ja")]
    for one in answers:  # the odd ones are of a world where fewer are correct
        one.correct[1::2] &= torch.rand(one.correct[1::2].shape, generator=torch.Generator().manual_seed(2)) < 0.5
    monkeypatch.setattr("vlm.training.measure.match_calibration.validation_hits", lambda embedder: answers)
    embedder: Embedder = None  # type: ignore[assignment]
    calibration, found = calibrate(embedder)
    assert calibration == fit(answers)
    assert "1000 captions" in calibration.data
    assert [(one.language, one.queries) for one in found] == [("en", 600), ("ja", 400)]
    of_even, of_odd = (
        fit([QueryHits(a.language, *(value[start::2] for value in a[1:])) for a in answers]) for start in (0, 1)
    )
    assert abs(of_even.bias - of_odd.bias) > 1
    for one, measured in zip(answers, found, strict=True):  # even ones with what was fitted to the odd ones
        probabilities, wrong = of_odd.probability(one.cosines), of_odd.probability(one.best_wrong)
        probabilities[1::2] = of_even.probability(one.cosines[1::2])
        wrong[1::2] = of_even.probability(one.best_wrong[1::2])
        expected = match_reliability(one, probabilities, wrong, calibration.line)
        assert measured[2:] == pytest.approx(expected[2:], abs=1e-6)
