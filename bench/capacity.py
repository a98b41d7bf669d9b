"""What the scenarios of size share: casstore commands against one server, each with time and memory of both sides."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from bench.processes import Finished, Watched, run
from bench.server import BenchServer

_MIB: Final = 1024 * 1024
_GOAL_MIB: Final = 300


class Commands:
    """Runs commands of the command line and prints a row for each."""

    def __init__(self, server: BenchServer, plain_bytes: int) -> None:
        self._server = server
        self._plain_bytes = plain_bytes
        print(
            f"{'step':28} {'s':>8} {'MB/s':>7} {'CPU s client + server':>22} {'peak MiB client + server':>25}",
            flush=True,
        )

    def step(self, title: str, words: list[str]) -> dict[str, Any]:
        """Run one and return the document that it prints."""
        os.sync()
        watched = Watched(self._server.pid)
        watched.begin_peak()
        cpu = watched.cpu_s()
        done: Finished = run(
            [sys.executable, "-m", "casstore_client.cli", *words, "--json"], environ=self._server.environ()
        )
        cpu = watched.cpu_s() - cpu
        peaks = (done.peak_bytes / _MIB, watched.peak_bytes() / _MIB)
        rate = self._plain_bytes / 1e6 / done.seconds
        over = "" if max(peaks) <= _GOAL_MIB else f"  more than {_GOAL_MIB}"
        print(
            f"{title:28} {done.seconds:8.1f} {rate:7.0f} {f'{done.cpu_s:.1f} + {cpu:.1f}':>22} "
            f"{f'{peaks[0]:.0f} + {peaks[1]:.0f}':>25}{over}",
            flush=True,
        )
        answer: dict[str, Any] = json.loads(done.output)
        return answer


def need_space(folder: Path, wanted_bytes: int) -> None:
    """End here, before anything is written, where the disk is too small."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < wanted_bytes:
        raise SystemExit(f"{folder} has {free / 1e9:.0f} GB free, this needs {wanted_bytes / 1e9:.0f} GB")
