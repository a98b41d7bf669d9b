"""How long a small push takes while collections follow each other, beside the same without.

Blocks of pushes with and without collection alternate, so that a noisy minute meets both.  The store holds a corpus (or, without one,
files that are made for it), so that a run has something to go through; every push leaves a little that nothing needs, so it has
something to condemn.  Nothing is old enough to be dropped: a grace is longer than a bench.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from pathlib import Path
from typing import Final

from bench.corpora import bench_dir
from bench.scratch import discard, scratch_dir
from bench.server import BenchServer
from casstore_client import Client

_BLOCKS: Final = 8
_PUSHES: Final = 50
_FILES: Final = 20
_FILE_BYTES: Final = 20_000


def run() -> None:
    """Print the pushes' latency with and without collection, and how many collections ran."""
    home = scratch_dir() / "gc-push"
    discard(home)
    home.mkdir()
    try:
        with BenchServer(home / "server") as server, server.client() as client:
            corpus = bench_dir() / "python-1"
            if corpus.exists():
                client.push(corpus, name="corpus")
            _run(server, client, home / "tree")
    finally:
        discard(home)


def _run(server: BenchServer, client: Client, tree: Path) -> None:
    tree.mkdir()
    for number in range(_FILES):
        (tree / f"{number}").write_bytes(os.urandom(_FILE_BYTES))
    times: dict[bool, list[float]] = {False: [], True: []}
    runs = 0
    _push_some(client, tree, 10)
    for block in range(2 * _BLOCKS):
        collecting = bool(block % 2)
        stop = threading.Event()
        counted: list[int] = []
        thread = threading.Thread(target=lambda: counted.append(_collect(server, stop)))  # noqa: B023
        if collecting:
            thread.start()
        try:
            times[collecting] += _push_some(client, tree, _PUSHES)
        finally:
            stop.set()
            if collecting:
                thread.join()
        runs += sum(counted)
    for collecting, found in times.items():
        what = f"push of {_FILES} files, {'with' if collecting else 'without'} gc"
        print(f"{what:44} p50 {_percentile(found, 50):6.1f} ms   p99 {_percentile(found, 99):6.1f} ms   n {len(found)}")
    worse = _percentile(times[True], 99) / _percentile(times[False], 99)
    print(f"{'p99 with gc, times that without':44} {worse:10.2f}      (goal: ≤ 2); {runs} runs of gc meanwhile")


def _push_some(client: Client, tree: Path, count: int) -> list[float]:
    times = []
    for _ in range(count):
        (tree / "0").write_bytes(os.urandom(_FILE_BYTES))
        began = time.perf_counter()
        client.push(tree)
        times.append(1000 * (time.perf_counter() - began))
    return times


def _collect(server: BenchServer, stop: threading.Event) -> int:
    runs = 0
    with server.client("collector") as client:
        while not stop.is_set():
            client.gc()
            runs += 1
    return runs


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]
