"""File rights and disks that are full or read-only, also where the tests run as root."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_DAC = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: root reads and writes everything


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("process", ctypes.c_int)]


class _Capabilities(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


@contextmanager
def ordinary_rights() -> Iterator[None]:
    """File rights hold for this process, as for any user who is not root."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("only on Linux can root give up its rights for a while")
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(0x20080522, 0), (_Capabilities * 2)()
    if libc.capget(ctypes.byref(header), sets) != 0:
        pytest.skip("this kernel does not tell capabilities")
    before = sets[0].effective
    sets[0].effective = before & ~_DAC
    if libc.capset(ctypes.byref(header), sets) != 0:
        pytest.skip("this process may not give up rights")
    try:
        yield
    finally:
        sets[0].effective = before
        assert libc.capset(ctypes.byref(header), sets) == 0


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """An empty disk of this size (tmpfs) at `folder`."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """`folder` is a read-only disk meanwhile."""
    _mount("--bind", folder, folder)
    try:
        _mount("-o", "remount,ro,bind", folder)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def _mount(*words: str | Path) -> None:
    try:
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no command mount here")
    if done.returncode:
        pytest.skip(f"mounting is refused here: {done.stderr.strip()}")
