"""Gradients of a whole batch in the memory of one chunk (GradCache, Gao et al. 2021).

A contrastive loss needs all embeddings at once, but they are small; what fills the memory is the graph behind them.  So
every chunk is embedded without a graph, the loss of the whole batch gives the embeddings' gradients, and every chunk is
embedded again, with the same random numbers, to pass its own gradients on to the weights.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from vlm.training.engine.parallel import without_sync

Chunk = TypeVar("Chunk")


def accumulate(
    model: nn.Module,
    chunks: Sequence[Chunk],
    embed: Callable[[nn.Module, Chunk], tuple[Tensor, ...]],
    loss: Callable[..., Tensor],
    shared: Sequence[Tensor] = (),
) -> Tensor:
    """Add the gradients of loss(*embeddings of all chunks) to `.grad`.

    One chunk is a plain backward pass; two or more take one forward pass more.  On several processes the gradients are
    exchanged once, during the last chunk.

    Args:
        model: what `embed` calls.
        chunks: parts of this process's batch.
        embed: (model, chunk) -> tensors with one row per sample.
        loss: receives each of these tensors for the whole batch.
        shared: the parameters that `loss` uses itself: logit_scale, logit_bias.

    Returns:
        The loss, without a graph.
    """
    if len(chunks) == 1:
        value = loss(*embed(model, chunks[0]))
        value.backward()
        return value.detach()

    device = next(model.parameters()).device
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state(device))
            parts.append(embed(model, chunk))
    torch.clear_autocast_cache()  # it holds weights cast without a graph

    embeds = [torch.cat(pieces).requires_grad_() for pieces in zip(*parts, strict=True)]
    shared = [p for p in shared if p.requires_grad]
    value = loss(*embeds)
    gradients = torch.autograd.grad(value, [*embeds, *shared])
    sizes = [len(part[0]) for part in parts]
    of_chunk = zip(*(g.split(sizes) for g in gradients[: len(embeds)]), strict=True)

    for i, (chunk, state, gradient) in enumerate(zip(chunks, states, of_chunk, strict=True)):
        _set_random_state(device, state)
        last = i == len(chunks) - 1
        with nullcontext() if last else without_sync(model):
            reached = [*zip(embed(model, chunk), gradient, strict=True)]
            if last:  # because DDP waits for every parameter then
                reached += zip(shared, gradients[len(embeds) :], strict=True)
            reached = [(z, g) for z, g in reached if z.requires_grad]  # a locked tower's do not
            torch.autograd.backward([z for z, _ in reached], [g for _, g in reached])
    return value.detach()


def accumulate_mean(
    model: nn.Module, chunks: Sequence[Chunk], loss: Callable[[Chunk], Tensor], scale: Tensor | float
) -> Tensor:
    """Add the gradients of a loss that is a mean over samples; equal chunks, exchanged once between processes.

    Args:
        model: what `loss` calls.
        chunks: equal parts of this process's batch.
        loss: the mean loss of a chunk.
        scale: a factor of the gradients.

    Returns:
        The mean loss of the batch, without a graph.
    """
    total: Tensor | float = 0.0
    for i, chunk in enumerate(chunks):
        with nullcontext() if i == len(chunks) - 1 else without_sync(model):
            value = loss(chunk) / len(chunks)
            (scale * value).backward()
        total = total + value.detach()
    assert isinstance(total, Tensor)
    return total


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The state of the CPU's generator and, where that is another, of the device's."""
    other = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), other


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    cpu, other = state
    torch.set_rng_state(cpu)
    if other is not None:
        torch.get_device_module(device).set_rng_state(other, device)
