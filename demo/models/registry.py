"""The models of the page: which there are, which a visitor may name; each is loaded once.

A name of a folder or of a model on a hub makes this machine read or download it.  So only a page on a loopback address,
or one started with --any-model, accepts names that it has not listed.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Literal, get_args

import vlm
from vlm.bundled import BUNDLED
from vlm.checkpoint.sources import FORMAT
from vlm.demo.models import downloads
from vlm.demo.page.texts import PageError
from vlm.user_folders import expanded

Kind = Literal["clip", "vit_classifier"]

MAX_DEPTH = 3  # levels of folders searched
MAX_FOUND = 100
MAX_CARD = 100_000  # characters
MAX_LOADED = 3  # models in memory


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model that the page lists."""

    name: str
    """Shown and chosen; the rest of the path is not shown."""
    kind: Kind
    source: str
    """Argument of `vlm.load` or `vlm.load_classifier`."""
    size: int
    """Bytes of its weights."""


def find_models(root: Path) -> list[ModelEntry]:
    """Models of our format in a folder and up to `MAX_DEPTH` levels below, by path; links are not followed."""
    found: list[ModelEntry] = []
    remaining = [root]
    while remaining and len(found) < MAX_FOUND:
        folder = remaining.pop(0)
        if (entry := _entry(folder, root)) is not None:
            found.append(entry)
        elif len(folder.relative_to(root).parts) < MAX_DEPTH:
            remaining += _folders(folder)
    return sorted(found, key=lambda entry: entry.name)


class ModelRegistry:
    """The models that the page may load.

    Args:
        roots: folders searched for models.
        model: source of the page's own model.
        classifier: source of a trained ViT.
        any_source: whether visitors may name paths and models on a hub.
    """

    def __init__(
        self,
        roots: Sequence[str | Path] = (),
        *,
        model: str = "mini",
        classifier: str | None = None,
        any_source: bool = False,
    ) -> None:
        self.roots = tuple(expanded(root).absolute() for root in roots)
        self.named: dict[Kind, list[str]] = {  # on the command line
            "clip": list(dict.fromkeys((model, "mini"))),
            "vit_classifier": [classifier] if classifier is not None else [],
        }
        self.any_source = any_source
        self._downloaded: set[str] = set()
        self._loaded: OrderedDict[tuple[Kind, str, float], vlm.Embedder | vlm.ViTClassifier] = OrderedDict()
        self._lock = RLock()

    def entries(self, kind: Kind) -> list[ModelEntry]:
        """All listed models of a kind; those of --model and --classifier come first.  Reads the disk."""
        entries = [_entry_named(source, kind) for source in self.named[kind]]
        known = {_local_path(entry.source) for entry in entries}
        found = [entry for root in self.roots for entry in find_models(root) if entry.kind == kind]
        taken = {entry.name for entry in entries}
        for entry in found:
            if (
                _local_path(entry.source) not in known and entry.name not in taken
            ):  # the first model of a name is listed
                entries.append(entry)
                taken.add(entry.name)
        return entries

    def source(self, name: str, kind: Kind) -> str:
        """Returns the source of a name that a visitor chose or typed.

        Raises:
            PageError: the name is not listed, and the page accepts listed names only; or not downloaded yet.
        """
        if not isinstance(name, str):
            raise PageError("not_text")
        name = name.strip()
        if not name:
            raise PageError("no_model_named")
        for entry in self.entries(kind):
            if entry.name == name:
                return entry.source
        if not self.any_source:
            raise PageError("only_listed", name=name[:80])
        if downloads.is_remote(name) and name not in self._downloaded:
            raise PageError("consent_first", name=name[:80])
        return name

    def mark_downloaded(self, name: str) -> None:
        """A visitor agreed to this model of a hub, and it is downloaded."""
        self._downloaded.add(name)

    def embedder(self, name: str) -> vlm.Embedder:
        model = self._loaded_once("clip", self.source(name, "clip"))
        assert isinstance(model, vlm.Embedder)
        return model

    def classifier(self, name: str) -> vlm.ViTClassifier:
        model = self._loaded_once("vit_classifier", self.source(name, "vit_classifier"))
        assert isinstance(model, vlm.ViTClassifier)
        if model.preprocess is None:
            raise PageError("no_preprocess", name=name[:80])
        return model

    def check(self) -> None:
        """Load the classifier of the command line, so that an error is reported at the start."""
        for source in self.named["vit_classifier"]:
            self._loaded_once("vit_classifier", source)

    def card(self, name: str, kind: Kind) -> str:
        """The model card, Markdown without its header; `PageError` without a card."""
        source = self.source(name, kind)
        folder = downloads.folder(source) if downloads.is_remote(source) else _local_path(source)
        try:
            if folder is None:
                raise FileNotFoundError
            with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
                return without_header(file.read(MAX_CARD))
        except OSError as error:
            raise PageError("no_card", name=name[:80]) from error

    def _loaded_once(self, kind: Kind, source: str) -> vlm.Embedder | vlm.ViTClassifier:
        """Keep the last few models in memory; load a folder again after it was trained again."""
        with self._lock:
            key = (kind, source, _changed(source))
            if key not in self._loaded:
                opener = vlm.load if kind == "clip" else vlm.load_classifier
                try:
                    self._loaded[key] = opener(source)
                except (ValueError, OSError) as error:
                    raise PageError("cannot_open_model", line=" ".join(str(error).split())[:400]) from error
                while len(self._loaded) > MAX_LOADED:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(key)
            return self._loaded[key]


def without_header(card: str) -> str:
    """Markdown without its YAML header (between two lines of dashes)."""
    return re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).strip()


def _entry(folder: Path, root: Path) -> ModelEntry | None:
    """The model that `vlm.save` wrote into a folder, None for any other folder; the weights are not checked."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["format"] != FORMAT or config["kind"] not in get_args(Kind):
            return None
        name = Path(root.name, folder.relative_to(root)).as_posix()
        return ModelEntry(name=name, kind=config["kind"], source=str(folder), size=_size(folder))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _folders(folder: Path) -> list[Path]:
    try:
        inner = sorted(folder.iterdir())
        return [path for path in inner if not path.name.startswith(".") and path.is_dir() and not path.is_symlink()]
    except OSError:
        return []


def _entry_named(source: str, kind: Kind) -> ModelEntry:
    if downloads.is_remote(source):
        return ModelEntry(name=source, kind=kind, source=source, size=0)
    return ModelEntry(name=_local_path(source).name, kind=kind, source=source, size=_size(_local_path(source)))


def _size(folder: Path) -> int:
    weights = folder / "model.safetensors"
    return weights.stat().st_size if weights.is_file() else 0


def _local_path(source: str) -> Path:
    """Folder of a local model."""
    return BUNDLED.get(source, expanded(source)).resolve()


def _changed(source: str) -> float:
    """When the model's manifest was written; 0 for a model of another format."""
    manifest = _local_path(source) / "manifest.json"
    return manifest.stat().st_mtime if not downloads.is_remote(source) and manifest.is_file() else 0
