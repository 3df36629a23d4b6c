"""The processes of a run: torchrun or srun starts several, plain `vlm train` is one.

    torchrun --nproc-per-node 8 -m vlm train RECIPE.toml --out DIR

Every process runs the same code on its own rows of each batch, n = N / size of them, in the order of the ranks:

    processes = init_from_env()
    loss = clip_loss(image_embeds, text_embeds, logit_scale, groups, processes=processes)

has the negatives of all processes.  All get the loss of the whole batch; the gradients, once averaged over the
processes (what DDP and FSDP2 do), are those of one process with all N rows.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vlm.errors import InputError

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process, number `rank` of `size`, and its device.  It has the collectives that `vlm.loss` asks for."""

    rank: int
    size: int
    device: torch.device
    host_group: Any = field(default=None, repr=False, compare=False)  # gloo; None: the default group

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

    def mean(self, value: Tensor) -> Tensor:
        """The average over all processes, on the device."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.size

    def gather_objects(self, value: Value) -> list[Value]:
        """Any plain values of all processes, in the order of the ranks; through the hosts' memory, not the GPUs'."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.host_group)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        self.gather_objects(None)

    def share(self, count: int, rank: int | None = None) -> range:
        """The part of range(count) of `rank`, by default this one; parts differ in length by at most one."""
        rank = self.rank if rank is None else rank
        return range(count * rank // self.size, count * (rank + 1) // self.size)

    def map(self, function: Callable[[range], Tensor], count: int) -> Tensor:
        """Splits range(count) over the processes and gathers the results.

        Pads so that every rank computes equally many rows: FSDP2 needs all processes at every forward pass.

        Args:
            function: of a range, one row for each number.
            count: how many numbers.

        Returns:
            (count, ...), the same on all processes.
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


class StopVote:
    """Agrees on stopping without making any process wait: each step sends its vote and reads the one before.

    The votes travel through the hosts' memory (gloo).  All processes read the same result, so all stop after the same
    step, one later than the first that voted.
    """

    def __init__(self, processes: Processes):
        self.processes = processes
        self.pending: tuple[Any, Tensor] | None = None

    def __call__(self, stop: bool) -> bool:
        """Returns True if any process had voted to stop; with one process, its vote now."""
        if self.processes.size == 1:
            return stop
        before = self.finish()
        vote = torch.tensor([stop], dtype=torch.uint8)
        group = self.processes.host_group
        self.pending = dist.all_reduce(vote, dist.ReduceOp.MAX, group=group, async_op=True), vote
        return before

    def finish(self) -> bool:
        """Read the vote under way."""
        if self.pending is None:
            return False
        work, vote = self.pending
        self.pending = None
        work.wait()
        return bool(vote)


def init_from_env(device_type: str | None = None, timeout_minutes: float | None = None) -> Processes:
    """Join the run that torchrun or srun started, or be a single process.

    On a GPU, float32 matrix products take TF32 from now on (torch.set_float32_matmul_precision("high")).

    Args:
        device_type: "cpu", "cuda" or "mps"; None is cuda where there is one.  cuda uses nccl, others gloo.
        timeout_minutes: how long a collective may take before the run ends; None is torch's default.

    Raises:
        InputError: there is no such device, or the other processes cannot be joined.
    """
    rank, size, local = place_from_env()
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device_type, local) if device_type == "cuda" else torch.device(device_type)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError("device cuda: torch sees no such GPU here. Use device cpu.")
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    host_group = None
    if size > 1:
        if not dist.is_initialized():
            for name, value in rendezvous_from_slurm(os.environ).items():
                os.environ.setdefault(name, value)
            timeout = None if timeout_minutes is None else timedelta(minutes=timeout_minutes)
            on_gpu = device.type == "cuda"
            try:
                dist.init_process_group(
                    "nccl" if on_gpu else "gloo",
                    rank=rank,
                    world_size=size,
                    timeout=timeout,
                    device_id=device if on_gpu else None,
                )
            except (ValueError, dist.DistError) as error:  # a variable is missing; the first machine does not answer
                reason = " ".join(str(error).split())
                raise InputError(
                    f"process {rank} of {size} cannot join the others: {reason}. Start all of them with torchrun."
                ) from error
        host_group = dist.new_group(backend="gloo") if device.type == "cuda" else None
    return Processes(rank=rank, size=size, device=device, host_group=host_group)


def place_from_env() -> tuple[int, int, int]:
    """(rank, number of processes, rank on this machine) from torchrun's variables or those of a SLURM step."""
    for names in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")):
        if os.environ.get(names[1]):
            try:
                rank, size, local = (int(os.environ.get(name, 0)) for name in names)
            except ValueError as error:
                raise InputError(f"{', '.join(names)} must be whole numbers ({error}). Start with torchrun.") from error
            return rank, size, local
    return 0, 1, 0


def rendezvous_from_slurm(environ: "os._Environ[str] | dict[str, str]") -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT of a SLURM step: its first machine, and a port made from the job's number."""
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    if not nodes or "SLURM_STEP_NUM_TASKS" not in environ:
        return {}
    first = re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])  # gpu[03-05,9],b -> gpu03
    return {"MASTER_ADDR": first, "MASTER_PORT": str(20000 + int(environ.get("SLURM_JOB_ID", "0")) % 20000)}


def leave() -> None:
    """At the end of a run: leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
