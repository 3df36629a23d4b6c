"""Mean and standard deviation of the channels of a data set's images: `mean` and `std` of a new model's recipe."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from vlm.errors import DataError, ImageError
from vlm.images.bands import open_bands
from vlm.training.data.rows import ColumnNames
from vlm.training.data.sources import open_rows


class ChannelStatistics(NamedTuple):
    """Levels from 0 to 1, of each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    n: int  # images that were read
    left_out: int  # images that cannot be read

    def describe(self) -> str:
        """The lines for a recipe's [data], and what they were measured on."""
        mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (self.mean, self.std))
        left_out = f", {self.left_out} could not be read" if self.left_out else ""
        return f"mean = [{mean}]\nstd = [{std}]\n# measured on {self.n} images{left_out}"


def channel_statistics(
    data: str,
    channels: int = 3,
    *,
    splits: Sequence[str] = (),
    columns: ColumnNames | None = None,
    root: str | Path | None = None,
    sample: int = 10_000,
    seed: int = 0,
) -> ChannelStatistics:
    """Measure a data set: every image counts the same, whatever its size.

    Args:
        data: a folder, .csv, .jsonl, .parquet, .tar, or the name of a data set on the hub.
        channels: C, as the model will read the images: 1, 3, 4, or as many as .npy files and TIFFs have.
        splits: only these; empty takes all.
        columns, root: as `open_rows` has them.
        sample: so many images at most, drawn at random.
        seed: of the draw.

    Returns:
        Mean and standard deviation of each channel over the pixels of all images.

    Raises:
        DataError: no image can be read.
    """
    rows = open_rows(data, splits, columns, root)
    order = np.random.default_rng(seed).permutation(len(rows))[:sample]
    moments: list[np.ndarray] = []  # of each image the mean and the mean square, (2, C)
    left_out = 0
    for index in tqdm(order, desc="channels", unit="image", file=sys.stderr):
        try:
            levels = open_bands(rows.image(int(index)), channels).astype(np.float64)  # (H, W, C)
        except ImageError as error:
            left_out += 1
            print(f"{rows.uid(int(index))} left out: {error}", file=sys.stderr)
            continue
        moments.append(np.stack([levels.mean((0, 1)), np.square(levels).mean((0, 1))]))
    if not moments:
        raise DataError(
            f"{data} has no image that can be read with {channels} channels. Say how many it has: --channels."
        )
    mean, square = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return ChannelStatistics(tuple(mean.tolist()), tuple(std.tolist()), len(moments), left_out)
