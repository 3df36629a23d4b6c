"""The images the demo searches: `samples/`, each with its names, author and licence."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SAMPLES = Path(__file__).parent / "samples"
EXAMPLES: dict[str, Any] = json.loads((SAMPLES.parent / "examples.json").read_text(encoding="utf-8"))  # to begin with


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One line of `samples/metadata.jsonl`."""

    file_name: str
    en: str
    ja: str
    concept: str
    author: str
    source: str
    license: str

    @property
    def path(self) -> Path:
        return SAMPLES / self.file_name


@cache
def samples() -> tuple[Sample, ...]:
    """All of them, in the order of the file."""
    lines = (SAMPLES / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Sample(**json.loads(line)) for line in lines)


def sample(file_name: str) -> Sample:
    """The one of that name; KeyError for any other name, so that no path from outside is ever opened."""
    return _by_name()[file_name]


@cache
def _by_name() -> dict[str, Sample]:
    return {one.file_name: one for one in samples()}
