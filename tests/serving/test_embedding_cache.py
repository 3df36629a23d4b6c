import inspect
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlm.embedder import Embedder
from vlm.serving.embedding_cache import CachedEmbedder, digest_of


def png(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = torch.randint(0, 256, (24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts and images the model itself was given, call by call."""
    sizes: list[int] = []
    texts, pixels = Embedder.embed_texts, Embedder.embed_pixels

    def embed_texts(self: Embedder, given: list[str], batch_size: int = 256) -> torch.Tensor:
        sizes.append(len(given))
        return texts(self, given, batch_size)

    def embed_pixels(self: Embedder, given: torch.Tensor) -> torch.Tensor:
        sizes.append(len(given))
        return pixels(self, given)

    monkeypatch.setattr(Embedder, "embed_texts", embed_texts)
    monkeypatch.setattr(Embedder, "embed_pixels", embed_pixels)
    return sizes


def test_texts_are_embedded_once_and_are_those_of_the_embedder(tiny_embedder: Embedder, computed: list[int]):
    expected = tiny_embedder.embed_texts(["犬", "a cat", "犬"])
    computed.clear()
    cached = CachedEmbedder(tiny_embedder)
    for _ in range(3):
        torch.testing.assert_close(cached.embed_texts(["犬", "a cat", "犬"]), expected, rtol=0, atol=1e-6)
    assert computed == [2]


def test_files_are_known_by_their_bytes(tiny_embedder: Embedder, computed: list[int]):
    files = [png(0), png(1), png(0)]
    expected = tiny_embedder.embed_images(files)
    computed.clear()
    cached = CachedEmbedder(tiny_embedder)
    pixels = [tiny_embedder.preprocess(file) for file in files[:2]]
    torch.testing.assert_close(cached.embed_decoded([*map(digest_of, files[:2])], pixels), expected[:2])
    torch.testing.assert_close(cached.embed_images(files), expected, rtol=0, atol=1e-6)
    assert computed == [2]


def test_other_images_pass_through(tiny_embedder: Embedder, image_folder: Path):
    images = [image_folder / "a.png", Image.open(image_folder / "b.png")]
    found = CachedEmbedder(tiny_embedder).embed_images(images)
    torch.testing.assert_close(found, tiny_embedder.embed_images(images))


def test_of_a_mixed_list_and_of_a_stream_of_files_nothing_is_remembered(
    tiny_embedder: Embedder, image_folder: Path, computed: list[int]
):
    cached = CachedEmbedder(tiny_embedder)
    for images in ([png(0), image_folder / "a.png", png(1)], (png(0), png(0))):
        expected = tiny_embedder.embed_images(images)
        computed.clear()
        for _ in range(2):
            torch.testing.assert_close(cached.embed_images(images), expected)
        assert computed == [len(images)] * 2
    assert cached.embed_images(png(n) for n in (0, 1)).shape == (2, tiny_embedder.embed_dim)


def test_what_is_new_is_embedded_in_batches_of_the_size_asked_for(tiny_embedder: Embedder, computed: list[int]):
    cached = CachedEmbedder(tiny_embedder)
    cached.embed_images([png(0), png(1), png(0), png(2), png(3), png(4)], batch_size=2)
    assert computed == [2, 2, 1]
    found = cached.embed_images([png(5), png(1), png(4)])
    assert computed == [2, 2, 1, 1]
    torch.testing.assert_close(found, tiny_embedder.embed_images([png(5), png(1), png(4)]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["embed_texts", "embed_images"])
def test_it_is_called_as_any_embedder_is(name: str):
    assert inspect.signature(getattr(CachedEmbedder, name)) == inspect.signature(getattr(Embedder, name))


def test_one_text_is_a_list_of_one(tiny_embedder: Embedder):
    assert torch.equal(CachedEmbedder(tiny_embedder).embed_texts("a dog"), tiny_embedder.embed_texts(["a dog"]))


def test_what_was_used_last_is_kept(tiny_embedder: Embedder, computed: list[int]):
    cached = CachedEmbedder(tiny_embedder, size=2)
    for text in ("a", "b", "a", "c", "a", "b"):  # c drives out b, then b drives out c
        cached.embed_texts([text])
    assert computed == [1, 1, 1, 1]
    cached.embed_texts(["e", "f", "g"])  # all are answered, the last two are kept
    computed.clear()
    cached.embed_texts(["f", "g"])
    assert computed == []


def test_the_fingerprint_is_that_of_the_model(tiny_embedder: Embedder):
    assert CachedEmbedder(tiny_embedder).fingerprint == tiny_embedder.fingerprint
    assert CachedEmbedder(tiny_embedder).embed_texts([]).shape == (0, tiny_embedder.embed_dim)
