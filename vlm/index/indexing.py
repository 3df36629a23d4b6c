"""Bringing an index up to date with a folder: which files are new, have changed, moved or vanished."""

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path, PurePath
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from vlm.embedder import Embedder
from vlm.errors import ImageError, ImageReason, InputError
from vlm.index.folder_scan import NO_SUFFIX, scan_folder
from vlm.index.image_reading import FileToRead, ReadFile, read_batches, reader_version
from vlm.index.paths import is_below
from vlm.index.records import FileState
from vlm.index.roots import Roots, state_of
from vlm.index.vector_store import VectorStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """Counts of files that `add` and `add_folder` embedded, recognised, skipped and lost."""

    found: int = 0
    embedded: int = 0  # images of which an embedding was made
    recognised: int = 0  # renamed, moved, copied or touched: the bytes were known
    unchanged: int = 0  # passed over, refused ones too
    moved: int = 0  # known elsewhere, where they are gone
    vanished: list[Path] = field(default_factory=list[Path])  # not found any more; `prune` forgets them
    skipped: list[ImageError] = field(default_factory=list[ImageError])  # all that are no images, also since earlier
    others: Counter[str] = field(default_factory=Counter[str])  # files of other kinds, by suffix
    excluded: int = 0  # files and folders that patterns pass over
    notes: list[str] = field(default_factory=list[str])  # lines for the user


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexingOptions:
    """Options of reading files."""

    batch_size: int = 32
    workers: int | None = None  # processes that decode; None: one for each processor
    progress: bool = False  # a bar on stderr
    force: bool = False  # read and embed every file again
    retry_skipped: bool = False  # read refused files again


class FolderIndexer:
    """Adds files to a store, with the embeddings of one model.

    Args:
        store: where records and vectors go.
        embedder: makes the embeddings.
        source: what `vlm.load` opens the model by, to be remembered.
    """

    def __init__(self, store: VectorStore, embedder: Embedder, fingerprint: str, source: str | None) -> None:
        self._store = store
        self._embedder = embedder
        self._fingerprint = fingerprint
        self._source = source
        self._roots = Roots(store)

    def add_folder(
        self, root: str, options: IndexingOptions, *, exclude: Sequence[str] = (), allow_empty: bool = False
    ) -> Added:
        """Add what is new below a folder, and hide what has vanished from it.

        Args:
            root: the folder, absolute, without links.
            options: how files are read.
            exclude: patterns of files to pass over.
            allow_empty: hide all images of a folder that holds none now; else that is an error, because the place of a
                disk that is not mounted looks the same.

        Raises:
            InputError: if the folder cannot be listed, or had images and has none.
            IndexFileError: if the index cannot be read or written.
        """
        model = self._store.find_model(self._fingerprint)
        self._store.check(model)
        scan = scan_folder(root, exclude)
        if root in scan.unlisted:
            raise InputError(f"The folder {root!r} cannot be listed: {scan.problems[-1].detail}. Change its rights.")
        states = self._store.states_below(model, root)
        present = {path for path, state in states.items() if not state.missing}
        if present and not scan.files and not scan.unlisted and not allow_empty:
            raise InputError(
                f"The folder {root!r} had {len(present):,} images at the last run and has none now. If a disk belongs "
                "there, mount it. If they were deleted, add --allow-empty (in Python: allow_empty=True)."
            )
        gone = sorted(present.difference(scan.files))
        unmounted = [] if allow_empty else self._empty_roots_below(root)
        vanished = [path for path in gone if not any(is_below(path, at) for at in (*scan.unlisted, *unmounted))]
        self._store.mark_missing(vanished)
        added = self._add(scan.files, states, options)
        if scan.files:
            self._roots.add(root)
        added = replace(
            added,
            found=added.found + sum(problem.reason == "outside the folder" for problem in scan.problems),
            vanished=[Path(path) for path in vanished],
            moved=self._forget_moved(scan.files, states),
            excluded=scan.excluded,
            notes=[f"{path!r} is empty: what was indexed below it is kept. Mount its disk." for path in unmounted],
        )
        problems = [*added.skipped, *scan.problems]
        return _with_refused(added, self.refused(root), problems, scan.others)

    def add(self, paths: Sequence[str], options: IndexingOptions) -> Added:
        """Add these files."""
        model = self._store.find_model(self._fingerprint)
        states = {path: state for path in paths if (state := self._store.state_of(model, path)) is not None}
        added = self._add(paths, states, options)
        named = set(paths)
        refused = [error for error in self.refused() if error.name in named]
        return replace(added, skipped=[*added.skipped, *refused])

    def refused(self, folder: str | None = None) -> list[ImageError]:
        """Files (below a folder) whose bytes are no image that can be read."""
        return [
            ImageError(path, cast(ImageReason, reason), detail) for path, reason, detail in self._store.refused(folder)
        ]

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _add(self, paths: Sequence[str], states: dict[str, FileState], options: IndexingOptions) -> Added:
        model = self._store.find_model(self._fingerprint)
        known = cache(partial(self._store.digests_of_size, model))  # many files may be of one size
        files: list[FileToRead] = []
        problems: list[ImageError] = []
        for path in paths:
            try:
                info = os.stat(path)
            except (OSError, ValueError):  # `read_file` says why
                files.append(FileToRead(path=path, size=0, mtime=0, known=frozenset()))
                continue
            if options.force or not _is_current(states.get(path), info, options.retry_skipped):
                digests = frozenset[bytes]() if options.force else known(info.st_size)
                files.append(FileToRead(path=path, size=info.st_size, mtime=info.st_mtime_ns, known=digests))
        embedded = refused = 0
        with _bar(len(files), options.progress) as bar:
            workers = (os.cpu_count() or 1) if options.workers is None else options.workers
            for batch in read_batches(files, self._embedder.preprocess, options.batch_size, workers):
                problems += [read.problem for read in batch if read.problem is not None and read.record is None]
                refused += sum(read.problem is not None for read in batch)
                vectors = self._embed(batch, options.force)
                self._commit(batch, vectors, options.force)
                embedded += len(vectors)
                bar.update(len(batch))
        recognised = len(files) - embedded - refused
        unchanged = len(paths) - len(files)
        return Added(found=len(paths), embedded=embedded, recognised=recognised, unchanged=unchanged, skipped=problems)

    def _embed(self, batch: Sequence[ReadFile], force: bool) -> dict[bytes, np.ndarray]:
        """Digest -> vector (E,), of the contents that are new; copies in a batch are one content."""
        new = {read.record.digest: read.pixels for read in batch if read.record and read.pixels is not None}
        model = self._store.find_model(self._fingerprint)
        pixels = {
            digest: values
            for digest, values in new.items()
            if digest is not None and (force or not self._store.has_vector(model, digest))
        }
        if not pixels:
            return {}
        stacked = torch.from_numpy(np.stack(list(pixels.values())))  # (B, 3, H, W)
        embeds = self._embedder.embed_pixels(self._embedder.preprocess.normalize(stacked))
        return dict(zip(pixels, embeds.numpy(), strict=True))

    def _commit(self, batch: Sequence[ReadFile], vectors: dict[bytes, np.ndarray], force: bool) -> None:
        records = [read.record for read in batch if read.record is not None]
        if not records:
            return
        with self._store.writing():
            about = self._embedder.name, self._embedder.embed_dim, self._source
            self._store.add(self._store.model(self._fingerprint, *about), records, vectors, replace=force)

    def _forget_moved(self, found: Sequence[str], before: dict[str, FileState]) -> int:
        """Delete paths elsewhere that are gone and hold the same bytes as files that are new here -> how many.

        So a disk that is mounted at another place is not in the index twice.
        """
        new = [path for path in found if path not in before or before[path].missing]
        if not new:
            return 0
        here = set(found)
        same = self._store.paths_of(self._store.digests_at(new))
        gone = [path for path in same if path not in here and not _exists(path)]
        moved = self._store.delete(gone)
        self._roots.drop_empty()
        return moved

    def _empty_roots_below(self, root: str) -> list[str]:
        """Indexed folders inside `root` that had images and hold nothing now: disks that are not mounted."""
        inner = [r for r in self._roots.all() if str(r.path) != root and is_below(str(r.path), root)]
        return [str(r.path) for r in inner if r.images and state_of(str(r.path)) == "empty"]


def _is_current(state: FileState | None, info: os.stat_result, retry_skipped: bool) -> bool:
    """Returns True if a file is unchanged and has its vector, or was refused by this version of the reader."""
    if state is None or state.missing or (state.size, state.mtime) != (info.st_size, info.st_mtime_ns):
        return False
    return state.embedded or (state.refused and state.reader == reader_version() and not retry_skipped)


def _exists(path: str) -> bool:
    """True also where we may not look."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _with_refused(
    added: Added, refused: Sequence[ImageError], problems: Sequence[ImageError], others: Counter[str]
) -> Added:
    """List refused files; those without a suffix that are no images are only counted, as files of other kinds."""
    counted = [error for error in refused if error.reason == "not an image" and not PurePath(error.name).suffix]
    total = others + Counter({NO_SUFFIX: len(counted)} if counted else {})
    told = {error.name for error in problems}
    listed = [error for error in refused if error not in counted and error.name not in told]
    return replace(
        added,
        found=added.found - len(counted),
        skipped=sorted([*problems, *listed], key=lambda error: error.name),
        others=total,
    )


def _bar(total: int, shown: bool) -> "AbstractContextManager[tqdm[Any]]":
    return tqdm(total=total, desc="indexing", unit="image", disable=not (shown and total), smoothing=0.1)
