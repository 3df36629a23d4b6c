"""Changes in a folder as they happen, for `vlm index --watch`."""

from collections.abc import Iterator
from pathlib import Path

from vlm.errors import missing_package


def changes_of(folder: Path) -> Iterator[int]:
    """Wait for changes below a folder.

    Args:
        folder: subfolders too.

    Returns:
        How many files changed, each time some did and 1.6 s have passed; the first time after a second, so that changes
        from before the watch began are picked up.  It ends with KeyboardInterrupt.

    Raises:
        MissingPackageError: without watchfiles.
    """
    try:
        from watchfiles import watch
    except ImportError as error:
        raise missing_package("--watch", "watchfiles", "retrieval") from error
    begun = False
    for changes in watch(
        folder,
        watch_filter=None,
        raise_interrupt=True,
        ignore_permission_denied=True,
        rust_timeout=1000,
        yield_on_timeout=True,
    ):
        if changes or not begun:
            yield len(changes)
        begun = True
