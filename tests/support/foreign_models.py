"""Small models of other libraries with random weights, large enough that a wrong activation or epsilon shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

from vlm.config import CLIPConfig, TextConfig, VisionConfig


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor of the model, norms and biases too: zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 * parameter[0].numel() ** -0.5, generator=generator)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def clip_config(**changes: Any) -> CLIPConfig:
    """What OpenCLIP, Hugging Face and ONNX can all express."""
    vision = {
        "image_size": 48,
        "patch_size": 16,
        "width": 32,
        "depth": 2,
        "num_heads": 4,
        "mlp_dim": 80,
        "norm_eps": 1e-5,
    }
    text = {
        "vocab_size": 120,
        "context_length": 12,
        "width": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_dim": 64,
        "eot_id": 3,
    }
    settings = {
        "embed_dim": 24,
        "vision": VisionConfig(**(vision | {"pre_norm": True, "patch_bias": False} | changes.pop("vision", {}))),
        "text": TextConfig(**(text | {"pad_id": 1} | changes.pop("text", {}))),
    }
    return CLIPConfig(**(settings | changes))


def siglip_config() -> CLIPConfig:
    """As SigLIP 2: attention pooling, no mask, the last of padded positions."""
    tower = {"activation": "gelu_tanh", "norm_eps": 1e-6}
    return clip_config(
        embed_dim=32,
        vision=tower | {"pool": "attention", "class_token": False, "pre_norm": False, "patch_bias": True},
        text=tower | {"causal": False, "pool": "last", "pad_to_context": True, "eot_id": 1},
        vision_proj="none",
        text_proj="linear_bias",
        logit_bias=-10.0,
    )


def pixels(config: VisionConfig, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, config.in_channels, *config.image_shape, generator=torch.Generator().manual_seed(1))


def rows(config: TextConfig, batch: int = 3) -> torch.Tensor:
    """Full rows of ids (B, T): a begin, words, one end-of-text, padding."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, config.vocab_size - 1, (batch, config.context_length), generator=generator)
    for row in range(batch):
        length = min(3 + 4 * row, config.context_length)
        ids[row, length - 1], ids[row, length:] = config.eot_id, config.pad_id
    return ids


def odd_images(count: int = 20) -> list[Image.Image]:
    """Images of odd sizes, wide, tall and tiny."""
    random = np.random.default_rng(0)
    sizes = random.integers(9, 130, (count, 2))
    coarse = (Image.fromarray(random.integers(0, 256, (9, 11, 3), dtype=np.uint8)) for _ in range(count))
    return [
        image.resize((int(width), int(height)), Image.Resampling.BICUBIC)
        for image, (width, height) in zip(coarse, sizes, strict=True)
    ]


@contextmanager
def small_timm(**sizes: Any) -> Iterator[None]:
    """OpenCLIP builds its timm towers at these sizes."""
    import timm

    create = timm.create_model

    def small(name: str, **settings: Any) -> nn.Module:
        return create(name, **(settings | sizes))

    with mock.patch("open_clip.timm_model.timm.create_model", small):
        yield


def captions() -> list[str]:
    return [
        "a red apple on a table",
        "赤いりんごが一つ、机の上にあります。",
        "ｶﾞﾗｽのコップと水 ①２３",
        "Two  dogs\tand a cat's toy!!",
        "😀 happy 👩‍👩‍👧 family 🇯🇵",
        "naïve café — “quoted” … ½ km²",
        "",
        " ",
        "ÀÉÎ e\u0301 か\u3099",
        "x" * 40,
        "日本語とEnglishの混ざった文 mixed",
        "～波線〜と・中黒",
        "한국어 텍스트",
        "العربية",
        "<s> </p> & &amp; _under_score_",
    ]


def sentencepiece_model(vocab_size: int = 500, **settings: Any) -> bytes:
    """A unigram model with byte fallback, trained on the captions above."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter([caption for caption in captions() if caption.strip()] * 3),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
        num_threads=1,
        **({"normalization_rule_name": "nmt_nfkc_cf", "pad_id": 0, "unk_id": 1, "eos_id": 2, "bos_id": -1} | settings),
    )
    return model.getvalue()
