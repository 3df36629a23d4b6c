"""Troubles of a machine, made on purpose and undone at the end of a block."""

import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch


@contextmanager
def files_no_longer_than(count: int) -> Iterator[None]:
    """Every write beyond so many bytes of a file fails, as on a full disk (EFBIG; Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """An own file system of so many bytes ("200k") at `folder`; skips where mounting is refused."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if mounted is None or mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip() if mounted else 'there is no mount'}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are for its user alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextmanager
def without_privileges() -> Iterator[None]:
    """root may read and write everything: inside, root is nobody.  Other users stay what they are."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def kill_who_decodes(patch: pytest.MonkeyPatch) -> None:
    """A process other than this one that opens an image dies by SIGKILL, as the system does when memory runs out."""
    alive, open_image = os.getpid(), PIL.Image.open

    def opened(*words: Any, **more: Any) -> Any:
        if os.getpid() != alive:
            os.kill(os.getpid(), signal.SIGKILL)
        return open_image(*words, **more)

    patch.setattr("PIL.Image.open", opened)


def no_memory(*_: Any, **__: Any) -> torch.Tensor:
    """A real allocation that no machine can make: 4 PiB."""
    return torch.empty(1 << 50, device="cpu")
