"""Accumulated gradients against the graph of the whole batch, built in chunks so that it draws the same dropout."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from vlm.config import CLIPConfig, TextConfig, VisionConfig
from vlm.loss import clip_loss, siglip_loss
from vlm.models.clip import CLIP
from vlm.training.engine.accumulate import accumulate

SAMPLES = 8


@dataclass(frozen=True)
class Chunk:
    images: Tensor
    ids: Tensor
    keep: Tensor | None


def tiny(*, dropout: float, bias: float | None = None, dtype: torch.dtype = torch.float64) -> CLIP:
    torch.manual_seed(1)
    vision = VisionConfig(
        image_size=8, patch_size=4, width=16, depth=2, num_heads=2, mlp_dim=32, dropout=dropout, drop_path=dropout
    )
    text = TextConfig(
        vocab_size=30, context_length=6, width=16, depth=2, num_heads=2, mlp_dim=32, eot_id=29, dropout=dropout
    )
    return CLIP(CLIPConfig(embed_dim=8, vision=vision, text=text, logit_bias=bias)).to(dtype).train()


def chunks(count: int, *, patch_dropout: bool, dtype: torch.dtype = torch.float64) -> list[Chunk]:
    torch.manual_seed(2)
    images = torch.randn(SAMPLES, 3, 8, 8, dtype=dtype).chunk(count)
    ids = torch.cat([torch.randint(1, 29, (SAMPLES, 5)), torch.full((SAMPLES, 1), 29)], 1).chunk(count)
    keep = torch.rand(SAMPLES, 4).argsort(1)[:, :2].sort(1).values.chunk(count)
    return [Chunk(i, t, k if patch_dropout else None) for i, t, k in zip(images, ids, keep, strict=True)]


def embed(model: nn.Module, chunk: Chunk) -> tuple[Tensor, Tensor]:
    return model(chunk.images, chunk.ids, chunk.keep)


def temperature(model: CLIP) -> dict[str, Tensor]:
    bias: dict[str, Tensor] = {} if model.logit_bias is None else {"logit_bias": model.logit_bias}
    return {"logit_scale": model.logit_scale} | bias


def loss_of(model: CLIP) -> partial[Tensor]:
    loss = clip_loss if model.logit_bias is None else siglip_loss
    return partial(loss, **temperature(model), groups=torch.arange(SAMPLES) // 2)


def whole_batch(model: CLIP, parts: list[Chunk]) -> Tensor:
    """All graphs kept, one loss, one backward."""
    loss = loss_of(model)(*(torch.cat(pieces) for pieces in zip(*(embed(model, c) for c in parts), strict=True)))
    loss.backward()
    return loss.detach()


def named_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    return found


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("patch_dropout", [False, True])
@pytest.mark.parametrize("bias", [None, -3.0])
def test_accumulated_gradients_are_those_of_the_whole_batch(count, dropout, patch_dropout, bias):
    for dtype in (torch.float64, torch.float32):
        ours, reference = (tiny(dropout=dropout, bias=bias, dtype=dtype) for _ in range(2))
        parts = chunks(count, patch_dropout=patch_dropout, dtype=dtype)
        torch.manual_seed(3)
        truth = whole_batch(reference, parts)
        state = torch.get_rng_state()
        torch.manual_seed(3)
        loss = accumulate(ours, parts, embed, loss_of(ours), [*temperature(ours).values()])
        assert torch.equal(torch.get_rng_state(), state)  # the next step draws what it would have drawn
        assert not loss.requires_grad
        assert loss.item() == pytest.approx(truth.item(), rel=1e-12 if dtype == torch.float64 else 1e-6)
        found, expected = named_gradients(ours), named_gradients(reference)
        for name, g in found.items():
            t = expected[name]
            if dtype == torch.float64:
                assert (g - t).abs().max() <= 1e-10 * max(1.0, t.abs().max().item()), name
            elif t.norm() < 1e-6:
                assert (g - t).abs().max() <= 1e-7, name
            else:
                assert (g - t).norm() <= 1e-5 * t.norm(), name


def test_dropout_draws_other_numbers_in_the_second_pass_if_the_state_is_not_replayed():
    """The tests above would notice: with other masks the gradients differ by far more than they allow."""
    first, second = (tiny(dropout=0.3) for _ in range(2))
    parts = chunks(2, patch_dropout=False)
    for seed, model in ((3, first), (4, second)):
        torch.manual_seed(seed)
        whole_batch(model, parts)
    difference = first.logit_scale.grad - second.logit_scale.grad  # type: ignore[operator]
    assert difference.abs() > 1e-4


def test_chunks_may_differ_in_size():
    ours, reference = tiny(dropout=0.0), tiny(dropout=0.0)
    (whole,) = chunks(1, patch_dropout=False)
    parts = [Chunk(i, t, None) for i, t in zip(whole.images.split(3), whole.ids.split(3), strict=True)]
    accumulate(ours, parts, embed, loss_of(ours), [ours.logit_scale])
    whole_batch(reference, [whole])
    for name, g in named_gradients(ours).items():
        torch.testing.assert_close(g, named_gradients(reference)[name], rtol=1e-10, atol=1e-12)


def test_gradients_are_added_to_those_that_are_there():
    once, twice = tiny(dropout=0.0), tiny(dropout=0.0)
    for model, times in ((once, 1), (twice, 2)):
        for _ in range(times):
            accumulate(model, chunks(4, patch_dropout=True), embed, loss_of(model), [model.logit_scale])
    for name, g in named_gradients(twice).items():
        torch.testing.assert_close(g, 2 * named_gradients(once)[name], rtol=1e-12, atol=1e-14)


def test_a_locked_image_tower_gets_no_gradient_and_changes_none():
    free, locked = tiny(dropout=0.0), tiny(dropout=0.0)
    locked.vision.requires_grad_(False)
    locked.vision_proj.requires_grad_(False)
    for model in (free, locked):
        accumulate(model, chunks(4, patch_dropout=False), embed, loss_of(model), [model.logit_scale])
    assert all(p.grad is None for p in locked.vision.parameters())
    expected = named_gradients(free)
    for name, p in locked.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-12, atol=1e-14)


def test_one_chunk_embeds_once_and_several_embed_twice():
    calls = []

    def counted(model: nn.Module, chunk: Chunk) -> tuple[Tensor, Tensor]:
        calls.append(torch.is_grad_enabled())
        return embed(model, chunk)

    model = tiny(dropout=0.0)
    accumulate(model, chunks(1, patch_dropout=False), counted, loss_of(model), [model.logit_scale])
    assert calls == [True]
    calls.clear()
    accumulate(model, chunks(4, patch_dropout=False), counted, loss_of(model), [model.logit_scale])
    assert calls == [False] * 4 + [True] * 4


def test_autocast_around_it_keeps_the_gradients():
    ours, reference = (tiny(dropout=0.3, dtype=torch.float32) for _ in range(2))
    parts = [replace(c, images=c.images.float()) for c in chunks(4, patch_dropout=True)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(3)
        whole_batch(reference, parts)
        torch.manual_seed(3)
        accumulate(ours, parts, embed, loss_of(ours), [ours.logit_scale])
    expected = named_gradients(reference)
    for name, g in named_gradients(ours).items():
        assert (g - expected[name]).norm() <= 0.02 * expected[name].norm() + 1e-6, name  # bfloat16 rounds at 0.004
