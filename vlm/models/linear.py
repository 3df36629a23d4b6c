"""Linear layers that use the faster of PyTorch's two float32 matrix products.

PyTorch multiplies float32 matrices with MKL.  On AMD processors with AVX-512, MKL reaches half the speed of oneDNN,
which PyTorch uses for convolutions.  There, from some 100 rows on, a linear layer is computed as a 1 x 1 convolution:
half the time, forward and backward, and the same sums except for the order of their terms.  On all other machines this
is `torch.nn.Linear`.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_ROWS = 128  # below, cutting matrices into oneDNN's blocks takes longer than it gains


class Linear(nn.Linear):
    """y = x W^T + b, (..., K) -> (..., N)."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x (..., K), weight (N, K), bias (N,) -> (..., N)."""
    return _as_convolution(x, weight, bias) if _onednn_gains(x) else F.linear(x, weight, bias)


def _as_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` as a convolution: rows are pixels, columns are channels; only strides change.

    The rows form 16 images, since with one thread PyTorch does not use oneDNN for fewer.  oneDNN compiles and keeps
    code for each number of rows; batches of captions have many numbers, so rows that do not fill 16 images are padded
    with zeros to a multiple of 64.
    """
    rows, columns = x.numel() // x.shape[-1], x.shape[-1]
    lacking = -rows % 64 if rows % 16 else 0
    filled = F.pad(x.reshape(rows, columns), (0, 0, 0, lacking)) if lacking else x
    pixels = filled.reshape(16, 1, -1, columns).permute(0, 3, 1, 2)  # (16, K, 1, .), channels last in memory
    y = F.conv2d(pixels, weight[:, :, None, None], bias)  # (16, N, 1, .)
    return y.permute(0, 2, 3, 1).reshape(rows + lacking, -1)[:rows].view(*x.shape[:-1], -1)


def _onednn_gains(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # nor exporting: other formats have an operator for linear layers
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and mkl_holds_back()
        and not torch.is_autocast_enabled("cpu")  # bfloat16 uses oneDNN anyway
    )


@cache
def mkl_holds_back() -> bool:
    """Returns True on an AMD processor with AVX-512 where PyTorch has both MKL and oneDNN."""
    able = torch.cpu.get_capabilities()
    maker_known = str(able.get("cpu_name", "")).startswith("AMD")
    return bool(
        maker_known
        and able.get("avx512_f")
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
    )
