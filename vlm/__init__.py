"""vlm: image and text embeddings in one space (CLIP, SigLIP), and ViT classifiers.

Public names are imported from their modules on first use, so that `import vlm` and `vlm --help` do not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.checkpoint.backbone import Backbone, ViTClassifier, load_backbone
    from vlm.checkpoint.load import load, load_classifier
    from vlm.checkpoint.save import save
    from vlm.config import CLIPConfig, PreprocessConfig, TextConfig, VisionConfig, named_size
    from vlm.embedder import Embedder
    from vlm.errors import ImageError
    from vlm.images.finding import find_images
    from vlm.images.open import open_image
    from vlm.images.preprocess import Preprocess
    from vlm.index.embedding_index import EmbeddingIndex
    from vlm.index.search import Hit
    from vlm.interop.exports import export
    from vlm.loss import clip_loss, siglip_loss
    from vlm.metrics import chance_recall_at_k, recall_at_k, top_k_accuracy
    from vlm.models.clip import CLIP
    from vlm.models.external import ExternalModel
    from vlm.models.text import TextTransformer
    from vlm.models.vision import VisionTransformer
    from vlm.tokenizers.load import load_tokenizer
    from vlm.tokenizers.protocol import Tokenizer
    from vlm.zero_shot import ZeroShotClassifier, class_embeddings, classify

__version__ = "0.2.0"  # pyproject.toml reads it from here

_HOME = {  # public name -> its module; the imports above say the same to type checkers
    "Backbone": "checkpoint.backbone",
    "CLIP": "models.clip",
    "CLIPConfig": "config",
    "Embedder": "embedder",
    "EmbeddingIndex": "index.embedding_index",
    "ExternalModel": "models.external",
    "Hit": "index.search",
    "ImageError": "errors",
    "Preprocess": "images.preprocess",
    "PreprocessConfig": "config",
    "TextConfig": "config",
    "TextTransformer": "models.text",
    "Tokenizer": "tokenizers.protocol",
    "ViTClassifier": "checkpoint.backbone",  # with its from_pretrained, which reads checkpoints
    "VisionConfig": "config",
    "VisionTransformer": "models.vision",
    "ZeroShotClassifier": "zero_shot",
    "chance_recall_at_k": "metrics",
    "class_embeddings": "zero_shot",
    "classify": "zero_shot",
    "clip_loss": "loss",
    "export": "interop.exports",
    "find_images": "images.finding",
    "load": "checkpoint.load",
    "load_backbone": "checkpoint.backbone",
    "load_classifier": "checkpoint.load",
    "load_tokenizer": "tokenizers.load",
    "named_size": "config",
    "open_image": "images.open",
    "recall_at_k": "metrics",
    "save": "checkpoint.save",
    "siglip_loss": "loss",
    "top_k_accuracy": "metrics",
}

__all__ = [
    "CLIP",
    "Backbone",
    "CLIPConfig",
    "Embedder",
    "EmbeddingIndex",
    "ExternalModel",
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
    "load_backbone",
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
