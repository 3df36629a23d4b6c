"""Maps a cosine similarity to the probability of a match; fitted to validation data."""

from dataclasses import dataclass

from torch import Tensor

from vlm.config import StrictConfig
from vlm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Calibration(StrictConfig):
    """P(this image is a correct answer | its cosine with the text) = sigmoid(scale cos + bias): Platt 1999.

    It does not depend on the other images, so it is the same in any index, with any filter.  `training.calibrate` fits
    it to the best hits of validation queries; it holds for images and texts, and shares of correct ones, like those.
    """

    scale: float
    bias: float
    line: float = 0.1  # a probability; a search whose best hit is below it says "no good match"
    data: str = ""  # the data it was fitted to

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ConfigError(f"scale is {self.scale}; it must be positive: a higher cosine is a more probable match.")
        if not 0 < self.line < 1:
            raise ConfigError(f"line is {self.line}; it must be a probability between 0 and 1.")

    def probability(self, cosines: Tensor) -> Tensor:
        """Probabilities of cosines of any shape, in the same shape."""
        return (self.scale * cosines + self.bias).sigmoid()
