"""A classifier's transforms for a whole batch at once, where the images are: training/data/transforms.py on a GPU.

The random numbers are drawn in the loader processes, those that torchvision's transforms draw there.  Nothing waits for
the device.  Each transform is one grey level from torchvision's at most; colours stretch the level before them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.training.recipe.augmentation import TransformConfig

# columns of the draws
PAD = slice(0, 2)  # top and left of the frame in the padded image
CROP = slice(2, 6)  # top, left, height, width
FLIP, ANGLE = 6, 7  # 0 or 1; degrees
FACTORS = slice(8, 11)  # of brightness, contrast, saturation
ORDER = slice(11, 15)  # in which they are applied; 3 is none of them
ERASE = slice(15, 19)  # top, left, height, width; of no height: nothing
COUNT = 19

_TO_GREY = (0.2989, 0.587, 0.114)


def transform_by(images: Tensor, config: TransformConfig, draws: Tensor) -> Tensor:
    """The images of a batch as a classifier sees them.

    Args:
        images: uint8 (B, C, H, W) on any device.
        config: strengths; without `rand_augment`.
        draws: (B, 19) on the CPU, from `Transform.draw`.

    Returns:
        uint8 (B, C, H, W).
    """
    drawn = draws.to(images.device, non_blocking=True)
    levels = images.float()
    if config.padding:
        levels = _crop(levels, config, drawn[:, PAD])
    if config.scale != (1.0, 1.0):
        levels = _resized_crop(levels, drawn[:, CROP])
    if config.flip:
        levels = torch.where(drawn[:, FLIP, None, None, None] > 0, levels.flip(-1), levels)
    if config.rotate:
        levels = _rotate(levels, config, drawn[:, ANGLE])
    if config.colour:
        levels = _colour(levels, drawn[:, FACTORS], drawn[:, ORDER])
    if config.erase:
        levels = _erase(levels, config, drawn[:, ERASE])
    return levels.to(torch.uint8)


def _crop(levels: Tensor, config: TransformConfig, corner: Tensor) -> Tensor:
    """The frame at a corner (B, 2) of the image with `padding` around it."""
    H, W = levels.shape[2:]
    rows = corner[:, :1].long() + torch.arange(H, device=levels.device) - config.padding  # (B, H)
    columns = corner[:, 1:].long() + torch.arange(W, device=levels.device) - config.padding  # (B, W)
    inside = _within(rows, H)[:, None, :, None] & _within(columns, W)[:, None, None, :]
    taken = levels.gather(2, rows.clamp(0, H - 1)[:, None, :, None].expand_as(levels))
    taken = taken.gather(3, columns.clamp(0, W - 1)[:, None, None, :].expand_as(levels))
    return torch.where(inside, taken, config.fill)


def _within(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def _resized_crop(levels: Tensor, box: Tensor) -> Tensor:
    """The box (B, 4) of each image at full size, with a triangle filter and antialiasing: two matrix products."""
    down, across = (
        _filter(box[:, at], box[:, at + 2], side) for at, side in zip((0, 1), levels.shape[2:], strict=True)
    )
    return (down[:, None] @ levels @ across[:, None].transpose(-1, -2)).round_().clamp_(0, 255)


def _filter(first: Tensor, length: Tensor, side: int) -> Tensor:
    """Weights (B, side, side) of the old pixels in each new one, of `length` (B,) pixels from `first` (B,) on."""
    places = torch.arange(side, device=first.device) + 0.5
    scale = (length / side)[:, None, None]
    centres = places[:, None] * scale  # (B, side, 1), from the begin of the box
    olds = (places - first[:, None])[:, None]  # (B, 1, side)
    weights = (1 - (olds - centres).abs() / scale.clamp_min(1)).clamp_min(0)
    weights = weights * ((olds > 0) & (olds < length[:, None, None]))
    return weights / weights.sum(-1, keepdim=True)


def _rotate(levels: Tensor, config: TransformConfig, angle: Tensor) -> Tensor:
    H, W = levels.shape[2:]
    turn = angle.deg2rad()[:, None, None]
    cos, sin = turn.cos(), turn.sin()
    x = torch.arange(W, device=levels.device) - (W - 1) / 2
    y = (torch.arange(H, device=levels.device) - (H - 1) / 2)[:, None]
    grid = torch.stack([(cos * x + sin * y) / (W / 2), (cos * y - sin * x) / (H / 2)], -1)  # output -> input
    moved = F.grid_sample(levels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    inside = F.grid_sample(torch.ones_like(levels[:, :1]), grid, mode="bilinear", align_corners=False)
    return ((moved - config.fill) * inside + config.fill).round_().clamp_(0, 255)  # as torchvision, at the border too


def _colour(levels: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast and saturation in each image's own order; fractions of a level are cut off."""
    brightness, contrast, saturation = (factors[:, at, None, None, None] for at in range(3))
    for place in range(order.shape[1]):
        which = order[:, place, None, None, None]
        grey = _grey(levels)
        mean = grey.mean((1, 2, 3), keepdim=True)
        jittered = torch.where(which == 0, levels * brightness, levels)
        jittered = torch.where(which == 1, levels * contrast + mean * (1 - contrast), jittered)
        if levels.shape[1] == 3:
            jittered = torch.where(which == 2, levels * saturation + grey * (1 - saturation), jittered)
        levels = jittered.clamp(0, 255).floor_()
    return levels


def _grey(levels: Tensor) -> Tensor:
    """(B, 1, H, W), whole levels."""
    if levels.shape[1] == 1:
        return levels
    red, green, blue = levels.split(1, 1)
    return (red * _TO_GREY[0] + green * _TO_GREY[1] + blue * _TO_GREY[2]).floor_()


def _erase(levels: Tensor, config: TransformConfig, box: Tensor) -> Tensor:
    H, W = levels.shape[2:]
    top, left, height, width = (box[:, at, None] for at in range(4))
    rows, columns = torch.arange(H, device=levels.device), torch.arange(W, device=levels.device)
    down = (rows >= top) & (rows < top + height)
    across = (columns >= left) & (columns < left + width)
    return torch.where(down[:, None, :, None] & across[:, None, None, :], config.fill, levels)
