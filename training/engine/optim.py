"""Optimizers and learning rates: AdamW for all weights, or Muon for the blocks' matrices."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vlm.models.text import TextTransformer
from vlm.models.vision import VisionTransformer
from vlm.training.engine.muon import Muon
from vlm.training.recipe.sections import OptimSection


def parameter_groups(model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Trainable weights as three lists: the blocks' matrices; others that decay; norms, biases and embeddings."""
    matrices, decayed, plain = [], [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if p.ndim < 2 or name.endswith(("pos_embed", "cls_token", "latent", "token_embed.weight")):
            plain.append(p)
        elif ".blocks." in f".{name}" and ".lora_" not in name:
            matrices.append(p)
        else:
            decayed.append(p)
    return matrices, decayed, plain


def optimizers(model: nn.Module, section: OptimSection) -> list[torch.optim.Optimizer]:
    """AdamW alone, or Muon for the blocks' matrices and AdamW for the rest.

    Norms, biases, gains, tokens and positions do not decay.

    Args:
        model: its trainable parameters are taken.
        section: [optim] of the recipe.
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
    groups = _groups(matrices, slower, section.muon_lr, section.muon_decay)
    return [Muon(groups, section.muon_lr, fused=fused_matrices(model)), adamw]


def fused_matrices(model: nn.Module) -> list[Tensor]:
    """The weights that are q, k and v on top of each other, told by their name."""
    return [p for name, p in model.named_parameters() if name.endswith("attn.qkv.weight")]


def _groups(parameters: list[Tensor], slower: dict[Tensor, float], lr: float, decay: float) -> list[dict[str, Any]]:
    """One group per learning rate, and scalars in their own: FSDP2 does not shard them, and groups must not mix."""
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for p in parameters:
        groups.setdefault((slower[p], p.ndim == 0), []).append(p)
    return [{"params": group, "lr": lr * factor, "weight_decay": decay} for (factor, _), group in groups.items()]


def _layer_factors(model: nn.Module, layer_decay: float) -> dict[Tensor, float]:
    """Learning rate factors: 1 above a tower's last block, layer_decay for that block, its square for the next ..."""
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
    warm = min(1.0, (step + 1) / max(1, section.warmup(steps)))
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warm * (section.final_lr + (1 - section.final_lr) * cosine)


def average_decay(decay: float, step: int) -> float:
    """Decay of the average of weights after `step` updates: it warms up, so that the start is soon forgotten.

    Args:
        decay: of the recipe, reached in the end.
        step: updates before this one; (1 + step) / (10 + step) is the limit (as in TensorFlow and timm).
    """
    return min(decay, (1 + step) / (10 + step))
