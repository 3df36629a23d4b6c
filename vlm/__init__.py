"""vlm: pictures and words in one space.

Public names are imported from their modules on first use, so that `import vlm` and `vlm --help` do not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.checkpoint import load, load_classifier, save
    from vlm.clip import CLIP
    from vlm.config import CLIPConfig, PreprocessConfig, TextConfig, VisionConfig, named_size
    from vlm.embedder import Embedder
    from vlm.exports import export
    from vlm.loss import clip_loss, siglip_loss
    from vlm.metrics import chance_recall_at_k, recall_at_k, top_k_accuracy
    from vlm.picture_finding import find_images
    from vlm.preprocess import ImageError, Preprocess, open_image
    from vlm.retrieval import EmbeddingIndex, Hit
    from vlm.text import TextTransformer
    from vlm.tokenizer import Tokenizer, load_tokenizer
    from vlm.vision import VisionTransformer, ViTClassifier
    from vlm.zero_shot import ZeroShotClassifier, class_embeddings, classify

_HOME = {  # public name -> its module; the imports above say the same to type checkers
    "CLIP": "clip",
    "CLIPConfig": "config",
    "Embedder": "embedder",
    "EmbeddingIndex": "retrieval",
    "Hit": "retrieval",
    "ImageError": "preprocess",
    "Preprocess": "preprocess",
    "PreprocessConfig": "config",
    "TextConfig": "config",
    "TextTransformer": "text",
    "Tokenizer": "tokenizer",
    "ViTClassifier": "vision",
    "VisionConfig": "config",
    "VisionTransformer": "vision",
    "ZeroShotClassifier": "zero_shot",
    "chance_recall_at_k": "metrics",
    "class_embeddings": "zero_shot",
    "classify": "zero_shot",
    "clip_loss": "loss",
    "export": "exports",
    "find_images": "picture_finding",
    "load": "checkpoint",
    "load_classifier": "checkpoint",
    "load_tokenizer": "tokenizer",
    "named_size": "config",
    "open_image": "preprocess",
    "recall_at_k": "metrics",
    "save": "checkpoint",
    "siglip_loss": "loss",
    "top_k_accuracy": "metrics",
}

__all__ = [
    "CLIP",
    "CLIPConfig",
    "Embedder",
    "EmbeddingIndex",
    "Hit",
    "ImageError",
    "Preprocess",
    "PreprocessConfig",
    "TextConfig",
    "TextTransformer",
    "Tokenizer",
    "ViTClassifier",
    "VisionConfig",
    "VisionTransformer",
    "ZeroShotClassifier",
    "chance_recall_at_k",
    "class_embeddings",
    "classify",
    "clip_loss",
    "export",
    "find_images",
    "load",
    "load_classifier",
    "load_tokenizer",
    "named_size",
    "open_image",
    "recall_at_k",
    "save",
    "siglip_loss",
    "top_k_accuracy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vlm' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"vlm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
