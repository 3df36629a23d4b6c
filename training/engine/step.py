"""One optimizer step, entirely on the device, and the state it changes."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlm.training.data.stream import AnyBatch, Batch
from vlm.training.engine import foreach
from vlm.training.engine.best import Best, metric_of
from vlm.training.engine.distributed import Processes
from vlm.training.engine.optim import average_decay, learning_rate_factor, optimizers
from vlm.training.engine.parallel import average_whole, clip_gradients, prepare
from vlm.training.engine.precision import LossScale
from vlm.training.engine.state import load_state
from vlm.training.recipe.config import LoopRecipe

# (model, batch, loss scale) -> the loss of the whole batch; adds the gradients of scale * loss to `.grad`
Backward = Callable[[nn.Module, AnyBatch, Tensor | float], Tensor]

_TEMPERATURE = ("logit_scale", "logit_bias")


class Training:
    """A model in training: its weights, their average, the optimizers, and what one step does to them.

    Args:
        model: changed in place.
        backward: adds the gradients of a batch.
        recipe: [run] and [optim] are read.
        processes: those that train together.
    """

    def __init__(self, model: nn.Module, backward: Backward[Any], recipe: LoopRecipe, processes: Processes):
        self.weights, self.backward, self.recipe, self.processes = model, backward, recipe, processes
        self.model = prepare(model, recipe.run, processes)  # the same weights, as this run computes with them
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizers = optimizers(model, recipe.optim)
        self.peaks = [[group["lr"] for group in opt.param_groups] for opt in self.optimizers]
        self.average = {name: p.detach().clone() for name, p in self.named.items()} if recipe.run.ema_decay else {}
        self.best = Best(self.named, recipe.run) if recipe.run.best else None
        self.loss_scale = LossScale(processes.device) if recipe.run.precision == "float16" else None
        self.skipped = 0  # steps so far that were not finite
        self.highest_scale = math.log(recipe.optim.max_logit_scale)
        if "logit_scale" in self.named:  # a loaded model may lie above: SigLIP's temperature is 117
            self.highest_scale = max(self.highest_scale, float(self.named["logit_scale"].detach()))
        model.train()

    def step(self, step: int, batch: Batch) -> Tensor:
        """One optimizer update; nothing waits for the device.

        Its random numbers depend on (seed, step, rank) alone, so none need to be saved.  A step whose loss or gradient
        norm is not finite changes no weight and no optimizer state.

        Returns:
            (loss, gradient norm before clipping, logit_scale and logit_bias where the model has them, whether the step
            was skipped, and whether that counts), on the device: `named_numbers` reads them.
        """
        run, optim = self.recipe.run, self.recipe.optim
        torch.manual_seed(int(np.random.SeedSequence([run.seed, step, self.processes.rank]).generate_state(1)[0]))
        scale = self.loss_scale.scale if self.loss_scale else 1.0
        loss = self.processes.mean(self.backward(self.model, batch, scale))
        if run.shard and self.processes.size > 1:
            average_whole(self.named.values(), self.processes)
        if self.loss_scale:
            gradients = [p.grad for p in self.named.values() if p.grad is not None]
            foreach.multiply(gradients, 1 / self.loss_scale.scale)
        norm = clip_gradients(self.named.values(), optim.clip_norm)
        overflow = ~norm.isfinite()
        skip = overflow | ~loss.isfinite()
        counted = skip  # float16 overflows now and then: such a step is skipped, the next has a smaller loss scale
        if self.loss_scale:
            counted = ~loss.isfinite() | (overflow & (self.loss_scale.scale < 1))
            self.loss_scale.update(overflow.float())
        self._optimize(learning_rate_factor(step, run.steps, optim), skip.float())
        self._limit_temperature()
        self._move_average(average_decay(run.ema_decay, step))
        temperature = [self.named[name] for name in _TEMPERATURE if name in self.named]
        numbers = [loss, norm, *temperature, skip, counted]
        return torch.stack([number.detach().to(torch.promote_types(loss.dtype, torch.float32)) for number in numbers])

    def named_numbers(self, step: int, row: list[float]) -> dict[str, float] | None:
        """The numbers of a step by name, read from the device; None where it was skipped and that counts."""
        loss, norm, *temperature, _, counted = row
        if counted:
            return None
        found = {"loss": loss, "gradient_norm": norm}
        found["lr_factor"] = learning_rate_factor(step, self.recipe.run.steps, self.recipe.optim)
        names = [name for name in _TEMPERATURE if name in self.named]
        return found | dict(zip(names, temperature, strict=True))

    def _optimize(self, factor: float, found_inf: Tensor) -> None:
        for opt, peak in zip(self.optimizers, self.peaks, strict=True):
            for group, lr in zip(opt.param_groups, peak, strict=True):
                group["lr"] = lr * factor
            opt.found_inf = found_inf  # type: ignore[attr-defined]  # where it is 1, fused optimizers do nothing
            opt.step()
            opt.zero_grad()

    @torch.no_grad()
    def _limit_temperature(self) -> None:
        if "logit_scale" in self.named:
            self.named["logit_scale"].clamp_(0, self.highest_scale)

    @torch.no_grad()
    def _move_average(self, decay: float) -> None:
        for sharded in (False, True):  # one call takes no mixture
            names = [name for name in self.average if isinstance(self.named[name], DTensor) is sharded]
            averages, weights = ([tensors[name] for name in names] for tensors in (self.average, self.named))
            foreach.lerp(averages, weights, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model holds its average, if the recipe keeps one, and is in evaluation mode."""
        now = {name: p.detach().clone() for name, p in self.named.items()} if self.average else {}
        self.use_average()
        self.weights.eval()
        try:
            yield
        finally:
            self.weights.train()
            self._set(now)

    def look_for_best(self, step: int, numbers: dict[str, float]) -> None:
        """Compare a validation with the best one; inside `averaged`, so that the measured weights are taken."""
        if self.best is not None:
            value = self.processes.gather_objects(metric_of(numbers, self.best.metric))[0]  # one decision for all
            self.best.look(step, value, self.named)

    @property
    def exhausted(self) -> bool:
        """True where the recipe's patience is at an end."""
        return self.best is not None and self.best.exhausted

    def use_result(self) -> str:
        """Give the model the weights that are the run's result; returns one line about them, or ""."""
        if self.best is not None and self.best.value is not None:
            self._set(self.best.weights)
        else:
            self.use_average()
        return "" if self.best is None else self.best.describe()

    def use_average(self) -> None:
        """Give the model its averaged weights, if the recipe keeps them."""
        self._set(self.average)

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.named[name].copy_(value)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, besides the step's number."""
        return {
            "model": self.weights.state_dict(),
            "average": self.average,
            "optimizers": [opt.state_dict() for opt in self.optimizers],
            "loss_scale": self.loss_scale.state() if self.loss_scale else None,
            "skipped": self.skipped,
            "recipe": self.recipe.to_dict(),
            **({} if self.best is None else {"best": self.best.state()}),
        }

    def restore(self, path: Path, say: Callable[[str], object]) -> int:
        """Continue from a checkpoint, with the settings of this recipe.

        Args:
            path: the checkpoint's folder.
            say: told which settings have changed.

        Returns:
            The number of steps done.
        """
        for opt in self.optimizers:
            _allocate(opt)
        step, state = load_state(path, self.state())  # into the tensors of the model, its average and the optimizers
        if self.loss_scale and state["loss_scale"]:
            self.loss_scale.restore(state["loss_scale"])
        self.skipped = state.get("skipped", 0)
        if self.best is not None:
            self.best.restore(state["best"])
        for difference in self.recipe.differences(state["recipe"]):
            say(f"the recipe has changed since {path.name}: {difference}")
        return step


@torch.no_grad()
def _allocate(optimizer: torch.optim.Optimizer) -> None:
    """Create the optimizer's state, into which a checkpoint is read; the weights that this moves are read too."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
