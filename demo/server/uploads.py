"""Storage of uploads: a private temporary folder of this process, deleted when it ends."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: folders of dead processes are left to the system
    fcntl = None

PREFIX = "vlm-demo-"
_LOCK = ".lock"
_log = logging.getLogger("vlm.demo")


@contextmanager
def private_upload_folder() -> Iterator[Path]:
    """Store uploads in a folder that only this user can read, and delete it at the end.

    It is in GRADIO_TEMP_DIR if that is set, else in the system's folder for temporary files.  Folders that killed
    processes left there are deleted first.

    Yields:
        The folder.
    """
    given = os.environ.get("GRADIO_TEMP_DIR")
    place = Path(given or tempfile.gettempdir())
    place.mkdir(parents=True, exist_ok=True)
    delete_stale_folders(place)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    lock = (folder / _LOCK).open("w")
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        yield folder
    finally:
        if given is None:
            os.environ.pop("GRADIO_TEMP_DIR", None)
        else:
            os.environ["GRADIO_TEMP_DIR"] = given
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)


def delete_stale_folders(place: Path) -> list[Path]:
    """Delete upload folders whose process has ended.

    A running process holds a lock in its folder.  Folders of other users and links are left alone.

    Returns:
        The deleted folders.
    """
    if fcntl is None:
        return []
    deleted: list[Path] = []
    for folder in place.glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        except OSError:  # locked by a running process, or no folder of ours
            continue
        _log.info("deleted the uploads of an ended process: %s", folder)
        deleted.append(folder)
    return deleted
