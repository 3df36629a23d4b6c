"""Augmentation settings of training/data/augment.py (CLIP) and training/data/transforms.py (ViT)."""

from dataclasses import dataclass

from vlm.config import StrictConfig, check_not_negative, check_share
from vlm.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(StrictConfig):
    """[augment] of a CLIP recipe.  Strengths; 0 turns a part off.

    The defaults are gentle and suit photographs.  Images are not mirrored: text in them would change its meaning.
    """

    zoom: tuple[float, float] = (0.85, 1.15)  # side lengths relative to the frame, log-uniform
    stretch: float = 0.06  # width against height, log units either way
    rotate: float = 5.0  # degrees either way
    shear: float = 0.04  # tangent either way
    shift: float = 0.04  # of the frame either way
    flip: float = 0.0  # probability
    colour: float = 0.2  # saturation, brightness, contrast: factors within 1 +- this
    hue: float = 0.01  # turns of the colour circle either way
    gray: float = 0.03  # probability
    line: float = 0.0  # probability of a drawn outline (for drawings on white)
    blur: float = 0.1  # probability
    background: float = 0.0  # probability that a white background becomes coloured (for drawings on white)
    erase: float = 0.0  # probability of a blank rectangle
    # for drawings of one colour on white, such as icons; drawings of several colours stay as they are
    ink: float = 0.0  # probability of another colour
    invert: float = 0.0  # probability of light on dark
    stroke: float = 0.0  # thicker or thinner lines, up to this share of a pixel's neighbourhood either way

    def __post_init__(self) -> None:
        check_not_negative(self, "stretch", "rotate", "shear", "shift")
        check_share(self, "flip", "colour", "hue", "gray", "line", "blur", "background", "erase")
        check_share(self, "ink", "invert", "stroke")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise RecipeError(f"zoom is {self.zoom}; wanted two positive factors, the smaller one first.")


@dataclass(frozen=True, kw_only=True)
class TransformConfig(StrictConfig):
    """[transform] of a ViT recipe.  Names and meanings are torchvision's; the defaults leave an image unchanged."""

    padding: int = 0  # RandomCrop, pixels on every side
    scale: tuple[float, float] = (1.0, 1.0)  # RandomResizedCrop, share of the area
    flip: float = 0.0  # RandomHorizontalFlip, probability
    rotate: float = 0.0  # RandomAffine, degrees either way
    colour: float = 0.0  # ColorJitter: brightness, contrast, saturation within 1 +- this
    rand_augment: int = 0  # RandAugment, magnitude of 0..30, two operations an image (Cubuk et al. 2020)
    erase: float = 0.0  # RandomErasing, probability
    fill: int = 0  # grey level of what is moved in from outside, and of erased parts, 0..255

    def __post_init__(self) -> None:
        check_not_negative(self, "padding", "rotate", "colour")
        check_share(self, "flip", "erase")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise RecipeError(f"scale is {self.scale}; wanted two shares of the area in (0, 1], the smaller one first.")
        if not 0 <= self.rand_augment <= 30 or not 0 <= self.fill <= 255:
            raise RecipeError(
                f"rand_augment must be 0 to 30 and fill 0 to 255, got {self.rand_augment} and {self.fill}."
            )
