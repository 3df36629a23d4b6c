"""Resolves a source to files on this machine: plans the files, downloads them, finds weights and configs.

A source is "openclip:NAME/TAG", "openclip:NAME/FILE", "hf:ORG/NAME", "hf:ORG/NAME/FILE" or "hf:ORG/NAME//SUBFOLDER"
(each with or without "@REVISION"), a folder or a file.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from vlm.errors import CheckpointError, InputError
from vlm.interop.formats.foreign import read_json
from vlm.interop.hub.address import HubAddress, parse_address
from vlm.interop.hub.openclip_registry import RegisteredModel, fetch_url, registered, weights_in
from vlm.interop.hub.repository import Progress, Repository, download, list_repository
from vlm.interop.selection import (
    CONFIGS,
    EXTERNAL_CLIPS,
    NATIVE_CLIPS,
    TOKENIZER_FILES,
    Family,
    Purpose,
    Selection,
    choose,
    code_repositories,
)
from vlm.user_folders import expanded

LOCAL_CONFIGS = {"open_clip_config.json": "openclip", "config.json": "transformers"}


@dataclass(frozen=True)
class Files:
    """The files of a model, on this machine."""

    family: Family
    folder: Path | None  # where its config and processor are; None for weights of OpenCLIP's registry
    weights: Path | None  # None for a folder of ours
    info: dict[str, Any] | None  # the config beside the weights; of OpenCLIP {"model_cfg", "preprocess_cfg"}
    tokenizer: Path | None  # the folder of the tokenizer's files
    text_model: Path | None = None  # OpenCLIP: the folder with the config of a text encoder of transformers


@dataclass(frozen=True)
class Plan:
    """Files that a source needs, known before anything large is downloaded."""

    source: str
    parts: tuple[tuple[Repository, tuple[str, ...]], ...] = ()  # files of repositories
    selection: Selection | None = None
    known: RegisteredModel | None = None  # of OpenCLIP's registry
    local: Path | None = None  # a folder or file at hand
    tokenizer: Repository | None = None
    text_model: Repository | None = None
    info: dict[str, Any] | None = field(default=None, hash=False)

    @property
    def size(self) -> int | None:
        """Bytes that `fetch` downloads; None where nobody says."""
        if self.known is not None and self.known.url is not None:
            return None
        return sum(repository.size(repository.missing(files)) for repository, files in self.parts)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders of the files in the hub's cache."""
        return tuple(repository.folder for repository, _ in self.parts)

    def fetch(self, progress: Progress | None = None) -> Files:
        """Download what is not here yet, and say where everything is.

        Args:
            progress: called with the bytes that are here and the bytes wanted; None shows a bar on a terminal.

        Raises:
            HubError: a file cannot be had.
        """
        total, done = self.size or 0, 0
        for repository, files in self.parts:
            wanted = repository.size(repository.missing(files))
            download(repository, files, _shifted(progress, done, total))
            done += wanted
        return self._local_files() if self.local is not None else self._remote_files()

    def _remote_files(self) -> Files:
        tokenizer = self.tokenizer.folder if self.tokenizer else None
        text_model = self.text_model.folder if self.text_model else None
        if self.known is not None:
            weights = self.known.local or (fetch_url(self.known) if self.known.url else None)
            if weights is None:
                repository, files = self.parts[0]
                weights = repository.folder / files[0]
            info = {"model_cfg": self.known.model, "preprocess_cfg": self.known.preprocess}
            if tokenizer is None and self.known.local is not None:
                tokenizer = self.known.local.parent
            return Files("openclip", None, weights, info, tokenizer, text_model)
        assert self.selection is not None
        return _selected(self.parts[0][0].folder, self.selection, self.info, tokenizer, text_model)

    def _local_files(self) -> Files:
        assert self.local is not None
        if self.selection is not None:
            tokenizer = self.tokenizer.folder if self.tokenizer else None
            text_model = self.text_model.folder if self.text_model else None
            return _selected(self.local, self.selection, self.info, tokenizer, text_model)
        return Files("bare", self.local.parent, self.local, None, self.local.parent)


def plan(source: str, purpose: Purpose) -> Plan:
    """Say what opening a source needs.  Asks the hub for lists of files, and for small configs.

    Args:
        source: as the module's docstring says.
        purpose: "clip" or "vit", what is to be opened.

    Raises:
        InputError: the source has no known form, or names nothing that exists.
        CheckpointError: nothing that can be read is there.
        HubError: the hub cannot be asked, and nothing is on this machine.
    """
    if source.startswith("openclip:"):
        return _plan_openclip(source)
    if source.startswith("hf:"):
        return _plan_hub(source, purpose)
    path = expanded(source)
    if not path.exists():
        raise InputError(
            f"There is no '{source}': wanted a short name (vlm models), openclip:NAME/TAG, hf:ORG/NAME, a folder or a "
            "file."
        )
    if path.is_file():
        return Plan(source, local=path)
    files = [str(file.relative_to(path).as_posix()) for file in _near(path)]
    selection = choose(files, lambda name: read_json(path / name), purpose, source)
    info = read_json(path / selection.config) if selection.config else None
    text_model = _text_model(info)  # of a local folder, the tokenizer is in the folder or missing
    parts = _parts(None, text_model)
    return Plan(source, parts=parts, selection=selection, local=path, text_model=text_model, info=info)


def _near(folder: Path) -> Iterable[Path]:
    """The files of a folder and of the folders in it."""
    for path in sorted(folder.iterdir()):
        if path.is_file():
            yield path
        elif path.is_dir() and not path.name.startswith("."):
            yield from (inner for inner in sorted(path.iterdir()) if inner.is_file())


def _plan_hub(source: str, purpose: Purpose) -> Plan:
    address = parse_address(source.removeprefix("hf:"))
    repository = list_repository(address)

    def read(name: str) -> dict[str, Any]:
        return read_json(download(repository, [name]) / name)

    selection = choose(repository.files, read, purpose, source, subfolder=address.subfolder, file=address.file)
    info = read(selection.config) if selection.config and selection.family != "vlm" else None
    tokenizer, text_model = _texts_of(selection, info)
    return Plan(
        source,
        parts=((repository, selection.files), *_parts(tokenizer, text_model), *_code(selection, info)),
        selection=selection,
        tokenizer=tokenizer,
        text_model=text_model,
        info=info,
    )


def _plan_openclip(source: str) -> Plan:
    known = registered(source.removeprefix("openclip:"))
    beside = known.local is not None and any((known.local.parent / name).is_file() for name in TOKENIZER_FILES)
    tokenizer = list_repository(HubAddress(known.tokenizer)) if known.tokenizer and not beside else None
    text_model = _text_model({"model_cfg": known.model})
    parts = _parts(tokenizer, text_model)
    if known.address is not None:
        repository = list_repository(known.address)
        parts = ((repository, (weights_in(repository.files, known),)), *parts)
    return Plan(source, parts=parts, known=known, tokenizer=tokenizer, text_model=text_model)


def _texts_of(selection: Selection, info: dict[str, Any] | None) -> tuple[Repository | None, Repository | None]:
    """OpenCLIP's configs may name a tokenizer and a text encoder that are in other repositories."""
    named = _named(info, "hf_tokenizer_name") if selection.family == "openclip" else None
    here = any(Path(file).name in TOKENIZER_FILES - set(CONFIGS) for file in selection.files)
    tokenizer = list_repository(HubAddress(named)) if named and not here else None
    return tokenizer, _text_model(info)


def _text_model(info: dict[str, Any] | None) -> Repository | None:
    named = _named(info, "hf_model_name")
    return list_repository(HubAddress(named)) if named else None


def _code(selection: Selection, info: dict[str, Any] | None) -> tuple[tuple[Repository, tuple[str, ...]], ...]:
    """Selects the Python files of other repositories that a config names; transformers finds them in the cache."""
    if info is None or selection.family != "transformers" or info.get("model_type") in (*NATIVE_CLIPS, *EXTERNAL_CLIPS):
        return ()
    found = [list_repository(HubAddress(name)) for name in code_repositories(info)]
    return tuple((one, tuple(sorted(name for name in one.files if name.endswith(".py")))) for one in found)


def _named(info: dict[str, Any] | None, setting: str) -> str | None:
    """A repository that OpenCLIP's `text_cfg` names; None where it names none, or a local folder."""
    value: Any = info
    for part in ("model_cfg", "text_cfg", setting):
        value = cast(Any, value).get(part) if isinstance(value, dict) else None
    return value if isinstance(value, str) and value and not Path(value).exists() else None


def _parts(
    tokenizer: Repository | None, text_model: Repository | None
) -> tuple[tuple[Repository, tuple[str, ...]], ...]:
    """Selects files: of a tokenizer's repository the tokenizer files, of a text encoder's the config."""
    parts: list[tuple[Repository, tuple[str, ...]]] = []
    if tokenizer is not None:
        parts.append((tokenizer, tuple(sorted(name for name in tokenizer.files if name in TOKENIZER_FILES))))
    if text_model is not None and text_model != tokenizer:
        parts.append((text_model, ("config.json",)))
    return tuple(parts)


def _selected(
    root: Path, selection: Selection, info: dict[str, Any] | None, tokenizer: Path | None, text_model: Path | None
) -> Files:
    folder = root / selection.subfolder
    weights = None if selection.weights is None else root / selection.weights
    if selection.family not in ("vlm", "bare") and info is None and selection.config is not None:
        raise CheckpointError(f"{root / selection.config} is missing. Get the whole folder.")
    return Files(selection.family, folder, weights, info, tokenizer or folder, text_model)


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Counts on where the parts before have ended."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)
