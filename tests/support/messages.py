"""What a test checks of an error message: its kind, that it is one line, and the facts in it; not the sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(kind: type[Exception], *facts: str) -> Iterator[list[Exception]]:
    """The code inside raises `kind`, in one line that holds every fact: names, numbers, what to do.

    Yields a list that receives the error.
    """
    errors: list[Exception] = []
    with pytest.raises(kind) as caught:
        yield errors
    errors.append(caught.value)
    text = str(caught.value)
    assert "\n" not in text
    assert not [fact for fact in facts if fact not in text], text
