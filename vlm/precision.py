"""Chooses device and dtype of a model."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

from vlm.errors import InputError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device that a name means: "auto" is a CUDA GPU where there is one, else the CPU.

    Raises:
        InputError: the name is none that this torch knows, or there is no such GPU here.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device is {str(device)!r}: {reason}. Use auto, cpu or cuda.") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device is {chosen}, but torch finds {torch.cuda.device_count()} GPUs here. Use auto or cpu.")
    return chosen


def weight_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The format that weights are kept in; None for "auto", which leaves them as they are.

    Raises:
        InputError: a format that models do not run in.
    """
    if dtype == "auto":
        return None
    found = dtype if isinstance(dtype, torch.dtype) else _DTYPES.get(dtype)
    if found is None or found not in _DTYPES.values():
        raise InputError(f"dtype is {str(dtype)!r}; it must be one of auto, {', '.join(_DTYPES)}.")
    return found


def half_dtype(device: torch.device) -> torch.dtype:
    """The 16-bit format that a device multiplies fast: bfloat16, or float16 on a GPU older than Ampere."""
    native = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def autocast_on_gpu(device: torch.device) -> AbstractContextManager[object]:
    """Matrix products in `half_dtype` inside, on a CUDA GPU; nothing elsewhere."""
    return torch.autocast("cuda", half_dtype(device)) if device.type == "cuda" else nullcontext()


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast vectors and matrices in place; scalars such as the temperature stay as they are."""
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if weight.ndim and weight.is_floating_point():
                weight.data = weight.data.to(dtype)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The format of a model's first matrix, float32 where it has none."""
    return next((weight.dtype for weight in model.parameters() if weight.ndim > 1), torch.float32)
