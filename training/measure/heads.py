"""Heads on frozen features (n, D): logistic regression for the linear probe and few-shot, and k nearest neighbours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from vlm.errors import DataError

C_GRID = tuple(10.0**power for power in range(-5, 3))  # inverse regularisation strength, strong to weak
_SAME_LOSS = 1e-6  # nats; validation losses closer than this count as equal


def fit_logistic_regression(features: Tensor, targets: Tensor, c: float) -> Pipeline:
    """Fit scikit-learn's logistic regression to standardised features.

    Args:
        features: (n, D).
        targets: (n,), class numbers.
        c: inverse regularisation strength.

    Returns:
        The fitted pipeline of StandardScaler and LogisticRegression.
    """
    regression = LogisticRegression(C=c, max_iter=5000)
    return make_pipeline(StandardScaler(), regression).fit(features.double().numpy(), targets.numpy())


def as_linear(fitted: Pipeline, num_classes: int) -> nn.Linear:
    """The same function of raw features (n, D) as one linear layer: its softmax is the pipeline's predict_proba.

    Args:
        fitted: of `fit_logistic_regression`.
        num_classes: M.

    Raises:
        DataError: where the training images do not show all M classes.
    """
    scaler: Any = fitted[0]
    regression: Any = fitted[-1]
    if len(regression.classes_) != num_classes:
        raise DataError(
            f"The training images show {len(regression.classes_)} of {num_classes} classes; wanted all. "
            "Add images of the others, or leave those classes out."
        )
    weight, bias = regression.coef_ / scaler.scale_, regression.intercept_
    bias = bias - weight @ scaler.mean_
    if num_classes == 2:  # scikit-learn keeps one row, that of the second class
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    head = nn.Linear(weight.shape[1], num_classes)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
    return head


@torch.no_grad()
def choose_heads(
    parts: Sequence[tuple[Tensor, Tensor]], features: Tensor, targets: Tensor, num_classes: int
) -> tuple[list[nn.Linear], float]:
    """Fit one linear head to each training set, all with the C that has the lowest mean log loss on validation data.

    Of equal losses the largest C is taken, the least regularised: accuracy alone cannot tell them apart where all are
    right, and strong regularisation gives useless probabilities.

    Args:
        parts: training sets, each of features (n, D) and targets (n,).
        features: of the validation images, (n, D).
        targets: of the validation images, (n,).
        num_classes: M.

    Returns:
        The heads, one for each training set, and C.
    """
    found: list[tuple[float, float, list[nn.Linear]]] = []
    for c in C_GRID:
        heads = [as_linear(fit_logistic_regression(*part, c), num_classes) for part in parts]
        losses = [float(F.cross_entropy(head(features).double(), targets)) for head in heads]
        found.append((sum(losses) / len(losses), c, heads))
    lowest = min(loss for loss, _, _ in found)
    _, c, heads = max((entry for entry in found if entry[0] <= lowest + _SAME_LOSS), key=lambda entry: entry[1])
    return heads, c


def nearest_neighbours(
    train: Tensor, train_targets: Tensor, features: Tensor, num_classes: int, *, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Weighted k-NN classification by cosine similarity (Wu et al. 2018, section 3.4; DINO, Caron et al. 2021).

    Args:
        train: features of the training images, (n, D).
        train_targets: (n,), class numbers.
        features: (m, D), images to classify.
        num_classes: M.
        k: neighbours that vote; all training images where there are fewer.
        temperature: a neighbour of cosine s votes with weight exp(s / temperature).

    Returns:
        (m, M), the sum of the votes for each class, as a share of all votes.
    """
    votes = F.one_hot(train_targets, num_classes).to(train.dtype)  # (n, M)
    unit, parts = F.normalize(train, dim=-1), []
    for part in F.normalize(features, dim=-1).split(1024):
        cosines, neighbours = (part @ unit.T).topk(min(k, len(train)), dim=1)  # (m, k)
        weights = (cosines / temperature).softmax(1)
        parts.append((weights[:, :, None] * votes[neighbours]).sum(1))
    return torch.cat(parts)


def draw_shots(targets: Tensor, num_classes: int, count: int, seed: int) -> Tensor:
    """Draw `count` images of each class.

    Args:
        targets: (n,), class numbers.
        num_classes: M.
        count: images of each class; every class must have so many (`shots_that_fit`).
        seed: another seed draws other images.

    Returns:
        (M count,), image numbers, class by class.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for number in range(num_classes):
        of_class = (targets == number).nonzero().flatten()
        if len(of_class) < count:
            raise DataError(
                f"Class {number} has {len(of_class)} training images; few-shot wanted {count} of each. Use fewer shots."
            )
        chosen.append(of_class[torch.randperm(len(of_class), generator=generator)[:count]])
    return torch.cat(chosen)


def shots_that_fit(targets: Tensor, names: Sequence[str], shots: Sequence[int]) -> tuple[list[int], list[str]]:
    """Returns the numbers of images per class that every class has.

    Args:
        targets: (n,), class numbers of the training images.
        names: of the M classes.
        shots: images per class that few-shot was asked for.

    Returns:
        The shots that fit, and a line for each that does not, naming the class that has the fewest images.
    """
    counts = targets.bincount(minlength=len(names))
    fewest = int(counts.argmin())
    least = int(counts[fewest])
    left_out = [
        f"few-shot with {count} images per class is left out: class {names[fewest]!r} has {least}"
        for count in shots
        if count > least
    ]
    return [count for count in shots if count <= least], left_out
