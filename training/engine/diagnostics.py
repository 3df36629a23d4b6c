"""Warnings about a run in progress: a collapsed model, a saturated temperature, a slow loader; each is given once."""

import math
from collections import deque
from typing import NamedTuple

WINDOW = 50  # steps that a condition must last
_NEAR_CHANCE = 0.02  # of the chance loss
_WAITING = 0.25  # of the time


class Signs(NamedTuple):
    """Numbers of one step."""

    loss: float
    logit_scale: float | None  # log(1 / temperature)
    seconds: float
    waiting: float  # seconds of these spent waiting for data


class Diagnostics:
    """Checks the numbers of each step.

    Args:
        chance_loss: of a model that gives all samples the same output, ln(B) for CLIP.
        max_logit_scale: the limit of the temperature.
        patience: steps before a loss near chance counts.
        workers: loader processes of the run.
    """

    def __init__(self, *, chance_loss: float, max_logit_scale: float, patience: int, workers: int):
        self.chance_loss, self.max_logit_scale = chance_loss, max_logit_scale
        self.patience, self.workers = patience, workers
        self.recent: deque[Signs] = deque(maxlen=WINDOW)
        self.said: set[str] = set()

    def look(self, step: int, signs: Signs) -> list[str]:
        """The new warnings after a step, usually none.

        Args:
            step: its number, from 0.
            signs: its numbers.
        """
        self.recent.append(signs)
        if len(self.recent) < WINDOW:
            return []
        found = {"collapse": self._collapse(step), "temperature": self._temperature(), "loader": self._loader()}
        new = [text for name, text in found.items() if text and name not in self.said]
        self.said |= {name for name, text in found.items() if text}
        return new

    def _collapse(self, step: int) -> str | None:
        mean = sum(signs.loss for signs in self.recent) / WINDOW
        if step < self.patience or abs(mean - self.chance_loss) > _NEAR_CHANCE * self.chance_loss:
            return None
        return (
            f"The loss has been {mean:.3f} for {WINDOW} steps; chance is {self.chance_loss:.3f}: all embeddings are "
            "alike. Lower the learning rates (lr, muon_lr) or warm up longer (warmup_steps); if that does not help, "
            "check that the captions belong to the images."
        )

    def _temperature(self) -> str | None:
        limit = math.log(self.max_logit_scale)
        if any(signs.logit_scale is None or signs.logit_scale < limit - 1e-4 for signs in self.recent):
            return None
        return (
            f"The logit scale has been at its limit of {self.max_logit_scale:g} for {WINDOW} steps, usually because "
            "the model overfits the training images. Train on more data, with more augmentation or for fewer steps; "
            "or raise max_logit_scale."
        )

    def _loader(self) -> str | None:
        share = sum(signs.waiting for signs in self.recent) / sum(signs.seconds for signs in self.recent)
        if share < _WAITING:
            return None
        return (
            f"The model waits for data {share:.0%} of the time. Raise workers in [data] (now {self.workers}) if there "
            "are free processor cores, or reduce the augmentation."
        )
