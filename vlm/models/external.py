"""A dual encoder that another library computes, behind the interface of `CLIP`."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.errors import InputError


class ExternalModel(nn.Module):
    """Images and texts -> unit vectors in one space (B, E), computed by OpenCLIP or transformers.

    It has no layers of ours: what reads or changes layers (attention maps, export, int8, LoRA, training) is an error
    that says so.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        images: Callable[[Any, Tensor], Tensor],
        texts: Callable[[Any, Tensor], Tensor],
        library: str,
        name: str,
        identity: dict[str, Any],
        embed_dim: int,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
    ):
        """Wrap a model of another library.

        Args:
            network: the model.
            images: (network, pixels) -> embeddings (B, E), of any length.
            texts: (network, ids) -> embeddings (B, E), of any length.
            library: "open_clip" or "transformers".
            name: the source, for messages.
            identity: what, besides weights, determines the embeddings; plain values.
            embed_dim: E.
            logit_scale: log(1 / temperature).
            logit_bias: of a model trained with a sigmoid, else None.
        """
        super().__init__()
        self.network = network
        self.library = library
        self.name = name
        self.identity = identity
        self.embed_dim = embed_dim
        self.register_buffer("logit_scale", logit_scale.detach().float().reshape(()).clone(), persistent=False)
        bias = None if logit_bias is None else logit_bias.detach().float().reshape(()).clone()
        self.register_buffer("logit_bias", bias, persistent=False)
        self._images, self._texts = images, texts

    logit_scale: Tensor
    logit_bias: Tensor | None

    def encode_image(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Pixels as the preprocessing makes them -> unit vectors (B, E); `keep` is not possible here."""
        if keep is not None:
            self._refuse("leaving out patches")
        return F.normalize(self._images(self.network, images), dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> unit vectors (B, E)."""
        return F.normalize(self._texts(self.network, ids), dim=-1)

    def forward(self, images: Tensor, ids: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unit vectors of a batch of pairs, (B, E) twice."""
        return self.encode_image(images, keep), self.encode_text(ids)

    def logits(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Scaled similarities (B images, B texts): exp(logit_scale) image . text (+ logit_bias)."""
        scores = self.logit_scale.exp() * image_embeds @ text_embeds.T
        return scores if self.logit_bias is None else scores + self.logit_bias

    def text_lengths(self, ids: Tensor) -> Tensor:
        """T for every row: the library reads its own padding, (B,)."""
        return torch.full((ids.shape[0],), ids.shape[1], device=ids.device)

    def identity_dict(self) -> dict[str, Any]:
        """Returns the settings that determine the embeddings besides weights."""
        return self.identity

    @property
    def config(self) -> NoReturn:
        """No config of ours."""
        return self._refuse("reading its config")

    @property
    def vision(self) -> NoReturn:
        """No image encoder of ours."""
        return self._refuse("its image encoder")

    @property
    def text(self) -> NoReturn:
        """No text encoder of ours."""
        return self._refuse("its text encoder")

    @property
    def vision_proj(self) -> NoReturn:
        """No projection of ours."""
        return self._refuse("its projection")

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(
            f"{self.name} is an external model: {self.library} computes it, and {what} needs layers of this library. "
            "Embedding, classifying and searching work. For looking inside, export, int8, LoRA and training use a "
            "native model, such as openclip:ViT-B-16/datacomp_xl_s13b_b90k or hf:openai/clip-vit-base-patch16."
        )
