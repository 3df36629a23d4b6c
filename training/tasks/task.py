"""The part of a training run that depends on the kind of model; `train.py` does the rest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from torch import Tensor, nn

from vlm.embedder import Embedder
from vlm.models.vision import ViTClassifier
from vlm.training.data.stream import AnyBatch, Stream
from vlm.training.engine.loop import Evaluate
from vlm.training.engine.step import Backward
from vlm.training.engine.throughput import Work
from vlm.training.recipe.config import LoopRecipe


@dataclass(frozen=True, kw_only=True)
class Task(Generic[AnyBatch]):
    """A recipe, opened on this process: its model at the start, its data and its loss."""

    recipe: LoopRecipe
    model: nn.Module  # on this process's device, the same weights on every process
    backward: Backward[AnyBatch]
    stream: Stream[AnyBatch]
    evaluate: Evaluate  # validation numbers of the model as it is now
    samples: int  # training images
    data_hash: str  # of the training data
    max_broken: float  # share of them that may be unusable
    metrics: Sequence[str]  # names of the validation numbers
    chance_loss: float  # of a model that gives all samples the same output
    summary: str  # one line: what is trained on what
    finish: Callable[[dict[str, Tensor], Path, str], tuple[Embedder | ViTClassifier, str]]
    """(trained weights, run folder, recipe text) -> (model to save, text of its model card)."""
    work: Work | None = None  # of one step of this process
    labels: Sequence[str] | None = None  # the classes, in the order of the model's outputs
    prepare_folder: Callable[[Path], Any] = lambda out: None
    """Called once in a new run folder, before the first step."""
