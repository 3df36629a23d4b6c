"""The only training loop.  It knows a model, what one batch does to its gradients, and a stream of batches; nothing of
images, words or classes.
"""

import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlm.errors import TrainingError
from vlm.training.data.stream import AnyBatch, Batch, Stream, batches
from vlm.training.engine.distributed import Processes
from vlm.training.engine.doctor import Doctor, Signs
from vlm.training.engine.optim import learning_rate_factor, native_bfloat16, optimizers
from vlm.training.engine.parallel import average_whole, clip_gradients, prepare
from vlm.training.engine.quarantine import Quarantine
from vlm.training.engine.record import Record
from vlm.training.engine.state import load_state, newest, save_state
from vlm.training.recipe.config import LoopRecipe

STOPPED = 75  # exit code of a run that was asked to stop and saved: run it again to go on (EX_TEMPFAIL)

# (model, batch, loss scale) -> the loss of the whole batch; adds the gradients of scale * loss to `.grad`
Backward = Callable[[nn.Module, AnyBatch, float], Tensor]
Evaluate = Callable[[nn.Module], dict[str, float]]


class StepNumbers(NamedTuple):
    """What one step computed."""

    loss: float
    gradient_norm: float  # before clipping
    lr_factor: float


class Rehearsal(NamedTuple):
    """What a few steps show."""

    seconds: float  # of a step, on average over the run
    peak_bytes: float  # memory at its highest, of this process


class Training:
    """A model on its way: its weights, their average, the optimizers, and what one step does to them."""

    def __init__(self, model: nn.Module, backward: Backward[Any], recipe: LoopRecipe, processes: Processes):
        self.weights, self.backward, self.recipe, self.processes = model, backward, recipe, processes
        self.model = prepare(model, recipe.run, processes)  # the same weights, as this run computes with them
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizers = optimizers(model, recipe.optim)
        self.peaks = [[group["lr"] for group in opt.param_groups] for opt in self.optimizers]
        self.average = {name: p.detach().clone() for name, p in self.named.items()} if recipe.run.ema_decay else {}
        self.loss_scale = _LossScale() if recipe.run.precision == "float16" else None
        model.train()

    def step(self, step: int, batch: Batch) -> StepNumbers:
        """One optimizer update.  Its random numbers depend on (seed, step, rank) alone, so none need to be saved."""
        run, optim = self.recipe.run, self.recipe.optim
        torch.manual_seed(int(np.random.SeedSequence([run.seed, step, self.processes.rank]).generate_state(1)[0]))
        factor = learning_rate_factor(step, run.steps, optim)
        scale = self.loss_scale.value if self.loss_scale else 1.0
        with precision(run.precision, self.processes.device):
            loss = self.backward(self.model, batch, scale).item()
        if run.shard and self.processes.size > 1:
            average_whole(self.named.values(), self.processes)
        if self.loss_scale:
            for p in self.named.values():
                if p.grad is not None:
                    p.grad.mul_(1 / scale)
        norm = clip_gradients(self.named.values(), optim.clip_norm).item()
        healthy = math.isfinite(norm)
        if self.loss_scale:
            self.loss_scale.learn(healthy)
        if not math.isfinite(loss) or not (healthy or (self.loss_scale and self.loss_scale.value >= 1)):
            raise TrainingError(
                f"step {step}: loss {loss}, gradient norm {norm}. Lower the learning rate or look at the "
                f"samples: {', '.join(batch.uids)}"
            )
        for opt, peak in zip(self.optimizers, self.peaks, strict=True):
            for group, lr in zip(opt.param_groups, peak, strict=True):
                group["lr"] = lr * factor
            if healthy:  # float16 overflows now and then: that step is left out, the next has a smaller loss scale
                opt.step()
            opt.zero_grad()
        self._after()
        return StepNumbers(loss, norm, factor)

    @torch.no_grad()
    def _after(self) -> None:
        """Clamp the temperature, move the average of weights."""
        if "logit_scale" in self.named:
            self.named["logit_scale"].clamp_(0, math.log(self.recipe.optim.max_logit_scale))
        for name, average in self.average.items():
            average.lerp_(self.named[name], 1 - self.recipe.run.ema_decay)

    def temperature(self) -> dict[str, float]:
        """logit_scale and logit_bias, where the model has them."""
        return {name: p.item() for name, p in self.named.items() if name in ("logit_scale", "logit_bias")}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model is its average, if the recipe keeps one, and ready to be used."""
        now = {name: p.detach().clone() for name, p in self.named.items()} if self.average else {}
        self._set(self.average)
        self.weights.eval()
        try:
            yield
        finally:
            self.weights.train()
            self._set(now)

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.named[name].copy_(value)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, besides the recipe and the step's number."""
        return {
            "model": self.weights.state_dict(),
            "average": self.average,
            "optimizers": [opt.state_dict() for opt in self.optimizers],
            "loss_scale": vars(self.loss_scale) if self.loss_scale else None,
            "recipe": self.recipe.to_dict(),
        }

    def restore(self, path: Path, say: Callable[[str], object]) -> int:
        """Take over a checkpoint, but for its settings: they are the recipe's.  Returns the number of steps done."""
        for opt in self.optimizers:
            _allocate(opt)
        step, state = load_state(path, self.state())  # into the tensors of the model, its average and the optimizers
        if self.loss_scale and state["loss_scale"]:
            vars(self.loss_scale).update(state["loss_scale"])
        for difference in self.recipe.differences(state["recipe"]):
            say(f"the recipe has changed since {path.name}: {difference}")
        return step


def fit(
    model: nn.Module,
    backward: Backward[AnyBatch],
    stream: Stream[AnyBatch],
    evaluate: Evaluate,
    recipe: LoopRecipe,
    out: Path,
    *,
    processes: Processes,
    chance_loss: float,
    resume: bool,
    quarantine: Quarantine | None = None,
) -> bool:
    """Train `model` in place for recipe.run.steps steps; False when a signal asked to stop before (all is saved).

    `out` receives what `record.py` lists, and checkpoints/.  At the end the model holds the averaged weights if
    the recipe keeps an average.  `chance_loss`: of a model that tells nothing apart, for the doctor.
    """
    run, checkpoints = recipe.run, out / "checkpoints"
    training = Training(model, backward, recipe, processes)
    found = newest(checkpoints, processes, _say_first(processes)) if resume else None
    first = training.restore(found, _say_first(processes)) if found else 0
    doctor = Doctor(
        chance_loss=chance_loss,
        max_logit_scale=recipe.optim.max_logit_scale,
        patience=recipe.optim.warmup_steps + 100,
        workers=recipe.workers,
    )
    with Record(out if processes.rank == 0 else None, first, run) as record, _StopSignals() as signals:
        clock = time.perf_counter()
        for step, batch in enumerate(_batches(stream, first, run.steps, recipe, processes), start=first):
            arrived = time.perf_counter()
            if quarantine is not None:
                quarantine.add(batch.broken, (step + 1) * run.batch_size)
                record.show(quarantine.shown())
            numbers = training.step(step, batch.to(processes.device))
            temperature = training.temperature()
            done, end = step + 1, time.perf_counter()
            seconds, waiting = (end - clock, arrived - clock) if step > first else (end - arrived, 0.0)  # loaders start
            record.step(done, numbers._asdict() | temperature, seconds, waiting)
            for complaint in doctor.look(step, Signs(numbers.loss, temperature.get("logit_scale"), seconds, waiting)):
                record.say(f"step {done}: {complaint}")
            if done % run.eval_every == 0 or done == run.steps:
                with training.averaged():
                    record.validation(done, evaluate(model))
            stop = processes.all_gather(
                torch.tensor([bool(signals.seen)], dtype=torch.uint8, device=processes.device)
            ).any()
            if done % run.save_every == 0 or done == run.steps or stop:
                record.to_disk()
                save_state(checkpoints, done, training.state(), run.keep, processes)
            if stop:
                record.say(f"stopped by {signals.seen or 'a signal'} after step {done}; saved. --resume auto goes on.")
                return False
            clock = time.perf_counter()
    training._set(training.average)
    return True


def rehearse(
    model: nn.Module, backward: Backward[AnyBatch], stream: Stream[AnyBatch], recipe: LoopRecipe, processes: Processes
) -> Rehearsal:
    """The first two steps of a run and, where there are dense ones, two of those; nothing is written."""
    training = Training(model, backward, recipe, processes)

    def second_of_two(first: int) -> float:
        """Seconds, waiting for data included; the one before compiles, allocates and warms up."""
        clock = seconds = time.perf_counter()
        for step, batch in enumerate(_batches(stream, first, first + 2, recipe, processes), start=first):
            training.step(step, batch.to(processes.device))
            clock, seconds = time.perf_counter(), time.perf_counter() - clock
        return seconds

    seconds, dense = second_of_two(0), 1 - recipe.dense_from / recipe.run.steps
    if dense:
        seconds = (1 - dense) * seconds + dense * second_of_two(recipe.dense_from)
    if processes.device.type == "cuda":
        return Rehearsal(seconds, torch.cuda.max_memory_allocated(processes.device))
    return Rehearsal(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _batches(
    stream: Stream[AnyBatch], first: int, last: int, recipe: LoopRecipe, processes: Processes
) -> Iterator[AnyBatch]:
    return batches(stream, first, last, recipe.workers, pin=processes.device.type == "cuda")


def _say_first(processes: Processes) -> Callable[[str], object]:
    return partial(print, file=sys.stderr) if processes.rank == 0 else (lambda text: None)


@contextmanager
def precision(wanted: str, device: torch.device) -> Iterator[None]:
    """Autocast to bfloat16 or float16 if asked; 'auto' does so where the processor computes bfloat16 natively."""
    if wanted in ("float32", "float64") or (wanted == "auto" and not native_bfloat16(device)):
        yield
        return
    # torch's fused attention loses 2 x against plain matrix products in bfloat16 on CPUs, at any length we train
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, dtype=torch.float16 if wanted == "float16" else torch.bfloat16), attention:
        yield


class _LossScale:
    """float16 gradients vanish below 6e-8: the loss is scaled up for them, as far as they do not overflow.

    Micikevicius et al. 2018, with the numbers of torch.amp.GradScaler; overflow shows in the gradient norm, which all
    processes share.
    """

    def __init__(self) -> None:
        self.value = 65536.0
        self.good_steps = 0

    def learn(self, healthy: bool) -> None:
        self.good_steps = self.good_steps + 1 if healthy else 0
        if not healthy:
            self.value /= 2
        elif self.good_steps == 2000:
            self.value, self.good_steps = self.value * 2, 0


class _StopSignals:
    """SIGTERM and SIGINT are noted, and acted on after the step; a second SIGINT stops at once."""

    seen = ""

    def __enter__(self) -> "_StopSignals":
        self.old = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.seen = signal.Signals(number).name


@torch.no_grad()
def _allocate(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer its state, as a checkpoint's values need a place to go.  So do the weights that this moves."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
