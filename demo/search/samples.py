"""The bundled sample images: `demo/samples/`, each with its names, author and licence."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[1]
SAMPLES = DEMO / "samples"
EXAMPLES: dict[str, Any] = json.loads((DEMO / "examples.json").read_text(encoding="utf-8"))


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

    @property
    def style(self) -> str:
        """The set of drawings it belongs to: `noto` for noto/dog.webp."""
        return self.file_name.split("/")[0]


@cache
def samples() -> tuple[Sample, ...]:
    """All samples, in the order of the file."""
    lines = (SAMPLES / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Sample(**json.loads(line)) for line in lines)


@cache
def styles() -> tuple[str, ...]:
    """The sets of drawings, sorted."""
    return tuple(sorted({one.style for one in samples()}))


def sample(file_name: str) -> Sample:
    """The sample of that name; KeyError for any other name, so that no path from outside is opened."""
    return _by_name()[file_name]


@cache
def _by_name() -> dict[str, Sample]:
    return {one.file_name: one for one in samples()}
