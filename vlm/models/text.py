"""The text encoder, ids (B, T) -> features (B, D): CLIP's (Radford et al. 2021) or SigLIP's (Zhai et al. 2023)."""

import torch
from torch import Tensor, nn

from vlm.config import TextConfig
from vlm.models.layers import Block, init_blocks
from vlm.models.packing import PackedRows, PackedToken, first, row_means


class TextTransformer(nn.Module):
    """The same Block as the ViT, over words.

    Rows end at their end-of-text token and the encoder never computes what lies behind it: tokens of all rows run back
    to back.  Models that were trained on padding (`pad_to_context`) read full rows instead.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.token_embed = nn.Embedding(config.vocab_size, config.width)
        self.pos_embed = nn.Parameter(torch.zeros(config.context_length, config.width))
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.num_heads,
                config.mlp_dim,
                activation=config.activation,
                norm_eps=config.norm_eps,
                causal=config.causal,
                dropout=config.dropout,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        nn.init.normal_(self.token_embed.weight, std=0.02)  # openai/CLIP model.py, initialize_parameters
        nn.init.normal_(self.pos_embed, std=0.01)
        init_blocks(self.blocks)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> features (B, D)."""
        ids = self._full_rows(ids) if self.config.pad_to_context else ids
        lengths = self.lengths(ids)  # (B,)
        real = first(lengths, ids.shape[1])  # (B, T)
        positions = real.nonzero()[:, 1]
        z = self.token_embed(ids[real]) + self.pos_embed[positions]  # (sum of lengths, D)
        *blocks, last = self.blocks
        for block in blocks:
            z = block(z, PackedRows(lengths))
        if self.config.pool == "mean":
            return self._mean(last(z, PackedRows(lengths)), lengths)
        ends = self._ends(ids) if self.config.pool == "eot" else lengths - 1
        return self.norm(last(z, PackedToken(lengths, ends)))  # nobody reads the other tokens of the last block

    def lengths(self, ids: Tensor) -> Tensor:
        """Tokens of each row up to and with its end-of-text, (B,); T for models that read the padding."""
        if ids.ndim != 2 or ids.shape[1] > self.config.context_length:
            raise ValueError(
                f"ids are {tuple(ids.shape)}; this model takes (B, T) with T <= {self.config.context_length}."
            )
        if self.config.pad_to_context:
            return torch.full((ids.shape[0],), ids.shape[1], device=ids.device)
        return self._ends(ids) + 1

    def _ends(self, ids: Tensor) -> Tensor:
        """Where each row's end-of-text stands, the first if there are several, (B,)."""
        ends = ids == self.config.eot_id
        if not bool(ends.any(1).all()):
            row = int((~ends.any(1)).nonzero()[0])
            raise ValueError(f"row {row} has no end-of-text id {self.config.eot_id}. Use this model's own tokenizer.")
        return ends.int().argmax(1)

    def _full_rows(self, ids: Tensor) -> Tensor:
        return nn.functional.pad(ids, (0, self.config.context_length - ids.shape[1]), value=self.config.pad_id)

    def _mean(self, z: Tensor, lengths: Tensor) -> Tensor:
        """(sum of lengths, D) -> (B, D)."""
        return self.norm(row_means(z, lengths)) if self.config.norm_after_pool else row_means(self.norm(z), lengths)
