"""The one Transformer block, shared by images and text.

z tokens (B, N, D) · h heads · Dh = D/h · F MLP hidden.  Equation numbers: *Vision Transformer 入門*, chapter 2.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.config import Activation, Projection
from vlm.models.linear import Linear


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, D) -> (B, N, D).  Book eq. (6)-(10)."""

    def __init__(
        self, width: int, num_heads: int, *, qkv_bias: bool = True, causal: bool = False, dropout: float = 0.0
    ):
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.proj = Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, z: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D).  Book eq. (8)(10)."""
        q, k, v = split_heads(self.qkv(z), 3, self.num_heads)  # each (B, h, N, Dh), eq. (6)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (B, h, N, Dh)
        return self.drop(self.proj(join_heads(out)))  # (B, N, D)

    def weights(self, z: Tensor) -> Tensor:
        """The attention map A = softmax(q k^T / sqrt(Dh)), (B, h, N, N).  Book eq. (7).

        `forward` never builds this matrix.  Tests compare `forward` with it, and `vlm look` draws it.
        """
        q, k, _ = split_heads(self.qkv(z), 3, self.num_heads)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if self.causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=z.device).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        return scores.softmax(-1)

    def values(self, z: Tensor) -> Tensor:
        """v of every head, (B, h, N, Dh): `proj(join_heads(weights @ values))` is `forward`."""
        return split_heads(self.qkv(z), 3, self.num_heads)[2]


class Mlp(nn.Module):
    """Two linear layers, (..., D) -> (..., D).  Book section 2-5-3."""

    def __init__(self, width: int, mlp_dim: int, activation: Activation, dropout: float = 0.0):
        super().__init__()
        self.fc1 = Linear(width, mlp_dim)
        self.act = _ACTIVATIONS[activation]()
        self.fc2 = Linear(mlp_dim, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, z: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D), each token by itself."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(z)))))


class Tokens(Protocol):
    """Selects the tokens that a `Block` computes, where not all of (B, N, D): see `vlm/models/packing.py`."""

    def keep(self, z: Tensor) -> Tensor:
        """The tokens of z that the block returns."""
        ...

    def attend(self, attention: Attention, z: Tensor) -> Tensor:
        """The output of `attention` at these tokens."""
        ...


class Block(nn.Module):
    """z + Attention(LayerNorm(z)), then z + Mlp(LayerNorm(z)).  Book eq. (12)(13), Xiong et al. 2020 (pre-norm)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_dim: int,
        *,
        activation: Activation,
        norm_eps: float,
        qkv_bias: bool = True,
        causal: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, num_heads, qkv_bias=qkv_bias, causal=causal, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, mlp_dim, activation, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, z: Tensor, tokens: Tokens | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); with `tokens`, the shapes that it says."""
        if tokens is None:
            z = z + self.drop_path(self.attn(self.norm1(z)))
        else:
            z = tokens.keep(z) + self.drop_path(tokens.attend(self.attn, self.norm1(z)))
        return z + self.drop_path(self.mlp(self.norm2(z)))


class AttentionPool(nn.Module):
    """One learned query reads all tokens, (B, N, D) -> (B, D).

    The MAP head of Zhai et al. 2022, with the names of timm's AttentionPoolLatent.
    """

    def __init__(self, width: int, num_heads: int, mlp_dim: int, *, activation: Activation, norm_eps: float):
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, mlp_dim, activation)

    def forward(self, z: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        (q,) = split_heads(self.q(self.latent).expand(z.shape[0], -1, -1), 1, self.num_heads)  # (B, h, 1, Dh)
        k, v = split_heads(self.kv(z), 2, self.num_heads)  # each (B, h, N, Dh)
        pooled = self.proj(join_heads(F.scaled_dot_product_attention(q, k, v)))  # (B, 1, D)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]

    def weights(self, z: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(Dh)) of the one query, (B, N, D) -> (B, h, N)."""
        (q,) = split_heads(self.q(self.latent), 1, self.num_heads)  # (1, h, 1, Dh)
        k, _ = split_heads(self.kv(z), 2, self.num_heads)  # (B, h, N, Dh)
        return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)[:, :, 0]


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a whole branch per sample in training, and keeps the mean."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """The branch of a residual block, (B, N, D) -> the same, zero for some samples of the batch in training."""
        if not self.training or self.rate == 0:
            return branch
        keep = branch.new_empty(branch.shape[0], *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * keep / (1 - self.rate)


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x): the approximation OpenAI's CLIP was trained with (Hendrycks and Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """x sigmoid(1.702 x), any shape."""
        return x * torch.sigmoid(1.702 * x)


class TanhGELU(nn.GELU):
    """GELU's tanh form, as SigLIP was trained with (Hendrycks and Gimpel 2016)."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


_ACTIVATIONS = {"gelu": nn.GELU, "gelu_tanh": TanhGELU, "quick_gelu": QuickGELU}


def init_blocks(blocks: nn.ModuleList) -> None:
    """Initialise as CLIP does, scaled by width (openai/CLIP model.py, `initialize_parameters`), for both encoders.

    Projections into the residual stream are scaled by depth too: the sum of all branches starts as large as one.
    """
    for block in blocks:
        assert isinstance(block, Block)
        width = block.attn.proj.in_features
        into_stream = (2 * width * len(blocks)) ** -0.5
        nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
        nn.init.normal_(block.attn.proj.weight, std=into_stream)
        nn.init.normal_(block.mlp.fc1.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.fc2.weight, std=into_stream)
        for name, parameter in block.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)


def projection(kind: Projection, width: int, embed_dim: int) -> nn.Module:
    """A new projection from features to the joint space, (B, D) -> (B, E).

    Args:
        kind: "linear", "linear_bias", or "none" for the identity.
        width: D.
        embed_dim: E.
    """
    if kind == "none":
        return nn.Identity()
    linear = nn.Linear(width, embed_dim, bias=kind == "linear_bias")
    nn.init.normal_(linear.weight, std=width**-0.5)  # openai/CLIP model.py
    if kind == "linear_bias":
        nn.init.zeros_(linear.bias)
    return linear


def split_heads(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Cut projections into heads, (B, N, parts D) -> `parts` tensors (B, h, N, Dh).  Book eq. (6)."""
    return torch.unflatten(x, 2, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def join_heads(heads: Tensor) -> Tensor:
    """(B, h, N, Dh) -> (B, N, D): the heads side by side.  Book eq. (10)."""
    return heads.transpose(1, 2).flatten(2)
