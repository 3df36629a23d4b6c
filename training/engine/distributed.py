"""The processes of a run: `torchrun --nproc-per-node 4 -m training.train_clip ...` starts four, plain `python` one.

Every process runs the same code on its own rows of each batch, n = N / size of them, in the order of the ranks:

    processes = init_from_env()
    loss = clip_loss(image_embeds, text_embeds, logit_scale, groups, processes=processes)

has the negatives of all processes.  All see the loss of the whole batch; the gradients, once averaged over the
processes (what DDP and FSDP2 do), are those of one process with all N rows: the towers', logit_scale's, logit_bias's.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process, number `rank` of `size`, and its device.  These are the collectives that `vlm.loss` asks for."""

    rank: int
    size: int
    device: torch.device

    def all_gather(self, rows: Tensor) -> Tensor:
        """(n, ...) of this process -> (N, ...) of all, in the order of the ranks; n is the same everywhere."""
        if self.size == 1:
            return rows
        everyone = rows.new_empty((self.size * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(everyone, rows.contiguous())
        return everyone

    def reduce_scatter(self, rows: Tensor) -> Tensor:
        """(N, ...) of this process -> (n, ...): the sum over all processes, of which each gets its own rows."""
        if self.size == 1:
            return rows
        own = rows.new_empty((len(rows) // self.size, *rows.shape[1:]))
        dist.reduce_scatter_tensor(own, rows.contiguous())
        return own

    def share(self, count: int, rank: int | None = None) -> range:
        """The part of range(count) of `rank`, by default this one; parts differ in length by at most one."""
        rank = self.rank if rank is None else rank
        return range(count * rank // self.size, count * (rank + 1) // self.size)

    def map(self, function: Callable[[range], Tensor], count: int) -> Tensor:
        """function(range(count)), one row per number, with each process doing its share; all get all rows, in order.

        All are asked for equally many rows, some for one too many: FSDP2 needs all of them at every forward pass.
        """
        shares = [self.share(count, rank) for rank in range(self.size)]
        own, longest = shares[self.rank], max(map(len, shares))
        start = min(own.start, count - longest)
        rows = function(range(start, start + longest))[own.start - start :][: len(own)]
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(own)] = rows
        parts = self.all_gather(padded).split(longest)
        return torch.cat([part[: len(share)] for part, share in zip(parts, shares, strict=True)])


SINGLE_PROCESS = Processes(rank=0, size=1, device=torch.device("cpu"))


def init_from_env(device_type: str | None = None) -> Processes:
    """Join the run that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), or be alone.

    `device_type` "cpu" or "cuda"; None is cuda where there is one.  cuda talks by nccl, cpu by gloo.
    """
    rank, size, local = place_from_env()
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device_type, local) if device_type == "cuda" else torch.device(device_type)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("device cuda: torch sees no such GPU here. Use device cpu.")
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes(rank=rank, size=size, device=device)


def place_from_env() -> tuple[int, int, int]:
    """(rank, number of processes, rank on this machine), as torchrun says them; (0, 1, 0) alone."""
    rank, size, local = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return rank, size or 1, local


def leave() -> None:
    """At the end of a run: part from the others."""
    if dist.is_initialized():
        dist.destroy_process_group()
