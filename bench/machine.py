"""What the figures were measured on, in words."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def describe() -> str:
    """Processor, memory, kernel, file system of the bench folder, interpreter."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    kernel = platform.release().partition("-")[0]
    python = sys.version.split()[0]
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, Linux {kernel}, Python {python}"


def file_system(path: Path) -> str:
    """The type of the file system that ``path`` lies on."""
    best, found = "", "unknown"
    whole = str(path.resolve())
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if (whole + "/").startswith(where.rstrip("/") + "/") and len(where) >= len(best):
            best, found = where, kind
    return found


def load() -> float:
    """How many processes wanted a processor, over the last minute: figures of a busy machine are not worth much."""
    return os.getloadavg()[0]
