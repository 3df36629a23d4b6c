"""training/tasks/objectives.py, against scikit-learn and the formulas."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score, log_loss, mean_absolute_error, r2_score
from sklearn.utils.class_weight import compute_class_weight

from vlm.training.measure.multi_label import average_precisions, best_thresholds
from vlm.training.tasks.objectives import (
    MultiLabel,
    Regression,
    SingleLabel,
    balanced_weights,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def multi_label(n: int = 60, labels: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that know something, and 0/1 targets; the last label never occurs."""
    targets = (torch.rand(n, labels, generator=generator()) < 0.3).float()
    targets[:, -1] = 0
    return torch.randn(n, labels, generator=generator(1)) + targets, targets


def test_single_label_is_cross_entropy_and_chance_is_log_m():
    outputs, targets = torch.randn(8, 3, generator=generator()), torch.arange(8) % 3
    expected = log_loss(targets.numpy(), outputs.double().softmax(1).numpy())
    assert SingleLabel(3).loss(outputs, targets).item() == pytest.approx(expected, rel=1e-5)
    assert SingleLabel(3).loss(torch.zeros(8, 3), targets).item() == pytest.approx(SingleLabel(3).chance_loss)
    assert SingleLabel(3).chance_loss == pytest.approx(math.log(3))


@pytest.mark.parametrize("counts", [(5, 3, 2), (1, 8, 1)])
def test_balanced_weights_are_scikit_learns_and_their_mean_over_the_images_is_1(counts: tuple[int, ...]):
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    weights = balanced_weights(targets, 3)
    np.testing.assert_allclose(
        weights, compute_class_weight("balanced", classes=np.arange(3), y=targets.numpy()), rtol=1e-12
    )
    assert float(weights[targets].mean()) == pytest.approx(1)
    assert balanced_weights(targets, 4)[3] == 0  # a class without images


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("soft", [False, True], ids=["numbers", "mixed"])
def test_class_weights_weigh_each_image_and_chunks_add_up_to_the_batch(smoothing: float, soft: bool):
    outputs, numbers = torch.randn(8, 3, generator=generator()), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    weights, shares = balanced_weights(numbers, 3), F.one_hot(numbers, 3).float()
    objective = SingleLabel(3, label_smoothing=smoothing, weights=weights)
    targets = shares if soft else numbers
    smooth = shares * (1 - smoothing) + smoothing / 3
    expected = -(smooth * weights.float() * outputs.log_softmax(1)).sum(1).mean()
    assert objective.loss(outputs, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    halves = [objective.loss(outputs[part], targets[part]).item() for part in (slice(0, 4), slice(4, 8))]
    assert sum(halves) / 2 == pytest.approx(expected.item(), rel=1e-5)


def test_multi_label_is_the_mean_log_loss_of_every_label():
    outputs, targets = multi_label()
    objective = MultiLabel(targets.mean(0))
    expected = np.mean(
        [log_loss(t, o, labels=[0, 1]) for t, o in zip(targets.T, outputs.double().sigmoid().T, strict=True)]
    )
    assert objective.loss(outputs, targets).item() == pytest.approx(expected, rel=1e-5)
    found = objective.metrics(outputs, targets)
    assert found["val loss"] == pytest.approx(expected, rel=1e-5)
    expected = average_precision_score(targets[:, :-1].numpy(), outputs[:, :-1].numpy(), average="macro")
    assert found["val mAP"] == pytest.approx(expected, abs=1e-6)  # the label that never occurs does not count


@pytest.mark.parametrize("weighted", [False, True])
def test_no_constant_output_has_a_lower_multi_label_loss_than_chance(weighted: bool):
    _, targets = multi_label()
    weights = torch.tensor([1.0, 2.0, 5.0, 1.0]) if weighted else None
    objective = MultiLabel(targets.mean(0), weights=weights)
    constant = torch.zeros(4, requires_grad=True)
    best = torch.optim.LBFGS([constant], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        best.zero_grad()
        value = objective.loss(constant.expand(len(targets), -1), targets)
        value.backward()
        return value

    best.step(loss)
    assert loss().item() == pytest.approx(objective.chance_loss, abs=2e-3)
    first = objective.first_bias()  # where a new head starts; bounded for the label that never occurs
    assert objective.loss(first.expand(len(targets), -1), targets).item() == pytest.approx(
        objective.chance_loss, abs=2e-4
    )
    assert float(first.abs().max()) <= 8


def test_label_smoothing_moves_multi_label_targets_towards_one_half():
    outputs, targets = multi_label()
    smooth = MultiLabel(targets.mean(0), label_smoothing=0.2)
    plain = MultiLabel(targets.mean(0))
    assert smooth.loss(outputs, targets).item() == pytest.approx(plain.loss(outputs, targets * 0.8 + 0.1).item())


def test_average_precision_of_each_label_is_scikit_learns():
    outputs, targets = multi_label()
    found = average_precisions(outputs, targets)
    for label in range(3):
        assert float(found[label]) == pytest.approx(
            average_precision_score(targets[:, label].numpy(), outputs[:, label].numpy())
        )
    assert found[3].isnan()


def f1(targets: torch.Tensor, answers: torch.Tensor) -> float:
    return float(f1_score(targets, answers, zero_division=0.0))  # pyright: ignore[reportArgumentType]  # its default is a str


@pytest.mark.parametrize("ties", [False, True])
def test_no_threshold_has_a_higher_f1(ties: bool):
    outputs, targets = multi_label(40)
    probabilities = outputs.sigmoid().double()
    if ties:
        probabilities = (probabilities * 5).round() / 5
    found = best_thresholds(probabilities, targets)
    for label in range(3):
        score = f1(targets[:, label], probabilities[:, label] >= found[label])
        others = [f1(targets[:, label], probabilities[:, label] >= threshold) for threshold in np.linspace(0, 1, 401)]
        assert score >= max(others) - 1e-12
    assert found[3] == 0.5


def test_regression_is_the_squared_error_in_standard_deviations():
    targets = torch.tensor([[10.0], [30.0], [50.0], [70.0]])
    objective = Regression(targets.mean(0), targets.std(0, correction=0))
    assert objective.loss(torch.zeros(4, 1), targets).item() == pytest.approx(objective.chance_loss)
    outputs = torch.tensor([[-1.0], [-0.5], [0.5], [1.0]])
    values = objective.values(outputs)
    found = objective.metrics(outputs, targets)
    assert found["val MAE"] == pytest.approx(mean_absolute_error(targets.numpy(), values.numpy()))
    assert found["val R2"] == pytest.approx(r2_score(targets.numpy(), values.numpy()))
