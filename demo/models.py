"""The other models of the page: which there are, which a visitor may name, and each of them loaded once.

Naming a folder or a remote id makes this machine read or download it, so only a page served to its own machine, or
one started with --any-model, takes names it has not listed itself.
"""

import ipaddress
import json
import re
import statistics
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Literal, NamedTuple, get_args

import torch

import vlm
from vlm.checkpoint.sources import BUNDLED, FORMAT
from vlm.demo import remote
from vlm.demo.texts import NoAnswer
from vlm.images.open import ImageSource

Kind = Literal["clip", "vit_classifier"]

MAX_DEPTH = 3  # folders below a place
MAX_FOUND = 100
MAX_CARD = 100_000  # characters
KEPT = 3  # loaded models of either kind
RUNS = 5  # images timed, the median counts


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model that the page lists."""

    name: str
    """What the visitor chooses, and all that is shown of a path."""
    kind: Kind
    source: str
    """What `vlm.load` or `vlm.load_classifier` opens."""
    size: int
    """Bytes of its weights."""


class Timed(NamedTuple):
    """One model's answer beside another's."""

    name: str
    ranking: list[tuple[str, float]]
    """(label, probability), most probable first."""
    milliseconds: float
    """To see one image, the median of `RUNS`; labels not counted."""
    parameters: int


def find_models(place: Path) -> list[Entry]:
    """The models of our format in a folder and up to `MAX_DEPTH` below, by path; links are not followed."""
    found: list[Entry] = []
    remaining = [place]
    while remaining and len(found) < MAX_FOUND:
        folder = remaining.pop(0)
        if (entry := _entry(folder, place)) is not None:
            found.append(entry)
        elif len(folder.relative_to(place).parts) < MAX_DEPTH:
            remaining += _folders(folder)
    return sorted(found, key=lambda entry: entry.name)


class Shelf:
    """What the page may load: the bundled model, what lies in `places`, and, if `anywhere`, what a visitor names."""

    def __init__(
        self,
        places: Sequence[str | Path] = (),
        *,
        model: str = "mini",
        classifier: str | None = None,
        anywhere: bool = False,
    ) -> None:
        self.places = tuple(Path(place).expanduser().absolute() for place in places)
        self.named: dict[Kind, list[str]] = {  # by whoever started the page
            "clip": list(dict.fromkeys((model, "mini"))),
            "vit_classifier": [classifier] if classifier is not None else [],
        }
        self.anywhere = anywhere
        self._downloaded: set[str] = set()
        self._loaded: OrderedDict[tuple[Kind, str, float], vlm.Embedder | vlm.ViTClassifier] = OrderedDict()
        self._lock = RLock()

    def entries(self, kind: Kind) -> list[Entry]:
        """All that the page lists of a kind, first what --model and --classifier named.  Reads the disk."""
        entries = [_entry_named(source, kind) for source in self.named[kind]]
        known = {_place(entry.source) for entry in entries}
        found = [entry for place in self.places for entry in find_models(place) if entry.kind == kind]
        taken = {entry.name for entry in entries}
        for entry in found:
            if _place(entry.source) not in known and entry.name not in taken:  # the first of a name keeps it
                entries.append(entry)
                taken.add(entry.name)
        return entries

    def source(self, name: str, kind: Kind) -> str:
        """A name from the list, or what a visitor typed -> what to load, or `NoAnswer` in one line."""
        if not isinstance(name, str):
            raise NoAnswer("not_text")
        name = name.strip()
        if not name:
            raise NoAnswer("no_model_named")
        for entry in self.entries(kind):
            if entry.name == name:
                return entry.source
        if not self.anywhere:
            raise NoAnswer("only_listed", name=name[:80])
        if remote.is_remote(name) and name not in self._downloaded:
            raise NoAnswer("consent_first", name=name[:80])
        return name

    def downloaded(self, name: str) -> None:
        """The visitor has agreed to this remote id, and it is here."""
        self._downloaded.add(name)

    def embedder(self, name: str) -> vlm.Embedder:
        model = self._loaded_once("clip", self.source(name, "clip"))
        assert isinstance(model, vlm.Embedder)
        return model

    def classifier(self, name: str) -> vlm.ViTClassifier:
        model = self._loaded_once("vit_classifier", self.source(name, "vit_classifier"))
        assert isinstance(model, vlm.ViTClassifier)
        if model.preprocess is None:
            raise NoAnswer("no_preprocess", name=name[:80])
        return model

    def check(self) -> None:
        """A classifier that cannot be opened is a ValueError before anybody sees the page."""
        for source in self.named["vit_classifier"]:
            self._loaded_once("vit_classifier", source)

    def card(self, name: str, kind: Kind) -> str:
        """The model card, Markdown without its header; `NoAnswer` where there is none."""
        source = self.source(name, kind)
        folder = remote.folder(source) if remote.is_remote(source) else _place(source)
        try:
            if folder is None:
                raise FileNotFoundError
            with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
                return without_header(file.read(MAX_CARD))
        except OSError as error:
            raise NoAnswer("no_card", name=name[:80]) from error

    def _loaded_once(self, kind: Kind, source: str) -> vlm.Embedder | vlm.ViTClassifier:
        """The last few stay in memory; a folder that was trained again is read again."""
        with self._lock:
            key = (kind, source, _changed(source))
            if key not in self._loaded:
                opener = vlm.load if kind == "clip" else vlm.load_classifier
                try:
                    self._loaded[key] = opener(source)
                except (ValueError, OSError) as error:
                    raise NoAnswer("cannot_open_model", line=" ".join(str(error).split())[:400]) from error
                while len(self._loaded) > KEPT:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(key)
            return self._loaded[key]


def compare(named: Sequence[tuple[str, vlm.Embedder]], source: ImageSource, labels: Sequence[str]) -> list[Timed]:
    """Every model's ranking of the same labels for the same image, and how long it looks at one."""
    try:
        image = vlm.open_image(source)
    except vlm.ImageError as error:
        raise NoAnswer(error.reason) from error
    probabilities = [vlm.classify(embedder, [image], labels)[0].tolist() for _, embedder in named]  # warms them up too
    took: list[list[float]] = [[] for _ in named]
    for _ in range(RUNS):  # in turn, so that what else the machine does slows all alike
        for (_, embedder), times in zip(named, took, strict=True):
            start = time.perf_counter()
            embedder.embed_images([image])
            times.append(1000 * (time.perf_counter() - start))
    return [
        Timed(
            name,
            sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1]),
            statistics.median(times),
            sum(weight.numel() for weight in embedder.model.parameters()),
        )
        for (name, embedder), row, times in zip(named, probabilities, took, strict=True)
    ]


def is_loopback(host: str) -> bool:
    """Whether a page served there is seen by its own machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name: who knows
        return False


def threads() -> int:
    """Processor cores that a model may use."""
    return torch.get_num_threads()


def without_header(card: str) -> str:
    """Markdown without the YAML between two lines of dashes that the hub reads."""
    return re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).strip()


def _entry(folder: Path, place: Path) -> Entry | None:
    """What `vlm.save` wrote there, if it did; nothing is checked before it is loaded."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["format"] != FORMAT or config["kind"] not in get_args(Kind):
            return None
        name = Path(place.name, folder.relative_to(place)).as_posix()
        return Entry(name=name, kind=config["kind"], source=str(folder), size=_size(folder))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _folders(folder: Path) -> list[Path]:
    try:
        inner = sorted(folder.iterdir())
        return [path for path in inner if not path.name.startswith(".") and path.is_dir() and not path.is_symlink()]
    except OSError:
        return []


def _entry_named(source: str, kind: Kind) -> Entry:
    if remote.is_remote(source):
        return Entry(name=source, kind=kind, source=source, size=0)
    return Entry(name=_place(source).name, kind=kind, source=source, size=_size(_place(source)))


def _size(folder: Path) -> int:
    weights = folder / "model.safetensors"
    return weights.stat().st_size if weights.is_file() else 0


def _place(source: str) -> Path:
    """Where a local model lies."""
    return BUNDLED.get(source, Path(source).expanduser()).resolve()


def _changed(source: str) -> float:
    """When the model's manifest was written; 0 for models of others."""
    manifest = _place(source) / "manifest.json"
    return manifest.stat().st_mtime if not remote.is_remote(source) and manifest.is_file() else 0
