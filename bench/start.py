"""How long the command line takes to start, beside the interpreter alone."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def run(times: int = 15) -> None:
    """Print both medians."""
    print(f"{'casstore version':44} median {_median_ms(['-m', 'casstore_client.cli', 'version'], times):5.0f} ms")
    print(f"{'  limit: the interpreter alone':44} median {_median_ms(['-c', 'pass'], times):5.0f} ms")


def _median_ms(words: list[str], times: int) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        found.append(1000 * (time.perf_counter() - began))
    return statistics.median(found)
