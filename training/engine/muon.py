"""Muon: momentum whose matrices are orthogonalised by Newton-Schulz iterations (Jordan et al. 2024)."""

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from vlm.training.engine import foreach
from vlm.training.engine.precision import native_bfloat16


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum and orthogonalised updates, for matrices.

    torch.optim.Muon iterates in bfloat16, which is slow on CPUs without it; those iterate in float32 here.  Matrices of
    one shape are orthogonalised together.  As torch's fused optimizers do, `step` does nothing on the device where the
    attribute `found_inf` is a scalar tensor of value 1.

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        momentum: share of the old momentum that stays.
        weight_decay: share of a weight that a step of rate 1 takes away.
        fused: those of the matrices that are q, k and v on top of each other, (3 D, D); each third is a matrix.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Tensor] | list[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        fused: Collection[Tensor] = (),
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._fused = {id(p) for p in fused}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update.  It uses up the gradients: they hold the momentum's update afterwards."""
        keep = None if self.found_inf is None else 1 - self.found_inf
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._momentum(weights, group["momentum"], keep)
                self._move(weights, group["lr"], group["weight_decay"], keep)

    def _momentum(self, weights: list[Tensor], momentum: float, keep: Tensor | None) -> None:
        """Nesterov: m <- momentum m + (1 - momentum) g, and g <- (1 - momentum) g + momentum m."""
        gradients = [p.grad for p in weights if p.grad is not None]
        buffers = [self._buffer(p) for p in weights]
        if keep is None:
            foreach.multiply(buffers, momentum)
        else:
            for gradient in gradients:
                gradient.nan_to_num_(0.0, 0.0, 0.0)
            foreach.multiply(gradients, keep)
            foreach.multiply(buffers, 1 - (1 - momentum) * keep)
        foreach.add(buffers, gradients, alpha=1 - momentum)
        foreach.multiply(gradients, 1 - momentum)
        foreach.add(gradients, buffers, alpha=momentum)

    def _move(self, weights: list[Tensor], lr: float, decay: float, keep: Tensor | None) -> None:
        """Weights <- (1 - lr decay) weights - lr scale orthogonalised update."""
        shapes: dict[tuple[int, int], tuple[list[Tensor], list[Tensor]]] = {}
        for p in weights:
            assert p.grad is not None
            parts = 3 if id(p) in self._fused else 1
            for weight, update in zip(p.chunk(parts), p.grad.chunk(parts), strict=True):
                matrices, updates = shapes.setdefault((update.shape[0], update.shape[1]), ([], []))
                matrices.append(weight)
                updates.append(update)
        for (rows, columns), (matrices, updates) in shapes.items():
            found = orthogonalise(torch.stack(updates))
            if decay:
                foreach.multiply(matrices, 1 - lr * decay * (1 if keep is None else keep))
            if keep is not None:
                found *= keep
            foreach.add(matrices, list(found), alpha=-lr * math.sqrt(max(1, rows / columns)))

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        return state["momentum"]


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iterations: (S, n, m) -> the same row and column spaces, all singular values near 1.

    Args:
        matrices: (S, n, m), each on its own.
        steps: iterations.
    """
    fast = torch.bfloat16 if native_bfloat16(matrices.device) else torch.float32
    x = matrices.to(torch.float64 if matrices.dtype == torch.float64 else fast)
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.transpose(1, 2)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    a, b, c = 3.4445, -4.7750, 2.0315  # the quintic of Jordan et al. 2024
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.transpose(1, 2)).to(matrices.dtype)
