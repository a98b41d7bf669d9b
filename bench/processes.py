"""Other processes, measured from outside: the same clock and the same counters for casstore and for every peer.

A step is a whole process, from ``fork`` to ``wait``; what its interpreter takes to start is part of it, as it is for whoever types
the command.

# LIMIT: Linux hands the parent's peak memory on to what it starts.  So the bench imports nothing large itself, and no peak
below :func:`floor_bytes` can be told.
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Finished(NamedTuple):
    """What one process took."""

    seconds: float
    cpu_s: float
    peak_bytes: int
    output: bytes


class StepFailed(Exception):
    """A process of a step ended with an error; the message has its last words."""


def run(
    command: Sequence[str | Path], *, environ: Mapping[str, str] | None = None, folder: Path | None = None
) -> Finished:
    """Run ``command`` to its end.

    Raises:
        StepFailed: it is not there, or its exit code is not 0.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaints:
        began = time.perf_counter()
        try:
            process = subprocess.Popen(
                [str(word) for word in command],
                env=None if environ is None else dict(environ),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=complaints,
            )
        except OSError as error:
            raise StepFailed(f"{command[0]}: {error}") from error
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        if process.returncode != 0:
            complaints.seek(0)
            last = complaints.read().decode(errors="replace").strip().splitlines()[-3:]
            words = " ".join(str(word) for word in command[:3])
            raise StepFailed(f"{Path(words.split()[0]).name}: exit code {process.returncode}: {' / '.join(last)}")
        return Finished(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, output.read())


def floor_bytes() -> int:
    """The least peak memory that can be told of a child."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Watched:
    """A process and those that it started, looked at from outside: for servers, which outlive a step."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def cpu_s(self) -> float:
        """Processor seconds used until now, of ended children too."""
        return sum(_cpu_s(pid) for pid in self._family())

    def begin_peak(self) -> None:
        """Forget the peak memory until now."""
        for pid in self._family():
            try:
                Path(f"/proc/{pid}/clear_refs").write_text("5")
            except OSError:
                continue  # it has ended, or the kernel does not let us: then the peak is that since its start

    def peak_bytes(self) -> int:
        """Peak resident memory since :meth:`begin_peak`, summed over the processes."""
        return sum(_status_bytes(pid, "VmHWM:") for pid in self._family())

    def _family(self) -> list[int]:
        found, queue = [], [self.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            try:
                for thread in os.listdir(f"/proc/{pid}/task"):
                    queue += [int(child) for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
            except OSError:
                continue
        return found


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (
        sum(int(field) for field in fields[11:15]) / _TICKS_PER_S
    )  # user and system, its own and those of ended children


def _status_bytes(pid: int, label: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(label)), 0)


def stored_bytes(folder: Path) -> int:
    """The bytes of all regular files below ``folder``, each inode once, as ``ls`` shows them.

    Not the blocks that they fill: that would be the file system's doing, and would weigh on those peers that keep one file a chunk.
    """
    seen: set[int] = set()
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            found = os.lstat(os.path.join(directory, name))
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                total += found.st_size
    return total
