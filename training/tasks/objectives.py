"""Objectives of a classifier: single-label, multi-label or regression, each with its loss and metrics.

Outputs are (B, M): logits of M classes, or M standardised values.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.metrics import top_k_accuracy
from vlm.training.measure.multi_label import average_precisions


class Objective(ABC):
    """A loss and the validation numbers that belong to it."""

    @property
    @abstractmethod
    def chance_loss(self) -> float:
        """Loss of a model that gives every image the best constant output."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the validation numbers."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch, scalar; outputs (B, M), targets as the data has them, or mixed (B, M)."""

    @abstractmethod
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Validation numbers by name; outputs (n, M), targets as the data has them."""


@dataclass(frozen=True)
class SingleLabel(Objective):
    """One class per image: softmax cross-entropy.  Targets are class numbers (B,), or shares (B, M) when mixed."""

    num_classes: int  # M
    label_smoothing: float = 0.0  # Szegedy et al. 2016
    weights: Tensor | None = None  # (M,), of the classes; their mean over the training images is 1

    @property
    def chance_loss(self) -> float:
        return float(torch.tensor(float(self.num_classes), dtype=torch.float64).log())

    @property
    def names(self) -> tuple[str, ...]:
        return ("val loss", "val top-1", *(["val top-5"] if self.num_classes > 5 else []))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.weights is None:
            return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)
        weights = self.weights.to(outputs)
        # the mean over the batch, not over the sum of its weights: chunks of a batch then add up to the whole
        return F.cross_entropy(
            outputs, targets, weight=weights, label_smoothing=self.label_smoothing, reduction="none"
        ).mean()

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        ks = (1, 5) if self.num_classes > 5 else (1,)
        accuracy = {f"val top-{k}": top_k_accuracy(outputs, targets, k) for k in ks}
        return {"val loss": float(F.cross_entropy(outputs, targets)), **accuracy}


@dataclass(frozen=True)
class MultiLabel(Objective):
    """Any number of labels per image: binary cross-entropy of each label.  Targets (B, M) are 0, 1 or between."""

    shares: Tensor  # (M,), share of the training images that have each label
    label_smoothing: float = 0.0  # targets become t (1 - s) + s / 2
    weights: Tensor | None = None  # (M,), of the images that have a label, against 1 for those that do not

    @property
    def chance_loss(self) -> float:
        p, weight, best = self._best_constant()
        return float(-(weight * p * best.log() + (1 - p) * (1 - best).log()).mean())

    def first_bias(self) -> Tensor:
        """The constant logits of the lowest loss, (M,): where a new head starts (Lin et al. 2017, section 3.3).

        From 0 a bias needs thousands of steps to reach a rare label's log odds, and features do that work meanwhile.
        At most 8: a label that no training image has, or all have, must stay learnable.
        """
        return self._best_constant()[2].logit().clamp(-8, 8).float()

    def _best_constant(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (shares, weights of the images with a label, the constant probability of the lowest loss), (M,)."""
        p = self.shares.double().clamp(1e-12, 1 - 1e-12)
        weight = torch.ones_like(p) if self.weights is None else self.weights.double()
        return p, weight, weight * p / (weight * p + 1 - p)

    @property
    def names(self) -> tuple[str, ...]:
        return ("val loss", "val mAP")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        smooth = targets.to(outputs) * (1 - self.label_smoothing) + self.label_smoothing / 2
        weights = None if self.weights is None else self.weights.to(outputs)
        return F.binary_cross_entropy_with_logits(outputs, smooth, pos_weight=weights)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        wanted = targets.to(outputs)
        loss = float(F.binary_cross_entropy_with_logits(outputs, wanted))
        precisions = average_precisions(outputs, targets)
        return {"val loss": loss, "val mAP": float(precisions.nanmean())}


@dataclass(frozen=True)
class Regression(Objective):
    """Numbers per image: mean squared error of standardised values.  Targets (B, M) are in their own units."""

    mean: Tensor  # (M,), of the training targets
    std: Tensor  # (M,)

    @property
    def chance_loss(self) -> float:
        return 1.0

    @property
    def names(self) -> tuple[str, ...]:
        return ("val loss", "val MAE", "val R2")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, (targets.to(outputs) - self.mean.to(outputs)) / self.std.to(outputs))

    def values(self, outputs: Tensor) -> Tensor:
        """Standardised outputs (n, M) -> values in the targets' units."""
        return outputs * self.std.to(outputs) + self.mean.to(outputs)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        errors = self.values(outputs.double()) - targets.double()
        spread = (targets.double() - targets.double().mean(0)).square().sum(0)
        return {
            "val loss": float(self.loss(outputs.double(), targets)),
            "val MAE": float(errors.abs().mean()),
            "val R2": float((1 - errors.square().sum(0) / spread).mean()),
        }


def balanced_weights(targets: Tensor, num_classes: int) -> Tensor:
    """scikit-learn's "balanced" class weights, n / (M n_c), (M,); 0 for a class without images; targets (n,)."""
    counts = targets.bincount(minlength=num_classes).double()
    return torch.where(counts > 0, len(targets) / (num_classes * counts.clamp_min(1)), 0.0)
