"""training/measure/classifier_metrics.py, against scikit-learn and the definitions."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics
from torch import Tensor

from vlm.training.measure.classifier_metrics import (
    Temperature,
    card_section,
    classifier_metrics,
    confusion_matrix,
    fit_temperature,
    most_confused,
    most_wrong,
)

KEYS = ("dog", "cat", "bird")
NAMES = ("犬", "猫", "鳥")
ONE = Temperature(1.0, at_limit=False)
SOURCE = {"split": "validation", "data": "birds", "temperature_fitted_on": "validation"}


def calibrated(n: int = 4000, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits whose softmax is the true distribution of the targets."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("factor", [0.25, 1.0, 5.0])
def test_the_temperature_undoes_a_factor_on_calibrated_logits(factor: float):
    logits, targets = calibrated()
    found = fit_temperature(logits * factor, targets)
    assert found.value == pytest.approx(factor, rel=0.08) and not found.at_limit


def test_no_temperature_nearby_is_likelier():
    logits, targets = calibrated(300)
    found = fit_temperature(3 * logits, targets).value
    loss = F.cross_entropy(3 * logits.double() / found, targets)
    for near in np.linspace(0.9, 1.1, 21):
        assert loss <= F.cross_entropy(3 * logits.double() / (found * near), targets) + 1e-12


@pytest.mark.parametrize(("targets", "limit"), [([0, 1, 2], 1 / 20), ([1, 2, 0], 20)], ids=["all right", "all wrong"])
def test_a_temperature_at_the_limit_of_its_range_says_so(targets: list[int], limit: float):
    found = fit_temperature(torch.eye(3), torch.tensor(targets))
    assert found.value == pytest.approx(limit, rel=0.01) and found.at_limit
    assert "at the limit" in str(found)
    metrics = classifier_metrics(torch.eye(3), torch.tensor(targets), found, KEYS, NAMES)
    assert metrics["temperature_at_limit"]
    assert "at the limit of 0.05 to 20" in card_section(SOURCE | metrics)


def test_per_class_numbers_are_scikit_learns_and_confusion_has_true_classes_as_rows():
    logits, targets = calibrated(200)
    found = classifier_metrics(logits, targets, ONE, KEYS, NAMES)
    answers = logits.argmax(1).numpy()
    expected = metrics.classification_report(targets.numpy(), answers, target_names=NAMES, output_dict=True)
    assert isinstance(expected, dict)
    for key, row in zip(KEYS, found["classes"], strict=True):
        theirs = expected[row["name"]]
        assert row["key"] == key
        assert (row["precision"], row["recall"], row["f1"], row["n"]) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"])
        )
    assert found["top_1"]["value"] == pytest.approx(expected["accuracy"])
    assert found["balanced_accuracy"]["value"] == pytest.approx(expected["macro avg"]["recall"])
    counts = metrics.confusion_matrix(targets.numpy(), answers)
    assert found["confusion"] == counts.tolist()
    np.testing.assert_array_equal(confusion_matrix(logits, targets, [2, 0]), counts[[2, 0]][:, [2, 0]])
    np.fill_diagonal(counts, 0)
    assert found["classes"][0]["most_often_taken_for"] == NAMES[int(counts[0].argmax())]
    largest = found["most_frequent_confusions"][0]
    true, answer = np.unravel_index(counts.argmax(), counts.shape)
    assert largest == {"true": NAMES[true], "answer": NAMES[answer], "count": counts.max()}
    assert "top_5" not in found  # of three classes any five are right


def test_a_temperature_changes_calibration_and_no_accuracy():
    logits, targets = calibrated()
    found = classifier_metrics(5 * logits, targets, Temperature(5.0, at_limit=False), KEYS, NAMES)
    plain = classifier_metrics(logits, targets, ONE, KEYS, NAMES)
    after = found["with_temperature"]["expected_calibration_error"]
    assert after == pytest.approx(plain["expected_calibration_error"], abs=1e-6)
    assert after < found["expected_calibration_error"] / 3
    assert found["top_1"] == plain["top_1"] and found["confusion"] == plain["confusion"]


@pytest.mark.parametrize("absent", [2, 0])
def test_a_class_without_images_has_blank_shares_and_one_that_is_never_answered_no_precision(absent: int):
    """Class 1 occurs and is never answered; class `absent` does not occur."""
    present = 2 - absent
    logits = torch.zeros(4, 3)
    logits[:, present] = 1
    targets = torch.tensor([present, present, present, 1])
    found = classifier_metrics(logits, targets, ONE, KEYS, NAMES)
    missing, never = found["classes"][absent], found["classes"][1]
    assert (missing["n"], missing["recall"], missing["f1"], missing["precision"]) == (0, None, None, None)
    assert (never["n"], never["recall"], never["f1"], never["precision"]) == (1, 0, 0, None)
    assert found["always_the_largest_class"] == 0.75
    assert found["balanced_accuracy"]["value"] == pytest.approx(0.5)
    assert f"| {NAMES[absent]} | 0 |  |  |  |  |" in card_section(SOURCE | found)
    json.loads(json.dumps(found, allow_nan=False))


def test_the_most_confidently_wrong_come_first_and_nothing_right_among_them():
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    assert most_wrong(probabilities, torch.tensor([0, 1, 0, 1]), 10) == [2, 3, 1]
    assert most_wrong(probabilities, torch.tensor([0, 1, 0, 1]), 2) == [2, 3]
    assert most_wrong(probabilities, torch.tensor([0, 0, 1, 0]), 2) == []


def test_the_card_names_chance_beside_every_accuracy():
    logits, targets = calibrated(50)
    found = classifier_metrics(logits, targets, ONE, KEYS, NAMES)
    card = card_section(SOURCE | found)
    rows = [line for line in card.splitlines() if line.startswith(("| top-", "| balanced"))]
    assert len(rows) == 2 and all(row.endswith("| 0.333 |") for row in rows)
    for row in found["classes"]:
        cells = [row["name"], f"{row['n']}", *(f"{row[name]:.3f}" for name in ("precision", "recall", "f1"))]
        assert f"| {' | '.join(cells)} | {row['most_often_taken_for']} |\n" in card
    assert "are the same images" in card
    other = card_section(SOURCE | {"temperature_fitted_on": "held"} | found)
    assert "are the same images" not in other and "fitted on `held`" in other


@pytest.mark.parametrize(("classes", "ks"), [(5, (1,)), (6, (1, 5)), (7, (1, 5))])
def test_top_5_is_left_out_where_any_five_classes_are_all(classes: int, ks: tuple[int, ...]):
    logits, targets = calibrated(50, classes)
    found = classifier_metrics(logits, targets, ONE, tuple("abcdefg"[:classes]), tuple("abcdefg"[:classes]))
    lines = card_section(SOURCE | found).splitlines()
    tops = [line for line in lines if line.startswith("| top-")]
    ranks = (logits > logits.gather(1, targets[:, None])).sum(1)  # of the true class, from 0
    assert tops == [f"| top-{k} | {(ranks < k).double().mean():.3f} | {k / classes:.3f} |" for k in ks]
    assert sum(line.startswith(f"| {letter} |") for line in lines for letter in "abcdefg") == classes


def test_a_class_that_is_never_mistaken_is_taken_for_nothing():
    found = classifier_metrics(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 1]), ONE, KEYS, NAMES)
    assert [row["most_often_taken_for"] for row in found["classes"]] == [None, None, None]
    found = classifier_metrics(torch.eye(3)[[0, 2, 2, 1, 0]], torch.tensor([0, 1, 1, 1, 1]), ONE, KEYS, NAMES)
    assert [row["most_often_taken_for"] for row in found["classes"]] == [None, "鳥", None]
    assert "| 犬 | 1 | 0.500 | 1.000 | 0.667 |  |" in card_section(SOURCE | found)


@pytest.mark.parametrize("classes", [101, 10_000])
def test_of_many_classes_the_card_shows_the_worst_and_the_best_and_the_files_stay_small(classes: int):
    """Class 0 is always taken for class 1, class 2 every second time; the others that occur are right."""
    targets = torch.arange(100).repeat(2)
    answers = targets.clone()
    answers[targets == 0] = 1
    answers[102] = 3
    logits = torch.zeros(len(targets), classes).scatter_(1, answers[:, None], 1.0)
    names = tuple(f"class {number}" for number in range(classes))
    found = classifier_metrics(logits, targets, ONE, names, names)
    assert "confusion" not in found and len(found["classes"]) == classes
    assert found["most_frequent_confusions"] == [
        {"true": "class 0", "answer": "class 1", "count": 2},
        {"true": "class 2", "answer": "class 3", "count": 1},
    ]
    assert most_confused(logits, targets, 2) == [0, 1]
    assert len(json.dumps(found)) < 200 * classes + 5000
    card = card_section(SOURCE | found)
    assert len(card) < 6000
    assert f"{classes} classes, {classes - 100} of them without images" in card
    shown = [line.split("|")[1].strip() for line in card.splitlines() if re.match(r"\| class \d", line)]
    assert len(shown) == 40 and shown[:4] == ["class 0", "class 1", "class 2", "class 3"]
