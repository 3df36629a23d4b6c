"""What is done to a model before the first step changes none of its numbers."""

import copy

import pytest
import torch
from torch import nn

from tests.training.engine.test_diagnostics import Vectors
from tests.training.engine.test_loop import SINGLE_PROCESS, recipe, towers
from vlm.training.engine.parallel import clip_gradients, prepare


def test_clipping_gives_torchs_norm_and_gradients():
    one, two = towers(), towers()
    for model in (one, two):
        model(Vectors()[0].images).backward()
    norm = clip_gradients(one.parameters(), 0.1)
    assert norm.item() == pytest.approx(nn.utils.clip_grad_norm_(two.parameters(), 0.1).item())
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_recomputed_activations_give_the_same_gradients(tiny_clip):
    images, ids = torch.randn(4, 3, 32, 32), torch.tensor([[5, 6, 2], [7, 2, 0], [8, 9, 2], [5, 2, 0]])
    reference = copy.deepcopy(tiny_clip)
    model = prepare(tiny_clip, recipe(checkpoint_activations=True).run, SINGLE_PROCESS)
    passes = []
    model.vision.blocks[0].mlp.fc1.register_forward_hook(lambda *_: passes.append(1))  # type: ignore[union-attr]
    for one in (model, reference):
        image_embeds, text_embeds = one(images, ids)
        (image_embeds * text_embeds).sum().backward()
    assert len(passes) == 2  # forward, and once more for backward
    for (name, p), (same, q) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        assert name == same
        if name != "logit_scale":
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-8)


def test_only_blocks_are_compiled_and_only_if_asked(tiny_clip, monkeypatch):
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    prepare(tiny_clip, recipe().run, SINGLE_PROCESS)
    assert compiled == []
    prepare(tiny_clip, recipe(compile=True).run, SINGLE_PROCESS)
    assert compiled == [*tiny_clip.vision.blocks, *tiny_clip.text.blocks]


@pytest.mark.long  # the compiler takes a minute
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_give_the_same_embeddings(tiny_clip):
    images, ids = torch.randn(4, 3, 32, 32), torch.tensor([[5, 6, 2], [7, 2, 0], [8, 9, 2], [5, 2, 0]])
    reference = copy.deepcopy(tiny_clip)
    model = prepare(tiny_clip, recipe(compile=True).run, SINGLE_PROCESS)
    assert list(model.state_dict()) == list(reference.state_dict())
    for ours, theirs in zip(model(images, ids), reference(images, ids), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
