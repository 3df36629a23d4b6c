"""Signals that stop a run after the current step."""

import signal
from typing import Self


class StopSignals:
    """Notes SIGTERM and SIGINT while the `with` block runs; a second SIGINT raises KeyboardInterrupt at once."""

    seen = ""  # the signal's name

    def __enter__(self) -> Self:
        self.old = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.seen = signal.Signals(number).name
