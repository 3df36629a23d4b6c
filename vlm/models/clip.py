"""CLIP (Radford et al. 2021): two encoders, two projections, one temperature.

With `logit_bias` it is SigLIP (Zhai et al. 2023).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.config import CLIPConfig
from vlm.models.layers import projection
from vlm.models.packing import Packing
from vlm.models.text import TextTransformer
from vlm.models.vision import VisionTransformer


class CLIP(nn.Module):
    """Images (B, C, H, W) and texts (B, T) -> unit vectors in one space (B, E)."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config.vision)
        self.text = TextTransformer(config.text)
        self.vision_proj = projection(config.vision_proj, config.vision.width, config.embed_dim)
        self.text_proj = projection(config.text_proj, config.text.width, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale))  # log(1 / temperature)
        self.logit_bias = nn.Parameter(torch.tensor(config.logit_bias)) if config.logit_bias is not None else None

    @property
    def embed_dim(self) -> int:
        """E."""
        return self.config.embed_dim

    def identity_dict(self) -> dict[str, Any]:
        """Returns the settings that determine the embeddings besides weights: the config as plain values."""
        return self.config.to_dict()

    def text_lengths(self, ids: Tensor) -> Tensor:
        """Tokens that each row of ids (B, T) needs, (B,) on the CPU."""
        return self.text.lengths(ids)

    def encode_image(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> unit vectors (B, E); `keep` (B, K) as in `VisionTransformer.forward`."""
        return F.normalize(self.vision_proj(self.vision(images, keep)), dim=-1)

    def encode_text(self, ids: Tensor, packing: Packing | None = None) -> Tensor:
        """(B, T) -> unit vectors (B, E); `packing` as in `TextTransformer.forward`."""
        return F.normalize(self.text_proj(self.text(ids, packing)), dim=-1)

    def forward(
        self, images: Tensor, ids: Tensor, keep: Tensor | None = None, packing: Packing | None = None
    ) -> tuple[Tensor, Tensor]:
        """Unit vectors of a batch of pairs.

        Args:
            images: (B, C, H, W).
            ids: (B, T).
            keep: the patches that stay, as in `VisionTransformer.forward`.
            packing: of the ids, as in `TextTransformer.forward`.

        Returns:
            (B, E) twice, images and texts.
        """
        return self.encode_image(images, keep), self.encode_text(ids, packing)

    def logits(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Scaled similarities (B images, B texts): exp(logit_scale) image . text (+ logit_bias)."""
        scores = self.logit_scale.exp() * image_embeds @ text_embeds.T
        return scores if self.logit_bias is None else scores + self.logit_bias
