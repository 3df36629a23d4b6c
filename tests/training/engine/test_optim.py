"""Muon against singular values and a plain NumPy version; who decays, who learns how fast."""

import copy
import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vlm.config import CLIPConfig, TextConfig, VisionConfig
from vlm.models.clip import CLIP
from vlm.models.layers import Block
from vlm.training.engine.muon import Muon, orthogonalise
from vlm.training.engine.optim import (
    learning_rate_factor,
    optimizers,
    parameter_groups,
)
from vlm.training.engine.precision import native_bfloat16
from vlm.training.recipe.sections import OptimSection

MUON, ADAMW = OptimSection(matrices="muon", muon_decay=0.1), OptimSection(matrices="adamw")
LR, DECAY = 0.1, 0.5


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def model_of() -> CLIP:
    """With every kind of parameter: class token, latent query, biases, both logit numbers."""
    vision = VisionConfig(image_size=16, patch_size=8, width=16, depth=3, num_heads=2, mlp_dim=32, pool="attention")
    text = TextConfig(vocab_size=20, context_length=6, width=16, depth=2, num_heads=2, mlp_dim=32, eot_id=2)
    return CLIP(CLIPConfig(embed_dim=12, vision=vision, text=text, text_proj="linear_bias", logit_bias=-10.0))


def give_gradients(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = torch.randn_like(p)


@pytest.mark.parametrize("shape", [(16, 16), (32, 8), (8, 32)])
def test_orthogonalising_moves_singular_values_near_one_and_keeps_singular_vectors(shape: tuple[int, int]) -> None:
    matrices = torch.randn(5, *shape, dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    core = U.mT @ orthogonalise(matrices) @ Vh.mT  # diagonal, if the vectors are the same
    values = core.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(core, torch.diag_embed(values), rtol=0, atol=1e-9)
    assert 0.65 < float(values.min()) <= float(values.max()) < 1.25  # the band of Jordan et al. 2024


def test_orthogonalising_does_not_see_size_or_neighbours() -> None:
    matrices = torch.randn(4, 8, 12, dtype=torch.float64)
    together = orthogonalise(matrices)
    for matrix, result in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonalise(1000 * matrix[None])[0], result, rtol=0, atol=1e-5)
    assert not bool(orthogonalise(torch.zeros(1, 4, 4)).any())


def newton_schulz(x: np.ndarray) -> np.ndarray:
    x = x / np.linalg.norm(x)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    return x


@pytest.mark.parametrize("shape", [(12, 12), (16, 12), (12, 16)])
def test_muon_is_its_plain_definition(shape: tuple[int, int]) -> None:
    """Nesterov momentum, Newton-Schulz, scaled by sqrt(rows / columns) where tall (Jordan et al. 2024)."""
    p = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    weight, momentum = p.detach().numpy().copy(), np.zeros(shape)
    optimizer = Muon([p], lr=LR, momentum=0.9, weight_decay=DECAY)
    for gradient in np.random.default_rng(0).normal(size=(4, *shape)):
        p.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        step = newton_schulz(0.1 * gradient + 0.9 * momentum) * math.sqrt(max(1, shape[0] / shape[1]))
        weight = (1 - LR * DECAY) * weight - LR * step
    torch.testing.assert_close(p.detach(), torch.from_numpy(weight), rtol=1e-5, atol=1e-6)


def test_query_key_and_value_are_orthogonalised_apart() -> None:
    fused, gradient = nn.Parameter(torch.randn(24, 8)), torch.randn(24, 8)
    thirds = [nn.Parameter(third.clone()) for third in fused.detach().chunk(3)]
    for p, grad in zip([fused, *thirds], [gradient, *gradient.chunk(3)], strict=True):
        p.grad = grad.clone()
    Muon([fused], lr=LR, fused=[fused]).step()
    Muon(thirds, lr=LR).step()
    torch.testing.assert_close(fused.detach(), torch.cat([third.detach() for third in thirds]))


def test_weight_decay_does_not_pass_through_the_momentum() -> None:
    """Without a gradient a step is nothing but the decay, and without a decay nothing at all."""
    first, untouched, last = (nn.Parameter(torch.randn(8, 8)) for _ in range(3))
    before, other, end = (p.detach().clone() for p in (first, untouched, last))
    optimizer = Muon([first, untouched, last], lr=LR, weight_decay=DECAY)
    for _ in range(3):
        first.grad, last.grad = torch.zeros_like(first), torch.zeros_like(last)
        optimizer.step()
    torch.testing.assert_close(first.detach(), before * (1 - LR * DECAY) ** 3)
    torch.testing.assert_close(last.detach(), end * (1 - LR * DECAY) ** 3)
    assert torch.equal(untouched, other)  # it never had a gradient
    before = last.detach().clone()
    Muon([last], lr=LR).step()
    assert torch.equal(last, before)


@pytest.mark.parametrize(
    ("processor", "native"),
    [
        ({}, False),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
    ],
)
def test_bfloat16_is_used_where_the_processor_has_it(monkeypatch, processor: dict[str, bool], native: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert native_bfloat16(torch.device("cpu")) is native
    matrices = torch.randn(1, 8, 12)
    rounded = orthogonalise(matrices)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, rounded.bfloat16().float()) is native
    for emulates, able in ((True, False), (False, True)):  # an older GPU, a newer one
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, e=emulates: including_emulation or not e
        )
        assert native_bfloat16(torch.device("cuda")) is able
    assert not native_bfloat16(torch.device("mps"))


def groups_of(model: nn.Module, section: OptimSection) -> list[tuple[type[torch.optim.Optimizer], dict]]:
    return [(type(optimizer), group) for optimizer in optimizers(model, section) for group in optimizer.param_groups]


@pytest.mark.parametrize("section", [MUON, ADAMW], ids=["muon", "adamw"])
def test_every_trainable_parameter_is_in_exactly_one_group(section: OptimSection) -> None:
    model = model_of()
    model.vision.requires_grad_(False)
    counts = Counter(id(p) for _, group in groups_of(model, section) for p in group["params"])
    assert counts == Counter(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("section", [MUON, ADAMW], ids=["muon", "adamw"])
def test_only_matrices_that_multiply_decay(section: OptimSection) -> None:
    """Told by the kind of layer: weights of linear layers and convolutions, nothing else."""
    model = model_of()
    multiply = {id(layer.weight) for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    decays = {id(p) for _, group in groups_of(model, section) if group["weight_decay"] > 0 for p in group["params"]}
    assert decays == multiply


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest() -> None:
    model = model_of()
    blocks = [block for block in model.modules() if isinstance(block, Block)]
    inside = {id(layer.weight) for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)}
    assert {id(p) for kind, group in groups_of(model, MUON) if kind is Muon for p in group["params"]} == inside
    assert {id(p) for p in parameter_groups(model)[0]} == inside
    assert {kind for kind, _ in groups_of(model, ADAMW)} == {torch.optim.AdamW}
    assert {kind for kind, _ in groups_of(nn.Linear(4, 4), MUON)} == {torch.optim.AdamW}  # no blocks


def test_numbers_and_what_has_sides_are_not_in_one_group() -> None:
    """FSDP2 cuts the second, not the first, and a fused step takes no mixture."""
    for _, group in groups_of(model_of(), ADAMW):
        assert len({p.ndim == 0 for p in group["params"]}) == 1


def test_recipe_numbers_reach_the_optimizers() -> None:
    section = dataclasses.replace(MUON, lr=0.3, muon_lr=0.7, weight_decay=0.4, muon_decay=0.2, betas=(0.8, 0.9))
    theirs = torch.optim.Muon([nn.Parameter(torch.ones(2, 2))]).defaults
    for kind, group in groups_of(model_of(), section):
        if kind is Muon:
            assert (group["lr"], group["weight_decay"]) == (0.7, 0.2)
            assert group["momentum"] == theirs["momentum"]
        else:
            assert (group["lr"], group["betas"]) == (0.3, (0.8, 0.9))
            assert group["weight_decay"] in (0.4, 0.0)


def test_layer_decay_slows_each_tower_from_its_last_block_down() -> None:
    model = model_of()
    rates: dict[Tensor, float] = {}
    for _, group in groups_of(model, dataclasses.replace(ADAMW, lr=1.0, layer_decay=0.5)):
        rates |= dict.fromkeys(group["params"], group["lr"])
    above = [model.vision.norm, model.vision.pool, model.vision_proj, model.text.norm, model.text_proj]
    parameters = [model.logit_scale, *(p for part in above for p in part.parameters())]  # type: ignore[union-attr]
    assert {rates[p] for p in parameters} == {1.0}
    for tower in (model.vision, model.text):
        down = [rates[block.get_parameter("mlp.fc1.weight")] for block in reversed(tower.blocks)]
        assert down == [0.5 ** (step + 1) for step in range(len(down))]
        below = [p for name, p in tower.named_parameters() if not name.startswith(("blocks", "norm", "pool"))]
        assert {rates[p] for p in below} == {down[-1] / 2}


@pytest.mark.parametrize("section", [MUON, ADAMW], ids=["muon", "adamw"])
def test_a_loaded_state_continues_bit_for_bit(section: OptimSection) -> None:
    model = model_of()
    opts = optimizers(model, section)
    for _ in range(2):
        give_gradients(model)
        for optimizer in opts:
            optimizer.step()
    twin = copy.deepcopy(model)
    twin_opts = optimizers(twin, section)
    for optimizer, other in zip(opts, twin_opts, strict=True):
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    give_gradients(model)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    for optimizer in (*opts, *twin_opts):
        optimizer.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_the_schedule_warms_up_to_its_peak_and_ends_at_its_last_share() -> None:
    section = dataclasses.replace(MUON, warmup_steps=10, final_lr=0.05)
    factors = [learning_rate_factor(step, 1000, section) for step in range(1001)]
    assert factors[0] == pytest.approx(1 / 10)
    assert factors[:10] == sorted(factors[:10])
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert factors.index(max(factors)) == 9
    assert factors[9] == pytest.approx(1, abs=1e-3)
    assert factors[500] == pytest.approx((1 + 0.05) / 2)  # half way down the cosine
    assert factors[1000] == pytest.approx(0.05)


def test_without_warm_up_the_first_step_is_a_full_one() -> None:
    assert learning_rate_factor(0, 100, dataclasses.replace(MUON, warmup_steps=0)) == 1.0
