"""Search in a folder of images of the visitor (`--folder`)."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import vlm
from vlm.demo.models.compute_lock import compute_lock
from vlm.demo.page.texts import PageError
from vlm.demo.search.retrieval import BATCH, Filters, SearchResult
from vlm.errors import InputError
from vlm.images.finding import find_images
from vlm.index.query import Term
from vlm.user_folders import cache_folder, expanded


class IndexingProgress(NamedTuple):
    """Progress of indexing a folder."""

    done: int
    total: int
    unreadable: tuple[str, ...]
    """Paths below the folder."""
    finished: bool
    error: str


class FolderCollection:
    """A folder that is indexed while the page is open.  The index (SQLite) is used by one thread only.

    Args:
        folder: holds the images; nothing is written to it.
        embedder: called when the index is opened.
        cache: folder of the index files; default: the user's cache folder.

    Raises:
        InputError: there is no such folder.
    """

    def __init__(self, folder: str | Path, embedder: Callable[[], vlm.Embedder], cache: Path | None = None) -> None:
        self.folder = expanded(folder).absolute()
        if not self.folder.is_dir():
            raise InputError(f"There is no folder '{folder}'. Give --folder one that holds images.")
        self._index_file = (cache or cache_folder() / "demo") / f"{_key(self.folder)}.index"
        self._embedder = embedder
        self._thread = ThreadPoolExecutor(1)
        self._index: vlm.EmbeddingIndex | None = None
        self._paths: dict[str, Path] = {}  # key -> image, of all results so far
        self._batches: list[list[Path]] = []  # still to be indexed
        self.progress = IndexingProgress(0, 0, (), False, "")

    def start(self) -> None:
        """Index in the background; searches are answered between two batches."""
        self._thread.submit(self._begin)

    def restart(self) -> None:
        """Index again, with another model: each model has its own vectors in the index."""
        self._batches.clear()
        self._thread.submit(self._close).result()
        self.progress = IndexingProgress(0, 0, (), False, "")
        self.start()

    def close(self) -> None:
        """Stop indexing and close the index; what is indexed stays."""
        self._batches.clear()
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _close(self) -> None:
        if self._index is not None:
            self._index.close()
        self._index = None

    def path(self, key: str) -> Path:
        if key not in self._paths:
            raise PageError("missing")
        return self._paths[key]

    def result(self, key: str) -> SearchResult:
        """The image of an earlier result, without a score."""
        path = self.path(key)
        return SearchResult(key, path, dict.fromkeys(("en", "ja"), path.name), "", "", 0.0, None)

    def search(self, terms: list[Term], one_text: str | None, k: int, filters: Filters) -> list[SearchResult]:
        return self._thread.submit(self._search, terms, one_text, k, filters).result()

    def _opened(self) -> vlm.EmbeddingIndex:
        if self._index is None:
            self._index_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._index = vlm.EmbeddingIndex.open(self._index_file, self._embedder())
        return self._index

    def _begin(self) -> None:
        try:
            images = list(find_images(self.folder))
            self._opened()
        except (OSError, ValueError) as error:
            self._fail(error)
            return
        self.progress = IndexingProgress(0, len(images), (), False, "")
        self._batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        self._thread.submit(self._index_batch)

    def _index_batch(self) -> None:
        try:
            if self._batches:
                batch = self._batches.pop(0)
                with compute_lock:
                    added = self._opened().add(batch, workers=0)
                unreadable = tuple(self._short(Path(skipped.name)) for skipped in added.skipped)
                self.progress = self.progress._replace(
                    done=self.progress.done + len(batch), unreadable=self.progress.unreadable + unreadable
                )
                self._thread.submit(self._index_batch)
            else:
                self._opened().add_folder(self.folder, workers=0)  # removes deleted files from the index
                self.progress = self.progress._replace(finished=True)
        except (OSError, ValueError) as error:
            self._fail(error)

    def _short(self, path: Path) -> str:
        return str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)

    def _fail(self, error: Exception) -> None:
        self.progress = self.progress._replace(finished=True, error=" ".join(str(error).split()))

    def _search(self, terms: list[Term], one_text: str | None, k: int, filters: Filters) -> list[SearchResult]:
        try:
            with compute_lock:
                hits = self._opened().search(
                    terms if one_text is None else one_text,
                    k,
                    glob=f"*{filters.name}*" if filters.name else None,
                    since=filters.since or None,
                    until=filters.until or None,
                    min_side=filters.min_side,
                )
        except ValueError as error:
            raise PageError("cannot_search", line=" ".join(str(error).split())[:300]) from error
        self._paths |= {_key(hit.path): hit.path for hit in hits}
        return [
            SearchResult(
                _key(hit.path), hit.path, dict.fromkeys(("en", "ja"), hit.path.name), "", "", hit.score, hit.probability
            )
            for hit in hits
        ]


def _key(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
