"""Train what a recipe describes: `train(recipe, out)`, the same for every kind of model."""

import sys
from contextlib import nullcontext
from pathlib import Path

from vlm.errors import RecipeError
from vlm.training.data.stream import NoSoundSample
from vlm.training.engine.best import check_metric
from vlm.training.engine.curves import draw_curves
from vlm.training.engine.distributed import SINGLE_PROCESS, Processes, init_from_env
from vlm.training.engine.loop import STOPPED, fit, rehearse
from vlm.training.engine.parallel import whole_weights
from vlm.training.engine.precision import with_precision
from vlm.training.engine.quarantine import Quarantine
from vlm.training.engine.run_folder import (
    DataIdentity,
    begin_run,
    changed_since,
    check_run,
    forecast,
    locked,
    place,
    recorded_recipe,
)
from vlm.training.measure.card import push_to_hub
from vlm.training.recipe.config import LoopRecipe, Recipe, VitRecipe
from vlm.training.recipe.text import recipe_text
from vlm.training.tasks import classification, contrastive
from vlm.training.tasks.task import Task


def train(
    recipe: LoopRecipe,
    out: str | Path,
    processes: Processes | None = None,
    *,
    resume: bool = False,
    push: str | None = None,
    text: str | None = None,
    profile: bool = False,
) -> int:
    """Train the model that `recipe` describes and save it in the folder `out`.

    Args:
        recipe: a `Recipe` (CLIP) or a `VitRecipe` (image classifier).
        out: folder for the model, its card, metrics.jsonl and checkpoints.
        processes: this process and its device; None takes what torchrun set up, else one process.
        resume: go on from the newest checkpoint in `out`, if there is one.
        push: org/name; upload the finished model to the Hugging Face hub.
        text: the recipe as its author wrote it, for recipe.toml and the model card; None writes the settings that
            differ from the defaults.
        profile: write a trace of steps 10 to 20 into `out`/profile.

    Returns:
        0 when the model is trained and saved, 75 when a signal stopped the run (call again with `resume`).

    Raises:
        VlmError: for a recipe, a data set, a model or a folder that cannot be used.
    """
    out, text = Path(out), recipe_text(recipe) if text is None else text
    processes = processes or init_from_env(None, recipe.run.timeout_minutes)
    if not resume:
        recipe.check_warmup()
    check_run(out, resume=resume, push=push, data=recipe.paths)
    recipe = with_precision(recipe, processes.device, recorded_recipe(out) if resume else None)
    try:
        task = open_task(recipe, processes)
    except NoSoundSample as error:  # of the validation data
        if processes.rank == 0:
            with locked(out):
                begin_run(out, text)
                Quarantine(out, len(error.broken), 0.0, SINGLE_PROCESS, resume=resume).list_all(error.broken)
        raise
    kept = DataIdentity(labels=task.labels, data_hash=task.data_hash)
    changed = changed_since(out, kept) if resume else ""
    with locked(out) if processes.rank == 0 else nullcontext():
        if processes.rank == 0:
            begin_run(out, text, kept)
            task.prepare_folder(out)
            print(*filter(None, (task.summary, changed)), sep="\n", file=sys.stderr)
        return _train(task, out, processes, text, resume=resume, push=push, profile=profile)


def _train(
    task: Task, out: Path, processes: Processes, text: str, *, resume: bool, push: str | None, profile: bool
) -> int:
    quarantine = Quarantine(out, task.samples, task.max_broken, processes, resume=resume)
    try:
        done = fit(
            task.model,
            task.backward,
            task.stream,
            task.evaluate,
            task.recipe,
            out,
            processes=processes,
            chance_loss=task.chance_loss,
            resume=resume,
            quarantine=quarantine,
            work=task.work,
            profile=profile,
            identity=DataIdentity(labels=task.labels, data_hash=task.data_hash).plain(),
        )
    except NoSoundSample as error:
        quarantine.list_all(error.broken)
        raise
    if processes.rank == 0:
        draw_curves(out)
    if not done:
        return STOPPED
    weights = whole_weights(task.model)  # collective: before any process leaves
    if processes.rank == 0:
        model, card = task.finish(weights, out, text)
        place(model, out, card)
        if push is not None:
            push_to_hub(out, push)
    return 0


def dry_run(recipe: LoopRecipe, processes: Processes) -> None:
    """Run a few steps and print the memory, speed and time that the whole run would take; nothing is written."""
    task = open_task(recipe, processes)
    found = rehearse(task.model, task.backward, task.stream, task.recipe, processes)
    if processes.rank == 0:
        print(forecast(found, task.recipe.run), f"length      {task.recipe.length(task.samples)}", sep="\n")


def open_task(recipe: LoopRecipe, processes: Processes) -> Task:
    """Open the model, the data and the loss of a recipe on this process."""
    recipe.run.rows_of_a_process(processes.size)  # an error if the batch does not divide
    match recipe:
        case Recipe():
            task = contrastive.open_task(recipe, processes)
        case VitRecipe():
            task = classification.open_task(recipe, processes)
        case _:
            raise RecipeError(f"{type(recipe).__name__} is no recipe that can be trained; wanted Recipe or VitRecipe.")
    check_metric(recipe.run.best, task.metrics)
    return task
