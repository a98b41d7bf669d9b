"""``make bench``: push, pull and flip against a real, durable server on loopback, with the limit of this machine beside each figure.

python -m bench [--only python|javascript|flips|start] [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from bench import flips
from bench.corpora import Corpus, bench_dir, corpora
from bench.limit import push_limit_s, write_limit_s
from bench.server import BenchServer

MIB = 1024 * 1024


class Step(NamedTuple):
    """One measured step."""

    name: str
    seconds: float
    plain_bytes: int
    sent_bytes: int
    round_trips: str
    server_cpu_s: float
    client_peak_bytes: int
    server_peak_bytes: int
    limit_s: float | None


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--only", choices=["python", "javascript", "flips", "start"])
    parser.add_argument("--rounds", type=int, default=1, help="how often each content scenario runs")
    wanted = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, {_machine()}")
    if wanted.only in (None, "start"):
        _bench_start()
    if wanted.only in (None, "flips"):
        with BenchServer(bench_dir() / "server-flips") as server:
            flips.run(server)
    if wanted.only in (None, "python", "javascript"):
        for corpus in corpora():
            if wanted.only in (None, corpus.name):
                for _ in range(wanted.rounds):
                    _bench_content(corpus)


def _bench_start() -> None:
    command = [str(Path(sys.executable).with_name("casstore")), "version"]
    if not Path(command[0]).exists():
        command = [sys.executable, "-m", "casstore_client.cli", "version"]
    times = []
    for _ in range(15):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(1000 * (time.perf_counter() - began))
    bare = []
    for _ in range(15):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        bare.append(1000 * (time.perf_counter() - began))
    print(f"{'casstore version':44} median {statistics.median(times):5.0f} ms")
    print(f"{'  limit: the interpreter alone':44} median {statistics.median(bare):5.0f} ms")


def _bench_content(corpus: Corpus) -> None:
    """Each client step is a process of its own, as an agent's is; so its peak memory is its own."""
    scratch = bench_dir() / "scratch"
    print(f"\n{corpus.name}: {corpus.files:,} files, {corpus.size_bytes / 1e6:.0f} MB")
    steps: list[Step] = []
    with BenchServer(bench_dir() / "server-content") as server:
        pulled = bench_dir() / "pulled"
        limit = push_limit_s(corpus.release_1, scratch)
        first = _step(server, "push release 1, empty store", ["push", str(corpus.release_1)], corpus.size_bytes, limit)
        steps.append(first[0])
        stored_1 = server.stored_bytes()
        steps.append(_step(server, "push release 1 again", ["push", str(corpus.release_1)], corpus.size_bytes, None)[0])
        steps.append(_step(server, "push release 2", ["push", str(corpus.release_2)], corpus.size_bytes, None)[0])
        stored_2 = server.stored_bytes()
        limit = write_limit_s(corpus.release_1, scratch)
        words = ["pull", first[1]["digest"], str(pulled)]
        steps.append(_step(server, "pull release 1, empty directory", words, corpus.size_bytes, limit)[0])
        _remove(pulled)
        words = ["pull", first[1]["digest"], str(pulled), "--no-sync"]
        steps.append(_step(server, "pull release 1, not synced", words, corpus.size_bytes, limit)[0])
        _remove(pulled)
    _print_steps(steps)
    print(f"stored: {stored_1 / 1e6:.1f} MB after release 1, {stored_2 / 1e6:.1f} MB after both")


def _step(
    server: BenchServer, name: str, words: list[str], plain_bytes: int, limit_s: float | None
) -> tuple[Step, dict[str, str]]:
    command = [sys.executable, "-m", "bench.client_step", *words]
    os.sync()  # what the step before left to be written back is not this one's
    cpu_before = server.cpu_s()
    done = subprocess.run(command, env=server.environ(), check=True, capture_output=True)
    import json

    found = json.loads(done.stdout)
    step = Step(
        name=name,
        seconds=found["seconds"],
        plain_bytes=plain_bytes,
        sent_bytes=found["wire_bytes"],
        round_trips=found["requests"],
        server_cpu_s=server.cpu_s() - cpu_before,
        client_peak_bytes=found["peak_bytes"],
        server_peak_bytes=server.peak_memory_bytes(),
        limit_s=limit_s,
    )
    return step, found


def _print_steps(steps: list[Step]) -> None:
    print(
        f"{'step':34} {'s':>7} {'MB/s':>6} {'limit s':>8} {'of limit':>8} {'wire MB':>8} {'client MiB':>10} {'server MiB':>10}"
    )
    for s in steps:
        limit = f"{s.limit_s:8.2f}" if s.limit_s else f"{'':8}"
        ratio = f"{s.limit_s / s.seconds:8.2f}" if s.limit_s else f"{'':8}"
        print(
            f"{s.name:34} {s.seconds:7.2f} {s.plain_bytes / 1e6 / s.seconds:6.0f} {limit} {ratio} {s.sent_bytes / 1e6:8.1f} "
            f"{s.client_peak_bytes / MIB:10.0f} {s.server_peak_bytes / MIB:10.0f}"
        )
        print(f"{'':34} requests: {s.round_trips}; server {s.server_cpu_s:.2f} CPU s")


def _remove(path: Path) -> None:
    subprocess.run(["rm", "-rf", str(path)], check=True)


def _machine() -> str:
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    pages = resource.getpagesize()
    memory = os.sysconf("SC_PHYS_PAGES") * pages / 2**30
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB"


if __name__ == "__main__":
    main()
