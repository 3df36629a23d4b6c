"""Updates of many tensors in one call and in place, as torch's own optimizers make them: few kernels, no new memory."""

# pyright: reportPrivateImportUsage=false

from collections.abc import Sequence

import torch
from torch import Tensor


def multiply(tensors: Sequence[Tensor], factor: Tensor | float) -> None:
    """tensors *= factor, a number or a scalar on their device."""
    if tensors:
        torch._foreach_mul_(list(tensors), factor)


def add(tensors: Sequence[Tensor], others: Sequence[Tensor], alpha: float) -> None:
    """tensors += alpha others."""
    if tensors:
        torch._foreach_add_(list(tensors), list(others), alpha=alpha)


def lerp(tensors: Sequence[Tensor], others: Sequence[Tensor], weight: float) -> None:
    """tensors += weight (others - tensors)."""
    if tensors:
        torch._foreach_lerp_(list(tensors), list(others), weight)
