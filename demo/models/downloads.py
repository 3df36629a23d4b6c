"""Models on a hub: their size and their download, each after a visitor's consent only."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vlm.demo.page.texts import PageError
from vlm.errors import MissingPackageError

REMOTE = ("hf:", "openclip:")
WEIGHTS = (".safetensors", ".bin", ".pt")


class DownloadProgress(NamedTuple):
    """Progress of a download."""

    done: int
    """Bytes."""
    total: int | None
    """Bytes of the whole model; None if the hub does not say."""


def is_remote(source: str) -> bool:
    """Returns True if a source names a model on a hub."""
    return source.startswith(REMOTE)


def is_here(repository: str) -> bool:
    """Returns True if weights of a repository are in the cache.  Asks no hub."""
    from vlm.interop.hub.repository import storage_folder

    try:
        snapshots = storage_folder(repository) / "snapshots"
    except MissingPackageError:
        return False
    return any(path.suffix in WEIGHTS and path.exists() for path in snapshots.glob("*/*"))


def size(source: str) -> int | None:
    """Download size in bytes, None if unknown.  Asks the hub and downloads small configs only."""
    from vlm.interop.sources import plan

    with _page_errors():
        return plan(_checked(source), "clip").size


def download(source: str, *, pause: float = 0.5) -> Iterator[DownloadProgress]:
    """Download a model into the cache that all libraries share, and yield the progress.

    Args:
        source: a name that begins with hf: or openclip:.
        pause: seconds between two progress values.

    Raises:
        PageError: the hub refuses, or cannot be reached.
    """
    from vlm.interop.sources import plan

    source = _checked(source)
    done = [0]

    def told(here: int, _: int) -> None:
        done[0] = here

    with _page_errors(), ThreadPoolExecutor(1) as threads:
        wanted = plan(source, "clip")
        size = wanted.size
        fetching = threads.submit(wanted.fetch, told)
        while not wait([fetching], pause).done:
            yield DownloadProgress(done[0], size)
        fetching.result()


def folder(source: str) -> Path | None:
    """Cache folder of a downloaded hf: model, None for any other source."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not source.startswith("hf:"):
        return None
    name, _, revision = source.removeprefix("hf:").partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


@contextmanager
def _page_errors() -> Iterator[None]:
    try:
        yield
    except PageError:
        raise
    except (ValueError, OSError) as error:
        raise PageError("cannot_fetch", line=" ".join(str(error).split())[:400]) from error


def _checked(source: str) -> str:
    if not isinstance(source, str) or not is_remote(source.strip()):
        raise PageError("not_remote", name=str(source)[:80])
    return source.strip()
