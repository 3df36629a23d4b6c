"""The two contrastive losses: pure functions of two batches of unit vectors, exact, in memory linear in N.

image_embeds and text_embeds are (N, E); row i of one belongs to row i of the other.  The (N, N) similarities exist one
tile at a time, and the gradients are computed along with the value.  `tile_side` chooses the tile by the device.

The rows may be spread over several processes.  Each all-gathers the texts, computes its own rows of similarities and
reduce-scatters the gradients of the text embeddings.  All get the loss of the whole batch, and gradients made for
averaging over the processes, as DDP and FSDP do: the average is what one process with all rows would have had.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.errors import InputError
from vlm.models.linear import linear
from vlm.positives import SameThing, from_group_mean

CPU_TILE = 1024  # 4 MiB in float32: stays in the cache
GPU_TILES = (32768, 16384, 8192, 4096, 2048, 1024)  # the first that fits is taken: few, large kernels
_UNKNOWN_MEMORY = 8 * 2**30  # bytes assumed free on devices that do not say
_LOWEST = -80.0  # CPU: exp(-80) = 2e-35 counts for nothing; soon after, float32 turns denormal and takes twice the time


class Collectives(Protocol):
    """The processes that share a batch: n rows each, N in all, in the order of their ranks."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        ...

    def all_gather(self, rows: Tensor) -> Tensor:
        """Concatenates the rows of all processes, (n, ...) -> (N, ...)."""
        ...

    def reduce_scatter(self, rows: Tensor) -> Tensor:
        """Sums (N, ...) over all processes and keeps this process's rows, (n, ...)."""
        ...


class _OneProcess:
    """Collectives of a single process."""

    rank = 0

    def all_gather(self, rows: Tensor) -> Tensor:
        return rows

    def reduce_scatter(self, rows: Tensor) -> Tensor:
        return rows


_ONE_PROCESS = _OneProcess()


def clip_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    groups: Tensor | None = None,
    *,
    processes: Collectives = _ONE_PROCESS,
    tile: int | None = None,
) -> Tensor:
    """InfoNCE in both directions, averaged (Radford et al. 2021, figure 3).

        logits = exp(logit_scale) * image_embeds @ text_embeds.T
        loss = (cross_entropy(logits, arange(N)) + cross_entropy(logits.T, arange(N))) / 2

    Args:
        image_embeds: (N, E), unit vectors.
        text_embeds: (N, E), unit vectors; row i belongs to row i of image_embeds.
        logit_scale: log of 1 / temperature, a scalar.
        groups: (N,) integers; rows of one group show the same thing, and the target is uniform over them (UniCL, Yang
            et al. 2022).  Or (N, G) keys, -1 for none: rows that share a key show the same thing.  None: one group per
            row.
        processes: the processes that share the batch; N rows then mean the rows of this one.
        tile: rows and columns of similarities held at once.  None: chosen by `tile_side`.

    Returns:
        Scalar, in nats; log(N) when the embeddings tell nothing apart.

    Raises:
        InputError: the shapes do not fit.
    """
    _check(image_embeds, text_embeds, groups)
    return _differentiable(partial(_clip, groups, processes, tile), image_embeds, text_embeds, logit_scale)


def siglip_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    groups: Tensor | None = None,
    *,
    processes: Collectives = _ONE_PROCESS,
    tile: int | None = None,
) -> Tensor:
    """Binary cross-entropy of every image with every text (Zhai et al. 2023, algorithm 1).

        logits = exp(logit_scale) * image_embeds @ text_embeds.T + logit_bias
        loss = -logsigmoid(sign * logits).sum() / N

    sign is +1 on the diagonal, or within one of the `groups`, and -1 elsewhere.

    Args:
        image_embeds: (N, E), unit vectors.
        text_embeds: (N, E), unit vectors; row i belongs to row i of image_embeds.
        logit_scale: log of 1 / temperature, a scalar.
        logit_bias: a scalar added to all logits.
        groups: (N,) integers; rows of one group are pairs of each other.  Or (N, G) keys, -1 for none: rows that share
            a key are.  None: one group per row.
        processes: the processes that share the batch; N rows then mean the rows of this one.
        tile: rows and columns of similarities held at once.  None: chosen by `tile_side`.

    Returns:
        Scalar, in nats per row; N log(2) when every logit is 0.

    Raises:
        InputError: the shapes do not fit.
    """
    _check(image_embeds, text_embeds, groups)
    return _differentiable(
        partial(_siglip, groups, processes, tile), image_embeds, text_embeds, logit_scale, logit_bias
    )


@cache
def tile_side(device: torch.device, rows: int, columns: int) -> int:
    """Chooses the side of a tile of similarities.

    A CPU is fastest with tiles that stay in its cache.  On any other device each tile costs some 20 kernel launches, so
    tiles are as large as a quarter of the free memory allows.  The answer is kept for the rest of the process, so that
    all steps of a run add in the same order.

    Args:
        device: where the embeddings are.
        rows: similarities computed by this process, n.
        columns: N.

    Returns:
        1024 on a CPU; elsewhere a power of two from 1024 to 32768.
    """
    if device.type == "cpu":
        return CPU_TILE
    free = _UNKNOWN_MEMORY
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
    return tile_for(free, rows, columns)


def tile_for(free_bytes: int, rows: int, columns: int) -> int:
    """The largest of GPU_TILES of which four float32 copies, cut to (rows, columns), fit in a quarter of free_bytes."""

    def fits(side: int) -> bool:
        return 4 * 4 * min(side, rows) * min(side, columns) <= free_bytes // 4

    return next((side for side in GPU_TILES if fits(side)), GPU_TILES[-1])


@dataclass(frozen=True)
class _Similarities:
    """scale x y^T, (n, N), one tile at a time; row i and column first + i are a pair."""

    x: Tensor  # (n, E)
    y: Tensor  # (N, E)
    scale: Tensor
    first: int
    tile: int | None

    def places(self) -> Iterator[tuple[slice, slice]]:
        """Yields (rows, columns) of every tile."""
        side = self.tile or tile_side(self.x.device, len(self.x), len(self.y))
        for i in range(0, len(self.x), side):
            for j in range(0, len(self.y), side):
                yield slice(i, i + side), slice(j, j + side)

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yields (rows, columns, the similarities between them)."""
        rows, start = self.x, -1
        for r, c in self.places():
            if r.start != start:
                rows, start = self.scale * self.x[r], r.start
            yield r, c, linear(rows, self.y[c])

    def tiles_of_others(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yields tiles whose positive pairs are masked."""
        for r, c, z in self.tiles():
            self.pairs(r, c, z).fill_(torch.finfo(z.dtype).min)
            yield r, c, z

    def pairs(self, r: slice, c: slice, z: Tensor) -> Tensor:
        """The positive pairs of the tile z: a view, often empty."""
        return z.diagonal(r.start + self.first - c.start)

    def log_sum_exp_of_others(self) -> tuple[Tensor, Tensor]:
        """log of the sum of exp over the negatives, by row (n,) and by column (N,)."""
        by_row = self.x.new_full((len(self.x),), -torch.inf)
        by_column = self.x.new_full((len(self.y),), -torch.inf)
        for r, c, z in self.tiles_of_others():
            torch.logaddexp(by_row[r], _log_sum_exp(z, 1), out=by_row[r])
            torch.logaddexp(by_column[c], _log_sum_exp(z, 0), out=by_column[c])
        return by_row, by_column

    def gradients_of_others(self, by_row: Tensor, by_column: Tensor) -> tuple[Tensor, Tensor]:
        """G y and G^T x, where G (n, N) is the softmax by row plus the softmax by column.

        `by_row` (n,) and `by_column` (N,) are the logarithms of the denominators.
        """
        dx, dy = torch.zeros_like(self.x), torch.zeros_like(self.y)
        for r, c, z in self.tiles_of_others():
            g = _exp_(z - by_row[r, None])
            g += _exp_(z.sub_(by_column[c]))
            _add_product(dx[r], g, self.y[c])
            _add_product(dy[c], g.T, self.x[r])
        return dx, dy

    def from_mean_of_same(self, same: SameThing, processes: Collectives) -> tuple[Tensor, Tensor]:
        """x and y of this process, (n, E) each, less the mean of what is right for them.

        With A (N, N) the relation and d its row sums, the mean of y is (A / d + (A / d)^T) y / 2: half of it is what
        the rows have as a target, half what the columns have.
        """
        all_x, found = processes.all_gather(self.x), self.x.new_zeros(len(self.x))
        for r, c in self.places():
            found[r] += same.tile(r, c).sum(1)
        per_row = 1 / processes.all_gather(found)  # (N,)
        own = per_row[self.first : self.first + len(self.x)]
        x_mean, y_mean = torch.zeros_like(self.x), torch.zeros_like(self.x)
        for r, c in self.places():
            weights = same.tile(r, c) * ((own[r, None] + per_row[c]) / 2)
            _add_product(x_mean[r], weights, all_x[c])
            _add_product(y_mean[r], weights, self.y[c])
        return self.x - x_mean, self.y[self.first : self.first + len(self.x)] - y_mean


_Parts = tuple[Tensor, tuple[Tensor, ...]]  # value, gradients


def _clip(
    groups: Tensor | None,
    processes: Collectives,
    tile: int | None,
    needed: bool,
    x: Tensor,
    y: Tensor,
    log_scale: Tensor,
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
    same = None if groups is None else SameThing.of(processes.all_gather(groups), n * processes.rank, n)
    if same is not None and same.transitive:
        x_apart = from_group_mean(processes.all_gather(x), same.keys)[own]
        y_apart = from_group_mean(all_y, same.keys)[own]
    elif same is not None:
        x_apart, y_apart = similarities.from_mean_of_same(same, processes)
    value = processes.all_gather((by_row + by_column[own]) / 2 + scale * (x * y_apart).sum(1)).mean()
    if not needed:
        return value, ()

    dx, dy = similarities.gradients_of_others(pair + by_row, all_pair + by_column)
    excess = (torch.expm1(-by_row) + torch.expm1(-by_column[own]))[:, None]  # the pair's two probabilities, minus 2
    dx.addcmul_(excess, y).add_(y_apart, alpha=2).mul_(scale / (2 * n))
    dy = processes.reduce_scatter(dy).addcmul_(excess, x).add_(x_apart, alpha=2).mul_(scale / (2 * n))
    return value, (dx, dy, (x * dx).sum())


def _siglip(
    groups: Tensor | None,
    processes: Collectives,
    tile: int | None,
    needed: bool,
    x: Tensor,
    y: Tensor,
    log_scale: Tensor,
    bias: Tensor,
) -> _Parts:
    n, scale, all_y = len(x), log_scale.exp(), processes.all_gather(y)
    similarities = _Similarities(x, all_y, scale, n * processes.rank, tile)
    same = None if groups is None else SameThing.of(processes.all_gather(groups), n * processes.rank, n)

    def negate_same(r: slice, c: slice, z: Tensor) -> None:
        if same is None:
            similarities.pairs(r, c, z).neg_()
            return
        z.mul_(torch.where(same.tile(r, c), -1.0, 1.0))

    value, dbias = torch.zeros_like(scale), torch.zeros_like(scale)
    dx, dy = torch.zeros_like(x), torch.zeros_like(all_y)
    for r, c, z in similarities.tiles():
        z += bias
        negate_same(r, c, z)
        value += _sum_softplus(z)
        if needed:
            g = z.sigmoid_()
            negate_same(r, c, g)
            _add_product(dx[r], g, all_y[c])
            _add_product(dy[c], g.T, x[r])
            dbias += g.sum()
    value = processes.all_gather(value[None] / n).mean()
    if not needed:
        return value, ()
    dx.mul_(scale / n)
    dy = processes.reduce_scatter(dy).mul_(scale / n)
    return value, (dx, dy, (x * dx).sum(), dbias / n)


def _on_cpu(z: Tensor) -> bool:
    """Returns True if the CPU formulas apply; on a GPU each of their steps is a kernel launch."""
    return z.device.type == "cpu"


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, (n, E) += (n, m) (m, E)."""
    if _on_cpu(total):
        total += linear(a, b.T)
    else:
        total.addmm_(a, b)


def _exp_(z: Tensor) -> Tensor:
    """exp(z), in place; a CPU never computes with denormal numbers."""
    return (z.clamp_(min=_LOWEST) if _on_cpu(z) else z).exp_()


def _log_sum_exp(z: Tensor, dim: int) -> Tensor:
    """log of the sum of exp(z) along `dim`."""
    if not _on_cpu(z):
        return z.logsumexp(dim)
    highest = z.amax(dim, keepdim=True)
    return _exp_(z - highest).sum(dim).log_() + highest.squeeze(dim)


def _sum_softplus(z: Tensor) -> Tensor:
    """Sum of log(1 + exp(z)); on a CPU as max(z, 0) - log(1 - sigmoid(-|z|)), which takes half the time there."""
    if not _on_cpu(z):
        return -F.logsigmoid(-z).sum()
    p = z.abs().clamp_(max=-_LOWEST).neg_().sigmoid_()
    q = 1 - p
    lost = p.sub_(1 - q)  # the rounding error of q, which is to first order that of its logarithm
    return z.relu().sum() - q.log_().sum() + lost.sum()


def _differentiable(parts: Callable[..., _Parts], x: Tensor, y: Tensor, *scalars: Tensor | float) -> Tensor:
    """The value of parts(needed, x, y, *scalars) and its gradients, in float32 at least, autocast or not."""
    inputs = (x, y, *(torch.as_tensor(number, device=x.device) for number in scalars))
    dtype = torch.promote_types(torch.promote_types(inputs[0].dtype, inputs[1].dtype), torch.float32)
    needed = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    kind = x.device.type if torch.amp.is_autocast_available(x.device.type) else "cpu"  # the meta device has none
    with torch.no_grad(), torch.autocast(kind, enabled=False):
        value, gradients = parts(needed, *(t.to(dtype) for t in inputs))
    return _WithGradients.apply(value, gradients, *inputs) if needed else value  # type: ignore[no-any-return]


class _WithGradients(torch.autograd.Function):
    """A value whose gradients were computed along with it."""

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
        raise InputError(
            f"image_embeds {tuple(image_embeds.shape)} and text_embeds {tuple(text_embeds.shape)} must both be (N, E): "
            "one row per pair."
        )
    if groups is not None and (groups.ndim not in (1, 2) or len(groups) != len(image_embeds)):
        n = len(image_embeds)
        raise InputError(f"groups {tuple(groups.shape)} must be ({n},) or ({n}, G): one number per row, or its keys.")
