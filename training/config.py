"""A recipe: one TOML file, one frozen tree of numbers.  Each section is read by one module, named beside it."""

import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from training.augment import AugmentConfig
from vlm.config import CLIPConfig, StrictConfig, TextConfig, VisionConfig, named_size


@dataclass(frozen=True, kw_only=True)
class ModelSection(StrictConfig):
    """What is trained (train_clip.py): a named size with changes, or any checkpoint `vlm.load` can read."""

    size: str = "mini"
    source: str | None = None  # start from these weights instead of from nothing
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
class DataSection(StrictConfig):
    """What it is trained on (data.py)."""

    train: str = "training/picture_words/train.parquet"
    train_splits: tuple[str, ...] = ()  # values of the `split` column; empty takes all rows
    validation: str = "training/picture_words/validation.parquet"
    validation_split: str = "val_style"
    keyword_share: float = 0.3  # captions drawn from keywords, where a picture has both names and keywords
    template_share: float = 0.0  # captions put into a sentence, "a drawing of ...", as zero-shot labels are
    captions_per_picture: int = 1  # 2: one of each language where there are two
    patch_dropout: float = 0.0  # share of patches left out of each training picture (FLIP, Li et al. 2023)
    dense_share: float = 0.0  # the last share of the steps, without patch dropout
    workers: int = 1  # loader processes; the order and every draw are the same for any number
    mean: float = 0.75  # grey level of pictures mostly on white paper, for the model's Preprocess
    std: float = 0.3


@dataclass(frozen=True, kw_only=True)
class OptimSection(StrictConfig):
    """How weights move (optim.py)."""

    matrices: Literal["muon", "adamw"] = "muon"  # for the blocks' matrices; everything else is AdamW
    lr: float = 1e-3  # AdamW
    muon_lr: float = 0.02
    muon_decay: float = 0.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)  # Radford et al. 2021, table 19
    warmup_steps: int = 100
    final_lr: float = 0.02  # share of the peak at the end of the cosine
    clip_norm: float = 1.0
    max_logit_scale: float = 100.0  # Radford et al. 2021, section 2.5


@dataclass(frozen=True, kw_only=True)
class RunSection(StrictConfig):
    """How long, and what is written down (loop.py)."""

    steps: int = 200
    batch_size: int = 128  # pairs of one step, over all processes
    accumulate: int = 1  # chunks a step is computed in; the gradients are those of the whole batch
    seed: int = 0
    precision: Literal["float32", "bfloat16", "auto"] = "float32"  # auto: bfloat16 where the processor computes it natively
    ema_decay: float = 0.0  # 0: no average of weights
    eval_every: int = 200
    save_every: int = 200
    keep: int = 2  # checkpoints kept
    log_every: int = 10


@dataclass(frozen=True, kw_only=True)
class Recipe(StrictConfig):
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimSection = OptimSection()
    run: RunSection = RunSection()

    def __post_init__(self) -> None:
        if self.run.batch_size % self.run.accumulate:
            raise ValueError(f"batch_size {self.run.batch_size} cannot be cut into accumulate = {self.run.accumulate} equal chunks.")
        if not 0 <= self.data.patch_dropout < 1:
            raise ValueError(f"patch_dropout must be in [0, 1), got {self.data.patch_dropout}.")


def read_recipe(path: Path) -> Recipe:
    """Parse and check a TOML recipe; `ValueError` in one line naming the file."""
    try:
        return Recipe.from_dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"There is no recipe {path}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
