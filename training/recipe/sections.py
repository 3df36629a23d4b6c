"""The sections of a recipe.  The module that reads a section is named beside it."""

import dataclasses
import math
import typing
from dataclasses import dataclass, replace
from typing import Any, Literal

from vlm.config import (
    CLIPConfig,
    PreprocessConfig,
    Problem,
    StrictConfig,
    TextConfig,
    VisionConfig,
    check_choice,
    named_size,
)
from vlm.errors import RecipeError

Resize = Literal["crop", "pad", "squash"]
Cache = Literal["auto", "memory", "disk", "none"]
Balance = Literal["none", "sqrt", "equal"]
HoldOutBy = Literal["concept", "sample"]
Grey = float | tuple[float, ...]


class Section(StrictConfig):
    """A part of a recipe.  Settings with a list of choices are checked here, ranges in the recipe."""

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if typing.get_origin(kinds[field.name]) is Literal:
                check_choice(self, field.name, typing.get_args(kinds[field.name]))


@dataclass(frozen=True, kw_only=True)
class ModelSection(Section):
    """The CLIP that is trained (tasks/contrastive.py): a new one, or any checkpoint that `vlm.load` can read.

    A section that names neither a source nor a new model starts from the bundled model.
    """

    source: str | None = None  # start from these weights
    size: str | None = None  # a new model of this named size; None: mini
    lock_vision: bool = False  # LiT (Zhai et al. 2022): the image tower and its projection keep the source's weights
    train_blocks: int | None = None  # only the last so many blocks of each tower, and what lies above; None: all
    lora_rank: int = 0  # only adapters on those blocks are trained (engine/lora.py); 0: none
    lora_alpha: int = 16  # the adapters' output is scaled by alpha / rank
    tokenizer: str | None = None  # a folder that the tokenizer training wrote; None: the source's, or the bundled one
    embed_dim: int | None = None
    vision: dict[str, Any] | None = None  # changes to the size's VisionConfig
    text: dict[str, Any] | None = None  # changes to the size's TextConfig
    loss: Literal["clip", "siglip"] = "clip"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_blocks is not None and self.train_blocks < 0:
            raise RecipeError(
                f"train_blocks is {self.train_blocks}; wanted the number of last blocks that train, 0 or more."
            )
        if self.lora_rank < 0 or self.lora_alpha < 1:
            raise RecipeError(
                f"lora_rank must be 0 or more and lora_alpha 1 or more, got {self.lora_rank} and {self.lora_alpha}."
            )
        if self.lora_rank and self.train_blocks == 0:
            raise RecipeError("lora_rank puts adapters on blocks, and train_blocks = 0 names none. Leave out one.")
        if self.start is None and (self.train_blocks is not None or self.lora_rank):
            raise RecipeError("train_blocks and lora_rank need a trained model: name one, [model] source = ...")
        if self.start is None and self.lock_vision:
            raise RecipeError("lock_vision keeps a trained image tower as it is: name one, [model] source = ...")
        if self.source is not None and (self.size or self.embed_dim or self.vision or self.text):
            raise RecipeError(
                "size, embed_dim, vision and text describe a new model; source brings its own. Leave out one of them."
            )

    @property
    def start(self) -> str | None:
        """The checkpoint that training starts from; None for a new model."""
        new = (self.size, self.tokenizer, self.embed_dim, self.vision, self.text)
        return "mini" if self.source is None and new == (None,) * 5 and self.loss == "clip" else self.source

    def architecture(self, vocab_size: int, eot_id: int, pad_id: int, context_length: int) -> CLIPConfig:
        """The named size with this recipe's changes, fitted to the tokenizer."""
        config = named_size(self.size or "mini")
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
class DataSettings(Section):
    """Data settings of both kinds of recipe.  docs/data.md shows the formats of data."""

    train_splits: tuple[str, ...] = ()  # of the training data; empty takes all rows
    columns: dict[str, Any] | None = None  # of the training data: { image = "file", caption = ["title", "alt"] }
    root: str | None = None  # where a table's paths begin, and what they may not leave; default: its folder
    # to validate on; nothing said: a split of the training data called validation or test, else a tenth held out
    validation: str | None = None
    validation_split: str = ""  # "" takes all rows
    validation_columns: dict[str, Any] | None = None
    validation_root: str | None = None
    held_out: int | float = 0  # in place of validation data: so many training samples, or such a share
    # each class gives its share, and no concept and no image is on both sides; or samples drawn one by one
    hold_out_by: HoldOutBy = "concept"
    balance: Balance = "none"  # how often a class is shown: as it is; as its square root; all equally often
    cache: Cache = "auto"  # decoded images; auto: in memory, up to 256 MiB
    max_broken: float = 0.01  # a larger share of unusable samples ends the run
    patch_dropout: float = 0.0  # share of patches left out of each training image (FLIP, Li et al. 2023)
    dense_share: float = 0.0  # the last share of the steps: all patches, at full size
    prefetch_mib: int = 1024  # of decoded images that wait in all loader processes, before they are joined to batches
    workers: int = 1  # loader processes; order and random draws are the same for any number
    # where images are augmented: in the loader processes, or where the model is; auto: there where that is a GPU
    augment_on: Literal["auto", "workers", "device"] = "auto"
    resize: Resize = "crop"  # how a new model's images get their size
    mean: Grey | None = (
        None  # of a new model's pixels, 0..1: one number, or one a channel; None: OpenAI CLIP's, grey 0.5
    )
    std: Grey | None = None
    bits: Literal[8, 16] = 8  # of a new model's levels; 16 keeps those of 16-bit images

    def augments_on(self, device_type: str) -> bool:
        """Whether images are augmented on the model's device, "cpu" or "cuda"."""
        return self.augment_on == "device" or (self.augment_on == "auto" and device_type == "cuda")

    def validation_source(self, train: str) -> SourceSection:
        """The validation data; columns and root are the training data's where nothing else is said."""
        return SourceSection(
            path=self.validation or train,
            splits=(self.validation_split,) if self.validation_split else (),
            columns=self.columns if self.validation_columns is None else self.validation_columns,
            root=self.root if self.validation_root is None else self.validation_root,
        )

    def preprocessing(self, image_size: int | tuple[int, int], channels: int = 3) -> PreprocessConfig:
        """Returns the preprocessing of a new model.

        Args:
            image_size: in pixels, one side or (height, width).
            channels: C; mean and std that nobody named are OpenAI CLIP's for 3, else 0.5 and 0.25.
        """
        plain = PreprocessConfig()
        mean = _of_each_channel(self.mean, channels, plain.mean if channels == 3 else 0.5, "mean")
        std = _of_each_channel(self.std, channels, plain.std if channels == 3 else 0.25, "std")
        return PreprocessConfig(
            image_size=image_size, resize=self.resize, mean=mean, std=std, bits=self.bits, to_srgb=True
        )


def _of_each_channel(level: Grey | None, channels: int, otherwise: Grey, name: str) -> tuple[float, ...]:
    level = otherwise if level is None else level
    if not isinstance(level, tuple):
        return (level,) * channels
    if len(level) != channels:
        raise RecipeError(
            f"{name} has {len(level)} values and the model {channels} channels. Give one number, or {channels}."
        )
    return level


@dataclass(frozen=True, kw_only=True)
class DataSection(DataSettings):
    """[data] of a CLIP recipe (data/sources.py, data/pair_stream.py)."""

    train: str | tuple[SourceSection, ...] = ""  # a folder, file or hub data set; or a mixture of several
    # neighbouring samples shuffled together; 0: all.  Left out: all, but of .tar shards at a URL or of more than 8 GiB
    # as many as make a read of 4 MiB (data/formats/tars.py)
    shuffle_window: int | None = None
    keyword_share: float = 0.3  # captions drawn from keywords, where an image has both captions and keywords
    template_share: float = 0.0  # captions put into a sentence, "a drawing of ...", as zero-shot labels are
    kana_share: float = 0.0  # Japanese captions in another spelling: 赤リンゴ as 赤いりんご
    captions_per_image: int = 1  # 2: one of each language where there are two
    coarse_size: int = 0  # side of the images before the dense steps, smaller than the model's; 0: the model's

    @property
    def sources(self) -> tuple[SourceSection, ...]:
        """The training data, one part or more."""
        if not self.train:
            raise RecipeError("the recipe names no data. Set [data] train = a folder, file or hub data set.")
        if not isinstance(self.train, str):
            return self.train
        return (SourceSection(path=self.train, splits=self.train_splits, columns=self.columns, root=self.root),)

    def coarse(self, config: VisionConfig) -> VisionConfig:
        """The image tower as it is before the dense steps."""
        if not self.coarse_size:
            return config
        if self.coarse_size >= min(config.image_shape):
            raise RecipeError(
                f"coarse_size is {self.coarse_size}; the model's images are {config.image_shape}. Less, or 0."
            )
        return replace(config, image_size=self.coarse_size)


@dataclass(frozen=True, kw_only=True)
class OptimSection(Section):
    """The optimizers (engine/optim.py)."""

    matrices: Literal["muon", "adamw"] = "muon"  # for the blocks' matrices; everything else is AdamW
    lr: float = 1e-3  # AdamW
    muon_lr: float = 0.02
    muon_decay: float = 0.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)  # Radford et al. 2021, table 19
    layer_decay: float = 1.0  # learning rate of each layer relative to the one above it (BEiT, Bao et al. 2022)
    warmup_steps: int | None = None  # None: a tenth of the run, 100 at most
    final_lr: float = 0.02  # share of the peak at the end of the cosine
    clip_norm: float = 1.0
    max_logit_scale: float = 100.0  # Radford et al. 2021, section 2.5

    def warmup(self, steps: int) -> int:
        """Steps of the warm-up in a run of so many steps."""
        return min(100, steps // 10) if self.warmup_steps is None else self.warmup_steps


@dataclass(frozen=True, kw_only=True)
class RunSection(Section):
    """Length, batch, precision and output of a run (engine/loop.py, engine/parallel.py)."""

    steps: int = 200
    epochs: float = 0  # in place of steps: how often all samples are shown; 0: steps says the length
    batch_size: int = 128  # samples of one step, over all processes
    accumulate: int = 1  # chunks a step is computed in; the gradients are those of the whole batch
    seed: int = 0
    # auto: bfloat16 where the processor computes it natively, else float32; float64: to compare with, not to train in
    precision: Literal["float32", "bfloat16", "float16", "auto", "float64"] = "auto"
    checkpoint_activations: bool = False  # recompute each block in the backward pass: less memory, 4/3 time
    compile: bool = False  # torch.compile of every block
    shard: bool = False  # FSDP2: each process keeps its part of weights and optimizer; false: DDP, all keep all
    ema_decay: float = 0.0  # exponential moving average of the weights; 0: none
    eval_every: int = 200
    save_every: int = 200
    keep: int = 2  # checkpoints kept
    best: str = ""  # a validation metric, "top-1" or "loss": its best weights become the model; "": the last ones
    patience: int = 0  # validations without a better `best` before the run ends; 0: all steps
    log_every: int = 10
    max_skipped: int = 20  # steps whose loss or gradients may be not finite; they are skipped, one more ends the run
    timeout_minutes: float = 30.0  # of a collective, before a run on several processes ends
    tracker: Literal["none", "wandb", "trackio"] = "none"  # curves beside TensorBoard's

    def to_dict(self) -> dict[str, Any]:
        """Plain values; of steps and epochs the one that says the length."""
        values = super().to_dict()
        return {name: value for name, value in values.items() if name != "steps"} if self.epochs else values

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience < 0 or (self.patience and not self.best):
            raise RecipeError(
                f"[run] patience is {self.patience} and best {self.best!r}: patience is a number of validations, 0 or "
                'more, and needs best = a metric, such as "top-1".'
            )

    def rows_of_a_process(self, processes: int) -> int:
        """Samples of one step that each process computes; `RecipeError` if the batch does not divide."""
        if processes < 1 or self.batch_size % (processes * self.accumulate):
            raise RecipeError(
                f"batch_size {self.batch_size} cannot be cut into accumulate = {self.accumulate} equal chunks on each "
                f"of {processes} processes. Use a multiple of {max(1, processes) * self.accumulate}."
            )
        return self.batch_size // processes


HEADS_BEFORE: dict[str, str] = {"zero": "new", "names": "zero_shot"}  # names of earlier versions


@dataclass(frozen=True, kw_only=True)
class VitSection(Section):
    """The ViT that is trained (tasks/classification.py): a new one, or the image tower of a CLIP or ViT.

    A section that names neither a source nor a new model starts from the bundled model.
    """

    source: str | None = None  # start from these weights
    num_heads: int | None = None  # of a source whose weights do not say it
    vision: dict[str, Any] | None = None  # a new VisionConfig; with `source` changes to its: image_size, drop_path ...
    # new: starts at zero; keep: the source's own, whose labels must be those of the data; zero_shot: class embeddings
    # of the CLIP in `source` for the class names
    head: Literal["new", "keep", "zero_shot"] = "new"
    train_blocks: int | None = None  # only the last so many blocks and the head; 0: the head alone; None: all
    lora_rank: int = 0  # only adapters on those blocks are trained, and the head (engine/lora.py); 0: none
    lora_alpha: int = 16  # the adapters' output is scaled by alpha / rank

    def __post_init__(self) -> None:
        if self.head in HEADS_BEFORE:
            raise RecipeError(f'[model] head = "{self.head}" is called "{HEADS_BEFORE[self.head]}" now. Write that.')
        super().__post_init__()
        if self.lora_rank < 0 or self.lora_alpha < 1:
            raise RecipeError(
                f"lora_rank must be 0 or more and lora_alpha 1 or more, got {self.lora_rank} and {self.lora_alpha}."
            )
        if self.lora_rank and self.train_blocks == 0:
            raise RecipeError("lora_rank puts adapters on blocks, and train_blocks = 0 names none. Leave out one.")

    @property
    def start(self) -> str | None:
        """The checkpoint that training starts from; None for a new model."""
        return "mini" if self.source is None and self.vision is None else self.source

    def architecture(self) -> VisionConfig:
        """A new model's config; what the recipe leaves out is ViT-B/16's."""
        return VisionConfig.from_dict(self.vision or {})


@dataclass(frozen=True, kw_only=True)
class LabelledSection(DataSettings):
    """[data] of a ViT recipe (data/classes.py): any data with classes that `open_rows` reads."""

    train: str = ""  # a folder, file or hub data set
    classes: str | None = None  # a class set in the data's classes.json, which names classes in two languages
    most_frequent: int = 0  # of a multi-label task: only this many labels, the most frequent ones; 0: all
    language: Literal["en", "ja"] = "en"  # of the names that become the model's labels
    # classes of the data by other names: { "sky blue" = "blue" }, so that a renamed folder goes on as the class it was
    rename: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class LossSection(Section):
    """[loss] of a ViT recipe (tasks/objectives.py)."""

    # one class an image (softmax), any number of labels (sigmoids), or a number (its column: columns = { label = ... })
    problem: Problem = "single_label"
    class_weights: Literal["none", "balanced"] = "none"  # balanced: rare classes weigh as much as frequent ones
    label_smoothing: float = 0.0  # Szegedy et al. 2016
    mixup: float = 0.0  # alpha; a weighted sum of two images (Zhang et al. 2018)
    cutmix: float = 0.0  # alpha; a part of one image in the other (Yun et al. 2019); with mixup: one of both at random
    mix_share: float = 1.0  # of the steps that mix
