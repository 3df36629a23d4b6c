"""training/measure/heads.py, against scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from vlm.errors import DataError
from vlm.metrics import expected_calibration_error
from vlm.training.measure.heads import (
    C_GRID,
    as_linear,
    choose_heads,
    draw_shots,
    fit_logistic_regression,
    nearest_neighbours,
    shots_that_fit,
)


def problem(classes: int, n: int = 90, width: int = 6, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features around one centre per class, far from unit scale."""
    generator = torch.Generator().manual_seed(classes)
    targets = torch.arange(n) % classes
    centres = apart * torch.randn(classes, width, generator=generator)
    features = centres[targets] + torch.randn(n, width, generator=generator)
    return features * torch.logspace(-1, 1, width) + 5, targets


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("c", [0.01, 1.0])
def test_the_linear_probe_is_scikit_learns_logistic_regression(classes: int, c: float):
    features, targets = problem(classes)
    scaled = StandardScaler().fit_transform(features.double().numpy())
    expected = LogisticRegression(C=c, max_iter=5000).fit(scaled, targets.numpy()).predict_proba(scaled)
    with torch.no_grad():
        found = as_linear(fit_logistic_regression(features, targets, c), classes)(features).softmax(1)
    assert np.abs(found.numpy() - expected).max() < 1e-5


def test_a_class_without_training_images_is_refused():
    features, targets = problem(3)
    with pytest.raises(DataError, match=r"3 of 4"):
        as_linear(fit_logistic_regression(features, targets, 1.0), 4)


@pytest.mark.parametrize("classes", [2, 3])
def test_where_every_c_is_right_the_probabilities_choose(classes: int):
    """Far apart, every C has accuracy 1: the strongest regularisation would say 1 / M of everything."""
    features, targets = problem(classes, apart=50.0)
    rest, truth = features[45:], targets[45:]
    (head,), c = choose_heads([(features[:45], targets[:45])], rest, truth, classes)
    with torch.no_grad():
        probabilities = head(rest).softmax(1)
    assert bool((probabilities.argmax(1) == truth).all())
    assert c == C_GRID[-1]
    assert expected_calibration_error(probabilities, truth) < 0.02


def test_c_has_the_lowest_mean_log_loss_on_validation_images():
    features, targets = problem(3, n=120)
    parts = [(features[:30], targets[:30]), (features[30:60], targets[30:60])]
    heads, c = choose_heads(parts, features[60:], targets[60:], 3)

    def loss(strength: float) -> float:
        with torch.no_grad():
            fitted = [as_linear(fit_logistic_regression(*part, strength), 3) for part in parts]
            return sum(float(torch.nn.functional.cross_entropy(head(features[60:]), targets[60:])) for head in fitted)

    assert c == min(C_GRID, key=loss) and len(heads) == 2
    torch.testing.assert_close(heads[1].weight, as_linear(fit_logistic_regression(*parts[1], c), 3).weight)


@pytest.mark.parametrize("k", [1, 7, 1000])
def test_nearest_neighbours_vote_as_scikit_learns_do(k: int):
    features, targets = problem(4, n=200)
    train, rest = slice(0, 100), slice(100, 200)
    weights: Any = lambda far: np.exp((1 - far) / 0.07)  # noqa: E731  # scikit-learn's types know strings only
    theirs = KNeighborsClassifier(min(k, 100), metric="cosine", weights=weights)
    theirs.fit(features[train].double().numpy(), targets[train].numpy())
    expected = theirs.predict_proba(features[rest].double().numpy())
    found = nearest_neighbours(features[train].double(), targets[train], features[rest].double(), 4, k=k)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_a_draw_holds_so_many_images_of_each_class_and_depends_on_its_seed_alone():
    targets = torch.tensor([0, 1, 2, 2, 1, 0, 2, 1, 0, 2])
    drawn = [draw_shots(targets, 3, 2, seed) for seed in range(20)]
    assert all(targets[index].tolist() == [0, 0, 1, 1, 2, 2] and len(set(index.tolist())) == 6 for index in drawn)
    assert len({tuple(index.tolist()) for index in drawn}) > 5
    assert torch.equal(draw_shots(targets, 3, 2, 7), drawn[7])
    with pytest.raises(DataError, match=r"Class 0 .* 3 .* 4"):
        draw_shots(targets, 3, 4, 0)


@pytest.mark.parametrize(
    ("shots", "fitting", "left_out"),
    [([1, 2, 3], [1, 2], [3]), ([16, 1], [1], [16]), ([], [], []), ([4, 9], [], [4, 9])],
)
def test_shots_that_do_not_fit_are_named_with_the_rarest_class(
    shots: list[int], fitting: list[int], left_out: list[int]
):
    kept, lines = shots_that_fit(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]), ("dog", "red cat", "bird"), shots)
    assert kept == fitting
    assert len(lines) == len(left_out)
    for line, count in zip(lines, left_out, strict=True):
        assert "'red cat'" in line and f" {count} " in line and " 2" in line


def test_a_class_without_any_image_leaves_no_shots():
    kept, (line,) = shots_that_fit(torch.tensor([0, 0]), ("dog", "cat"), [1])
    assert kept == [] and "'cat'" in line and "0" in line
