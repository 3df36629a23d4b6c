"""The only training loop.  It knows a model, a loss of one batch, and a stream of batches; nothing of pictures or words."""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from training.config import Recipe
from training.data import Batch, PairStream, batches
from training.optim import learning_rate_factor, native_bfloat16, optimizers
from training.state import load_state, random_states, restore_random_states, save_state

STOPPED = 75  # exit code of a run that was asked to stop and saved: run it again to go on (EX_TEMPFAIL)

Loss = Callable[[nn.Module, Batch], Tensor]
Evaluate = Callable[[nn.Module], dict[str, float]]


def fit(model: nn.Module, loss_fn: Loss, stream: PairStream, evaluate: Evaluate, recipe: Recipe, out: Path, *, resume: bool) -> bool:
    """Train `model` in place for recipe.run.steps steps; True when done, False when a signal asked to stop (all is saved).

    A step is one optimizer update.  `out` receives metrics.jsonl (the same for the same recipe), timing.jsonl,
    tensorboard/ and checkpoints/.  At the end the model holds the averaged weights if the recipe keeps an average.
    """
    from torch.utils.tensorboard.writer import SummaryWriter

    run, device = recipe.run, next(model.parameters()).device
    opts = optimizers(model, recipe.optim)
    peaks = [[group["lr"] for group in opt.param_groups] for opt in opts]
    average = {name: p.detach().clone() for name, p in model.named_parameters()} if run.ema_decay else {}
    first = 0
    saved = load_state(out / "checkpoints") if resume else None
    if saved is not None:
        first, state = saved
        model.load_state_dict(state["model"])
        average = state["average"]
        for opt, opt_state in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(opt_state)
        restore_random_states(state["random"])
    _forget_after(out / "metrics.jsonl", first)

    def save(step: int) -> None:
        state = {
            "model": model.state_dict(),
            "average": average,
            "optimizers": [opt.state_dict() for opt in opts],
            "random": random_states(),
        }
        save_state(out / "checkpoints", step, state, run.keep)

    board = SummaryWriter(str(out / "tensorboard"), purge_step=first)
    progress = tqdm(total=run.steps, initial=first, unit="step", dynamic_ncols=True)
    shown: dict[str, str] = {}
    model.train()
    with _StopSignals() as signals, (out / "metrics.jsonl").open("a") as metrics, (out / "timing.jsonl").open("a") as timing:
        clock = time.perf_counter()
        for step, batch in enumerate(batches(stream, first, run.steps, recipe.data.workers), start=first):
            arrived = time.perf_counter()
            factor = learning_rate_factor(step, run.steps, recipe.optim)
            for opt, peak in zip(opts, peaks, strict=True):
                for group, lr in zip(opt.param_groups, peak, strict=True):
                    group["lr"] = lr * factor
            with precision(run.precision, device):
                loss = loss_fn(model, to_device(batch, device))
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip_norm)
            if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
                raise FloatingPointError(
                    f"step {step}: loss {loss.item()}, gradient norm {norm.item()}. Lower the learning rate or look at the "
                    f"samples: {', '.join(batch.uids)}"
                )
            for opt in opts:
                opt.step()
                opt.zero_grad(set_to_none=True)
            after_step(model, recipe, average)
            done = step + 1
            now = time.perf_counter()
            if done % run.log_every == 0 or done == run.steps:
                numbers = {"loss": loss.item(), "gradient_norm": norm.item(), "lr_factor": factor} | _temperature(model)
                _write(metrics, board, done, numbers)
                speed = run.batch_size / (now - clock)
                json.dump({"step": done, "seconds": now - clock, "waiting": arrived - clock, "samples_per_second": speed}, timing)
                timing.write("\n")
                timing.flush()
                shown |= {"loss": f"{loss.item():.3f}", "samples/s": f"{speed:.0f}"}
            if done % run.eval_every == 0 or done == run.steps:
                numbers = evaluate_average(model, average, evaluate)
                _write(metrics, board, done, numbers)
                shown |= {name.removeprefix("val "): f"{value:.3f}" for name, value in numbers.items()}
                progress.write(f"step {done}: " + "  ".join(f"{name} {value:.4f}" for name, value in numbers.items()))
            progress.set_postfix(shown, refresh=False)
            progress.update()
            if done % run.save_every == 0 or done == run.steps or signals.seen:
                save(done)
            if signals.seen:
                progress.write(f"stopped by {signals.seen} after step {done}; saved. The same command with --resume auto goes on.")
                return False
            clock = time.perf_counter()
    progress.close()
    board.close()
    if average:
        model.load_state_dict(model.state_dict() | average)
    return True


@torch.no_grad()
def after_step(model: nn.Module, recipe: Recipe, average: dict[str, Tensor]) -> None:
    """Clamp the temperature, move the average of weights."""
    for name, p in model.named_parameters():
        if name == "logit_scale":
            p.clamp_(0, math.log(recipe.optim.max_logit_scale))
        if average:
            average[name].lerp_(p, 1 - recipe.run.ema_decay)


def evaluate_average(model: nn.Module, average: dict[str, Tensor], evaluate: Evaluate) -> dict[str, float]:
    """Validation numbers of the averaged weights where there are any; the model is left as it was, in training mode."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()} if average else {}
    if average:
        model.load_state_dict(weights | average)
    model.eval()
    numbers = evaluate(model)
    model.train()
    if average:
        model.load_state_dict(weights)
    return numbers


@contextmanager
def precision(wanted: str, device: torch.device) -> Iterator[None]:
    """Autocast to bfloat16 if asked; 'auto' does so where the processor computes it natively."""
    if wanted == "float32" or (wanted == "auto" and not native_bfloat16(device)):
        yield
        return
    # torch's fused attention loses 2 x against plain matrix products in bfloat16 on CPUs, at any length we train
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, dtype=torch.bfloat16), attention:
        yield


def to_device(batch: Batch, device: torch.device) -> Batch:
    return batch._replace(
        **{name: value.to(device, non_blocking=True) for name, value in batch._asdict().items() if isinstance(value, Tensor)}
    )


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


def _temperature(model: nn.Module) -> dict[str, float]:
    return {name: p.item() for name, p in model.named_parameters() if name in ("logit_scale", "logit_bias")}


def _write(metrics: Any, board: Any, step: int, numbers: dict[str, float]) -> None:
    json.dump({"step": step} | numbers, metrics)
    metrics.write("\n")
    metrics.flush()
    for name, value in numbers.items():
        board.add_scalar(name, value, step)


def _forget_after(path: Path, step: int) -> None:
    """Cut lines that a stopped run wrote after its last checkpoint: they will be written again, the same."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    path.write_text("".join(kept), encoding="utf-8")
