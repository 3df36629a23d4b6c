"""A recipe: one TOML file, one frozen tree of numbers.  Each section is read by one module, named beside it."""

import dataclasses
import math
import tomllib
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from training.augment import AugmentConfig
from vlm.config import CLIPConfig, StrictConfig, TextConfig, VisionConfig, named_size


class Section(StrictConfig):
    """A part of a recipe.  Settings with a list of choices are checked here, ranges in `Recipe`."""

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, kind = getattr(self, field.name), kinds[field.name]
            if typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
                choices = ", ".join(typing.get_args(kind))
                raise ValueError(f"{field.name} is {value!r}; it must be one of {choices}.")


@dataclass(frozen=True, kw_only=True)
class ModelSection(Section):
    """What is trained (train_clip.py): a named size with changes, or any checkpoint `vlm.load` can read."""

    size: str = "mini"
    source: str | None = None  # start from these weights instead of from nothing
    lock_vision: bool = False  # LiT (Zhai et al. 2022): the picture tower and its projection stay as the source's
    tokenizer: str | None = None  # folder written by training.train_tokenizer; None with `source` keeps the source's
    embed_dim: int | None = None
    vision: dict[str, Any] | None = None  # changes to the size's VisionConfig
    text: dict[str, Any] | None = None  # changes to the size's TextConfig
    loss: Literal["clip", "siglip"] = "clip"

    def architecture(self, vocab_size: int, eot_id: int, pad_id: int, context_length: int) -> CLIPConfig:
        """The named size with this recipe's changes, fitted to the tokenizer."""
        config = named_size(self.size)
        ids = {"vocab_size": vocab_size, "eot_id": eot_id, "pad_id": pad_id, "context_length": context_length}
        vision = VisionConfig.from_dict(config.vision.to_dict() | (self.vision or {}))
        text = TextConfig.from_dict(config.text.to_dict() | ids | (self.text or {}))
        config = replace(config, embed_dim=self.embed_dim or config.embed_dim, vision=vision, text=text)
        return replace(config, logit_scale=math.log(10), logit_bias=-10.0) if self.loss == "siglip" else config


@dataclass(frozen=True, kw_only=True)
class DataSection(Section):
    """What it is trained on (data.py)."""

    train: str = "training/picture_words/train.parquet"
    train_splits: tuple[str, ...] = ()  # values of the `split` column; empty takes all rows
    validation: str = "training/picture_words/validation.parquet"
    validation_split: str = "val_style"
    keyword_share: float = 0.3  # captions drawn from keywords, where a picture has both names and keywords
    template_share: float = 0.0  # captions put into a sentence, "a drawing of ...", as zero-shot labels are
    kana_share: float = 0.0  # Japanese captions written another way: 赤リンゴ as 赤いりんご
    captions_per_picture: int = 1  # 2: one of each language where there are two
    patch_dropout: float = 0.0  # share of patches left out of each training picture (FLIP, Li et al. 2023)
    dense_share: float = 0.0  # the last share of the steps, without patch dropout
    workers: int = 1  # loader processes; the order and every draw are the same for any number
    mean: float = 0.75  # grey level of pictures mostly on white paper, for the model's Preprocess
    std: float = 0.3


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
class Recipe(StrictConfig):
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    augment: AugmentConfig = AugmentConfig()  # noqa: RUF009 (frozen)
    optim: OptimSection = OptimSection()
    run: RunSection = RunSection()

    def __post_init__(self) -> None:
        run, data, optim = self.run, self.data, self.optim
        if run.batch_size % run.accumulate:
            raise ValueError(
                f"batch_size {run.batch_size} does not divide into accumulate = {run.accumulate} equal chunks."
            )
        if run.shard and optim.matrices == "muon":
            raise ValueError("matrices 'muon' needs whole matrices, shard = true cuts them. Use matrices = 'adamw'.")
        if self.model.lock_vision and self.model.source is None:
            raise ValueError("lock_vision keeps a trained picture tower as it is: name one, [model] source = ...")
        if self.model.source is not None and (self.model.embed_dim or self.model.vision or self.model.text):
            raise ValueError(
                "embed_dim, vision and text shape a new model; source brings its own. Leave out one of them."
            )
        for section, name in _POSITIVE:
            if getattr(getattr(self, section), name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(getattr(self, section), name)}.")
        for section, name in _FRACTIONS:
            if not 0 <= getattr(getattr(self, section), name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(getattr(self, section), name)}.")
        for name, value in (("seed", run.seed), ("workers", data.workers), ("warmup_steps", optim.warmup_steps)):
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}.")
        if not 0 < optim.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], got {optim.layer_decay}.")

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Settings that are others in `other`, a recipe as plain values: "optim.lr: 0.001, was 0.002"."""
        return [
            f"{section}.{name}: {value!r}, was {was!r}"
            for section, settings in _plain(self.to_dict()).items()
            for name, value in settings.items()
            if (was := _plain(other.get(section, {}).get(name))) != value
        ]


_POSITIVE = [
    ("run", name) for name in ("steps", "batch_size", "accumulate", "eval_every", "save_every", "keep", "log_every")
]
_POSITIVE += [("data", "captions_per_picture"), ("data", "std"), ("optim", "clip_norm")]
_FRACTIONS = [("data", "patch_dropout"), ("data", "dense_share"), ("run", "ema_decay")]


def _plain(value: Any) -> Any:
    """As JSON gives it back: lists, no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_recipe(path: Path) -> Recipe:
    """Parse and check a TOML recipe; `ValueError` in one line naming the file."""
    try:
        return Recipe.from_dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"There is no recipe {path}.") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
