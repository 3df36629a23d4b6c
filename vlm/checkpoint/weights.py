"""Weights of a model: model.safetensors, and into a module."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vlm.errors import CheckpointError

_STORED = {torch.float32, torch.float16, torch.bfloat16}


class _WithoutInitialValues(TorchFunctionMode):
    """Skips `torch.nn.init`: on the meta device its `normal_` would import torch._dynamo, 1.4 s, for nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def unfilled() -> Generator[None]:
    """Modules built inside have shapes only: their weights are on the meta device until `fill` assigns them."""
    with torch.device("meta"), _WithoutInitialValues():
        yield


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as stored.  Raises `CheckpointError` where it is damaged."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}.") from error


def fill(model: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Assign all weights of a model as float32.

    Args:
        model: from `unfilled`.
        weights: name -> tensor.
        origin: where they come from, for messages.

    Raises:
        CheckpointError: weights are missing, unexpected, or of another shape or type; it names all of them.
    """
    wanted = model.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in wanted]
    for name in wanted.keys() & weights.keys():
        weight = weights[name]
        if weight.shape != wanted[name].shape:
            problems.append(f"{name} is {tuple(weight.shape)}, wanted {tuple(wanted[name].shape)}")
        elif weight.dtype not in _STORED:
            problems.append(f"{name} is {weight.dtype}, wanted float32, float16 or bfloat16")
    if problems:
        raise CheckpointError(f"The weights of {origin} do not fit its config: {'; '.join(sorted(problems))}.")
    model.load_state_dict({name: weight.to(torch.float32, copy=True) for name, weight in weights.items()}, assign=True)


def stored(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight as it is stored: matrices in `dtype`, vectors and scalars in float32.

    Raises:
        CheckpointError: a value is not finite in that format.
    """
    stored = weight.detach().cpu().contiguous().to(dtype if weight.ndim > 1 else torch.float32)
    if not bool(stored.isfinite().all()):
        raise CheckpointError(f"{name} has values that are not finite in {stored.dtype}; a broken model is not saved.")
    return stored
