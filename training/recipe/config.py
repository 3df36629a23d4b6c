"""A recipe: one TOML file, one frozen tree of numbers.  Each section is read by one module, named beside it."""

import dataclasses
import math
import re
import tomllib
import typing
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from vlm.config import (
    CLIPConfig,
    StrictConfig,
    TextConfig,
    VisionConfig,
    check_choice,
    check_fraction,
    check_not_negative,
    check_positive,
    check_share,
    named_size,
)
from vlm.errors import RecipeError
from vlm.training.data.augment import AugmentConfig
from vlm.training.data.transforms import TransformConfig


class Section(StrictConfig):
    """A part of a recipe.  Settings with a list of choices are checked here, ranges in `Recipe`."""

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if typing.get_origin(kinds[field.name]) is Literal:
                check_choice(self, field.name, typing.get_args(kinds[field.name]))


@dataclass(frozen=True, kw_only=True)
class ModelSection(Section):
    """What is trained (train_clip.py): a named size with changes, or any checkpoint `vlm.load` can read."""

    size: str = "mini"
    source: str | None = None  # start from these weights instead of from nothing
    lock_vision: bool = False  # LiT (Zhai et al. 2022): the image tower and its projection stay as the source's
    train: str = "all"  # "heads": only what lies above the blocks; "last-2": and the last 2 blocks of each tower
    lora_rank: int = 0  # adapters on those blocks, and nothing else, learn (lora.py); 0: none
    lora_alpha: int = 16  # what the adapters add is scaled by alpha / rank
    tokenizer: str | None = None  # folder written by training.train_tokenizer; None with `source` keeps the source's
    embed_dim: int | None = None
    vision: dict[str, Any] | None = None  # changes to the size's VisionConfig
    text: dict[str, Any] | None = None  # changes to the size's TextConfig
    loss: Literal["clip", "siglip"] = "clip"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"all|heads|last-[1-9]\d*", self.train):
            raise ValueError(f"train is {self.train!r}; it must be 'all', 'heads' or the like of 'last-2'.")
        if self.lora_rank < 0 or self.lora_alpha < 1:
            raise ValueError(
                f"lora_rank must be 0 or more and lora_alpha 1 or more, got {self.lora_rank} and {self.lora_alpha}."
            )
        if self.lora_rank and self.train == "heads":
            raise ValueError(
                "lora_rank puts adapters on blocks, and train = 'heads' names none. Leave out one of them."
            )
        if self.source is None and (self.train != "all" or self.lora_rank):
            raise ValueError("train and lora_rank are about a trained model: name one, [model] source = ...")

    @property
    def train_blocks(self) -> int | None:
        """So many last blocks of each tower learn, and what lies above them; None: everything."""
        if self.train == "all":
            return None
        return 0 if self.train == "heads" else int(self.train.removeprefix("last-"))

    def architecture(self, vocab_size: int, eot_id: int, pad_id: int, context_length: int) -> CLIPConfig:
        """The named size with this recipe's changes, fitted to the tokenizer."""
        config = named_size(self.size)
        ids = {"vocab_size": vocab_size, "eot_id": eot_id, "pad_id": pad_id, "context_length": context_length}
        vision = VisionConfig.from_dict(config.vision.to_dict() | (self.vision or {}))
        text = TextConfig.from_dict(config.text.to_dict() | ids | (self.text or {}))
        config = replace(config, embed_dim=self.embed_dim or config.embed_dim, vision=vision, text=text)
        return replace(config, logit_scale=math.log(10), logit_bias=-10.0) if self.loss == "siglip" else config


@dataclass(frozen=True, kw_only=True)
class SourceSection(Section):
    """One part of a mixture."""

    path: str
    weight: float = 1.0  # share of all samples drawn, relative to the other parts
    splits: tuple[str, ...] = ()
    columns: dict[str, Any] | None = None
    root: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataSection(Section):
    """What it is trained on (rows.py, data.py).  Data may have any format docs/data.md shows."""

    train: str | tuple[SourceSection, ...] = "training/picture_words/train.parquet"  # or a mixture
    columns: dict[str, Any] | None = None  # of the training table: { image = "file", caption = ["title", "alt"] }
    root: str | None = None  # where the table's paths begin, and what they may not leave; default: its folder
    train_splits: tuple[str, ...] = ()  # values of the `split` column; empty takes all rows
    validation: str = "training/picture_words/validation.parquet"
    validation_split: str = "val_style"  # "" takes all rows
    validation_columns: dict[str, Any] | None = None
    cache: Literal["auto", "memory", "disk", "none"] = "auto"  # decoded images; auto: memory, up to 256 MiB
    shuffle_window: int = 0  # samples shuffled at once: memory and reads in one place, for sets that do not fit; 0: all
    max_broken: float = 0.01  # a larger share of unusable samples ends the run
    keyword_share: float = 0.3  # captions drawn from keywords, where an image has both names and keywords
    template_share: float = 0.0  # captions put into a sentence, "a drawing of ...", as zero-shot labels are
    kana_share: float = 0.0  # Japanese captions written another way: 赤リンゴ as 赤いりんご
    captions_per_image: int = 1  # 2: one of each language where there are two
    patch_dropout: float = 0.0  # share of patches left out of each training image (FLIP, Li et al. 2023)
    coarse_size: int = 0  # side of the images before the dense steps, smaller than the model's; 0: the model's
    dense_share: float = 0.0  # the last share of the steps: full size, all patches
    workers: int = 1  # loader processes; the order and every draw are the same for any number
    mean: float = 0.75  # grey level of images mostly on white paper, for the model's Preprocess
    std: float = 0.3

    @property
    def sources(self) -> tuple[SourceSection, ...]:
        """The training data, one part or more."""
        if not isinstance(self.train, str):
            return self.train
        return (SourceSection(path=self.train, splits=self.train_splits, columns=self.columns, root=self.root),)

    def coarse(self, config: VisionConfig) -> VisionConfig:
        """The image tower as it is before the dense steps."""
        if not self.coarse_size:
            return config
        if self.coarse_size >= min(config.image_shape):
            raise ValueError(
                f"coarse_size is {self.coarse_size}; the model's images are {config.image_shape}. Less, or 0."
            )
        return replace(config, image_size=self.coarse_size)


@dataclass(frozen=True, kw_only=True)
class OptimSection(Section):
    """How weights move (optim.py)."""

    matrices: Literal["muon", "adamw"] = "muon"  # for the blocks' matrices; everything else is AdamW
    lr: float = 1e-3  # AdamW
    muon_lr: float = 0.02
    muon_decay: float = 0.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)  # Radford et al. 2021, table 19
    layer_decay: float = 1.0  # each layer learns this much slower than the one above it (BEiT, Bao et al. 2022)
    warmup_steps: int = 100
    final_lr: float = 0.02  # share of the peak at the end of the cosine
    clip_norm: float = 1.0
    max_logit_scale: float = 100.0  # Radford et al. 2021, section 2.5


@dataclass(frozen=True, kw_only=True)
class RunSection(Section):
    """How long, on what, and what is written down (loop.py, parallel.py)."""

    steps: int = 200
    batch_size: int = 128  # pairs of one step, over all processes
    accumulate: int = 1  # chunks a step is computed in; the gradients are those of the whole batch
    seed: int = 0
    # auto: bfloat16 where the processor computes it natively; float64: to compare with, not to train in
    precision: Literal["float32", "bfloat16", "float16", "auto", "float64"] = "float32"
    checkpoint_activations: bool = False  # each block twice, keeping only what enters it: less memory, 4/3 time
    compile: bool = False  # torch.compile of every block
    shard: bool = False  # FSDP2: each process keeps its part of weights and optimizer; false: DDP, all keep all
    ema_decay: float = 0.0  # 0: no average of weights
    eval_every: int = 200
    save_every: int = 200
    keep: int = 2  # checkpoints kept
    log_every: int = 10


@dataclass(frozen=True, kw_only=True)
class LoopRecipe(StrictConfig, ABC):
    """What every recipe has, as training/engine/loop.py reads it."""

    optim: OptimSection = OptimSection()
    run: RunSection = RunSection()

    @property
    @abstractmethod
    def workers(self) -> int:
        """Loader processes."""

    @property
    @abstractmethod
    def dense_share(self) -> float:
        """The last share of the steps, which see whole images at full size."""

    @property
    def dense_from(self) -> int:
        """The first of those steps; `run.steps` where there is none."""
        return round(self.run.steps * (1 - self.dense_share))

    def __post_init__(self) -> None:
        run, optim = self.run, self.optim
        check_positive(run, "steps", "batch_size", "accumulate", "eval_every", "save_every", "keep", "log_every")
        if run.batch_size % run.accumulate:
            raise ValueError(
                f"batch_size {run.batch_size} does not divide into accumulate = {run.accumulate} equal chunks."
            )
        if run.shard and optim.matrices == "muon":
            raise ValueError("matrices 'muon' needs whole matrices, shard = true cuts them. Use matrices = 'adamw'.")
        check_positive(optim, "lr", "muon_lr", "clip_norm", "max_logit_scale")
        check_not_negative(optim, "warmup_steps", "weight_decay", "muon_decay")
        check_share(optim, "final_lr")
        check_fraction(run, "ema_decay")
        check_not_negative(run, "seed")
        check_not_negative(self, "workers")
        if not all(0 <= beta < 1 for beta in optim.betas):
            raise ValueError(f"betas must both be in [0, 1), got {optim.betas}.")
        if not 0 < optim.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], got {optim.layer_decay}.")

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Settings that are others in `other`, a recipe as plain values: "optim.lr: 0.001, was 0.002"."""
        return [
            f"{section}.{name}: {value!r}, was {was!r}"
            for section, settings in _plain(self.to_dict()).items()
            if isinstance(settings, dict)
            for name, value in settings.items()
            if (was := _plain(other.get(section, {}).get(name))) != value
        ]


@dataclass(frozen=True, kw_only=True)
class Recipe(LoopRecipe):
    """Of a CLIP."""

    task: Literal["clip"] = "clip"
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    augment: AugmentConfig = AugmentConfig()  # noqa: RUF009 (frozen)

    @property
    def workers(self) -> int:
        return self.data.workers

    @property
    def dense_share(self) -> float:
        return self.data.dense_share

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.lock_vision and self.model.source is None:
            raise ValueError("lock_vision keeps a trained image tower as it is: name one, [model] source = ...")
        if self.model.source is not None and (self.model.embed_dim or self.model.vision or self.model.text):
            raise ValueError(
                "embed_dim, vision and text shape a new model; source brings its own. Leave out one of them."
            )
        check_positive(self.data, "captions_per_image", "std")
        for source in self.data.sources:
            check_positive(source, "weight")
        check_not_negative(self.data, "shuffle_window")
        check_share(self.data, "max_broken", "keyword_share", "template_share", "kana_share")
        check_fraction(self.data, "patch_dropout", "dense_share")
        if self.data.coarse_size < 0 or (self.data.coarse_size and not self.data.dense_share):
            raise ValueError(
                f"coarse_size is {self.data.coarse_size}; it must be 0 or a side in pixels, and then dense_share above "
                "0: in those steps a model learns what an image of full size looks like."
            )


@dataclass(frozen=True, kw_only=True)
class VitSection(Section):
    """What is trained (classification.py): a new ViT, or the image tower of a CLIP or ViT that vlm can load."""

    source: str | None = None  # start from these weights instead of from nothing
    num_heads: int | None = None  # of a source whose weights do not say it
    vision: dict[str, Any] | None = None  # a new VisionConfig; with `source` changes to its: image_size, drop_path ...
    head: Literal["zero", "names"] = "zero"  # names: as the CLIP in `source` understands the classes' names
    train_blocks: int | None = None  # only the last so many blocks and the head learn; 0: the head alone

    def architecture(self) -> VisionConfig:
        """Of a new model; what the recipe leaves out is ViT-B/16's."""
        return VisionConfig.from_dict(self.vision or {})


@dataclass(frozen=True, kw_only=True)
class LabelledSection(Section):
    """What it is trained on (class_stream.py): any data with classes that `vlm.training.data.rows.open_rows` reads."""

    train: str = ""
    train_split: str | None = None  # None takes all rows
    validation: str | None = None  # None: where `train` is
    validation_split: str | None = None
    held_out: int = 0  # instead of validation data: this many training images, the same for every seed
    column: str | None = None  # that holds the classes, where it is not called label
    classes: str | None = None  # a class set in the data's classes.json, which names classes in two languages
    language: Literal["en", "ja"] = "en"  # of the names that become the model's labels
    cache: Literal["auto", "memory", "disk", "none"] = "auto"  # decoded images; auto: memory, up to 256 MiB
    max_broken: float = 0.01  # a larger share of unusable samples ends the run
    patch_dropout: float = 0.0  # share of patches left out of each training image (FLIP, Li et al. 2023)
    dense_share: float = 0.0  # the last share of the steps, without patch dropout
    workers: int = 1  # loader processes; the order and every draw are the same for any number
    mean: float = 0.5  # grey level of the images, for a new model's Preprocess
    std: float = 0.3


@dataclass(frozen=True, kw_only=True)
class LossSection(Section):
    """What is asked of the model: softmax cross-entropy, softened (classification.py)."""

    label_smoothing: float = 0.0  # Szegedy et al. 2016
    mixup: float = 0.0  # alpha; two images through each other (Zhang et al. 2018)
    cutmix: float = 0.0  # alpha; a piece of one in the other (Yun et al. 2019); with mixup, one of both at random
    mix_share: float = 1.0  # of the steps that mix at all


@dataclass(frozen=True, kw_only=True)
class VitRecipe(LoopRecipe):
    """Of an image classifier."""

    task: Literal["vit"] = "vit"
    model: VitSection = VitSection()
    data: LabelledSection = LabelledSection()
    transform: TransformConfig = TransformConfig()  # noqa: RUF009 (frozen)
    loss: LossSection = LossSection()

    @property
    def workers(self) -> int:
        return self.data.workers

    @property
    def dense_share(self) -> float:
        return self.data.dense_share

    def __post_init__(self) -> None:
        super().__post_init__()
        model, data = self.model, self.data
        if not data.train:
            raise ValueError("the recipe names no data. Set [data] train = a folder, file or hub data set.")
        if bool(data.held_out) == bool(data.validation or data.validation_split):
            raise ValueError("say what to validate on: [data] held_out = a number, or validation_split = a name.")
        if model.source is None and (model.head == "names" or model.num_heads or model.train_blocks is not None):
            raise ValueError(
                "head, num_heads and train_blocks are about a trained model: name one, [model] source = ..."
            )
        if model.source is not None and (other := set(model.vision or {}) - _CHANGEABLE):
            allowed = ", ".join(sorted(_CHANGEABLE))
            raise ValueError(f"{', '.join(sorted(other))} cannot be changed in a trained model; only {allowed}.")
        check_positive(data, "std")
        check_fraction(data, "patch_dropout", "dense_share")
        check_share(data, "max_broken")
        check_fraction(self.loss, "label_smoothing")
        check_not_negative(self.loss, "mixup", "cutmix")
        check_share(self.loss, "mix_share")


_CHANGEABLE = {"image_size", "dropout", "drop_path"}


def _plain(value: Any) -> Any:
    """As JSON gives it back: lists, no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


AnyRecipe = TypeVar("AnyRecipe", bound=LoopRecipe)


def read_recipe(path: Path, kind: type[AnyRecipe] = Recipe) -> AnyRecipe:
    """Read a TOML recipe of one kind; `RecipeError` names the file where it is of another kind."""
    recipe = read_any_recipe(path)
    if not isinstance(recipe, kind):
        raise RecipeError(f'{path} has task = "{recipe.task}", which is another kind of recipe.')
    return recipe


def read_any_recipe(path: Path) -> Recipe | VitRecipe:
    """Read and check a TOML recipe.

    Args:
        path: the file; `task = "clip"` or `task = "vit"` stands at its top.

    Raises:
        RecipeError: in one line that names the file: it is missing, is not TOML, has no task, or a setting is wrong.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        task = settings.get("task")
        if task not in ("clip", "vit"):
            came = "has no task" if task is None else f"has task = {task!r}"
            raise RecipeError(f'{came}. Write task = "clip" (images and texts) or task = "vit" (classes) at its top.')
        return (Recipe if task == "clip" else VitRecipe).from_dict(settings)
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe {path}. Give the path of a TOML file.") from None
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise RecipeError(f"{path}: {error}") from None
