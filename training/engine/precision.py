"""The number format that a run computes in: autocast around forward pass and loss, and float16's loss scale."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlm.errors import RunFolderError
from vlm.training.recipe.config import LoopRecipe

AnyRecipe = TypeVar("AnyRecipe", bound=LoopRecipe)


def native_bfloat16(device: torch.device) -> bool:
    """Returns True if the processor multiplies bfloat16 natively; emulation is several times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def resolve(wanted: str, device: torch.device) -> str:
    """`wanted`, or for "auto" bfloat16 where the processor computes it natively and float32 elsewhere."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if native_bfloat16(device) else "float32"


def with_precision(recipe: AnyRecipe, device: torch.device, recorded: dict[str, Any] | None = None) -> AnyRecipe:
    """The recipe with its precision resolved, as it will stand in the checkpoints.

    Args:
        recipe: of the run; "auto" keeps the recorded precision, if there is one.
        device: where the run computes.
        recorded: the recipe in the checkpoint that is resumed, as plain values.

    Raises:
        RunFolderError: the checkpoint was trained in another precision than the recipe names.
    """
    wanted = recipe.run.precision
    before = (recorded or {}).get("run", {}).get("precision", "auto")
    if before != "auto" and wanted not in ("auto", before):
        raise RunFolderError(
            f"precision is '{wanted}', and the checkpoints were trained in {before}. Set precision = '{before}' to go "
            "on, or name another --out."
        )
    chosen = before if wanted == "auto" and before != "auto" else resolve(wanted, device)
    return dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, precision=chosen))


@contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """Forward pass and loss in `precision`; the backward pass repeats its types and stands outside.

    Args:
        precision: as the recipe says it; float32 and float64 compute in the weights' type.
        device: where the model is.
    """
    precision = resolve(precision, device)
    if precision in ("float32", "float64"):
        yield
        return
    # torch's fused attention takes twice the time of plain matrix products in bfloat16 on CPUs, at lengths trained here
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, dtype=getattr(torch, precision)), attention:
        yield


class LossScale:
    """The factor of a float16 run's loss; gradients below 6e-8 would vanish in float16.

    It is halved after a step whose gradients overflow, which is skipped, and doubled after 2000 steps that do not
    (Micikevicius et al. 2018, with the numbers of torch.amp.GradScaler).  It stays on the device.
    """

    GROWTH, BACKOFF, INTERVAL = 2.0, 0.5, 2000

    def __init__(self, device: torch.device, value: float = 65536.0, good_steps: int = 0):
        self.scale = torch.tensor(value, dtype=torch.float32, device=device)
        self.good_steps = torch.tensor(good_steps, dtype=torch.int32, device=device)

    def update(self, overflow: Tensor) -> None:
        """Updates the scale after a step; `overflow` is a float32 scalar, 1 if the gradients were not finite."""
        arguments = (self.scale, self.good_steps, overflow, self.GROWTH, self.BACKOFF, self.INTERVAL)
        torch._amp_update_scale_(*arguments)  # pyright: ignore[reportPrivateImportUsage]

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"value": self.scale.item(), "good_steps": int(self.good_steps)}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        self.scale.fill_(state["value"])
        self.good_steps.fill_(state["good_steps"])
