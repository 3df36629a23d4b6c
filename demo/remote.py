"""Models that are not here yet: how large they are, and their download.  Each only after a visitor's consent."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vlm.demo.texts import NoAnswer

REMOTE = ("hf:", "openclip:")


class Progress(NamedTuple):
    done: int
    """Bytes that are here."""
    total: int | None
    """Bytes of the whole model, None where the registry does not say."""


def is_remote(source: str) -> bool:
    return source.startswith(REMOTE)


def size(source: str) -> int | None:
    """Bytes that loading it would bring, None where nobody says.  Asks the hub; nothing is downloaded."""
    from vlm.interop.hub import downloads as hub

    with _one_line():
        return hub.about(_checked(source)).size


def download(source: str, *, pause: float = 0.5) -> Iterator[Progress]:
    """Fetch it into the cache that huggingface_hub and OpenCLIP share; the progress every `pause` seconds."""
    from vlm.interop.hub import downloads as hub

    source = _checked(source)
    with _one_line(), ThreadPoolExecutor(1) as threads:
        try:
            about = hub.about(source)
        except ValueError:  # offline: it may lie in the cache
            about = hub.About(None, None)
        fetching = threads.submit(hub.bring, source)
        while not wait([fetching], pause).done:
            yield Progress(_bytes_below(about.folder), about.size)
        fetching.result()


def folder(source: str) -> Path | None:
    """Where a downloaded hf: model lies, None for any other."""
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
def _one_line() -> Iterator[None]:
    try:
        yield
    except NoAnswer:
        raise
    except (ValueError, OSError) as error:
        raise NoAnswer("cannot_fetch", line=" ".join(str(error).split())[:400]) from error


def _checked(source: str) -> str:
    if not isinstance(source, str) or not is_remote(source.strip()):
        raise NoAnswer("not_remote", name=str(source)[:80])
    return source.strip()


def _bytes_below(folder: Path | None) -> int:
    """What lies in the cache of one model, unfinished files included."""
    if folder is None or not folder.is_dir():
        return 0
    total = 0
    for path in folder.rglob("*"):
        try:
            total += 0 if path.is_symlink() or not path.is_file() else path.stat().st_size
        except OSError:  # renamed between the two looks
            continue
    return total
