"""The models to which the whole page can be switched: short names, and the models listed on this machine."""

from collections.abc import Sequence
from typing import NamedTuple

from vlm.demo.models import downloads
from vlm.demo.models.registry import ModelRegistry
from vlm.demo.page.texts import PageError
from vlm.interop.names.catalog import CatalogEntry, catalog


class OfferedModel(NamedTuple):
    """A model to which the page can be switched."""

    name: str
    source: str
    """What `vlm.load` opens."""
    purpose: dict[str, str] | None
    """By language; None for a model of the user."""
    licence: str
    """Empty if unknown here."""
    size: int
    """Bytes of its weights; computed from the number of parameters for short names."""
    here: bool
    """On this machine, so that nothing is downloaded."""


def offered_models(registry: ModelRegistry) -> list[OfferedModel]:
    """The bundled model, short names and listed models.  On a page for other machines: what is here only.

    Reads the disk and asks no hub.
    """
    short = [_of_catalog(entry) for entry in catalog().values()]
    known = {model.name for model in short}
    listed = [
        OfferedModel(entry.name, entry.source, None, "", entry.size, not downloads.is_remote(entry.source))
        for entry in registry.entries("clip")
        if entry.name not in known
    ]
    return [model for model in [*short, *listed] if model.here or registry.any_source]


def offered_model(models: Sequence[OfferedModel], name: object) -> OfferedModel:
    """The one of that name; `PageError` for any other name."""
    for model in models:
        if model.name == name:
            return model
    raise PageError("only_listed", name=str(name)[:80])


def _of_catalog(entry: CatalogEntry) -> OfferedModel:
    here = entry.repository is None or downloads.is_here(entry.repository)
    return OfferedModel(entry.name, entry.name, entry.purpose, entry.licence, entry.size, here)
