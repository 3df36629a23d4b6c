"""The names of the classes of a classifier."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

from vlm.errors import InputError


def unique_labels(labels: Sequence[str]) -> Sequence[str]:
    """The labels; `InputError` where several classes have one name, in whichever form of Unicode."""
    counts = Counter(unicodedata.normalize("NFC", label) for label in labels)
    if twice := [label for label, count in counts.items() if count > 1]:
        raise InputError(f"Several classes have one name: {', '.join(twice)}. Give each class its own name.")
    return labels
