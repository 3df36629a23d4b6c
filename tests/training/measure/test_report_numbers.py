import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import classification_report
from torch import Tensor

from vlm.training.data.labelled import ClassSet
from vlm.training.measure.report_numbers import card_part, confusion, fit_temperature, most_wrong, numbers

CLASSES = ClassSet(keys=("dog", "cat", "bird"), names={"ja": ("犬", "猫", "鳥")})


def honest(n: int = 4000, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits whose softmax is the true distribution of the targets."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("factor", [0.25, 1.0, 5.0])
def test_the_temperature_undoes_a_factor_on_honest_logits(factor: float):
    logits, targets = honest()
    assert fit_temperature(logits * factor, targets) == pytest.approx(factor, rel=0.08)


def test_no_temperature_nearby_is_likelier():
    logits, targets = honest(300)
    found = fit_temperature(3 * logits, targets)
    loss = F.cross_entropy(3 * logits.double() / found, targets)
    for near in np.linspace(0.9, 1.1, 21):
        assert loss <= F.cross_entropy(3 * logits.double() / (found * near), targets) + 1e-12


def test_a_classifier_that_is_never_wrong_gets_the_sharpest_temperature_allowed():
    assert fit_temperature(torch.eye(3), torch.arange(3)) == pytest.approx(1 / 20, rel=0.01)
    assert fit_temperature(torch.eye(3), torch.tensor([1, 2, 0])) == pytest.approx(
        20, rel=0.01
    )  # never right: the flattest


def test_per_class_numbers_are_scikit_learns_and_confusion_has_true_classes_as_rows():
    logits, targets = honest(200)
    found = numbers(logits, targets, 1.0, CLASSES, "ja")
    expected = classification_report(
        targets.numpy(), logits.argmax(1).numpy(), target_names=list("犬猫鳥"), output_dict=True
    )
    assert isinstance(expected, dict)
    for row in found["classes"]:
        theirs = expected[row["name"]]
        assert (row["precision"], row["recall"], row["f1"], row["n"]) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"])
        )
    assert found["top_1"]["value"] == pytest.approx(expected["accuracy"])
    assert found["balanced_accuracy"]["value"] == pytest.approx(expected["macro avg"]["recall"])
    counts = confusion(logits, targets)
    assert counts[0].sum() == (targets == 0).sum() and counts[:, 0].sum() == (logits.argmax(1) == 0).sum()
    others = counts[0].copy()
    others[0] = 0
    assert found["classes"][0]["most_often_taken_for"] == "犬猫鳥"[int(others.argmax())]
    assert "top_5" not in found  # of three classes any five are right


def test_a_temperature_changes_honesty_and_no_accuracy():
    logits, targets = honest()
    found = numbers(5 * logits, targets, 5.0, CLASSES, "en")
    plain = numbers(logits, targets, 1.0, CLASSES, "en")
    assert found["with_temperature"]["expected_calibration_error"] == pytest.approx(
        plain["expected_calibration_error"], abs=1e-6
    )
    assert found["with_temperature"]["expected_calibration_error"] < found["expected_calibration_error"] / 3
    assert found["top_1"] == plain["top_1"] and found["confusion"] == plain["confusion"]


def test_a_class_that_never_occurs_is_reported_with_no_images():
    found = numbers(torch.tensor([[2.0, 1.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]), 1.0, CLASSES, "en")
    assert found["classes"][2]["n"] == 0
    assert found["classes"][1]["precision"] == found["classes"][2]["recall"] == 0  # of no answers, of no images
    assert found["always_the_largest_class"] == 0.75
    assert found["balanced_accuracy"]["value"] == pytest.approx(0.5)
    assert not any(isinstance(value, float) and math.isnan(value) for row in found["classes"] for value in row.values())


def test_the_most_confidently_wrong_come_first_and_nothing_right_among_them():
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    assert most_wrong(probabilities, torch.tensor([0, 1, 0, 1]), 10) == [2, 3, 1]
    assert most_wrong(probabilities, torch.tensor([0, 1, 0, 1]), 2) == [2, 3]
    assert most_wrong(probabilities, torch.tensor([0, 0, 1, 0]), 2) == []


def test_the_card_names_chance_beside_every_accuracy():
    logits, targets = honest(50)
    source = {"split": "validation", "data": "birds", "temperature_fitted_on": "validation"}
    card = card_part(source | numbers(logits, targets, 1.0, CLASSES, "ja"))
    rows = [line for line in card.splitlines() if line.startswith(("| top-", "| balanced"))]
    assert len(rows) == 2 and all(row.endswith("| 0.333 |") for row in rows)
    for row in numbers(logits, targets, 1.0, CLASSES, "ja")["classes"]:
        cells = [row["name"], f"{row['n']}", *(f"{row[name]:.3f}" for name in ("precision", "recall", "f1"))]
        assert f"| {' | '.join(cells)} | {row['most_often_taken_for']} |\n" in card
    assert "are the same images" in card
    other = card_part(source | {"temperature_fitted_on": "held"} | numbers(logits, targets, 1.0, CLASSES, "ja"))
    assert "are the same images" not in other and "fitted on `held`" in other


@pytest.mark.parametrize(("classes", "ks"), [(5, (1,)), (6, (1, 5)), (7, (1, 5))])
def test_five_answers_of_five_are_no_achievement(classes: int, ks: tuple[int, ...]):
    logits, targets = honest(50, classes)
    found = numbers(logits, targets, 1.0, ClassSet(keys=tuple("abcdefg"[:classes])), "en")
    source = {"split": "validation", "data": "birds", "temperature_fitted_on": "validation"}
    lines = card_part(source | found).splitlines()
    tops = [line for line in lines if line.startswith("| top-")]
    ranks = (logits > logits.gather(1, targets[:, None])).sum(1)  # of the true class, from 0
    assert tops == [f"| top-{k} | {(ranks < k).double().mean():.3f} | {k / classes:.3f} |" for k in ks]
    assert sum(line.startswith(f"| {letter} |") for line in lines for letter in "abcdefg") == classes


def test_a_class_that_is_never_mistaken_is_taken_for_nothing():
    found = numbers(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 1]), 1.0, CLASSES, "en")
    assert [row["most_often_taken_for"] for row in found["classes"]] == [None, None, None]
    found = numbers(torch.eye(3)[[0, 2, 2, 1, 0]], torch.tensor([0, 1, 1, 1, 1]), 1.0, CLASSES, "en")
    assert [row["most_often_taken_for"] for row in found["classes"]] == [None, "bird", None]
    source = {"split": "a", "data": "birds", "temperature_fitted_on": "b"}
    assert "| dog | 1 | 0.500 | 1.000 | 0.667 |  |" in card_part(source | found)
