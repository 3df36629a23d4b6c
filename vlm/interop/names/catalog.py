"""The curated models that have a short name, as `vlm/assets/models/catalog.json` lists them, mini first."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_CATALOG = Path(__file__).parents[2] / "assets" / "models" / "catalog.json"
BYTES_PER_PARAMETER = 4  # float32, as these weights are published


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A published accuracy."""

    value: float  # 0..1
    measure: str
    source: str


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """Facts of a curated model, known without loading it."""

    name: str
    source: str  # what `vlm.load` opens
    repository: str | None  # on the Hugging Face hub; None for the bundled model
    purpose: dict[str, str]  # by language, en and ja
    languages: tuple[str, ...]
    parameters: int
    image_size: int  # pixels, one side
    licence: str
    licence_source: str
    accuracy: Accuracy | None  # None: no figure with a source is known

    @property
    def size(self) -> int:
        """Bytes of the weights, computed from the number of parameters."""
        return self.parameters * BYTES_PER_PARAMETER


@cache
def catalog() -> dict[str, CatalogEntry]:
    """Short name -> entry, in the order of the file."""
    content: dict[str, Any] = json.loads(_CATALOG.read_text(encoding="utf-8"))
    return {name: _entry(name, values) for name, values in content.items()}


def _entry(name: str, values: dict[str, Any]) -> CatalogEntry:
    known: dict[str, Any] = {"repository": None} | values
    known["languages"] = tuple(values["languages"])
    known["accuracy"] = None if values["accuracy"] is None else Accuracy(**values["accuracy"])
    return CatalogEntry(name=name, **known)


def source_of(name: str) -> str:
    """The source that a short name stands for; any other text comes back as it is.

    A model folder of that name in the current folder goes before the short name; `./photos` is always a folder.
    """
    entry = catalog().get(name)
    if entry is None or name == "mini" or _is_model_folder(Path(name)):
        return name
    return entry.source


def _is_model_folder(path: Path) -> bool:
    return any((path / file).is_file() for file in ("config.json", "open_clip_config.json"))
