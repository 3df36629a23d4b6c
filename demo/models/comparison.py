"""Several models on the same image and labels: rankings and times."""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

import vlm
from vlm.demo.page.texts import PageError
from vlm.images.open import ImageSource

RUNS = 5  # timed runs; the median counts


class TimedRanking(NamedTuple):
    """The ranking of one model and its time."""

    name: str
    ranking: list[tuple[str, float]]
    """(label, probability), most probable first."""
    milliseconds: float
    """To embed one image, median of `RUNS`; labels not counted."""
    parameters: int


def compare(
    named: Sequence[tuple[str, vlm.Embedder]], source: ImageSource, labels: Sequence[str]
) -> list[TimedRanking]:
    """Rank the same labels with several models, and time them.

    Args:
        named: (name, model) each.
        source: the image.
        labels: distinct.

    Raises:
        PageError: not a readable image.
    """
    try:
        image = vlm.open_image(source)
    except vlm.ImageError as error:
        raise PageError(error.reason) from error
    probabilities = [vlm.classify(embedder, [image], labels)[0].tolist() for _, embedder in named]  # also warms up
    times: list[list[float]] = [[] for _ in named]
    for _ in range(RUNS):  # alternating, so that other load on the machine slows all models alike
        for (_, embedder), of_model in zip(named, times, strict=True):
            start = time.perf_counter()
            embedder.embed_images([image])
            of_model.append(1000 * (time.perf_counter() - start))
    return [
        TimedRanking(
            name,
            sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1]),
            statistics.median(of_model),
            sum(weight.numel() for weight in embedder.model.parameters()),
        )
        for (name, embedder), row, of_model in zip(named, probabilities, times, strict=True)
    ]


def threads() -> int:
    """Processor threads that a model may use."""
    return torch.get_num_threads()
