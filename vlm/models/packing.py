"""Ways through a `Block` that compute only the tokens that are read: no padding, and one token of the last block.

Each gives what `Block.forward(z)` gives at the tokens that remain.  Packed rows stand back to back without padding,
(S, D) with S the sum of lengths.  No step waits for the device: a `Packing` is computed on the host, from ids that
are still there, and what depends on lengths on the device is a mask.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.models.layers import Attention, join_heads, split_heads


@dataclass(frozen=True)
class Packing:
    """Positions of packed tokens in padded rows (B, N)."""

    slots: Tensor  # (S,), of each packed token: row * N + position
    ends: Tensor  # (B,), of each row's last token, among the packed ones
    starts: Tensor  # (B + 1,) int32, of each row's first token, among the packed ones, and S
    lengths: Tensor  # (B,)
    longest: int  # N

    @classmethod
    def of(cls, lengths: Tensor) -> "Packing":
        """For rows of these lengths, (B,) on the CPU, each 1 or more."""
        counts = lengths.numpy()
        ends, longest = counts.cumsum(), int(counts.max(initial=1))
        rows = np.repeat(np.arange(len(counts)), counts)
        slots = rows * longest + np.arange(len(rows)) - np.repeat(ends - counts, counts)
        starts = np.concatenate([[0], ends]).astype(np.int32)
        tensors = (torch.from_numpy(part) for part in (slots, ends - 1, starts))
        return cls(*tensors, lengths, longest)

    def to(self, device: torch.device) -> "Packing":
        """On a device, copied without waiting for it."""
        tensors = (t.to(device, non_blocking=True) for t in (self.slots, self.ends, self.starts, self.lengths))
        return Packing(*tensors, self.longest)

    def pad(self, packed: Tensor) -> Tensor:
        """Pad packed rows with zeros, (S, F) -> (B, N, F)."""
        rows = packed.new_zeros(len(self.lengths) * self.longest, packed.shape[1])
        return rows.index_put_((self.slots,), packed).view(
            len(self.lengths), self.longest, -1
        )  # saves no copy of packed

    def pack(self, rows: Tensor) -> Tensor:
        """Leave out the padding, (B, N, ...) -> (S, ...)."""
        return rows.flatten(0, 1).index_select(0, self.slots)

    def mask(self) -> Tensor:
        """(B, 1, 1, N), true at real tokens: the keys that a query of its row may attend to."""
        return first(self.lengths, self.longest)[:, None, None]

    def means(self, packed: Tensor) -> Tensor:
        """The mean of each packed row, (S, D) -> (B, D)."""
        totals = packed.new_zeros(len(self.lengths), packed.shape[1]).index_add(0, self.slots // self.longest, packed)
        return totals / self.lengths[:, None]


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
    """All tokens of packed rows: (S, D) -> (S, D)."""

    packing: Packing

    def keep(self, z: Tensor) -> Tensor:
        """(S, D) -> the same."""
        return z

    def attend(self, attention: Attention, z: Tensor) -> Tensor:
        """(S, D) -> (S, D): each token attends to the tokens of its row, up to itself where the mask is causal."""
        qkv = attention.qkv(z)
        if has_varlen(qkv):
            return attention.drop(attention.proj(self._variable_length(attention, qkv)))
        q, k, v = split_heads(self.packing.pad(qkv), 3, attention.num_heads)  # each (B, h, N, Dh)
        # padding stands behind the real tokens: the causal mask hides it from them
        mask = None if attention.causal else self.packing.mask()
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=attention.causal)
        return attention.drop(attention.proj(self.packing.pack(join_heads(out))))

    def _variable_length(self, attention: Attention, qkv: Tensor) -> Tensor:
        """(S, 3 D) -> (S, D), without padding; half precision on GPUs alone."""
        from torch.nn.attention.varlen import varlen_attn  # imports torch._dynamo, which takes more than a second

        q, k, v = qkv.unflatten(1, (3, attention.num_heads, -1)).unbind(1)  # each (S, h, Dh)
        starts, longest, window = self.packing.starts, self.packing.longest, (-1, 0) if attention.causal else (-1, -1)
        out = varlen_attn(q, k, v, starts, starts, longest, longest, window_size=window)
        assert isinstance(out, Tensor)
        return out.flatten(1)


@dataclass(frozen=True)
class PackedEnds:
    """The last token of each packed row: (S, D) -> (B, D)."""

    packing: Packing

    def keep(self, z: Tensor) -> Tensor:
        """(S, D) -> (B, D)."""
        return z.index_select(0, self.packing.ends)

    def attend(self, attention: Attention, z: Tensor) -> Tensor:
        """(S, D) -> (B, D): the last token attends to all of its row."""
        qkv = attention.qkv(z)
        q = qkv.index_select(0, self.packing.ends)[:, None]  # (B, 1, 3 D)
        q = split_heads(q, 3, attention.num_heads)[0]  # (B, h, 1, Dh)
        _, k, v = split_heads(self.packing.pad(qkv), 3, attention.num_heads)  # each (B, h, N, Dh)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.packing.mask())  # (B, h, 1, Dh)
        return attention.drop(attention.proj(out.flatten(1)))


@dataclass(frozen=True)
class PaddedRows:
    """All tokens of padded rows: (B, T, D) -> (B, T, D); what stands at the padding is not read."""

    lengths: Tensor | None  # (B,); None: the padding counts as tokens

    def keep(self, z: Tensor) -> Tensor:
        """(B, T, D) -> the same."""
        return z

    def attend(self, attention: Attention, z: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if attention.causal or self.lengths is None:
            return attention(z)
        q, k, v = split_heads(attention.qkv(z), 3, attention.num_heads)  # each (B, h, T, Dh)
        mask = first(self.lengths, z.shape[1])[:, None, None]  # (B, 1, 1, T)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return attention.drop(attention.proj(join_heads(out)))


@dataclass(frozen=True)
class PaddedToken:
    """One token of each padded row: (B, T, D) -> (B, D)."""

    positions: Tensor  # (B,), the token of each row that is kept
    lengths: Tensor | None  # (B,); None: the padding counts as tokens

    def keep(self, z: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        return token_at(z, self.positions)

    def attend(self, attention: Attention, z: Tensor) -> Tensor:
        """(B, T, D) -> (B, D): the token attends to its row, up to itself where the mask is causal."""
        q, k, v = split_heads(attention.qkv(z), 3, attention.num_heads)  # each (B, h, T, Dh)
        q = token_at(q.transpose(1, 2).flatten(2), self.positions).unflatten(1, (attention.num_heads, 1, -1))
        seen = self.positions + 1 if attention.causal else self.lengths
        mask = None if seen is None else first(seen, z.shape[1])[:, None, None]  # (B, 1, 1, T)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, h, 1, Dh)
        return attention.drop(attention.proj(out.flatten(1)))


def has_varlen(qkv: Tensor) -> bool:
    """Returns True if torch's variable-length attention applies: half precision on a GPU from Ampere on."""
    if qkv.device.type != "cuda" or qkv.dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(qkv.device) >= (8, 0)


def token_at(z: Tensor, positions: Tensor) -> Tensor:
    """Token positions[b] of each row b, (B, T, D) -> (B, D)."""
    return z.gather(1, positions[:, None, None].expand(-1, 1, z.shape[2]))[:, 0]


def first(counts: Tensor, N: int) -> Tensor:
    """(B, N), true at the first counts[b] places of row b."""
    return torch.arange(N, device=counts.device) < counts[:, None]
