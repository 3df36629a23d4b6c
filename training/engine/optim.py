"""AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vlm.models.text import TextTransformer
from vlm.models.vision import VisionTransformer
from vlm.training.recipe.sections import OptimSection


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz iterations (Jordan et al. 2024).

    torch.optim.Muon iterates in bfloat16, which crawls on CPUs without it; those iterate in float32 here.  Matrices of
    one shape are orthogonalised together.  A fused q/k/v weight counts as its three square matrices.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | list[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])  # Nesterov
                for weight, piece in zip(_matrices(p), _matrices(update), strict=True):
                    stacks.setdefault((piece.shape[0], piece.shape[1]), []).append((weight, piece))
            for (rows, columns), pairs in stacks.items():
                updates = orthogonalise(torch.stack([piece for _, piece in pairs]))
                scale = math.sqrt(max(1, rows / columns))
                for (weight, _), update in zip(pairs, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update, alpha=-group["lr"] * scale)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """(S, n, m) -> nearly orthogonal matrices with the same row and column spaces: all singular values near 1."""
    fast = torch.bfloat16 if native_bfloat16(matrices.device) else torch.float32
    x = matrices.to(torch.float64 if matrices.dtype == torch.float64 else fast)
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.transpose(1, 2)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    a, b, c = 3.4445, -4.7750, 2.0315  # the quintic of Jordan et al. 2024
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.transpose(1, 2)).to(matrices.dtype)


def native_bfloat16(device: torch.device) -> bool:
    """Whether this processor multiplies bfloat16 itself; where not, emulation is several times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _matrices(weight: Tensor) -> tuple[Tensor, ...]:
    rows, columns = weight.shape
    return weight.chunk(3) if rows == 3 * columns else (weight,)


def parameter_groups(model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """(the blocks' matrices, other weights that decay, norms, biases, gains, embeddings that do not)."""
    matrices, decayed, plain = [], [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if p.ndim < 2 or name.endswith(("pos_embed", "cls_token", "latent", "token_embed.weight")):
            plain.append(p)
        elif ".blocks." in f".{name}" and ".lora_" not in name:  # half of a product has no direction of its own
            matrices.append(p)
        else:
            decayed.append(p)
    return matrices, decayed, plain


def optimizers(model: nn.Module, section: OptimSection) -> list[torch.optim.Optimizer]:
    """AdamW alone, or Muon for the blocks' matrices and AdamW for the rest.

    Norms, biases, gains, tokens and positions do not decay.
    """
    matrices, decayed, plain = parameter_groups(model)
    slower = _layer_factors(model, section.layer_decay)
    muon = section.matrices == "muon"
    adamw = torch.optim.AdamW(
        _groups(decayed if muon else matrices + decayed, slower, section.lr, section.weight_decay)
        + _groups(plain, slower, section.lr, 0.0),
        lr=section.lr,
        betas=section.betas,
        fused=True,
    )
    if not (muon and matrices):
        return [adamw]
    return [Muon(_groups(matrices, slower, section.muon_lr, section.muon_decay), section.muon_lr), adamw]


def _groups(parameters: list[Tensor], slower: dict[Tensor, float], lr: float, decay: float) -> list[dict[str, Any]]:
    """One group per learning rate, scalars apart: FSDP2 leaves those whole, and whole and cut do not mix."""
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for p in parameters:
        groups.setdefault((slower[p], p.ndim == 0), []).append(p)
    return [{"params": group, "lr": lr * factor, "weight_decay": decay} for (factor, _), group in groups.items()]


def _layer_factors(model: nn.Module, layer_decay: float) -> dict[Tensor, float]:
    """1 for what lies above a tower's last block, layer_decay for that block, and so on down to the embeddings."""
    factors: dict[Tensor, float] = dict.fromkeys(model.parameters(), 1.0)
    for tower in model.modules():
        if isinstance(tower, (VisionTransformer, TextTransformer)):
            for name, p in tower.named_parameters():
                part, layer = (*name.split("."), "")[:2]
                if part not in ("norm", "pool"):
                    factors[p] = layer_decay ** (
                        len(tower.blocks) + 1 if part != "blocks" else len(tower.blocks) - int(layer)
                    )
    return factors


def learning_rate_factor(step: int, steps: int, section: OptimSection) -> float:
    """Linear warm-up, then a cosine from 1 to `final_lr` (Loshchilov and Hutter 2017)."""
    warm = min(1.0, (step + 1) / max(1, section.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warm * (section.final_lr + (1 - section.final_lr) * cosine)
