"""The only training loop.  It knows a model, what one batch does to its gradients, and a stream of batches; nothing of
images, words or classes.

Between the steps that are logged nothing waits for the device: loss, norm and temperature stay there as tensors, and a
step whose loss or gradients are not finite is skipped on the device and found out when they are read.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from vlm.training.data.stream import AnyBatch, Stream, batches
from vlm.training.engine.diagnostics import Diagnostics, Signs
from vlm.training.engine.distributed import Processes, StopVote
from vlm.training.engine.quarantine import Quarantine
from vlm.training.engine.run_log import RunLog
from vlm.training.engine.signals import StopSignals
from vlm.training.engine.skipped import SkippedSteps
from vlm.training.engine.state import Saver, newest
from vlm.training.engine.step import Backward, Training
from vlm.training.engine.throughput import Throughput, Work
from vlm.training.engine.trace import traced
from vlm.training.recipe.config import LoopRecipe

STOPPED = 75  # exit code of a run that was asked to stop and saved: run it again to go on (EX_TEMPFAIL)

REHEARSED, REHEARSED_SECONDS = 8, 20.0  # steps measured by `rehearse`, and when it stops earlier

Evaluate = Callable[[nn.Module], dict[str, float]]


class Rehearsal(NamedTuple):
    """Measurements of a few steps."""

    seconds: float  # of a step, on average over the run
    peak_bytes: float  # memory at its highest, of this process


class _Done(NamedTuple):
    """A step whose numbers are still on the device."""

    step: int
    numbers: torch.Tensor  # see Training.step
    seconds: float
    waiting: float
    ended: float  # the host's clock
    uids: list[str]


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
    work: Work | None = None,
    profile: bool = False,
    identity: dict[str, Any] | None = None,
) -> bool:
    """Train `model` in place for recipe.run.steps steps.

    At the end the model holds the averaged weights if the recipe keeps an average, or the best ones by the recipe's
    metric; a run whose patience is at an end stops before.

    Args:
        model: on the device of the processes.
        backward: adds the gradients of a batch.
        stream: batches by step.
        evaluate: validation numbers of the model as it is then.
        recipe: [run] and [optim] are read.
        out: folder that receives what `run_log.py` lists, and checkpoints/.
        processes: those that train together.
        chance_loss: of a model that gives all samples the same output, for the diagnostics.
        resume: continue from the newest checkpoint, if there is one.
        quarantine: the list of broken samples.
        work: what a step computes, for the utilisation in the log.
        profile: write a trace of steps 10 to 20 into `out`/profile.
        identity: of the data, plain values that every checkpoint keeps.

    Returns:
        True when all steps are done; False when a signal asked to stop before (everything is saved).

    Raises:
        TrainingError: more steps than the recipe allows had a loss or gradients that are not finite.
        DataError: too many samples are broken.
    """
    run, checkpoints = recipe.run, out / "checkpoints"
    training = Training(model, backward, recipe, processes)
    newest_one = newest(checkpoints, processes, _say_first(processes)) if resume else None
    first = training.restore(newest_one, _say_first(processes)) if newest_one else 0
    diagnostics = Diagnostics(
        chance_loss=chance_loss,
        max_logit_scale=recipe.optim.max_logit_scale,
        patience=recipe.optim.warmup(run.steps) + 100,
        workers=recipe.workers,
    )
    folder = out if processes.rank == 0 else None
    skipped = SkippedSteps(folder, first, run.max_skipped, training.skipped, processes)
    saver, vote, unread, broken = Saver(checkpoints, run.keep, processes), StopVote(processes), [], []
    throughput = Throughput(processes, run.batch_size, work)

    def read(log: RunLog) -> None:
        """Fetch the numbers of the steps since the last time: the one point where the host waits for the device."""
        if quarantine is not None:
            quarantine.add(broken, (unread[-1].step + 1) * run.batch_size if unread else 0)
            log.show(quarantine.shown())
            broken.clear()
        rows = torch.stack([done.numbers for done in unread]).tolist() if unread else []
        if unread:  # the device has caught up: the time that took belongs to these steps
            last = unread[-1]
            unread[-1] = last._replace(seconds=last.seconds + time.perf_counter() - last.ended)
        for done, row in zip(unread, rows, strict=True):
            numbers = training.named_numbers(done.step, row)
            if numbers is None:
                log.say(skipped.add(done.step, row, done.uids))
                numbers = {}
            else:
                signs = Signs(numbers["loss"], numbers.get("logit_scale"), done.seconds, done.waiting)
                for finding in diagnostics.look(done.step, signs):
                    log.say(f"step {done.step + 1}: {finding}")
            log.step(done.step + 1, numbers, done.seconds, done.waiting, throughput)
        training.skipped = skipped.total
        unread.clear()

    try:
        with RunLog(folder, first, run) as log, StopSignals() as signals, traced(folder, first, profile) as trace:
            clock = time.perf_counter()
            last = first if training.exhausted else run.steps  # a run that had ended early stays ended
            for step, batch in enumerate(_batches(stream, first, last, recipe, processes), start=first):
                arrived = time.perf_counter()
                broken.extend(batch.broken)
                numbers = training.step(step, batch.to(processes.device))
                done, end = step + 1, time.perf_counter()
                # the first step of a run waits for the loaders to start: that is not counted
                seconds, waiting = (end - clock, arrived - clock) if step > first else (end - arrived, 0.0)
                unread.append(_Done(step, numbers, seconds, waiting, end, batch.uids))
                stop = vote(bool(signals.seen))
                saves, measures = done % run.save_every == 0, done % run.eval_every == 0
                if done % run.log_every == 0 or saves or measures or done == run.steps or stop:
                    read(log)
                log.advance()
                trace()
                if measures or done == run.steps:
                    with training.averaged():
                        found = evaluate(model)
                        log.validation(done, found)
                        training.look_for_best(done, found)
                    stop = stop or vote(bool(signals.seen))
                ended = training.exhausted
                if saves or done == run.steps or stop or ended:
                    log.to_disk()
                    saver.save(done, training.state() | {"data": identity})
                if stop:
                    saver.wait()
                    name = signals.seen or "a signal"
                    log.say(f"stopped by {name} after step {done}; saved. --resume auto goes on.")
                    return False
                if ended:
                    log.say(f"no better {run.best} in {run.patience} validations: the run ends after step {done}")
                    break
                clock = time.perf_counter()
            vote.finish()
            if said := training.use_result():
                log.say(said)
    finally:
        saver.close()
    return True


def rehearse(
    model: nn.Module, backward: Backward[AnyBatch], stream: Stream[AnyBatch], recipe: LoopRecipe, processes: Processes
) -> Rehearsal:
    """Measure the first steps of a run and, where there are dense ones, some of those; nothing is written.

    The mean of up to REHEARSED steps is taken: the loaders' head start is then used up.

    Args:
        model: on the device of the processes.
        backward: adds the gradients of a batch.
        stream: batches by step.
        recipe: [run] and [optim] are read.
        processes: those that train together.
    """
    training = Training(model, backward, recipe, processes)

    def mean(first: int, last: int) -> float:
        """Seconds of a step before `last`, waiting for data included; the first one compiles, allocates, warms up."""
        start, most = None, max(1, min(REHEARSED, last - first - 1))
        for step, batch in enumerate(_batches(stream, first, first + 1 + most, recipe, processes), start=first):
            training.step(step, batch.to(processes.device)).tolist()
            now = time.perf_counter()
            start, count = now if start is None else start, step - first
            if count and (count == most or now - start > REHEARSED_SECONDS):
                return (now - start) / count
        raise AssertionError("a stream has no end")

    seconds, dense = mean(0, recipe.dense_from), 1 - recipe.dense_from / recipe.run.steps
    if dense:
        seconds = (1 - dense) * seconds + dense * mean(recipe.dense_from, recipe.dense_from + 1 + REHEARSED)
    if processes.device.type == "cuda":
        return Rehearsal(seconds, torch.cuda.max_memory_allocated(processes.device))
    return Rehearsal(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _batches(
    stream: Stream[AnyBatch], first: int, last: int, recipe: LoopRecipe, processes: Processes
) -> Iterator[AnyBatch]:
    on_gpu, prefetch = processes.device.type == "cuda", recipe.prefetch_mib << 20
    return batches(stream, first, last, recipe.workers, pin=on_gpu, prefetch_bytes=prefetch)


def _say_first(processes: Processes) -> Callable[[str], object]:
    return partial(print, file=sys.stderr) if processes.rank == 0 else (lambda text: None)
