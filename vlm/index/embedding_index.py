"""Search for images by words, by images and by sums of both: `EmbeddingIndex`.

Search is exact unless `build_ann` was called.  Each model (by `Embedder.fingerprint`) has its own vectors in the index;
they are never mixed, and another model leaves them where they are.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from vlm.embedder import Embedder
from vlm.errors import ImageError, InputError
from vlm.images.open import ImageSource
from vlm.images.signatures import IMAGE_SUFFIXES
from vlm.index import embedding_files
from vlm.index.ann import Ann, build
from vlm.index.filters import make_filter
from vlm.index.indexing import Added, FolderIndexer, IndexingOptions
from vlm.index.paths import absolute_path, checked_name
from vlm.index.query import Query
from vlm.index.records import Record, StoredModel
from vlm.index.roots import Root, Roots
from vlm.index.search import EVERYTHING, Hit, IndexSearch
from vlm.index.vector_store import VectorStore
from vlm.user_folders import expanded


class EmbeddingIndex:
    """A folder of image embeddings, kept up to date.  Every change is on disk when its method returns.

    All methods may be called from any thread.
    """

    def __init__(self, store: VectorStore, embedder: Embedder, source: str | None = None) -> None:
        self.embedder = embedder
        self._store = store
        self._fingerprint = embedder.fingerprint
        self._source = source
        self._search = IndexSearch(store, embedder, self._fingerprint)
        self._indexer = FolderIndexer(store, embedder, self._fingerprint, source)
        self._roots = Roots(store)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], embedder: Embedder, *, source: str | None = None) -> Self:
        """Open an index.  One that does not exist is created by the first image that is added.

        Args:
            folder: of the index.
            embedder: embeds images and queries; each model has its own vectors.
            source: what `vlm.load` opens the embedder by; `vlm search` then needs no --model.

        Raises:
            IndexFileError: if the folder holds something else, or the index is damaged.
        """
        store = VectorStore(absolute_path(folder))
        try:
            opened = cls(store, embedder, source)
            opened.check_files()  # a vector file that is missing is said now, not by the first search
        except BaseException:
            store.close()
            raise
        return opened

    def close(self) -> None:
        """Close the files; everything that was added is on disk already."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Copy the whole index, all models, to a new folder.  (The index itself needs no saving.)"""
        self._store.save(absolute_path(folder))

    def check_files(self) -> None:
        """Raise `IndexFileError` if the database cannot be read or the vector file is too short.  Reads no vectors."""
        self._store.vectors(self._model)

    def __len__(self) -> int:
        """Files that a search with this model can find."""
        return self._store.count(self._model)

    @property
    def _model(self) -> int:
        return self._store.find_model(self._fingerprint)

    # ---- what is in it ---------------------------------------------------------------------------------------------

    def add_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        batch_size: int = 32,
        workers: int | None = None,
        progress: bool = False,
        exclude: Sequence[str] = (),
        allow_empty: bool = False,
        force: bool = False,
        retry_skipped: bool = False,
    ) -> Added:
        """Add all images below a folder that are new or changed; what has vanished is no longer found.

        Each batch is committed: an interruption loses one at most, and the next call goes on from there.

        Args:
            folder: subfolders too.
            batch_size: images embedded and committed together.
            workers: processes that decode, default one for each processor.
            progress: show a bar on stderr.
            exclude: patterns, as in .gitignore, of files and folders to pass over.
            allow_empty: accept that a folder which had images has none now.
            force: read and embed every file again.
            retry_skipped: read the files again that were refused.

        Returns:
            Counts, and lists of files that vanished or were skipped.

        Raises:
            InputError: if there is no such folder, or it had images and has none.
            IndexFileError: if the index cannot be written.
        """
        root = expanded(checked_name(folder))
        if not root.is_dir():
            known = next((r for r in self._roots.all() if r.path == absolute_path(folder) and r.images), None)
            if known is None:
                raise InputError(f"There is no folder {str(folder)!r}. Name a folder with images.")
            raise InputError(
                f"The folder {str(folder)!r} is gone; {known.images:,} images of it are in the index. Mount its disk, "
                "or: vlm index --move OLD NEW, vlm index --forget FOLDER"
            )
        options = IndexingOptions(
            batch_size=batch_size, workers=workers, progress=progress, force=force, retry_skipped=retry_skipped
        )
        return self._indexer.add_folder(str(root.resolve()), options, exclude=exclude, allow_empty=allow_empty)

    def add(
        self, images: Iterable[str | os.PathLike[str]], *, batch_size: int = 32, workers: int | None = None
    ) -> Added:
        """Add these files.

        Args:
            images: paths.
            batch_size: images embedded and committed together.
            workers: processes that decode, default one for each processor.
        """
        paths = [str(absolute_path(image)) for image in images]
        return self._indexer.add(paths, IndexingOptions(batch_size=batch_size, workers=workers))

    def delete(self, images: Iterable[str | os.PathLike[str]]) -> int:
        """Forget these files -> how many were known.  `prune` then takes their vectors off the disk."""
        return self._store.delete(str(absolute_path(image)) for image in images)

    def prune(self, folder: str | os.PathLike[str] | None = None) -> int:
        """Forget files that have vanished (below `folder`) -> how many, and take what is not needed off the disk."""
        return self._store.prune(None if folder is None else str(absolute_path(folder).resolve()))

    def roots(self) -> list[Root]:
        """The folders that were indexed, and whether they are there."""
        return self._roots.all()

    def move_root(self, old: str | os.PathLike[str], new: str | os.PathLike[str]) -> int:
        """Files below `old` are now below `new` -> how many.  Nothing is embedded.

        Args:
            old: the former folder.
            new: where its images are now.

        Raises:
            InputError: if the index knows no file below `old`, or `new` is not a folder.
        """
        return self._roots.move(str(absolute_path(old)), str(absolute_path(new)))

    def forget_root(self, folder: str | os.PathLike[str]) -> int:
        """Delete all files below a folder from the index -> how many.  The images are untouched."""
        return self._roots.forget(str(absolute_path(folder)))

    def add_embeddings(self, folder: str | os.PathLike[str]) -> int:
        """Add vectors that were made elsewhere, in a layout of `embedding_files` -> how many files were named.

        Raises:
            InputError: for files that cannot be read, and vectors of another model.
        """
        folder, count = absolute_path(folder), 0
        named = embedding_files.names_its_model(folder)
        for records, vectors in embedding_files.read(folder, self._fingerprint, self.embedder.embed_dim):
            if not named and not count:
                self._check_same_model(records, vectors)
            digests = [record.digest for record in records if record.digest]
            with self._store.writing():
                about = self.embedder.name, self.embedder.embed_dim, self._source
                model = self._store.model(self._fingerprint, *about)
                self._store.add(model, records, dict(zip(digests, vectors, strict=True)))
            count += len(records)
        return count

    def _check_same_model(self, records: Sequence[Record], vectors: np.ndarray) -> None:
        """Files that do not say which model made them: the first image that exists here is embedded and compared."""
        for record, vector in zip(records, vectors, strict=True):
            if os.path.isfile(record.path):
                cosine = float(self.embedder.embed_images([Path(record.path)])[0] @ torch.from_numpy(vector))
                if cosine < 0.9:
                    raise InputError(
                        f"The vector of '{record.path}' has cosine similarity {cosine:.2f} with the one that "
                        f"{self.embedder.name} makes, wanted 0.9 or more. Give --model the one that made it."
                    )
                return

    def save_embeddings(self, folder: str | os.PathLike[str]) -> tuple[int, list[str]]:
        """Write all files that can be found, with their vectors, in clip-retrieval's layout.

        Args:
            folder: new or empty.

        Returns:
            How many were written, and the names that parquet files cannot hold (no UTF-8), which were left out.
        """
        with self._store.reading():
            vectors = self._store.vectors(self._model)
            rows = ((record, vectors[row]) for row, record in self._store.shown(self._model))
            return embedding_files.write(absolute_path(folder), rows, self._fingerprint, self.embedder.embed_dim)

    def build_ann(self, say: Callable[[str], None] = print) -> Ann:
        """Build an approximate index of all vectors there are now; it is kept until `prune` moves them.

        Its recall is measured with vectors of the index and with names of files as texts: `Ann.recall`.

        Args:
            say: receives lines of progress.
        """
        file, vectors = self._store.ann_file(self._model), self._store.vectors(self._model)
        texts = None
        if self.embedder.parts()[0] is not None and len(vectors):
            some = np.linspace(0, len(vectors) - 1, 500).astype(int).tolist()
            names = {Path(found.path).stem for found in self._store.files_at(self._model, some, EVERYTHING)}
            texts = self.embedder.embed_texts(sorted(names))
        built = build(vectors, texts, say)
        self._store.put_ann(self._model, file, built.save)
        return built

    def broken(self, folder: str | os.PathLike[str] | None = None) -> list[ImageError]:
        """Files (below `folder`) that are no images that can be read.  They are tried again when they change."""
        return self._indexer.refused(None if folder is None else str(absolute_path(folder).resolve()))

    # ---- search ----------------------------------------------------------------------------------------------------

    def search(
        self,
        query: Query | None = None,
        k: int = 10,
        *,
        text: str | None = None,
        image: ImageSource | None = None,
        glob: str | None = None,
        literal: bool = False,
        since: str | None = None,
        until: str | None = None,
        min_side: int | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """Find the K nearest files, best first; equal scores in path order.

        Args:
            query: a text ("赤い + 0.5*車 - 人" is a sum), an image (a `Path` or a PIL image; a string is a text), or
                terms: (weight, text or image).
            k: how many.
            text: in place of `query`, a text.
            image: in place of `query`, an image; a string is a path.
            glob: pattern of the paths; `*` crosses folders.
            literal: every path that contains `glob` as it is.
            since: first date, such as 2024 or 2024-05-01.
            until: last date.
            min_side: least pixels of the shorter side.
            exact: ignore an approximate index.

        Raises:
            InputError: for a query or condition that cannot be meant.
            ImageError: for an image that cannot be read.
            IndexFileError: for a damaged index.
        """
        allowed = make_filter(glob=glob, literal=literal, since=since, until=until, min_side=min_side)
        return self._search.search(_one_query(query, text, image), k, allowed, exact)

    def embed_query(self, query: Query) -> Tensor:
        """-> (E,), unit length."""
        return self._search.embed_query(query)

    def duplicates(
        self,
        threshold: float = 0.97,
        *,
        glob: str | None = None,
        literal: bool = False,
        since: str | None = None,
        until: str | None = None,
        min_side: int | None = None,
    ) -> list[list[Path]]:
        """Groups of files that show the same: equal bytes, or a chain of cosine similarities >= `threshold`.

        Args:
            threshold: above 0, at most 1.
            glob: pattern of the paths, as in `search`.
            literal: every path that contains `glob` as it is.
            since: first date.
            until: last date.
            min_side: least pixels of the shorter side.

        Raises:
            InputError: for a threshold that is no cosine similarity.
        """
        allowed = make_filter(glob=glob, literal=literal, since=since, until=until, min_side=min_side)
        return self._search.duplicates(threshold, allowed)


def stored_models(folder: str | os.PathLike[str]) -> list[StoredModel]:
    """The models that have vectors in an index, the one used last first; none where there is no index.

    Raises:
        IndexFileError: if the folder holds something else, or the index is damaged.
    """
    store = VectorStore(absolute_path(folder))
    try:
        return store.models()
    finally:
        store.close()


def _one_query(query: Query | None, text: str | None, image: ImageSource | None) -> Query:
    given = [value for value in (query, text) if value is not None] + ([] if image is None else [image])
    if len(given) != 1:
        raise InputError(
            f"search takes exactly one of a query, text= and image=, got {len(given)}. A sum is a list of terms: "
            "[(1, 'a text'), (0.5, Path('an image'))]."
        )
    if image is not None:
        return Path(image) if isinstance(image, str) else image
    if isinstance(query, str) and Path(query[:1000]).suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(query):
        warnings.warn(f"{query!r} is searched as words; write image={query!r} to search by that image.", stacklevel=3)
    return given[0]
