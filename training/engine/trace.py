"""A profiler's trace of a few steps, for chrome://tracing or https://ui.perfetto.dev."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

BEFORE, TRACED = 10, 10  # steps 10 to 20 of the run: compiled, allocated and warm


@contextmanager
def traced(folder: Path | None, first: int, wanted: bool) -> Iterator[Callable[[], object]]:
    """Yields a function to call after each step; steps 10 to 20 are written to `folder`/profile/trace.json.gz.

    Args:
        folder: the run's; None for all processes but the first, which write nothing.
        first: the step that the run begins with; the trace begins 10 steps later.
        wanted: False does nothing.
    """
    if not wanted or folder is None:
        yield lambda: None
        return
    path = folder / "profile" / "trace.json.gz"
    path.parent.mkdir(exist_ok=True)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    schedule = torch.profiler.schedule(wait=max(0, BEFORE - 2), warmup=2, active=TRACED, repeat=1)
    with torch.profiler.profile(
        activities=kinds,
        schedule=schedule,
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
        record_shapes=True,
    ) as profiler:
        yield profiler.step
