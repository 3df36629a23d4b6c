"""Images seen anew at every epoch: shape, colour, line, background and blur, drawn per sample.

Each sample's numbers are a pure function of (seed, epoch, position), so that workers, ranks and resumes never change
them.  Works on whole batches: an image is a few matrix products, not a chain of library calls.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.training.recipe.augmentation import AugmentConfig

_DRAWS = 32  # uniform numbers a sample uses
_CACHED = 16 * 3 * 224**2  # levels augmented at once on a CPU: their floats stay in its cache
_ONE_COLOUR = 0.12  # largest distance between two channels of a drawing of one colour


def uniform_draws(seed: int, stream: int, epochs: np.ndarray, positions: np.ndarray, count: int) -> np.ndarray:
    """(B, count) numbers in [0, 1); row i is a pure function of (seed, stream, epochs[i], positions[i]).

    Philox counts instead of remembering (Salmon et al. 2011): a row needs no other row.
    """
    rows = []
    for epoch, position in zip(epochs, positions, strict=True):
        philox = np.random.Philox(key=[seed, stream], counter=[0, 0, int(epoch), int(position)])
        rows.append(np.random.Generator(philox).random(count))
    return np.stack(rows)


def augment(
    images: Tensor, config: AugmentConfig, seed: int, stream: int, epochs: np.ndarray, positions: np.ndarray
) -> Tensor:
    """uint8 (B, 3, H, W) on white -> uint8 (B, 3, H, W)."""
    return augment_by(images, config, augmentation_draws(seed, stream, epochs, positions))


def augmentation_draws(seed: int, stream: int, epochs: np.ndarray, positions: np.ndarray) -> Tensor:
    """The random numbers of `augment_by`, float32 (B, 32) on the CPU."""
    return torch.from_numpy(uniform_draws(seed, stream, epochs, positions, _DRAWS)).float()


def augment_by(images: Tensor, config: AugmentConfig, draws: Tensor) -> Tensor:
    """The same with random numbers that are there already, where the images are.

    Nothing waits for the device of the images, unless drawings of one colour are treated apart (stroke, ink, invert).

    Args:
        images: uint8 (B, 3, H, W) on any device.
        config: strengths.
        draws: (B, 32) on the CPU, where all that depends on a sample's numbers alone is computed.
    """
    at_once = max(1, _CACHED // images[0].numel()) if len(images) else 1
    if images.device.type == "cpu" and len(images) > at_once:
        parts = zip(images.split(at_once), draws.split(at_once), strict=True)
        return torch.cat([augment_by(part, config, own) for part, own in parts])
    u, v = iter(draws.T[:26]), draws.T[26:]  # each (B,); v: of drawings of one colour
    ink = (255 - images).float().div_(255)  # white is 0, so that what is moved in from outside is paper
    one_colour = _of_one_colour(ink, config)
    ink = _warp(ink, config, u)
    _stroke(ink, config, one_colour, v[0])
    _blur(ink, config, u)
    _outline(ink, config, u)
    _erase(ink, config, u)
    coloured = _colour(ink, config, u).clamp_(0, 1)
    _ink(coloured, config, one_colour, v[1], v[2:5])
    _invert(coloured, config, one_colour, v[5])
    return coloured.mul_(_to(255 * _paper(config, u), ink)).round_().to(torch.uint8)


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _each(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1): one number per image."""
    return values[:, None, None]


def _to(values: Tensor, ink: Tensor) -> Tensor:
    """Numbers of each sample, where the images are."""
    return values.to(ink.device, non_blocking=True)


def _numbers(chosen: Tensor, ink: Tensor) -> Tensor:
    """The numbers of the chosen images, counted on the CPU: a mask on a GPU would make the host wait."""
    return _to(chosen.nonzero()[:, 0], ink)


def _of_one_colour(ink: Tensor, config: AugmentConfig) -> Tensor:
    """Which images are drawings of one colour, (B,) on the CPU; none where no recipe asks."""
    if not (config.stroke or config.ink or config.invert):
        return torch.zeros(len(ink), dtype=torch.bool)
    return ((ink.amax(1) - ink.amin(1)).amax((1, 2)) < _ONE_COLOUR).cpu()


def _pixel_centres(count: int) -> Tensor:
    return (2 * torch.arange(count) + 1) / count - 1


def _warp(ink: Tensor, config: AugmentConfig, u: Iterator[Tensor]) -> Tensor:
    """Zoom, stretch, rotation, shear, shift and flip: one affine map per image."""
    size = _between(next(u), np.log(config.zoom[0]), np.log(config.zoom[1]))
    stretch = _between(next(u), -config.stretch, config.stretch)
    angle = _between(next(u), -config.rotate, config.rotate) * (np.pi / 180)
    shear = _between(next(u), -config.shear, config.shear)
    dx = _between(next(u), -config.shift, config.shift) * 2
    dy = _between(next(u), -config.shift, config.shift) * 2
    mirror = torch.where(next(u) < config.flip, -1.0, 1.0)
    across, down = torch.exp(-size - stretch / 2) * mirror, torch.exp(-size + stretch / 2)  # output -> input
    cos, sin = angle.cos(), angle.sin()
    y, x = _to(_pixel_centres(ink.shape[2])[:, None], ink), _to(_pixel_centres(ink.shape[3]), ink)  # in [-1, 1]
    maps = (across * cos, across * (shear * cos - sin), dx, down * sin, down * (shear * sin + cos), dy)
    xx, xy, x0, yx, yy, y0 = (_to(_each(part), ink) for part in maps)
    from_x = xx * x + (xy * y + x0)  # (B, H, W)
    from_y = yx * x + (yy * y + y0)
    grid = torch.stack([from_x, from_y], -1)
    return F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _blur(ink: Tensor, config: AugmentConfig, u: Iterator[Tensor]) -> None:
    """A Gaussian over the chosen images, across and down."""
    chosen = next(u) < config.blur
    sigma = _between(next(u), 0.4, 1.6)[chosen]
    if not len(sigma):
        return
    offsets = torch.arange(-3, 4)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(ink.shape[1], 0)  # (b C, 7)
    kernel, where = _to(kernel, ink), _numbers(chosen, ink)
    flat = ink[where].flatten(0, 1)[None]  # (1, b C, H, W)
    flat = F.conv2d(flat, kernel[:, None, :, None], padding=(3, 0), groups=len(kernel))
    flat = F.conv2d(flat, kernel[:, None, None, :], padding=(0, 3), groups=len(kernel))
    ink[where] = flat[0].unflatten(0, (-1, ink.shape[1]))


def _stroke(ink: Tensor, config: AugmentConfig, one_colour: Tensor, u: Tensor) -> None:
    """Lines grow towards the largest ink of each pixel's neighbours, or shrink towards the smallest."""
    strength = _between(u, -config.stroke, config.stroke)
    for chosen, sign in ((one_colour & (strength > 0), 1), (one_colour & (strength < 0), -1)):
        if bool(chosen.any()):
            where = _numbers(chosen, ink)
            body, share = ink[where], _to(_each(strength[chosen].abs())[:, None], ink)
            ink[where] = torch.lerp(body, sign * _largest_near(sign * body), share)


def _outline(ink: Tensor, config: AugmentConfig, u: Iterator[Tensor]) -> None:
    """Dark lines where colour changes, and sometimes nothing but the lines."""
    chosen = next(u) < config.line
    strength, bare = _between(next(u), 0.5, 3.0), next(u) < 0.25
    if not bool(chosen.any()):
        return
    where = _numbers(chosen, ink)
    body = ink[where]
    highest, lowest = _largest_near(body), -_largest_near(-body)
    lines = (highest - lowest).amax(1, keepdim=True) * _to(_each(strength[chosen])[:, None], ink)
    body.mul_(_to(_each(~bare[chosen])[:, None], ink))
    ink[where] = torch.maximum(body, lines.clamp_(max=1))


def _largest_near(z: Tensor) -> Tensor:
    """The largest of each pixel's 3 x 3 neighbours; a third of max_pool2d's time on a CPU."""
    z = F.pad(z, (1, 1, 1, 1), mode="replicate")
    z = torch.maximum(torch.maximum(z[..., :-2], z[..., 1:-1]), z[..., 2:])
    return torch.maximum(torch.maximum(z[..., :-2, :], z[..., 1:-1, :]), z[..., 2:, :])


def _erase(ink: Tensor, config: AugmentConfig, u: Iterator[Tensor]) -> None:
    chosen = next(u) < config.erase
    height, width = ink.shape[2:]
    side_y, side_x = _between(next(u), 0.1, 0.4), _between(next(u), 0.1, 0.4)
    top, left = next(u) * (1 - side_y), next(u) * (1 - side_x)
    y, x = torch.arange(height) / height, torch.arange(width) / width
    rows = (y >= top[:, None]) & (y < (top + side_y)[:, None]) & chosen[:, None]
    columns = (x >= left[:, None]) & (x < (left + side_x)[:, None])
    rows, columns = _to(rows, ink), _to(columns, ink)
    ink.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0)


_TO_GRAY = torch.tensor([0.299, 0.587, 0.114])


def _colour(ink: Tensor, config: AugmentConfig, u: Iterator[Tensor]) -> Tensor:
    """Saturation, hue, contrast and brightness of the ink: one 3 x 3 matrix per image, so that white stays white."""
    low, high = 1 - config.colour, 1 + config.colour
    saturation = torch.where(next(u) < config.gray, 0.0, _between(next(u), low, high))
    turn = _between(next(u), -config.hue, config.hue) * 2 * np.pi
    contrast, brightness = _between(next(u), low, high), _between(next(u), low, high)
    eye, gray = torch.eye(3), _TO_GRAY.expand(3, 3)
    third, root = 1 / 3, (1 / 3) ** 0.5
    spin = torch.tensor([[0, -root, root], [root, 0, -root], [-root, root, 0]])
    cos, sin = _each(turn.cos()), _each(turn.sin())
    rotation = cos * eye + (1 - cos) * third + sin * spin  # about the grey axis
    matrix = rotation @ (gray + _each(saturation) * (eye - gray))
    matrix = matrix * _each(contrast * (0.5 + 0.5 * brightness))
    ones = torch.ones(1, device=ink.device)
    return torch.baddbmm(ones, _to(matrix, ink), ink.flatten(2), alpha=-1).view_as(ink)  # 1 - matrix @ ink


def _ink(coloured: Tensor, config: AugmentConfig, one_colour: Tensor, u: Tensor, channels: Tensor) -> None:
    """Another colour for the chosen drawings: black becomes (0, 0, 0) to (0.8, 0.8, 0.8), white stays white."""
    chosen = one_colour & (u < config.ink)
    if bool(chosen.any()):
        where = _numbers(chosen, coloured)
        density = 1 - coloured[where].mean(1, keepdim=True)  # (b, 1, H, W)
        coloured[where] = 1 - density * _to((1 - 0.8 * channels.T[chosen])[:, :, None, None], coloured)


def _invert(coloured: Tensor, config: AugmentConfig, one_colour: Tensor, u: Tensor) -> None:
    """Light on dark for the chosen drawings."""
    chosen = one_colour & (u < config.invert)
    where = _numbers(chosen, coloured)
    coloured[where] = 1 - coloured[where]


def _paper(config: AugmentConfig, u: Iterator[Tensor]) -> Tensor:
    """The colour of the paper, (B, 3, 1, 1): white, or for the chosen up to 60 % darker in each channel."""
    chosen = next(u) < config.background
    tint = torch.stack([next(u), next(u), next(u)], 1) * 0.6 * chosen[:, None]
    return (1 - tint)[:, :, None, None]
