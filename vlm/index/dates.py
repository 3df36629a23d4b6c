"""When an image was taken, and which dates a search may name."""

import re
import warnings
from datetime import datetime

from PIL import Image

from vlm.errors import InputError

_EXIF_BLOCK, _ORIGINAL, _DIGITIZED, _CHANGED = 0x8769, 0x9003, 0x9004, 0x0132
_FIRST_YEAR = 1800  # no photograph is older; year 1 is what programs write for "unknown"
_ZONE = r"(Z|[+-]\d\d:?\d\d)?"
_STAMP = re.compile(
    r"(\d{4})[:/.-](\d{1,2})[:/.-](\d{1,2})"  # EXIF writes 2024:05:01, others 2024-05-01
    rf"(?:[ T]+(\d{{1,2}}):(\d{{1,2}})(?::(\d{{1,2}})(?:[.,]\d+)?)?\s*{_ZONE})?"
)
_LIMIT = re.compile(
    rf"(\d{{4}})(?:-(\d\d)(?:-(\d\d)(?:[T ](\d\d)(?::(\d\d)(?::(\d\d)(?:\.\d+)?)?)?{_ZONE})?)?)?", re.ASCII
)
_LENGTHS = (4, 7, 10, 13, 16, 19)  # of a year, a month, a day ... in "2024-05-01 12:00:00"


def capture_time(exif: Image.Exif) -> str | None:
    """When an image was taken, from the first EXIF date that exists in the calendar.

    Args:
        exif: the tags of an opened image.

    Returns:
        "2024-05-01 12:00:00", local time of the camera, from DateTimeOriginal, DateTimeDigitized or DateTime; None
        where none of them is a date.
    """
    with warnings.catch_warnings(action="ignore"):  # Pillow warns of damaged EXIF blocks
        try:
            block = exif.get_ifd(_EXIF_BLOCK)
            values = block.get(_ORIGINAL), block.get(_DIGITIZED), exif.get(_CHANGED)
        except Exception:  # Pillow's parser raises almost anything on damaged bytes
            return None
    return next((time for value in values if (time := _calendar_time(value)) is not None), None)


def _calendar_time(value: object) -> str | None:
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    match = _STAMP.fullmatch(text.strip("\0 \t\r\n"))
    if match is None:
        return None
    try:
        year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
        time = datetime(year, month, day, hour, minute, second)
    except ValueError:  # month 13, 30 February
        return None
    return None if time.year < _FIRST_YEAR else time.isoformat(" ")


def is_calendar_time(text: str) -> bool:
    """Returns True if a stored date is one that `capture_time` returns."""
    return _calendar_time(text) == text


def date_limit(text: str) -> str:
    """A date of `--since` or `--until` in the form that stored dates are compared with.

    Args:
        text: an ISO date or time: 2024, 2024-05, 2024-05-01, 20240501, 2024-05-01T12:00; a time zone is converted to
            local time.

    Returns:
        As much of "2024-05-01 12:00:00" as was given.

    Raises:
        InputError: for anything that is not a date of the calendar.
    """
    compact = re.fullmatch(r"(\d{4})(\d\d)(\d\d)", text, re.ASCII)
    match = _LIMIT.fullmatch("-".join(compact.groups()) if compact else text)
    if match is None:
        raise InputError(f"{text[:40]!r} is not a date. Write 2024, 2024-05, 2024-05-01 or 2024-05-01T12:00.")
    *parts, zone = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    try:
        year, month, day, hour, minute, second = [*numbers, *(1, 1, 1, 0, 0, 0)[len(numbers) :]]
        time = datetime(year, month, day, hour, minute, second)
        if zone:
            time = datetime.fromisoformat(time.isoformat() + zone).astimezone().replace(tzinfo=None)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{text[:40]!r} is not in the calendar ({error}). Write 2024-05 or 2024-05-01, months 01 to 12."
        ) from error
    return time.isoformat(" ")[: _LENGTHS[len(numbers) - 1]]
