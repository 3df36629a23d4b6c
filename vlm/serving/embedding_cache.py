"""`CachedEmbedder`: keeps the embeddings of the last texts and images."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from vlm.embedder import Embedder
from vlm.images.open import ImageSource


class CachedEmbedder(Embedder):
    """An embedder with a least-recently-used cache of texts and files (by the sha256 of their bytes).

    For one thread at a time.

    Args:
        embedder: the model.
        size: embeddings that are kept.
    """

    def __init__(self, embedder: Embedder, size: int = 8192) -> None:
        super().__init__(embedder.model, *embedder.parts(), name=embedder.name, calibration=embedder.calibration)
        self._size = size
        self._known: OrderedDict[str | bytes, Tensor] = OrderedDict()  # least recently used first

    def embed_texts(self, texts: str | Iterable[str], batch_size: int = 256) -> Tensor:
        """`Embedder.embed_texts` with the cache."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        embed = super().embed_texts
        return self._recall(texts, lambda places: embed([texts[place] for place in places], batch_size))

    def embed_images(self, images: ImageSource | Iterable[ImageSource], batch_size: int = 32) -> Tensor:
        """`Embedder.embed_images`; files given as bytes are cached, other images are not."""
        if not isinstance(images, list):
            return super().embed_images(images, batch_size)
        files = [image for image in images if isinstance(image, bytes)]
        if len(files) < len(images):
            return super().embed_images(images, batch_size)
        embed = super().embed_images
        keys = [digest_of(file) for file in files]
        return self._recall(keys, lambda places: embed([files[place] for place in places], batch_size))

    def embed_decoded(self, digests: Sequence[bytes], pixels: Sequence[Tensor]) -> Tensor:
        """Embed files that were decoded elsewhere.

        Args:
            digests: `digest_of` each file.
            pixels: of each, (3, H, W), from `preprocess`.
        """
        return self._recall(digests, lambda places: self.embed_pixels(torch.stack([pixels[at] for at in places])))

    def _recall(self, keys: Sequence[str | bytes], embed: Callable[[list[int]], Tensor]) -> Tensor:
        """-> (B, E); `embed` computes those that are new, given their places."""
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        found = {key: self._known[key] for key in keys if key not in new}
        if new:
            found |= {key: row.clone() for key, row in zip(new, embed(list(new.values())), strict=True)}
        for key in found:
            self._known[key] = found[key]
            self._known.move_to_end(key)
        while len(self._known) > self._size:
            self._known.popitem(last=False)
        return torch.stack([found[key] for key in keys]) if keys else torch.empty(0, self.embed_dim)


def digest_of(file: bytes) -> bytes:
    """sha256 of a file, the key of the cache."""
    return hashlib.sha256(file).digest()
