"""How long a flip takes, proof included: from the call to the verified answer."""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.server import BenchServer


def fsync_ms(folder: Path) -> float:
    """Median milliseconds of a small append with fsync here: two of these are the least that a durable flip costs."""
    times = []
    with (folder / "fsync-probe").open("ab") as stream:
        for _ in range(100):
            began = time.perf_counter()
            stream.write(b"x" * 512)
            stream.flush()
            os.fsync(stream.fileno())
            times.append(1000 * (time.perf_counter() - began))
    (folder / "fsync-probe").unlink()
    return statistics.median(times)


def run(server: BenchServer, rounds: int = 300, workers: int = 16) -> None:
    """Flip one pointer back and forth, then many pointers at once; prints a table."""
    with server.client() as client:
        artifact = client.push(Path(__file__)).artifact
        digests = []
        for number in (1, 2):
            _, digest = client.snapshot_create([("app", "blob", artifact.digest)], labels={"n": str(number)})
            digests.append(str(digest))
        times, flip = [], None
        for number in range(rounds):
            began = time.perf_counter()
            flip = client.flip("bench/one", digests[number % 2], expect=flip, reason="bench").pointers[0].flip
            times.append(1000 * (time.perf_counter() - began))
    times.sort()

    def worker(number: int) -> int:
        with server.client(f"user-{number}") as own:
            at = None
            for turn in range(rounds // workers):
                at = own.flip(f"bench/many-{number}", digests[turn % 2], expect=at, reason="bench").pointers[0].flip
        return rounds // workers

    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        done = sum(pool.map(worker, range(workers)))
    rate = done / (time.perf_counter() - began)
    print(
        f"{'flip with proof, one client':44} p50 {times[len(times) // 2]:6.1f} ms   p99 {times[int(len(times) * 0.99)]:6.1f} ms"
    )
    print(f"{'  limit: one small fsync on this disk':44} p50 {fsync_ms(server.home):6.1f} ms")
    print(f"{f'flips with proof, {workers} clients, all on 2 cores':44} {rate:8.0f} flips/s")
