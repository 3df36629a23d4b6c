"""The line below a benchmark's title: when, on what, with which versions, by which command."""

import datetime
import os
import platform
import resource
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path


def about(command: str, packages: Iterable[str], threads: int | None = None) -> str:
    """Markdown.  `threads`: how many of the processors are used, where the benchmark decides that."""
    used = f"{threads} of {os.cpu_count()} processors" if threads else f"{os.cpu_count()} processors"
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    machine = f"{processor()}, {used}, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    return f"{datetime.date.today()}, {machine}, {versions}; `{command}`\n"


def processor() -> str:
    """Its name, on Linux; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def resident() -> float:
    """MiB of this process in memory now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
