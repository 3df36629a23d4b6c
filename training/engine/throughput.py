"""Throughput of a run: samples, tokens and floating point operations a second, and memory."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from vlm.training.engine.distributed import Processes


class Gpu(NamedTuple):
    """A GPU by its datasheet; dense, not the doubled number of sparse matrices."""

    half_tflops: float  # bfloat16 or float16, per second
    single_tflops: float  # float32 outside tensor cores
    gib: float


GPUS = {  # NVIDIA's datasheets: A100 80GB SXM, H100 SXM, H200 SXM, L4
    "a100": Gpu(312, 19.5, 80e9 / 2**30),
    "h100": Gpu(989, 67, 80e9 / 2**30),
    "h200": Gpu(989, 67, 141e9 / 2**30),
    "l4": Gpu(121, 30.3, 24e9 / 2**30),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations of one step of one process; recomputation to save memory is not counted."""

    flops: float  # of matrix products, forward and backward
    tokens: float  # image and text tokens


class Throughput:
    """Rates of a run, per process.

    Args:
        processes: those that train together.
        batch_size: samples of a step, over all processes.
        work: of one step of one process; None leaves out what depends on it.
    """

    def __init__(self, processes: Processes, batch_size: int, work: Work | None):
        self.device, self.rows, self.work = processes.device, batch_size / processes.size, work
        self.size = processes.size

    def numbers(self, seconds: float) -> dict[str, float]:
        """Rates at so many seconds a step.

        Returns:
            samples_per_second (of all processes) and, of each process, tokens_per_second, tflops (per second) and mfu,
            the share of the GPU's bfloat16 peak, where they are known; peak_memory_gib on a GPU.
        """
        found = {"samples_per_second": self.rows * self.size / seconds}
        if self.work is not None:
            found |= {"tokens_per_second": self.work.tokens / seconds, "tflops": self.work.flops / seconds / 1e12}
            if (peak := peak_tflops(self.device)) is not None:
                found["mfu"] = found["tflops"] / peak
        if self.device.type == "cuda":
            found["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return found


def peak_tflops(device: torch.device) -> float | None:
    """The device's bfloat16 peak by its name, in TFLOP/s; None where it is not in GPUS."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    return next((gpu.half_tflops for key, gpu in GPUS.items() if key in name.replace("-", " ").split()), None)
