"""The two contrastive losses, pure functions of two batches of unit vectors: exact, and in constant memory.

image_embeds and text_embeds (N, E), row i of one belongs to row i of the other.  The (N, N) similarities exist one tile
at a time, and the gradients are computed along with the value.

The rows may be spread over several processes.  Each all-gathers the texts, computes its own rows of similarities and
reduce-scatters the gradients of the text embeddings.  All get the loss of the whole batch, and gradients made for
averaging over the processes, as DDP and FSDP do: the average is what one process with all rows would have had.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from vlm.models.linear import linear

TILE = 1024  # rows and columns of similarities held at once: 4 MiB in float32
_LOWEST = -80.0  # exp(-80) = 2e-35 counts for nothing; soon after, float32 turns denormal and takes twice the time


class Collectives(Protocol):
    """The processes that share a batch, n rows each, N in all, in the order of their ranks."""

    @property
    def rank(self) -> int:
        """Which of the processes this one is, from 0."""
        ...

    def all_gather(self, rows: Tensor) -> Tensor:
        """(n, ...) of this process -> (N, ...) of all."""
        ...

    def reduce_scatter(self, rows: Tensor) -> Tensor:
        """(N, ...) of this process -> (n, ...): the sum over all processes, of which each gets its own rows."""
        ...


class _OneProcess:
    """Collectives of a single process: its rows are all rows."""

    rank = 0

    def all_gather(self, rows: Tensor) -> Tensor:
        """One process has all the rows."""
        return rows

    def reduce_scatter(self, rows: Tensor) -> Tensor:
        """One process has the whole sum."""
        return rows


_ONE_PROCESS = _OneProcess()


def clip_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    groups: Tensor | None = None,
    *,
    processes: Collectives = _ONE_PROCESS,
    tile: int = TILE,
) -> Tensor:
    """InfoNCE in both directions, averaged; scalar, in nats; log(N) when the embeddings tell nothing apart.

        logits = exp(logit_scale) * image_embeds @ text_embeds.T
        loss = (cross_entropy(logits, arange(N)) + cross_entropy(logits.T, arange(N))) / 2

    `logit_scale` is the log of 1 / temperature.  `groups` (N,): rows of one group show the same thing, and the target
    is uniform over them (UniCL, Yang et al. 2022); None is one group per row.  Radford et al. 2021, figure 3.
    """
    _check(image_embeds, text_embeds, groups)
    return _differentiable(partial(_clip, groups, processes, tile), image_embeds, text_embeds, logit_scale)


def siglip_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    groups: Tensor | None = None,
    *,
    processes: Collectives = _ONE_PROCESS,
    tile: int = TILE,
) -> Tensor:
    """Each pair on its own: same or not?  Scalar, in nats per row; N log(2) when every logit is 0.

        logits = exp(logit_scale) * image_embeds @ text_embeds.T + logit_bias
        loss = -logsigmoid(sign * logits).sum() / N

    sign is +1 on the diagonal, or within one of the `groups` (N,), and -1 elsewhere.  Zhai et al. 2023, algorithm 1.
    """
    _check(image_embeds, text_embeds, groups)
    return _differentiable(
        partial(_siglip, groups, processes, tile), image_embeds, text_embeds, logit_scale, logit_bias
    )


@dataclass(frozen=True)
class _Similarities:
    """scale x y^T, (n, N), one tile at a time; row i and column first + i are a pair."""

    x: Tensor  # (n, E)
    y: Tensor  # (N, E)
    scale: Tensor
    first: int
    tile: int

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns and the similarities between them."""
        for i in range(0, len(self.x), self.tile):
            rows = self.scale * self.x[i : i + self.tile]
            for j in range(0, len(self.y), self.tile):
                yield slice(i, i + self.tile), slice(j, j + self.tile), linear(rows, self.y[j : j + self.tile])

    def tiles_of_others(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """The same, with the pairs out of the running."""
        for r, c, z in self.tiles():
            self.pairs(r, c, z).fill_(torch.finfo(z.dtype).min)
            yield r, c, z

    def pairs(self, r: slice, c: slice, z: Tensor) -> Tensor:
        """The pairs among the tile z, a view, often empty."""
        return z.diagonal(r.start + self.first - c.start)

    def log_sum_exp_of_others(self) -> tuple[Tensor, Tensor]:
        """By row (n,) and by column (N,)."""
        by_row = self.x.new_full((len(self.x),), -torch.inf)
        by_column = self.x.new_full((len(self.y),), -torch.inf)
        for r, c, z in self.tiles_of_others():
            by_row[r] = torch.logaddexp(by_row[r], _log_sum_exp(z, 1))
            by_column[c] = torch.logaddexp(by_column[c], _log_sum_exp(z, 0))
        return by_row, by_column

    def pull_of_others(self, by_row: Tensor, by_column: Tensor) -> tuple[Tensor, Tensor]:
        """G y and G^T x, G the softmax by row plus that by column; given are the logarithms of the denominators."""
        dx, dy = torch.zeros_like(self.x), torch.zeros_like(self.y)
        for r, c, z in self.tiles_of_others():
            g = (z - by_row[r, None]).clamp_(min=_LOWEST).exp_()
            g += z.sub_(by_column[c]).clamp_(min=_LOWEST).exp_()
            dx[r] += linear(g, self.y[c].T)
            dy[c] += linear(g.T, self.x[r].T)
        return dx, dy


_Parts = tuple[Tensor, tuple[Tensor, ...]]  # value, gradients


def _clip(
    groups: Tensor | None, processes: Collectives, tile: int, needed: bool, x: Tensor, y: Tensor, log_scale: Tensor
) -> _Parts:
    n, scale, all_y = len(x), log_scale.exp(), processes.all_gather(y)
    similarities = _Similarities(x, all_y, scale, n * processes.rank, tile)
    own = slice(n * processes.rank, n * processes.rank + n)

    # A row costs log(1 + the sum over j != i of exp(s_ij - s_ii)): measured from its own pair, nothing cancels.
    pair = scale * (x * y).sum(1)
    all_pair = processes.all_gather(pair)
    others_by_row, others_by_column = similarities.log_sum_exp_of_others()
    others_by_column = processes.all_gather(others_by_column[None]).logsumexp(0)
    by_row = torch.logaddexp(others_by_row - pair, torch.zeros_like(pair))
    by_column = torch.logaddexp(others_by_column - all_pair, torch.zeros_like(all_pair))

    # With groups, the target is the mean of the group in place of the own pair.
    x_apart = y_apart = torch.zeros_like(scale)
    if groups is not None:
        all_groups = processes.all_gather(groups)
        x_apart = _from_group_mean(processes.all_gather(x), all_groups)[own]
        y_apart = _from_group_mean(all_y, all_groups)[own]
    value = processes.all_gather((by_row + by_column[own]) / 2 + scale * (x * y_apart).sum(1)).mean()
    if not needed:
        return value, ()

    dx, dy = similarities.pull_of_others(pair + by_row, all_pair + by_column)
    excess = (torch.expm1(-by_row) + torch.expm1(-by_column[own]))[:, None]  # the pair's two probabilities, minus 2
    dx.addcmul_(excess, y).add_(y_apart, alpha=2).mul_(scale / (2 * n))
    dy = processes.reduce_scatter(dy).addcmul_(excess, x).add_(x_apart, alpha=2).mul_(scale / (2 * n))
    return value, (dx, dy, (x * dx).sum())


def _siglip(
    groups: Tensor | None,
    processes: Collectives,
    tile: int,
    needed: bool,
    x: Tensor,
    y: Tensor,
    log_scale: Tensor,
    bias: Tensor,
) -> _Parts:
    n, scale, all_y = len(x), log_scale.exp(), processes.all_gather(y)
    similarities = _Similarities(x, all_y, scale, n * processes.rank, tile)
    all_groups = None if groups is None else processes.all_gather(groups)

    def negate_same(r: slice, c: slice, z: Tensor) -> None:
        if groups is None or all_groups is None:
            similarities.pairs(r, c, z).neg_()
        else:
            z.mul_(torch.where(groups[r, None] == all_groups[c], -1.0, 1.0))

    value, dbias = torch.zeros_like(scale), torch.zeros_like(scale)
    dx, dy = torch.zeros_like(x), torch.zeros_like(all_y)
    for r, c, z in similarities.tiles():
        z += bias
        negate_same(r, c, z)
        value += _sum_softplus(z)
        if needed:
            g = z.sigmoid_()
            negate_same(r, c, g)
            dx[r] += linear(g, all_y[c].T)
            dy[c] += linear(g.T, x[r].T)
            dbias += g.sum()
    value = processes.all_gather(value[None] / n).mean()
    if not needed:
        return value, ()
    dx.mul_(scale / n)
    dy = processes.reduce_scatter(dy).mul_(scale / n)
    return value, (dx, dy, (x * dx).sum(), dbias / n)


def _log_sum_exp(z: Tensor, dim: int) -> Tensor:
    highest = z.amax(dim, keepdim=True)
    return (z - highest).clamp_(min=_LOWEST).exp_().sum(dim).log_() + highest.squeeze(dim)


def _sum_softplus(z: Tensor) -> Tensor:
    """Sum of log(1 + exp(z)) = max(z, 0) - log(1 - sigmoid(-|z|)).

    F.softplus takes longer than the product that made z: CPUs have a fast log, but no fast log1p.
    """
    p = z.abs().clamp_(max=-_LOWEST).neg_().sigmoid_()
    q = 1 - p
    lost = p.sub_(1 - q)  # what rounding took from q, and to first order from its log
    return z.relu().sum() - q.log_().sum() + lost.sum()


def _from_group_mean(rows: Tensor, groups: Tensor) -> Tensor:
    """(N, E) less the mean of each row's group."""
    _, member, count = cast(tuple[Tensor, ...], groups.unique(return_inverse=True, return_counts=True))
    means = rows.new_zeros(len(count), rows.shape[1]).index_add_(0, member, rows).div_(count[:, None])
    return rows - means[member]


def _differentiable(parts: Callable[..., _Parts], *inputs: Tensor) -> Tensor:
    """The value of parts(needed, *inputs), with the gradients it returns; all in float32 at least, autocast or not."""
    dtype = torch.promote_types(torch.promote_types(inputs[0].dtype, inputs[1].dtype), torch.float32)
    needed = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    with torch.no_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        value, gradients = parts(needed, *(t.to(dtype) for t in inputs))
    return _WithGradients.apply(value, gradients, *inputs) if needed else value  # type: ignore[no-any-return]


class _WithGradients(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [t.dtype for t in inputs]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("The contrastive losses have no second derivatives. Leave out create_graph=True.")
        scaled = (g.mul(*grad_outputs).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return None, None, *scaled


def _check(image_embeds: Tensor, text_embeds: Tensor, groups: Tensor | None) -> None:
    if image_embeds.ndim != 2 or image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"image_embeds {tuple(image_embeds.shape)} and text_embeds {tuple(text_embeds.shape)} must both be (N, E)."
        )
    if groups is not None and groups.shape != image_embeds.shape[:1]:
        raise ValueError(f"groups {tuple(groups.shape)} must be ({len(image_embeds)},): one number per row.")
