"""A first recipe for a data set: look at the data, choose, and say why."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vlm.errors import DataError, ImageError, RecipeError
from vlm.images.open import open_image
from vlm.training.audit.check import open_tokenizer
from vlm.training.audit.numbers import find_twins, numbers
from vlm.training.audit.scan import Seen, scan
from vlm.training.data.division import open_training_rows, validation_split_of
from vlm.training.data.formats.splits import canonical_split
from vlm.training.data.rows import BrokenSample, ColumnNames, Rows
from vlm.training.recipe.reading import parse_recipe
from vlm.training.recipe.sections import SourceSection

LOOKED_AT = 2000  # samples
FEWEST = 20  # samples to train on and to validate on
_SMALL = 40  # pixels: images too small for a pretrained model
_COLOURS_OF = 256  # images whose mean and standard deviation a new model takes


class Choice(NamedTuple):
    """One decision: the name it has for people, what was chosen, and why."""

    name: str
    chosen: str
    why: str


@dataclass(frozen=True)
class FirstRecipe:
    """The text of a recipe and the choices in it."""

    text: str
    choices: list[Choice]


@dataclass(frozen=True, kw_only=True)
class _Data:
    """What is known of the data."""

    path: str
    columns: ColumnNames | None
    root: str | None
    rows: Rows
    found: dict[str, Any]  # as check.json
    seen: Seen
    task: Literal["clip", "vit"]
    several: bool  # labels of an image
    split: str  # to validate on; "" where samples are held out
    held_out: float

    @property
    def training(self) -> int:
        """Samples to train on."""
        return len(self.rows) if self.split else len(self.rows) - math.ceil(self.held_out * len(self.rows))

    @property
    def side(self) -> int:
        """Median of the shorter sides, in pixels."""
        return min(self.found["images"][name]["median"] for name in ("width", "height"))

    @property
    def new(self) -> bool:
        """Whether the model starts from nothing."""
        return self.task == "vit" and self.side < _SMALL


def write_first_recipe(
    data: str, out: Path, *, columns: ColumnNames | None = None, root: str | Path | None = None
) -> FirstRecipe:
    """Look at a data set and write a recipe that trains on it as it is.

    Args:
        data: what `open_rows` reads.
        out: the file to write.
        columns, root: as `open_rows` has them; they go into the recipe.

    Returns:
        The recipe and its choices.

    Raises:
        RecipeError: `out` is there already.
        DataError: the data cannot be read, or there is too little to learn from.
    """
    if out.exists():
        raise RecipeError(
            f"{out} is there already, and a recipe is not overwritten. Name another: vlm train OTHER.toml."
        )
    recipe = first_recipe(data, columns=columns, root=root)
    parse_recipe(recipe.text, out)  # what is written can be read
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(recipe.text, encoding="utf-8")
    return recipe


def first_recipe(data: str, *, columns: ColumnNames | None = None, root: str | Path | None = None) -> FirstRecipe:
    """The same, nothing written."""
    known = _look(data, columns, root)
    batch = _batch(known)
    sections, choices = {"vit": _classifier, "clip": _pairs}[known.task](known, batch)
    lines = [
        f"# Written by vlm train --init from {known.found['looked_at']:,} samples of {data}. Change what you like.",
        *(f"# {choice.name}: {choice.chosen}. {choice.why}" for choice in choices),
        "",
        f'task = "{known.task}"',
    ]
    for section, settings in sections.items():
        lines += ["", f"[{section}]", *(f"{name} = {_toml(value)}" for name, value in settings.items())]
    return FirstRecipe("\n".join(lines) + "\n", choices)


def _look(data: str, columns: ColumnNames | None, root: str | Path | None) -> _Data:
    source = SourceSection(
        path=data, columns=dict(columns) if columns else None, root=None if root is None else str(root)
    )
    rows = open_training_rows(source)
    split = validation_split_of(source)
    if canonical_split(split) == "test":  # stays unseen until the end
        split = ""
    tokenizer = open_tokenizer("mini")
    context = tokenizer.context_length
    seen = scan(rows, tokenizer, sample=LOOKED_AT, workers=0)
    found = numbers(seen, find_twins(seen.facts), context)
    if not len(seen.facts):
        first = f"; the first: {seen.broken[0]}" if seen.broken else ""
        raise DataError(f"{data} has no sample that can be used{first}. vlm check {data} says more.")
    if len(rows) < FEWEST:
        raise DataError(f"{data} has {len(rows)} samples to train on; {FEWEST} or more are wanted.")
    task, several = _task(rows, [int(index) for index in seen.facts["index"][:500]])
    if task == "vit" and len(found["classes"]) < 2:
        raise DataError(f"{data} has one class, {next(iter(found['classes']))}: nothing can be learned from it.")
    if task == "clip" and found["captions"]["distinct"] == 1 and not found["captions"]["keywords"]:
        raise DataError(f"{data} has the same caption for all images: nothing can be learned from it.")
    return _Data(
        path=data, columns=columns, root=source.root, rows=rows, found=found, seen=seen, task=task, several=several,
        split=split, held_out=0.0 if split else _share_held_out(len(rows)),
    )  # fmt: skip


def _task(rows: Rows, index: Sequence[int]) -> tuple[Literal["clip", "vit"], bool]:
    """(the task, whether images have several labels): images whose captions are their classes are a classifier's."""
    several = described = labelled = 0
    for number in index:
        try:
            labels, captions = rows.labels(number), rows.captions(number)
        except BrokenSample:
            continue
        texts = {text for names, words in captions.values() for text in (*names, *words)}
        labelled += bool(labels)
        several += len(labels) > 1
        described += bool(texts - {label.replace("_", " ") for label in labels} - set(labels))
    return ("vit" if labelled and described < 0.1 * len(index) else "clip"), several > 0


def _share_held_out(count: int) -> float:
    """A tenth, at least 5 samples of a small set, at most 5,000."""
    return round(min(0.1, 5000 / count) if count >= 50 else 0.25, 4)


def _batch(known: _Data) -> int:
    """A power of two that leaves 4 steps in an epoch; 64, or 128 for a new model."""
    most = 128 if known.new else 64
    return int(min(most, max(2, 2 ** int(math.log2(max(2, known.training // 4))))))


def _data_section(known: _Data) -> dict[str, Any]:
    """[data] of both tasks."""
    settings: dict[str, Any] = {"train": known.path}
    if known.columns:
        settings["columns"] = dict(known.columns)
    if known.root:
        settings["root"] = known.root
    if known.split:
        settings["validation_split"] = known.split
    else:
        settings |= {"held_out": known.held_out, "hold_out_by": "concept"}
    bad = 1 - known.found["sound"] / max(1, known.found["looked_at"])
    if bad > 0.005:
        settings["max_broken"] = round(min(0.9, 2 * bad), 3)
    counts = known.found["classes"].values()
    if known.task == "vit" and max(counts) > 10 * min(counts):
        settings["balance"] = "sqrt"
    return settings


def _shared_choices(known: _Data, settings: dict[str, Any]) -> list[Choice]:
    where = f"the split {known.split}" if known.split else f"{known.held_out:.0%} of the samples, held out"
    why = (
        "The data is divided already."
        if known.split
        else "The data has no validation split. No concept is on both sides."
    )
    choices = [Choice("validation", where, why)]
    if "max_broken" in settings:
        broken = known.found["looked_at"] - known.found["sound"]
        choices.append(
            Choice(
                "broken samples",
                f"up to {settings['max_broken']:.1%}",
                f"{broken:,} of {known.found['looked_at']:,} cannot be used.",
            )
        )
    if "balance" in settings:
        counts = known.found["classes"].values()
        choices.append(
            Choice("balance", "sqrt", f"The largest class has {max(counts):,} images, the smallest {min(counts):,}.")
        )
    return choices


def _pairs(known: _Data, batch: int) -> tuple[dict[str, dict[str, Any]], list[Choice]]:
    """A fine-tuning of the bundled CLIP, as recipes/finetune.toml has it."""
    steps = _steps(known, batch, shown=8000, most=40)
    tokens = known.found["tokens"]
    cut = tokens["cut_at"][str(tokens["context_length"])]
    data = _data_section(known) | {"patch_dropout": 0.5, "dense_share": 0.1, "workers": 1}
    choices = [
        Choice("task", "clip", "The images have captions of their own."),
        Choice("model", "mini", "The bundled model, no download. It knows drawings; for photographs set [model] source "
               'to another, such as "openclip:ViT-B-32/laion2b_s34b_b79k", and lr = 1e-5.'),
        Choice("image size", f"{_side_of_mini()} pixels", f"That of mini. {_sizes(known)}"),
        Choice("context length", f"{tokens['context_length']} tokens",
               f"That of mini. {cut:.1%} of the texts are longer and lose their end."),
        Choice("augmentation", "gentle",
               "Shape and colour change a little; nothing is mirrored, since captions may say left."),
        Choice("batch", str(batch), _why_batch(known)),
        _steps_choice(known, steps, batch),
        *_shared_choices(known, data),
    ]  # fmt: skip
    return {
        "model": {"source": "mini"},
        "data": data,
        "optim": {"matrices": "adamw", "lr": 5e-4, "layer_decay": 0.9, "warmup_steps": max(1, min(10, steps // 10))},
        "run": _run(steps, batch),
    }, choices


def _classifier(known: _Data, batch: int) -> tuple[dict[str, dict[str, Any]], list[Choice]]:
    """A ViT: the bundled image tower with a new head, or a small new one for small images."""
    settings = _data_section(known) | {"patch_dropout": 0.5, "dense_share": 0.35 if known.new else 0.2, "workers": 1}
    steps = _steps(known, batch, shown=160_000, most=80) if known.new else _steps(known, batch, shown=20_000, most=40)
    if known.new:
        side = max(8, 4 * round(known.side / 4))
        model: dict[str, Any] = {"vision": {
            "image_size": side, "patch_size": 4, "width": 96, "depth": 6, "num_heads": 3, "mlp_dim": 192,
            "pool": "mean", "class_token": False, "drop_path": 0.05}}  # fmt: skip
        mean, std = _colours(known)
        settings |= {"resize": "squash", "mean": mean, "std": std}
        source = Choice("model", "a new ViT of 0.5 million parameters",
                        f"The images are small ({known.side} pixels); pretrained models want larger ones.")  # fmt: skip
        transform = {"padding": max(1, side // 14), "flip": 0.5}
        optim = {
            "matrices": "muon",
            "lr": 3e-3,
            "muon_lr": 0.02,
            "muon_decay": 0.05,
            "weight_decay": 0.05,
            "final_lr": 0.01,
        }
    else:
        model, side = {"source": "mini"}, _side_of_mini()
        source = Choice("model", "the image encoder of mini, with a new head",
                        "The bundled model, no download. It knows drawings; for photographs set [model] source to "
                        "another.")  # fmt: skip
        transform = {"scale": [0.6, 1.0], "flip": 0.5}
        optim = {"lr": 1e-3, "muon_lr": 0.004, "layer_decay": 0.8}
    classes = known.found["classes"]
    choices = [
        Choice("task", "vit", f"The images have {len(classes)} classes and no captions of their own."
               + (" Some have several: problem = multi_label." if known.several else "")),
        source,
        Choice("image size", f"{side} pixels", _sizes(known)),
        Choice("context length", "none", "A classifier reads no texts."),
        Choice("augmentation", "crops and mirror images",
               "Set flip = 0.0 if left and right differ, as in letters and digits."),
        Choice("batch", str(batch), _why_batch(known)),
        _steps_choice(known, steps, batch),
        *_shared_choices(known, settings),
    ]  # fmt: skip
    loss: dict[str, Any] = {"problem": "multi_label"} if known.several else {"label_smoothing": 0.05}
    optim |= {"warmup_steps": max(1, min(100, steps // 10))}
    sections = {"model": model, "data": settings, "transform": transform, "loss": loss, "optim": optim,
                "run": _run(steps, batch)}  # fmt: skip
    if known.new:
        sections["run"]["ema_decay"] = 0.999 if steps > 2000 else 0.99
    return sections, choices


def _side_of_mini() -> int:
    from vlm.bundled import BUNDLED
    from vlm.checkpoint.sources import read_config

    return read_config(BUNDLED["mini"], "clip")["model"]["vision"]["image_size"]


def _sizes(known: _Data) -> str:
    return f"Half of the images are at least {known.side} pixels wide and high."


def _steps(known: _Data, batch: int, *, shown: int, most: int) -> int:
    """Steps that show `shown` samples or each of them once, but none more than `most` times."""
    total = max(known.training, min(shown, most * known.training))
    return max(20, math.ceil(total / batch))


def _steps_choice(known: _Data, steps: int, batch: int) -> Choice:
    epochs = steps * batch / known.training
    return Choice("steps", f"{steps:,}", f"Each of {known.training:,} samples is shown about {epochs:.3g} times.")


def _why_batch(known: _Data) -> str:
    return (
        "4 steps or more an epoch, and it fits into any memory." if known.training < 512 else "It fits into any memory."
    )


def _run(steps: int, batch: int) -> dict[str, Any]:
    every = max(1, steps // 4)
    return {
        "steps": steps,
        "batch_size": batch,
        "eval_every": every,
        "save_every": every,
        "log_every": max(1, min(10, every)),
    }


def _colours(known: _Data) -> tuple[float, float]:
    """Mean and standard deviation of the pixels, 0..1."""
    means, squares = [], []
    for index in known.seen.facts["index"][:_COLOURS_OF]:
        try:
            levels = np.asarray(open_image(known.rows.image(int(index))), np.float64) / 255
        except ImageError:
            continue
        means.append(float(levels.mean()))
        squares.append(float((levels**2).mean()))
    mean = statistics.mean(means)
    return round(mean, 3), round(max(0.05, math.sqrt(max(0.0, statistics.mean(squares) - mean**2))), 3)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def choices_table(recipe: FirstRecipe) -> str:
    """The choices for people, one a line."""
    return "\n".join(f"{choice.name:<16}{choice.chosen}: {choice.why}" for choice in recipe.choices)
