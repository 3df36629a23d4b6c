"""Filters of a search: path, date and size."""

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from vlm.errors import InputError
from vlm.index.dates import date_limit

MAX_PATTERN = 1000  # characters
FILE_DATE = "coalesce(content.taken, datetime(file.mtime / 1000000000, 'unixepoch', 'localtime'), '')"
_PATH = "coalesce(file.normalized, CAST(file.path AS TEXT))"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Conditions of a search; `make_filter` checks them.  The date is that of EXIF, else that of the file."""

    glob: str | None = None  # of the path; `*` crosses folders; a pattern that does not begin at / may begin anywhere
    since: str | None = None  # the first date that counts
    until: str | None = None  # the last date that counts, all of that day
    min_side: int | None = None  # pixels of the shorter side

    def sql(self) -> tuple[str, list[str | int | bytes]]:
        """The conditions as SQL, and the values for its question marks."""
        conditions = ["NOT file.missing"]
        values: list[str | int | bytes] = []
        if self.glob is not None:
            anchored = self.glob.startswith(("/", "*")) or Path(self.glob).is_absolute()
            conditions.append(f"{_PATH} GLOB CAST(? AS TEXT)")
            values.append(os.fsencode(self.glob if anchored else f"*/{self.glob}"))  # it may be no UTF-8
        if self.since is not None:
            conditions.append(f"{FILE_DATE} >= ?")
            values.append(self.since)
        if self.until is not None:
            conditions.append(f"{FILE_DATE} <= ?")
            values.append(self.until + "~")  # sorts after every time that begins like this
        if self.min_side is not None:
            conditions.append("min(content.width, content.height) >= ?")
            values.append(self.min_side)
        return " AND ".join(conditions), values


def make_filter(
    *,
    glob: str | None = None,
    since: str | None = None,
    until: str | None = None,
    min_side: int | None = None,
    literal: bool = False,
) -> Filter:
    """Check the conditions of a search.

    Args:
        glob: pattern of the path; `*` crosses folders, `[ab]` is one of two characters, `[!ab]` any other.
        since: first date, see `date_limit`.
        until: last date.
        min_side: least pixels of the shorter side.
        literal: take `*`, `?` and `[` of `glob` as they are, and find every path that contains it.

    Raises:
        InputError: for a date that is none, a pattern no path can match, a side that is no number of pixels.
    """
    if glob is None and literal:
        raise InputError("literal says how a glob is read, and there is none. Give glob too.")
    if glob is not None:
        if len(glob) > MAX_PATTERN or "\0" in glob:
            raise InputError(
                f"The pattern {glob[:40]!r}... of {len(glob):,} characters can be of no path: it is longer than "
                f"{MAX_PATTERN:,} or has a NUL. Shorten it."
            )
        glob = unicodedata.normalize("NFC", glob)
        if literal:
            quoted = re.sub(r"([*?[])", r"[\1]", glob)
            glob = f"*{quoted}*"
        else:
            glob = os.path.expanduser(glob).removeprefix("./").replace("[!", "[^")  # the shell's spelling of SQLite's
    if min_side is not None and not 0 < min_side < 2**31:
        raise InputError(f"min_side is {min_side}, wanted a number of pixels from 1 to {2**31 - 1}.")
    first, last = (None if date is None else date_limit(date) for date in (since, until))
    if first is not None and last is not None and first > last + "~":
        raise InputError(f"since {since} is after until {until}, so no date lies between. Exchange them.")
    return Filter(glob=glob, since=first, until=last, min_side=min_side)
