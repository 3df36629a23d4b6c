"""Images and sentences -> unit vectors: a model with the tokenizer and the preprocessing it was trained with."""

import hashlib
import json
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm.calibration import Calibration
from vlm.config import CLIPConfig
from vlm.images.open import ImageSource
from vlm.images.preprocess import Preprocess
from vlm.models.clip import CLIP
from vlm.models.external import ExternalModel
from vlm.onnx.backends import OnnxCLIP
from vlm.tokenizers.protocol import Tokenizer


class Embedder:
    """What `vlm.load` returns.  `model`, `tokenizer` and `preprocess` are public; all vectors come back on the CPU."""

    def __init__(
        self,
        model: CLIP | ExternalModel,
        tokenizer: Tokenizer | None,
        preprocess: Preprocess | None,
        *,
        name: str = "model",
        calibration: Calibration | None = None,
    ):
        if isinstance(model, CLIP):
            _check_fit(model.config, tokenizer, preprocess)
        self.model = model
        self.name = name
        self.calibration = calibration  # of these weights: training goes on without it
        self._tokenizer = tokenizer
        self._preprocess = preprocess

    @property
    def tokenizer(self) -> Tokenizer:
        """Strings -> ids (B, T)."""
        if self._tokenizer is None:
            raise ValueError(
                f"{self.name} came without a tokenizer, so it cannot read texts. Load it from a source that has one."
            )
        return self._tokenizer

    @property
    def preprocess(self) -> Preprocess:
        """Image -> pixels (3, H, W)."""
        if self._preprocess is None:
            raise ValueError(
                f"{self.name} came without preprocessing settings, so it cannot read images. "
                "Load it from a source that has them, or build Embedder(model, tokenizer, Preprocess(...)) yourself."
            )
        return self._preprocess

    def parts(self) -> tuple[Tokenizer | None, Preprocess | None]:
        """Tokenizer and preprocessing, None where the source had none."""
        return self._tokenizer, self._preprocess

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.logit_scale.device

    @property
    def embed_dim(self) -> int:
        """E."""
        return self.model.embed_dim

    @property
    def fingerprint(self) -> str:
        """16 hex digits, others for any other weight or setting: their vectors do not compare.  Reads all weights.

        Backend onnx keeps it, since its vectors are the same to 1e-5; int8 has one of its own.
        """
        digest = hashlib.sha256()
        preprocess = self._preprocess.config.identity() if self._preprocess else None
        digest.update(json.dumps([self.model.identity_dict(), preprocess], sort_keys=True).encode())
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
        if isinstance(self.model, OnnxCLIP):
            digest.update(self.model.rounding.encode())
        return digest.hexdigest()[:16]

    def embed_images(self, images: Iterable[ImageSource], batch_size: int = 32) -> Tensor:
        """Paths, PIL images or uint8 arrays -> float32 (B, E), unit length.  A broken image raises `ImageError`."""
        if _is_one(images):
            raise ValueError(f"wanted a list of images, got one {type(images).__name__}. Put it into a list: [image].")
        preprocess, remaining, done = self.preprocess, iter(images), [torch.empty(0, self.embed_dim)]
        while batch := [preprocess(image) for image in islice(remaining, batch_size)]:
            done.append(self.embed_pixels(torch.stack(batch)))
        return torch.cat(done)

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Images that `preprocess` has made ready, (B, 3, H, W), as one batch -> float32 (B, E), unit length."""
        with self._evaluating():
            embeds = self.model.encode_image(pixels.to(self.device))
        return embeds.float().cpu().clone()  # outside inference mode: a tensor that autograd accepts

    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """-> float32 (B, E), unit length.  Texts of like length share a batch; the order is the caller's."""
        if isinstance(texts, str):
            raise ValueError(f"embed_texts takes a list of texts, got one text. Write [{texts!r}].")
        embeds = torch.empty(len(texts), self.embed_dim)
        if not len(texts):
            return embeds
        ids = self.tokenizer(list(texts))  # (B, T)
        lengths = self.model.text_lengths(ids)  # (B,)
        for rows in torch.split(lengths.argsort(stable=True), batch_size):
            with self._evaluating():
                batch = ids[rows, : int(lengths[rows].max())]
                embedded = self.model.encode_text(batch.to(self.device)).float().cpu()
            embeds[rows] = embedded
        return embeds

    def match_probability(self, cosines: Tensor) -> Tensor | None:
        """That an image is a correct answer to one text, from their cosines, any shape; None: this model only ranks.

        As calibrated; else, of a model trained with a sigmoid (SigLIP), what its loss made of a pair.
        """
        if self.calibration is not None:
            return self.calibration.probability(cosines)
        if self.model.logit_bias is None:
            return None
        return (self.model.logit_scale.exp().item() * cosines + self.model.logit_bias.item()).sigmoid()

    def no_good_match(self, probability: float | None) -> bool:
        """Whether the best hit is below the line that validation data drew; a model without one never says so."""
        return self.calibration is not None and probability is not None and probability < self.calibration.line

    @contextmanager
    def _evaluating(self) -> Generator[None]:
        """No dropout, no gradients; a model in training goes on training afterwards."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(was_training)


def _is_one(images: object) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, (str, bytes, os.PathLike, Image.Image))


def _check_fit(config: CLIPConfig, tokenizer: Tokenizer | None, preprocess: Preprocess | None) -> None:
    """Parts of different models run together without a complaint and give nonsense: refuse them here."""
    wrong: list[str] = []
    if tokenizer is not None:
        if tokenizer.vocab_size > config.text.vocab_size:
            wrong.append(f"tokenizer vocab_size {tokenizer.vocab_size}, model {config.text.vocab_size}")
        if tokenizer.context_length > config.text.context_length:
            wrong.append(f"tokenizer context_length {tokenizer.context_length}, model {config.text.context_length}")
        if config.text.pool == "eot" and tokenizer.eot_id != config.text.eot_id:
            wrong.append(f"tokenizer eot_id {tokenizer.eot_id}, model {config.text.eot_id}")
    if preprocess is not None and preprocess.config.image_shape != config.vision.image_shape:
        wrong.append(f"preprocess image_size {preprocess.config.image_shape}, model {config.vision.image_shape}")
    if preprocess is not None and preprocess.config.channels != config.vision.in_channels:
        wrong.append(f"preprocess has {preprocess.config.channels} channels, model {config.vision.in_channels}")
    if wrong:
        raise ValueError(f"These parts do not belong together: {'; '.join(wrong)}. Take all three from one model.")
