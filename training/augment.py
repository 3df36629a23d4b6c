"""Pictures seen anew at every epoch: shape, colour, line, background and blur, drawn per sample.

Each sample's numbers are a pure function of (seed, epoch, position), so that workers, ranks and resumes never change
them.  Works on whole batches: a picture is a few matrix products, not a chain of library calls.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.config import StrictConfig


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(StrictConfig):
    """Strengths; 0 turns a part off.  No flip by default: there is text in pictures, and left is not right."""

    zoom: tuple[float, float] = (0.7, 1.3)  # side lengths relative to the frame, log-uniform
    stretch: float = 0.15  # width against height, log units either way
    rotate: float = 12.0  # degrees either way
    shear: float = 0.1  # tangent either way
    shift: float = 0.1  # of the frame either way
    flip: float = 0.0  # probability
    colour: float = 0.5  # saturation, brightness, contrast: factors within 1 +- this
    hue: float = 0.05  # turns of the colour circle either way
    gray: float = 0.1  # probability
    line: float = 0.3  # probability of a drawn outline
    blur: float = 0.3  # probability
    background: float = 0.3  # probability that white paper becomes coloured
    erase: float = 0.2  # probability of a blank rectangle


_DRAWS = 32  # uniform numbers a sample uses, some spare


def uniform_draws(seed: int, stream: int, epochs: np.ndarray, positions: np.ndarray, count: int) -> np.ndarray:
    """(B, count) numbers in [0, 1); row i is a pure function of (seed, stream, epochs[i], positions[i]), by counter-based Philox."""
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, int(epoch), int(position)])).random(count)
        for epoch, position in zip(epochs, positions, strict=True)
    ]
    return np.stack(rows)


def augment(
    images: Tensor, config: AugmentConfig, seed: int, stream: int, epochs: np.ndarray, positions: np.ndarray
) -> Tensor:
    """uint8 (B, 3, H, W) on white -> uint8 (B, 3, H, W)."""
    u = iter(torch.from_numpy(uniform_draws(seed, stream, epochs, positions, _DRAWS)).float().T)  # each (B,)
    ink = 1 - images.float() / 255  # white is 0, so that what is moved in from outside is paper
    ink = _warp(ink, config, u)
    ink = _blur(ink, config, u)
    ink = _outline(ink, config, u)
    ink = _erase(ink, config, u)
    pictures = _colour(1 - ink, config, u)
    pictures = _background(pictures, config, u)
    return (pictures.clamp_(0, 1) * 255).round_().to(torch.uint8)


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _warp(ink: Tensor, config: AugmentConfig, u) -> Tensor:
    size = _between(next(u), np.log(config.zoom[0]), np.log(config.zoom[1]))
    stretch = _between(next(u), -config.stretch, config.stretch)
    angle = _between(next(u), -config.rotate, config.rotate) * (np.pi / 180)
    shear = _between(next(u), -config.shear, config.shear)
    dx = _between(next(u), -config.shift, config.shift) * 2
    dy = _between(next(u), -config.shift, config.shift) * 2
    mirror = torch.where(next(u) < config.flip, -1.0, 1.0)
    across, down = torch.exp(-size - stretch / 2) * mirror, torch.exp(-size + stretch / 2)  # output -> input
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([across * cos, across * (shear * cos - sin), dx], 1),
            torch.stack([down * sin, down * (shear * sin + cos), dy], 1),
        ],
        1,
    )  # (B, 2, 3)
    grid = F.affine_grid(theta, list(ink.shape), align_corners=False)
    return F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _blur(ink: Tensor, config: AugmentConfig, u) -> Tensor:
    chosen = next(u) < config.blur
    sigma = _between(next(u), 0.4, 1.6)[chosen]
    if not len(sigma):
        return ink
    offsets = torch.arange(-3, 4)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(ink.shape[1], 0)  # (b C, 7)
    part = ink[chosen]
    flat = part.reshape(1, -1, *part.shape[2:])
    flat = F.conv2d(flat, kernel[:, None, :, None], padding=(3, 0), groups=len(kernel))
    flat = F.conv2d(flat, kernel[:, None, None, :], padding=(0, 3), groups=len(kernel))
    out = ink.clone()
    out[chosen] = flat.view_as(part)
    return out


def _outline(ink: Tensor, config: AugmentConfig, u) -> Tensor:
    """Dark lines where colour changes, and sometimes nothing but the lines."""
    chosen = next(u) < config.line
    strength, bare = _between(next(u), 0.5, 3.0), next(u) < 0.25
    if not bool(chosen.any()):
        return ink
    part = ink[chosen]
    local_max = F.max_pool2d(part, 3, stride=1, padding=1)
    local_min = -F.max_pool2d(-part, 3, stride=1, padding=1)
    lines = (local_max - local_min).amax(1, keepdim=True) * strength[chosen][:, None, None, None]
    body = part * (~bare[chosen]).float()[:, None, None, None]
    out = ink.clone()
    out[chosen] = torch.maximum(body, lines.clamp(max=1).expand_as(body))
    return out


def _erase(ink: Tensor, config: AugmentConfig, u) -> Tensor:
    chosen = (next(u) < config.erase).float()
    height, width = ink.shape[2:]
    side_y, side_x = _between(next(u), 0.1, 0.4), _between(next(u), 0.1, 0.4)
    top, left = next(u) * (1 - side_y), next(u) * (1 - side_x)
    y, x = torch.arange(height) / height, torch.arange(width) / width
    rows = (y >= top[:, None]) & (y < (top + side_y)[:, None])
    columns = (x >= left[:, None]) & (x < (left + side_x)[:, None])
    hole = (rows[:, :, None] & columns[:, None, :]).float() * chosen[:, None, None]
    return ink * (1 - hole[:, None])


_TO_GRAY = torch.tensor([0.299, 0.587, 0.114])


def _colour(pictures: Tensor, config: AugmentConfig, u) -> Tensor:
    """Saturation, hue and brightness as one 3 x 3 matrix per picture, then contrast about the middle."""
    low, high = 1 - config.colour, 1 + config.colour
    saturation = torch.where(next(u) < config.gray, 0.0, _between(next(u), low, high))
    turn = _between(next(u), -config.hue, config.hue) * 2 * np.pi
    contrast, brightness = _between(next(u), low, high), _between(next(u), low, high)
    eye, gray = torch.eye(3), _TO_GRAY.expand(3, 3)
    third, root = 1 / 3, (1 / 3) ** 0.5
    spin = torch.tensor([[0, -root, root], [root, 0, -root], [-root, root, 0]])
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    rotation = cos * eye + (1 - cos) * third + sin * spin  # about the grey axis
    matrix = rotation @ (gray + saturation[:, None, None] * (eye - gray))
    ink = torch.einsum("bij,bjhw->bihw", matrix, 1 - pictures)  # white stays white
    ink = (ink - 0.5) * contrast[:, None, None, None] + 0.5 * contrast[:, None, None, None]
    return 1 - ink * (0.5 + 0.5 * brightness[:, None, None, None])


def _background(pictures: Tensor, config: AugmentConfig, u) -> Tensor:
    chosen = (next(u) < config.background).float()
    tint = torch.stack([next(u), next(u), next(u)], 1) * 0.6 * chosen[:, None]  # (B, 3), how much of each colour goes
    return pictures.clamp(0, 1) * (1 - tint)[:, :, None, None]
