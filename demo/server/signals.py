"""Stop cleanly on every signal that ends a process."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = [signal.SIGTERM, *([signal.SIGHUP, signal.SIGQUIT] if os.name == "posix" else [])]


class _Stopped(BaseException):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def cleaned_up_on_signals() -> Iterator[None]:
    """Leave the block on SIGTERM, SIGHUP and SIGQUIT, so that its `with` statements clean up, then end by that signal.

    SIGINT raises KeyboardInterrupt as usual.  A signal that is ignored (nohup) stays ignored.  Main thread only.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for ending in _ENDING:
            signal.signal(ending, signal.SIG_IGN)
        raise _Stopped(number)

    before = {number: signal.signal(number, stop) for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    except _Stopped as stopped:
        signal.signal(stopped.number, signal.SIG_DFL)
        os.kill(os.getpid(), stopped.number)
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)
