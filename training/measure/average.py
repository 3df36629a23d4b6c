"""Averages the weights of CLIPs (model soups, Wortsman et al. 2022; WiSE-FT, Wortsman et al. 2022)."""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

from vlm.checkpoint.load import load
from vlm.checkpoint.save import save
from vlm.embedder import Embedder
from vlm.errors import CheckpointError, InputError


def average(shares: Mapping[str, float], out: Path) -> None:
    """Write the average of models, weight by weight.

    Args:
        shares: {model: its share}; the shares add up to 1.  The models have one architecture, tokenizer and
            preprocessing; the last one gives those of the average.
        out: folder of the new model.

    Raises:
        InputError: the shares do not add up to 1, or one is negative.
        CheckpointError: the models differ in more than their weights.
    """
    if not shares or min(shares.values()) < 0 or not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise InputError(f"the shares are {list(shares.values())}; wanted numbers from 0 to 1 that add up to 1.")
    models = {source: load(source, device="cpu") for source in shares}
    (first, one), *others = models.items()
    for source, other in others:
        if (
            other.model.config.vision != one.model.config.vision
            or other.model.config.text != one.model.config.text
            or other.preprocess.config.identity() != one.preprocess.config.identity()
            or _files(other) != _files(one)
        ):
            raise CheckpointError(
                f"{first} and {source} have different architectures, preprocessing or tokenizers. Average models of "
                "one training."
            )
    states = {source: embedder.model.state_dict() for source, embedder in models.items()}
    made = list(models.values())[-1]
    made.model.load_state_dict(
        {name: sum(shares[source] * state[name] for source, state in states.items()) for name in states[first]}
    )
    made.calibration = None
    save(made, out)


def _files(embedder: Embedder) -> dict[str, bytes]:
    """The files of the tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        embedder.tokenizer.save(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
