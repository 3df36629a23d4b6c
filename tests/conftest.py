"""Tiny seeded parts that many tests share.  Nothing here needs a network or takes a second."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sentencepiece
import torch
from PIL import Image

from tests.support.tiny_run import write_data
from vlm.config import CLIPConfig, PreprocessConfig, TextConfig, VisionConfig
from vlm.embedder import Embedder
from vlm.images.preprocess import Preprocess
from vlm.index.embedding_index import EmbeddingIndex
from vlm.models.clip import CLIP
from vlm.tokenizers.protocol import Tokenizer
from vlm.tokenizers.sentencepiece import SentencePieceTokenizer

if TYPE_CHECKING:
    from starlette.testclient import TestClient

pytest_plugins = ["tests.support.demo_pages", "tests.support.fake_hub", "tests.support.wheel"]  # their fixtures
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime reports to its maker unless told before its import
os.environ["VLM_CONFIG"] = ""  # no test reads the user's config file ...
os.environ.pop("VLM_MODEL", None)  # ... or default model

SENTENCES = [
    "a dog", "a cat", "a bird in the sky", "a red apple", "the sun over the sea", "a drawing of a house",
    "犬", "猫", "空を飛ぶ鳥", "赤いりんご", "海に沈む夕日", "家のイラスト", "car", "車",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """SentencePiece, English and Japanese, T = 16, as `training.train_tokenizer` makes them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]
        sentence_iterator=iter(SENTENCES * 4),
        model_writer=model,
        model_type="unigram",
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        unk_id=1,
        eos_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue(), 16)


@pytest.fixture
def tiny_clip(tiny_tokenizer: Tokenizer) -> CLIP:
    """Random weights, always the same: 32 px, D 32, E 24."""
    vision = VisionConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=2, mlp_dim=64)
    text = TextConfig(
        width=32,
        depth=2,
        num_heads=2,
        mlp_dim=64,
        vocab_size=tiny_tokenizer.vocab_size,
        context_length=tiny_tokenizer.context_length,
        eot_id=tiny_tokenizer.eot_id,
        pad_id=tiny_tokenizer.pad_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIP(CLIPConfig(embed_dim=24, vision=vision, text=text))


@pytest.fixture
def tiny_embedder(tiny_clip: CLIP, tiny_tokenizer: Tokenizer) -> Embedder:
    """Reads any text and any image; knows nothing."""
    return Embedder(tiny_clip.eval(), tiny_tokenizer, Preprocess(PreprocessConfig(image_size=32)), name="tiny")


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Six sound images of different sizes, one in a subfolder."""
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.png", "c.jpg", "d.webp", "e.gif", "deeper/f.png"]):
        noise = torch.randint(
            0, 256, (20 + 5 * number, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number)
        )
        Image.fromarray(noise.numpy()).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """data.parquet and tokenizer/ for tiny training runs; `tiny_run.write_recipe` writes recipes for them."""
    folder = tmp_path_factory.mktemp("run")
    write_data(folder, tiny_tokenizer)
    return folder


@pytest.fixture
def index(tiny_embedder: Embedder, tmp_path: Path) -> Iterator[EmbeddingIndex]:
    with EmbeddingIndex.open(tmp_path / "photos.index", tiny_embedder) as opened:
        yield opened


@pytest.fixture
def photos(tiny_embedder: Embedder, image_folder: Path, tmp_path: Path) -> Path:
    """An index of the six images."""
    with EmbeddingIndex.open(tmp_path / "photos.index", tiny_embedder) as index:
        index.add_folder(image_folder, workers=1)
    return tmp_path / "photos.index"


@pytest.fixture
def client(tiny_embedder: Embedder, photos: Path) -> "Iterator[TestClient]":
    """`vlm serve` on that index, without a network."""
    from starlette.testclient import TestClient  # a web framework, for these tests alone

    from vlm.serving.request_limits import LOOPBACK_NAMES
    from vlm.serving.server import create_app
    from vlm.serving.service import Service

    app = create_app(Service(tiny_embedder, photos), hosts=LOOPBACK_NAMES)
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as opened:
        yield opened
