"""The text encoder, ids (B, T) -> features (B, D): CLIP's (Radford et al. 2021) or SigLIP's (Zhai et al. 2023)."""

import numpy as np
import torch
from torch import Tensor, nn

from vlm.config import TextConfig
from vlm.errors import InputError
from vlm.models.layers import Block, init_blocks
from vlm.models.packing import PackedEnds, PackedRows, Packing, PaddedRows, PaddedToken, first


class TextTransformer(nn.Module):
    """The same Block as the ViT, over words.

    Rows end at their end-of-text token.  Tokens behind it are not computed: packed rows stand back to back.  Ids on
    another device than the CPU are packed only if the caller gives the `packing` it made on the host; else padded rows
    are computed, so that nothing waits for the device.  Models that were trained on padding (`pad_to_context`) read
    full rows.
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

    def forward(self, ids: Tensor, packing: Packing | None = None) -> Tensor:
        """The features of texts.

        Args:
            ids: (B, T).
            packing: of these ids, on their device; see `packing`.  None: made here where the ids are on the CPU.

        Returns:
            (B, D).
        """
        self._check_shape(ids)
        on_host = ids.device.type == "cpu" and not torch.compiler.is_compiling()
        if packing is None and on_host and not self.config.pad_to_context:
            packing = self.packing(ids)
        return self._padded(ids) if packing is None else self._packed(ids, packing)

    def packing(self, ids: Tensor) -> Packing | None:
        """Returns the packing of ids (B, T) on the CPU; None for models that read the padding."""
        return None if self.config.pad_to_context else Packing.of(self.lengths(ids))

    def _packed(self, ids: Tensor, packing: Packing) -> Tensor:
        tokens = packing.pack(ids[:, : packing.longest])  # (S,)
        z = self.token_embed(tokens) + self.pos_embed.index_select(0, packing.slots % packing.longest)  # (S, D)
        *blocks, last = self.blocks
        for block in blocks:
            z = block(z, PackedRows(packing))
        if self.config.pool != "mean":
            return self.norm(last(z, PackedEnds(packing)))  # nobody reads the other tokens of the last block
        z = last(z, PackedRows(packing))
        return self.norm(packing.means(z)) if self.config.norm_after_pool else packing.means(self.norm(z))

    def _padded(self, ids: Tensor) -> Tensor:
        reads_padding, ends = self.config.pad_to_context, (ids == self.config.eot_id).int().argmax(1)  # (B,)
        if reads_padding:
            ids = nn.functional.pad(ids, (0, self.config.context_length - ids.shape[1]), value=self.config.pad_id)
            if self.config.pool == "eot" and ids.device.type == "cpu" and not torch.compiler.is_compiling():
                self._ends(ids)  # each row has one
        lengths = None if reads_padding else ends + 1
        z = self.token_embed(ids) + self.pos_embed[: ids.shape[1]]  # (B, T, D)
        *blocks, last = self.blocks
        for block in blocks:
            z = block(z, PaddedRows(lengths))
        if self.config.pool != "mean":
            at = torch.full_like(ends, ids.shape[1] - 1) if reads_padding and self.config.pool == "last" else ends
            return self.norm(last(z, PaddedToken(at, lengths)))
        z = last(z, PaddedRows(lengths))
        return self.norm(_mean(z, lengths)) if self.config.norm_after_pool else _mean(self.norm(z), lengths)

    def lengths(self, ids: Tensor) -> Tensor:
        """Tokens of each row up to and with its end-of-text, (B,) on the CPU; T for models that read the padding.

        Raises:
            InputError: ids have another shape, or a row has no end-of-text.
        """
        self._check_shape(ids)
        if self.config.pad_to_context:
            return torch.full((ids.shape[0],), ids.shape[1])
        return torch.from_numpy(self._ends(ids) + 1)

    def _ends(self, ids: Tensor) -> np.ndarray:
        """The position of each row's end-of-text, the first if there are several, (B,)."""
        ends = ids.cpu().numpy() == self.config.eot_id
        if not (found := ends.any(1)).all():
            row = int((~found).argmax())
            raise InputError(f"row {row} has no end-of-text id {self.config.eot_id}. Use this model's own tokenizer.")
        return ends.argmax(1)

    def _check_shape(self, ids: Tensor) -> None:
        if ids.ndim != 2 or ids.shape[1] > self.config.context_length:
            raise InputError(
                f"ids are {tuple(ids.shape)}; this model takes (B, T) with T <= {self.config.context_length}. Use its "
                "own tokenizer."
            )


def _mean(z: Tensor, lengths: Tensor | None) -> Tensor:
    """The mean over the real tokens of padded rows, (B, T, D) -> (B, D)."""
    if lengths is None:
        return z.mean(1)
    real = first(lengths, z.shape[1])[..., None]  # (B, T, 1)
    return torch.where(real, z, 0).sum(1) / lengths[:, None]
