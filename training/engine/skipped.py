"""Steps whose loss or gradients were not finite: skipped, listed in skipped.jsonl, and limited in number."""

import json
from pathlib import Path

from vlm.errors import TrainingError
from vlm.training.engine.distributed import Processes
from vlm.training.engine.run_log import forget_after

SHOWN = 8  # samples named in a message; the file has all


class SkippedSteps:
    """The list of skipped steps of one run.

    Args:
        folder: receives skipped.jsonl; None for all processes but the first.
        first: the step that the run begins with; later lines of an earlier attempt are deleted.
        limit: the run ends when more steps have been skipped.
        total: skipped before `first`.
        processes: all must call `add`.
    """

    def __init__(self, folder: Path | None, first: int, limit: int, total: int, processes: Processes):
        self.path = folder / "skipped.jsonl" if folder else None
        self.limit, self.total, self.processes = limit, total, processes
        if self.path is not None:
            forget_after(self.path, first)

    def add(self, step: int, numbers: list[float], uids: list[str]) -> str:
        """Note a skipped step.

        Args:
            step: its number, from 0.
            numbers: loss, gradient norm, ...
            uids: this process's samples of the step.

        Returns:
            A line for the log.

        Raises:
            TrainingError: more steps than the limit were skipped.
        """
        samples = [uid for part in self.processes.gather_objects(uids) for uid in part]
        self.total += 1
        loss, norm = numbers[:2]
        if self.path is not None:
            line = {"step": step + 1, "loss": str(loss), "gradient_norm": str(norm), "samples": samples}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False).replace("\u2028", " ") + "\n")
        shown = ", ".join(samples[:SHOWN]) + (f" and {len(samples) - SHOWN} more" if len(samples) > SHOWN else "")
        found = f"step {step + 1}: loss {loss}, gradient norm {norm}: the step is skipped"
        if self.total > self.limit:
            raise TrainingError(
                f"{found}, the {_ordinal(self.total)} of the run; max_skipped = {self.limit} allows no more. Lower the "
                f"learning rate or look at the samples: {shown}"
            )
        return f"{found} ({self.total} of at most {self.limit}). Samples: {shown}"


def _ordinal(number: int) -> str:
    return f"{number}{'th' if 10 <= number % 100 <= 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
