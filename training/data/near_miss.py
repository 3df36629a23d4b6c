"""Suggests the file that a missing path was meant to name."""

import difflib
import os
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache


def near_miss(path: str) -> str:
    """Why there is no such file, as far as that can be seen, and what to write instead; one line."""
    if re.match(r"file:/", path):
        return f"write the path alone: {re.sub('^file:/+', '/', path)}"
    if re.search(r"(^|/)(https?|s3|gs|ftp|hf|az):/", path):
        return "this is an address, not a file; fetch the images first: img2dataset"
    for other, why in _other_ways(path):
        if other != path and os.path.lexists(other):
            return f"there is no such file; there is {os.path.basename(other)} ({why}): correct the name"
    folder, last = os.path.split(path)
    if not os.path.isdir(folder or "."):
        return f"there is no such file, and no folder {folder}; say where the paths begin: root = ..."
    there = _names(os.path.abspath(folder), os.stat(folder or ".").st_mtime_ns)
    close = difflib.get_close_matches(last, there.values(), 1, 0.85)
    alike = there.get(last.lower().strip()) or next(iter(close), None)
    return f"there is no such file; did you mean {alike}?" if alike else "there is no such file"


def _other_ways(path: str) -> Iterator[tuple[str, str]]:
    plain = "/".join(part.strip() for part in path.split("/"))
    yield plain, "without the space before or behind it"
    yield "/".join(part.strip().strip("'\"`").strip() for part in path.split("/")), "without the quotes"
    yield path.replace("\\", "/"), "with / in place of \\"
    yield unicodedata.normalize("NFC", path), "in Unicode's form NFC"
    yield unicodedata.normalize("NFD", path), "in Unicode's form NFD"


@lru_cache(maxsize=64)
def _names(folder: str, changed: int) -> dict[str, str]:
    """Lower case -> name, of the first 10,000 files of a folder that was last changed at that time."""
    found: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number == 10_000:
                break
            found.setdefault(entry.name.lower(), entry.name)
    return found
