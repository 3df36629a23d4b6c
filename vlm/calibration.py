"""From a cosine to the probability of a match, where validation data has shown what a cosine is worth."""

from dataclasses import dataclass

from torch import Tensor

from vlm.config import StrictConfig


@dataclass(frozen=True, kw_only=True)
class Calibration(StrictConfig):
    """P(this image is a correct answer | its cosine with the text) = sigmoid(scale cos + bias): Platt 1999.

    It knows nothing of the other images, so it is the same in any index, with any filter.  `training.calibrate` fits
    it to the best hits of validation queries; what it promises holds where images, texts and the share of correct
    ones are like those.
    """

    scale: float
    bias: float
    line: float = 0.1  # probability; when even the best hit is below, there is "no good match"
    data: str = ""  # what it was fitted to

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale is {self.scale}: a higher cosine must make a match more probable.")
        if not 0 < self.line < 1:
            raise ValueError(f"line is a probability between 0 and 1, got {self.line}.")

    def probability(self, cosines: Tensor) -> Tensor:
        """Of any shape, same shape."""
        return (self.scale * cosines + self.bias).sigmoid()
