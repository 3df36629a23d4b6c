"""Ways through a `Block` that compute only the tokens that are read: no padding, and one token of the last block.

Each gives what `Block.forward(z)` gives at the tokens that remain.  Packed rows stand back to back without padding,
(sum of lengths, D).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.models.layers import Attention, split_heads


class FirstToken:
    """Token 0 of each row, the class token: (B, N, D) -> (B, D)."""

    def keep(self, z: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        return z[:, 0]

    def attend(self, attention: Attention, z: Tensor) -> Tensor:
        """(B, N, D) -> (B, D): token 0 attends to all tokens of its row."""
        q, k, v = split_heads(attention.qkv(z), 3, attention.num_heads)  # each (B, h, N, Dh)
        out = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # (B, h, 1, Dh)
        return attention.drop(attention.proj(out.flatten(1)))


@dataclass(frozen=True)
class PackedRows:
    """All tokens of packed rows: (sum of lengths, D) -> (sum of lengths, D)."""

    lengths: Tensor  # (B,)

    def keep(self, z: Tensor) -> Tensor:
        """(sum of lengths, D) -> the same."""
        return z

    def attend(self, attention: Attention, z: Tensor) -> Tensor:
        """(sum of lengths, D) -> (sum of lengths, D): each token attends to the tokens of its row."""
        rows = pad(attention.qkv(z), self.lengths)  # (B, N, 3 D)
        q, k, v = split_heads(rows, 3, attention.num_heads)  # each (B, h, N, Dh)
        real = first(self.lengths, rows.shape[1])  # (B, N)
        # padding stands behind the real tokens: the causal mask hides it from them
        mask = None if attention.causal else real[:, None, None]  # (B, 1, 1, N)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=attention.causal)
        return attention.drop(attention.proj(out.transpose(1, 2)[real].flatten(1)))


@dataclass(frozen=True)
class PackedToken:
    """One token of each packed row: (sum of lengths, D) -> (B, D)."""

    lengths: Tensor  # (B,)
    positions: Tensor  # (B,), the token of each row that is kept

    def keep(self, z: Tensor) -> Tensor:
        """(sum of lengths, D) -> (B, D)."""
        return z[self.lengths.cumsum(0) - self.lengths + self.positions]

    def attend(self, attention: Attention, z: Tensor) -> Tensor:
        """(sum of lengths, D) -> (B, D): the token attends to its row, up to itself where the mask is causal."""
        rows = pad(attention.qkv(z), self.lengths)  # (B, N, 3 D)
        q, k, v = split_heads(rows, 3, attention.num_heads)  # each (B, h, N, Dh)
        q = q[torch.arange(len(q), device=q.device), :, self.positions][:, :, None]  # (B, h, 1, Dh)
        seen = self.positions + 1 if attention.causal else self.lengths
        mask = first(seen, rows.shape[1])[:, None, None]  # (B, 1, 1, N)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, h, 1, Dh)
        return attention.drop(attention.proj(out.flatten(1)))


def pad(packed: Tensor, lengths: Tensor) -> Tensor:
    """Pad packed rows with zeros, (sum of lengths, F) -> (B, N, F)."""
    N = int(lengths.max())
    return packed.new_zeros(len(lengths), N, packed.shape[1]).index_put_((first(lengths, N),), packed)


def first(counts: Tensor, N: int) -> Tensor:
    """(B, N), true at the first counts[b] places of row b."""
    return torch.arange(N, device=counts.device) < counts[:, None]


def row_means(packed: Tensor, lengths: Tensor) -> Tensor:
    """The mean of each packed row, (sum of lengths, D) -> (B, D)."""
    row = torch.repeat_interleave(torch.arange(len(lengths), device=packed.device), lengths)
    return packed.new_zeros(len(lengths), packed.shape[1]).index_add(0, row, packed) / lengths[:, None]
