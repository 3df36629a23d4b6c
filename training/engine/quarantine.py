"""Samples that could not be used: quarantine.jsonl names each once, and too many of them end the run."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from vlm import atomic
from vlm.errors import DataError
from vlm.training.data.rows import BrokenSample
from vlm.training.engine.distributed import Processes

ENOUGH = 20  # so many broken samples say something about the rate before all have been seen


class Quarantine:
    """The list of broken samples in `folder`; every process knows all of it, the first one writes.

    `resume`: go on with the list that is there.
    """

    def __init__(self, folder: Path, count: int, max_broken: float, processes: Processes, *, resume: bool):
        self.path, self.count, self.max_broken, self.processes = (
            folder / "quarantine.jsonl",
            count,
            max_broken,
            processes,
        )
        self.known = _read(self.path) if resume else {}
        processes.barrier()  # all have read it before the first one writes
        if processes.rank == 0:
            atomic.write(self.path, "".join(self.known.values()))  # without the line a crash cut off

    def __len__(self) -> int:
        return len(self.known)

    def shown(self) -> dict[str, str]:
        """For the progress line."""
        return {"broken": f"{len(self):,}"} if len(self) else {}

    def add(self, broken: Sequence[BrokenSample], seen: int) -> None:
        """Take up what this process found in a step; a collective call.

        Args:
            broken: the samples that could not be used.
            seen: samples drawn so far, by all processes.

        Raises:
            DataError: their share is above `max_broken`.
        """
        lines = {sample.uid: _line(sample) for sample in broken if sample.uid not in self.known}
        parts = self.processes.gather_objects(lines)  # in the order of the ranks
        news = {uid: line for part in parts for uid, line in part.items() if uid not in self.known}
        if not news:
            return
        self.known |= news
        if self.processes.rank == 0:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(news.values()))
        seen = min(seen, self.count)
        if len(self) > self.max_broken * seen and (len(self) > ENOUGH or seen == self.count):
            last = json.loads(list(news.values())[-1])
            raise DataError(
                f"{len(self)} of the first {seen:,} samples are broken, more than max_broken = {self.max_broken:g} "
                f"allows. {self.path} lists them; the last: {last['uid']}: {last['reason']}: {last['detail']}"
            )

    def list_all(self, broken: Sequence[BrokenSample]) -> None:
        """Write down what this process found, when the run ends on it: the others are not asked."""
        lines = {sample.uid: _line(sample) for sample in broken if sample.uid not in self.known}
        self.known |= lines
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines.values()))


def _line(sample: BrokenSample) -> str:
    entry = {"uid": sample.uid, "reason": sample.reason, "detail": sample.detail}
    return json.dumps(entry, ensure_ascii=False).replace("\u2028", " ") + "\n"


def _read(path: Path) -> dict[str, str]:
    """uid -> line; what a crash cut off is left out."""
    if not os.path.exists(path):
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return {json.loads(line)["uid"]: line + "\n" for line in lines}
