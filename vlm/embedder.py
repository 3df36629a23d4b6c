"""Images and texts -> unit vectors: a model with the tokenizer and the preprocessing it was trained with."""

import hashlib
import json
from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.calibration import Calibration
from vlm.config import CLIPConfig
from vlm.errors import CheckpointError, InputError
from vlm.images.batching import pixel_batches
from vlm.images.open import ImageSource
from vlm.images.preprocess import Preprocess
from vlm.models.clip import CLIP
from vlm.models.external import ExternalModel
from vlm.onnx.backends import OnnxCLIP
from vlm.precision import autocast_on_gpu, cast_weights, choose_device, dtype_of, weight_dtype
from vlm.tokenizers.protocol import Tokenizer


class Embedder:
    """A model that embeds images and texts; `vlm.load` returns it.  All embeddings are returned on the CPU.

    Args:
        model: the two encoders.
        tokenizer: strings -> ids; None where the source had none.
        preprocess: image -> pixels; None where the source had none.
        name: stands in messages.
        calibration: turns a cosine of these weights into the probability of a match.

    Raises:
        CheckpointError: the parts belong to different models.
    """

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
        self.calibration = calibration
        self.exact = False  # no autocast on a GPU: set by `to(dtype=...)`
        self._tokenizer = tokenizer
        self._preprocess = preprocess
        self._before_cast: tuple[str, list[int]] | None = None  # fingerprint, and the versions of the cast weights

    @property
    def tokenizer(self) -> Tokenizer:
        """Strings -> ids (B, T)."""
        if self._tokenizer is None:
            raise CheckpointError(
                f"{self.name} came without a tokenizer, so it cannot read texts. Load it from a source that has one."
            )
        return self._tokenizer

    @property
    def preprocess(self) -> Preprocess:
        """Image -> pixels (C, H, W)."""
        if self._preprocess is None:
            raise CheckpointError(
                f"{self.name} came without preprocessing settings, so it cannot read images. "
                "Load it from a source that has them, or build Embedder(model, tokenizer, Preprocess(...)) yourself."
            )
        return self._preprocess

    def parts(self) -> tuple[Tokenizer | None, Preprocess | None]:
        """Tokenizer and preprocessing, None where the source had none."""
        return self._tokenizer, self._preprocess

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        return dtype_of(self.model)

    @property
    def embed_dim(self) -> int:
        """E."""
        return self.model.embed_dim

    def __repr__(self) -> str:
        millions = sum(weight.numel() for weight in self.model.parameters()) / 1e6
        about = f"{type(self.model).__name__}, {millions:.1f} M parameters, {self.embed_dim} dimensions"
        if self._preprocess is not None:
            about += ", images {} x {}".format(*self._preprocess.config.image_shape)
        if self._tokenizer is not None:
            about += f", texts up to {self._tokenizer.context_length} tokens"
        return f"<Embedder {self.name!r}: {about}; {str(self.dtype).removeprefix('torch.')} on {self.device}>"

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Self:
        """Move the model, or cast its weights, in place.

        Args:
            device: "cpu", "cuda", "auto" ...; None leaves the model where it is.
            dtype: "float32", "bfloat16" or "float16" casts the weights and computes in that format.  "auto", as after
                `vlm.load`, leaves the weights as they are and computes in 16 bits on a GPU.  None changes nothing.

        Returns:
            The embedder itself.  Casting keeps the fingerprint: embeddings in 16 bits have a cosine of at least 0.999
            with those in float32.

        Raises:
            InputError: there is no such device or format, or the model runs on ONNX Runtime.
        """
        if isinstance(self.model, OnnxCLIP) and (device, dtype) != (None, None):
            raise InputError(f"{self.name} runs on ONNX Runtime, on the CPU. Load it with backend torch to move it.")
        if device is not None:
            self.model.to(choose_device(device))
        if dtype is not None:
            wanted = weight_dtype(dtype)
            self.exact = wanted is not None
            if wanted is not None and wanted != self.dtype:
                fingerprint = self.fingerprint
                cast_weights(self.model, wanted)
                self._before_cast = fingerprint, self._versions()
        return self

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name the weights and settings.  Embeddings with different fingerprints are not comparable.

        Reads all weights.  Backend onnx keeps it, since its embeddings are the same to 1e-5; int8 has its own.
        """
        if self._before_cast is not None and self._before_cast[1] == self._versions():
            return self._before_cast[0]
        digest = hashlib.sha256()
        preprocess = self._preprocess.config.identity() if self._preprocess else None
        digest.update(json.dumps([self.model.identity_dict(), preprocess], sort_keys=True).encode())
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
        if isinstance(self.model, OnnxCLIP):
            digest.update(self.model.rounding.encode())
        return digest.hexdigest()[:16]

    def _versions(self) -> list[int]:
        """Numbers that change with any change of a weight in place."""
        return [weight._version for weight in self.model.parameters()]

    def embed_images(self, images: ImageSource | Iterable[ImageSource], batch_size: int = 32) -> Tensor:
        """Embed images.

        Args:
            images: one image or any iterable of images: paths, PIL images, uint8 arrays, bytes of files.
            batch_size: images computed at once.

        Returns:
            float32 (B, E), unit length, in the order of the images.

        Raises:
            ImageError: an image cannot be used; it names the file.
            CheckpointError: the model came without preprocessing settings.
        """
        batches = pixel_batches(images, self.preprocess, batch_size)
        return torch.cat([torch.empty(0, self.embed_dim), *map(self.embed_pixels, batches)])

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Embed one batch that `preprocess` has prepared, (B, C, H, W) -> float32 (B, E), unit length."""
        with self._evaluating():
            embeds = self.model.encode_image(pixels.to(self.device, self.dtype))
        return _finished(embeds)

    def embed_texts(self, texts: str | Iterable[str], batch_size: int = 256) -> Tensor:
        """Embed texts.  Texts of similar length share a batch.

        Args:
            texts: one text or any iterable of texts.
            batch_size: texts computed at once.

        Returns:
            float32 (B, E), unit length, in the order of the texts.

        Raises:
            InputError: the texts, or one of them, are of another type.
            CheckpointError: the model came without a tokenizer.
        """
        if not isinstance(texts, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"wanted a text or an iterable of texts, got {type(texts).__name__}.")
        texts = [texts] if isinstance(texts, str) else list(texts)
        embeds = torch.empty(len(texts), self.embed_dim)
        if not texts:
            return embeds
        ids = self.tokenizer(texts)  # (B, T)
        lengths = self.model.text_lengths(ids)  # (B,)
        for rows in torch.split(lengths.argsort(stable=True), batch_size):
            batch = ids[rows, : int(lengths[rows].max())]
            with self._evaluating():
                embedded = self.model.encode_text(batch.to(self.device))
            embeds[rows] = _finished(embedded)
        return embeds

    def match_probability(self, cosines: Tensor) -> Tensor | None:
        """The probability that an image is a correct answer to a text.

        Args:
            cosines: of images with texts, any shape.

        Returns:
            Probabilities of the same shape: as calibrated, or, of a model trained with a sigmoid (SigLIP), as its loss
            defines them.  None where the model only ranks.
        """
        if self.calibration is not None:
            return self.calibration.probability(cosines)
        if self.model.logit_bias is None:
            return None
        return (self.model.logit_scale.exp().item() * cosines + self.model.logit_bias.item()).sigmoid()

    def no_good_match(self, probability: float | None) -> bool:
        """Returns True if the best hit is less probable than the threshold; False without a calibration."""
        return self.calibration is not None and probability is not None and probability < self.calibration.line

    @contextmanager
    def _evaluating(self) -> Generator[None]:
        """No dropout, no gradients; afterwards each module that was in training mode is in training mode again."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with torch.inference_mode(), nullcontext() if self.exact else autocast_on_gpu(self.device):
                yield
        finally:
            for module in training:
                module.training = True


def _finished(embeds: Tensor) -> Tensor:
    """float32 on the CPU, a copy that autograd accepts; of unit length also where it was computed in 16 bits."""
    if embeds.dtype == torch.float32:
        return embeds.cpu().clone()
    return F.normalize(embeds.float(), dim=-1).cpu()


def _check_fit(config: CLIPConfig, tokenizer: Tokenizer | None, preprocess: Preprocess | None) -> None:
    """Refuse parts of different models: they would run together and give wrong embeddings."""
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
        raise CheckpointError(f"These parts do not belong together: {'; '.join(wrong)}. Take all three from one model.")
