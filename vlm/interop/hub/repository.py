"""One repository of the hub: which files it has, which of them are on this machine, and their download.

The files are listed once, by the hub; the list is kept in vlm's cache, so that the choice of files (`vlm/interop/
selection.py`) is the same online and offline, whatever other libraries have put into the shared cache of the hub.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vlm.errors import HubError, MissingPackageError
from vlm.interop.hub.address import HubAddress
from vlm.interop.hub.resume import LARGE, resume
from vlm.interop.hub.troubles import explain
from vlm.user_folders import cache_folder

_log = logging.getLogger(__name__)
PATIENCE = 8.0  # seconds that the hub may take to list a repository that is on this machine
FIRST_PATIENCE = 20.0  # seconds where nothing of it is here
PAUSE = 60.0  # seconds in which a hub that let us wait is not asked again about what is on this machine
Progress = Callable[[int, int], None]  # bytes here, bytes wanted


@dataclass(frozen=True)
class Repository:
    """A revision of a repository, listed."""

    name: str
    revision: str
    commit: str
    files: dict[str, int | None]  # every file -> bytes, None where the hub does not say
    trouble: HubError | None = None  # why the hub could not be asked; the list is then that of an earlier time

    @property
    def folder(self) -> Path:
        """Folder of its files in the cache that all libraries share."""
        return storage_folder(self.name) / "snapshots" / self.commit

    def missing(self, files: Iterable[str]) -> list[str]:
        """Those of `files` that are not on this machine."""
        return [file for file in files if not (self.folder / file).is_file()]

    def size(self, files: Iterable[str]) -> int:
        """Bytes of `files`; files of unknown size count as 0."""
        return sum(self.files.get(file) or 0 for file in files)


def storage_folder(name: str) -> Path:
    """The folder of a repository in the hub's cache."""
    hub = _huggingface_hub()
    return Path(hub.constants.HF_HUB_CACHE) / hub.file_download.repo_folder_name(repo_id=name, repo_type="model")


def list_repository(address: HubAddress) -> Repository:
    """Ask the hub for the files of a repository; a list from an earlier time where the hub cannot be asked.

    Raises:
        HubError: the hub refuses or cannot be reached, and nothing of the repository is on this machine.
    """
    name, revision = address.name, address.revision or "main"
    known = _known(name, revision)
    hub = _huggingface_hub()
    patience = PATIENCE if known else FIRST_PATIENCE
    endpoint, start = str(hub.constants.ENDPOINT), time.monotonic()
    if known and start - _let_wait.get(endpoint, -PAUSE) < PAUSE:
        said = HubError(f"{endpoint} has just let us wait, and is asked again after {PAUSE:.0f} seconds.")
        return Repository(name, revision, *known, said)
    try:
        info: Any = _within(
            patience,
            lambda: hub.HfApi().model_info(name, revision=revision, files_metadata=True, timeout=patience),
        )
        listed: list[Any] = info.siblings or []
        files: dict[str, int | None] = {file.rfilename: file.size for file in listed}
        if not info.sha:
            raise HubError(f"{hub.constants.ENDPOINT} does not say which commit of {name} it has: it is no whole hub.")
    except Exception as error:  # the hub's HTTP library has errors of its own
        trouble = error if isinstance(error, HubError) else explain(error, name, revision)
        if known is None:
            raise trouble from error
        if time.monotonic() - start > 1:  # a model may need several repositories: only one of them waits
            _let_wait[endpoint] = time.monotonic()
        _log.info("%s; what is on this machine is used", trouble)
        return Repository(name, revision, *known, trouble)
    _remember(name, revision, info.sha, files)
    return Repository(name, revision, info.sha, files)


@contextmanager
def _quiet(hub: Any) -> Generator[None]:
    """Silences huggingface_hub's log: the raised error contains the message."""
    before = hub.utils.logging.get_verbosity()
    hub.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        hub.utils.logging.set_verbosity(before)


def download(repository: Repository, files: Iterable[str], progress: Progress | None = None) -> Path:
    """Bring files of a repository into the hub's cache, those that are not there yet.

    Args:
        repository: as `list_repository` gives it.
        files: names in the repository.
        progress: called with the bytes that are here and the bytes wanted; None shows one bar on a terminal.

    Returns:
        The folder in the cache.

    Raises:
        HubError: a file cannot be had; what has been transferred so far is kept for the next time.
    """
    missing = repository.missing(files)
    if not missing:
        return repository.folder
    if repository.trouble is not None:
        raise HubError(f"{repository.trouble} {', '.join(missing)} of {repository.name} is not on this machine.")
    hub = _huggingface_hub()
    total = repository.size(missing)
    bar = _Bar(total, f"{repository.name}", progress)
    try:
        for file in missing:
            with _quiet(hub):
                if (repository.files.get(file) or 0) >= LARGE:
                    blobs = storage_folder(repository.name) / "blobs"
                    resume(hub, repository.name, repository.commit, file, blobs, bar.for_one_file())
                path = Path(
                    hub.hf_hub_download(
                        repository.name, file, revision=repository.commit, tqdm_class=bar.for_one_file(),
                        etag_timeout=10,
                    )
                )  # fmt: skip
            wanted = repository.files.get(file)
            if wanted is not None and path.stat().st_size != wanted:
                path.unlink()
                raise HubError(
                    f"The transfer of {file} of {repository.name} is incomplete: {wanted:,} bytes were announced, "
                    "others came. Run the command again."
                )
        _write_ref(repository)
    except HubError:
        raise
    except Exception as error:
        raise explain(error, repository.name, repository.revision) from error
    finally:
        bar.close()
    return repository.folder


_let_wait: dict[str, float] = {}  # endpoint -> when it was last asked in vain


# ---- what is known without the hub -----------------------------------------------------------------------------------


def _known(name: str, revision: str) -> tuple[str, dict[str, int | None]] | None:
    """(commit, files) as last listed; where we never listed it, what other libraries have put into the cache."""
    try:
        content: Any = json.loads(_record(name, revision).read_text(encoding="utf-8"))
        commit, files = str(content["commit"]), dict(content["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return _found(name, revision)
    return (commit, files) if (storage_folder(name) / "snapshots" / commit).is_dir() else _found(name, revision)


def _found(name: str, revision: str) -> tuple[str, dict[str, int | None]] | None:
    storage = storage_folder(name)
    try:
        commit = (storage / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision
    folder = storage / "snapshots" / commit
    if not folder.is_dir():
        return None
    return commit, {path.relative_to(folder).as_posix(): None for path in sorted(folder.rglob("*")) if path.is_file()}


def _record(name: str, revision: str) -> Path:
    return cache_folder() / "hub" / f"{name.replace('/', '--')}@{revision.replace('/', '--')}.json"


def _remember(name: str, revision: str, commit: str, files: dict[str, int | None]) -> None:
    path = _record(name, revision)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{threading.get_ident()}")
        beside.write_text(json.dumps({"commit": commit, "files": files}), encoding="utf-8")
        beside.replace(path)
    except OSError as error:  # offline, the choice of files is then made among those in the cache
        _log.info("the list of files of %s cannot be kept in %s: %s", name, path.parent, error)


def _write_ref(repository: Repository) -> None:
    """Writes the ref file, so that other libraries find the files offline."""
    path = storage_folder(repository.name) / "refs" / repository.revision
    if repository.revision != repository.commit and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(repository.commit, encoding="utf-8")


# ---- waiting and showing ---------------------------------------------------------------------------------------------

_T = TypeVar("_T")


def _within(seconds: float, ask: Callable[[], _T]) -> _T:
    """The answer, or TimeoutError; the thread that still waits does not keep the process alive."""
    answers: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # handed to the caller below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds")
    return answers[0]


class _Bar:
    """One progress bar for all files of a download."""

    def __init__(self, total: int, title: str, progress: Progress | None) -> None:
        from tqdm import tqdm

        self.total, self.done, self.progress = total, 0, progress
        quiet = True if progress is not None else None  # None: shown on a terminal only
        self._bar: Any = tqdm(total=total or None, desc=title, unit="B", unit_scale=True, disable=quiet)
        self._told = 0.0

    def update(self, count: float | None = 1) -> None:
        self.done += int(count or 0)
        self._bar.update(int(count or 0))
        if self.progress is not None and time.monotonic() - self._told > 0.1:
            self._told = time.monotonic()
            self.progress(self.done, self.total)

    def close(self) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total)
        self._bar.close()

    def for_one_file(self) -> Any:
        """Returns the progress-bar class that huggingface_hub expects."""
        whole = self

        class OneFile:
            def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
                whole.update(initial)

            def __enter__(self) -> "OneFile":
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def update(self, count: float | None = 1) -> None:
                whole.update(count)

            def __getattr__(self, _: str) -> Callable[..., None]:  # set_description, refresh, close ...
                return lambda *_, **__: None

        return OneFile


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub.constants  # pyright: ignore[reportUnusedImport]
        import huggingface_hub.file_download  # pyright: ignore[reportUnusedImport]
        import huggingface_hub.utils  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise MissingPackageError(
            "hf: models need huggingface_hub. Run: pip install huggingface_hub, or install the extra interop."
        ) from error
    return huggingface_hub
