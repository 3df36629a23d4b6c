"""A recipe: one TOML file, one frozen tree of settings.  `sections.py` holds the sections, `reading.py` the file."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from vlm.config import StrictConfig, check_fraction, check_not_negative, check_positive, check_share
from vlm.errors import RecipeError
from vlm.training.recipe.augmentation import AugmentConfig, TransformConfig
from vlm.training.recipe.old_keys import refuse_old_keys
from vlm.training.recipe.sections import (
    DataSection,
    DataSettings,
    LabelledSection,
    LossSection,
    ModelSection,
    OptimSection,
    RunSection,
    VitSection,
)


@dataclass(frozen=True, kw_only=True)
class LoopRecipe(StrictConfig, ABC):
    """Settings of every recipe, read by training/engine/loop.py."""

    optim: OptimSection = OptimSection()  # noqa: RUF009 (frozen)
    run: RunSection = RunSection()  # noqa: RUF009 (frozen)

    @property
    @abstractmethod
    def workers(self) -> int:
        """Loader processes."""

    @property
    @abstractmethod
    def prefetch_mib(self) -> int:
        """Decoded images that wait in all loader processes, in MiB."""

    @property
    @abstractmethod
    def dense_share(self) -> float:
        """The last share of the steps, which use whole images at full size."""

    @property
    @abstractmethod
    def paths(self) -> list[str]:
        """Paths of the training and validation data."""

    @property
    def dense_from(self) -> int:
        """The first of those steps; `run.steps` where there is none."""
        return round(self.run.steps * (1 - self.dense_share))

    def __post_init__(self) -> None:
        run, optim = self.run, self.optim
        check_positive(run, "steps", "batch_size", "accumulate", "eval_every", "save_every", "keep", "log_every")
        run.rows_of_a_process(1)
        if run.shard and optim.matrices == "muon":
            raise RecipeError("matrices 'muon' needs whole matrices, shard = true cuts them. Use matrices = 'adamw'.")
        check_positive(optim, "lr", "muon_lr", "clip_norm", "max_logit_scale")
        check_not_negative(optim, "weight_decay", "muon_decay")
        if optim.warmup_steps is not None:
            check_not_negative(optim, "warmup_steps")
        if run.epochs and run.steps != RunSection.steps:
            raise RecipeError(_TWO_LENGTHS.format(run.steps, run.epochs))
        check_share(optim, "final_lr")
        check_fraction(run, "ema_decay")
        check_not_negative(run, "seed", "max_skipped", "epochs")
        check_positive(run, "timeout_minutes")
        check_not_negative(self, "workers")
        check_positive(self, "prefetch_mib")
        if not all(0 <= beta < 1 for beta in optim.betas):
            raise RecipeError(f"betas must both be in [0, 1), got {optim.betas}.")
        if not 0 < optim.layer_decay <= 1:
            raise RecipeError(f"layer_decay must be in (0, 1], got {optim.layer_decay}.")

    def check_warmup(self) -> None:
        """`RecipeError` where the warm-up is longer than the run, whose steps are known."""
        steps, warmup = self.run.steps, self.optim.warmup_steps
        if not self.run.epochs and warmup is not None and warmup > steps:
            raise RecipeError(
                f"[optim] warmup_steps is {warmup} and the run has {steps} steps: the learning rate would reach "
                f"{steps / warmup:.0%} of its peak. Set warmup_steps = {max(1, steps // 10)}, or leave it out."
            )

    def of_length(self, samples: int) -> Self:
        """The recipe with steps in place of epochs.

        Args:
            samples: of the training data.

        Raises:
            RecipeError: the warm-up is longer than the run.
        """
        run = self.run
        if not run.epochs:
            return self
        found = replace(
            self, run=replace(run, epochs=0, steps=max(1, math.ceil(run.epochs * samples / run.batch_size)))
        )
        found.check_warmup()
        return found

    def length(self, samples: int) -> str:
        """Steps and epochs of the run, in words: "200 steps = 3.2 epochs of 8,000 samples"."""
        steps, batch = self.run.steps, self.run.batch_size
        return f"{steps:,} steps of {batch:,} = {steps * batch / samples:.3g} epochs of {samples:,} samples"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from plain values; `task`, where it stands, must be this kind's.  Old keys are a `RecipeError`."""
        recipe = cls.of_run(values)
        recipe.check_warmup()
        return recipe

    @classmethod
    def of_run(cls, values: dict[str, Any]) -> Self:
        """The same of a run that has begun: runs of 0.1.0 may be shorter than their warm-up."""
        _check_one_length(values)
        task = task_of(cls)
        if (came := values.get("task", task)) != task:
            raise RecipeError(f"task is {came!r}; a recipe of task {task!r} was wanted.")
        refuse_old_keys(values, task)
        return super().from_dict(values)

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Settings that differ in `other`, a recipe as plain values: "optim.lr: 0.001, was 0.002"."""
        return [
            f"{section}.{name}: {value!r}, was {was!r}"
            for section, settings in _plain(self.to_dict()).items()
            if section != "task"
            for name, value in settings.items()
            if name in other.get(section, {}) and (was := _plain(other[section][name])) != value
        ]


@dataclass(frozen=True, kw_only=True)
class Recipe(LoopRecipe):
    """Recipe of a CLIP."""

    task: Literal["clip"] = "clip"

    model: ModelSection = ModelSection()  # noqa: RUF009 (frozen)
    data: DataSection = DataSection()  # noqa: RUF009 (frozen)
    augment: AugmentConfig = AugmentConfig()  # noqa: RUF009 (frozen)

    @property
    def paths(self) -> list[str]:
        own = [self.data.train] if isinstance(self.data.train, str) else [part.path for part in self.data.train]
        return [path for path in (*own, self.data.validation) if path]

    @property
    def workers(self) -> int:
        return self.data.workers

    @property
    def prefetch_mib(self) -> int:
        return self.data.prefetch_mib

    @property
    def dense_share(self) -> float:
        return self.data.dense_share

    def __post_init__(self) -> None:
        super().__post_init__()
        data = self.data
        _check_data(data)
        if self.run.batch_size < 2:
            raise RecipeError(
                "batch_size is 1: a contrastive loss compares a pair with the others of its batch, so it would be 0. "
                "Use 2 or more, better 64."
            )
        if data.held_out and not isinstance(data.train, str):
            raise RecipeError("a mixture cannot hold samples out: name its validation data, [data] validation = ...")
        check_positive(data, "captions_per_image")
        for source in data.sources if data.train else ():
            check_positive(source, "weight")
        if data.shuffle_window is not None:
            check_not_negative(data, "shuffle_window")
        if data.balance != "none" and (data.shuffle_window or not isinstance(data.train, str)):
            raise RecipeError(
                "balance draws by class from one data set: leave out shuffle_window, and of a mixture its weights."
            )
        check_share(data, "keyword_share", "template_share", "kana_share")
        if data.coarse_size < 0 or (data.coarse_size and not data.dense_share):
            raise RecipeError(
                f"coarse_size is {data.coarse_size}; it must be 0 or a side in pixels, and then dense_share above "
                "0: the last steps use images of full size."
            )


@dataclass(frozen=True, kw_only=True)
class VitRecipe(LoopRecipe):
    """Recipe of an image classifier."""

    task: Literal["vit"] = "vit"

    model: VitSection = VitSection()  # noqa: RUF009 (frozen)
    data: LabelledSection = LabelledSection()  # noqa: RUF009 (frozen)
    transform: TransformConfig = TransformConfig()  # noqa: RUF009 (frozen)
    loss: LossSection = LossSection()  # noqa: RUF009 (frozen)

    @property
    def paths(self) -> list[str]:
        return [path for path in (self.data.train, self.data.validation) if path]

    @property
    def workers(self) -> int:
        return self.data.workers

    @property
    def prefetch_mib(self) -> int:
        return self.data.prefetch_mib

    @property
    def dense_share(self) -> float:
        return self.data.dense_share

    def __post_init__(self) -> None:
        super().__post_init__()
        model, data = self.model, self.data
        _check_data(data, (model.vision or {}).get("in_channels", 3) if model.start is None else 3)
        if not data.train:
            raise RecipeError("the recipe names no data. Set [data] train = a folder, file or hub data set.")
        needs_source = (model.head != "new", model.num_heads, model.train_blocks is not None, model.lora_rank)
        if model.start is None and any(needs_source):
            raise RecipeError(
                "head, num_heads, train_blocks and lora_rank need a trained model: name one, [model] source = ..."
            )
        if model.source is not None and (other := set(model.vision or {}) - _CHANGEABLE):
            allowed = ", ".join(sorted(_CHANGEABLE))
            raise RecipeError(f"{', '.join(sorted(other))} cannot be changed in a trained model; only {allowed}.")
        check_fraction(self.loss, "label_smoothing")
        check_not_negative(self.loss, "mixup", "cutmix")
        check_share(self.loss, "mix_share")
        check_not_negative(data, "most_frequent")
        if data.augment_on == "device" and self.transform.rand_augment:
            raise RecipeError(
                'rand_augment is computed in the loader processes, and augment_on is "device". Set rand_augment = 0, '
                'or augment_on = "workers".'
            )
        self._check_problem()

    def _check_problem(self) -> None:
        loss, data = self.loss, self.data
        if loss.problem == "regression":
            if loss.label_smoothing or loss.class_weights != "none" or data.classes:
                raise RecipeError(
                    "label_smoothing, class_weights and classes are about classes. "
                    'Leave them out with problem = "regression".'
                )
            if data.balance != "none":
                raise RecipeError('balance is about classes. Set balance = "none" with problem = "regression".')
            if "label" not in (data.columns or {}):
                raise RecipeError(
                    'the recipe does not say where the numbers are. Set [data] columns = { label = "COLUMN" }.'
                )
        if loss.problem != "single_label" and self.model.head == "zero_shot":
            raise RecipeError(
                f'head = "zero_shot" compares classes with each other. With problem "{loss.problem}" use "new".'
            )
        if data.most_frequent and loss.problem != "multi_label":
            raise RecipeError('most_frequent chooses labels of a multi-label task. Set [loss] problem = "multi_label".')


_TWO_LENGTHS = "[run] has steps = {} and epochs = {}: one follows from the other. Leave out one."
_CHANGEABLE = {"image_size", "dropout", "drop_path"}


def task_of(kind: type[LoopRecipe]) -> Literal["clip", "vit"]:
    """Returns the task of a recipe."""
    return "vit" if issubclass(kind, VitRecipe) else "clip"


def _check_one_length(values: dict[str, Any]) -> None:
    """`RecipeError` where somebody wrote both steps and epochs."""
    run = values.get("run", {})
    if isinstance(run, dict) and run.get("epochs") and "steps" in run:
        raise RecipeError(_TWO_LENGTHS.format(run["steps"], run["epochs"]))


def _check_data(data: DataSettings, channels: int = 3) -> None:
    data.preprocessing(32, channels)  # checks mean and std
    check_not_negative(data, "held_out")
    if data.held_out and (data.validation or data.validation_split):
        raise RecipeError("held_out and validation are two ways to validation data. Leave out one of them.")
    check_fraction(data, "patch_dropout", "dense_share")
    check_share(data, "max_broken")


def _plain(value: Any) -> Any:
    """Converts values to those of JSON: lists instead of tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
