"""``GET`` of a hot range of a pack from casstore beside nginx that serves the same file, by ``wrk``, in turn."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Self

from bench.processes import Watched
from bench.processes import run as measured
from bench.results import ratio
from bench.scratch import discard, scratch_dir
from bench.server import BenchServer

_CONNECTIONS: Final = 8
_SECONDS: Final = 5
_RANGES: Final = {"1 MiB": 1 << 20, "16 MiB": 16 << 20}
_RATE: Final = re.compile(rb"^Requests/sec:\s+([\d.]+)", re.MULTILINE)
_CONFIGURATION: Final = """
daemon off;
worker_processes auto;
pid {home}/nginx.pid;
error_log {home}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path {home}/t1; proxy_temp_path {home}/t2; fastcgi_temp_path {home}/t3;
    uwsgi_temp_path {home}/t4; scgi_temp_path {home}/t5;
    server {{ listen 127.0.0.1:{port}; root {root}; default_type application/octet-stream; }}
}}
"""


def run(rounds: int) -> None:
    """Print requests a second of both, and the ratio of each round's pair."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None or shutil.which("wrk") is None:
        print("hotrange is left out: it needs the commands nginx and wrk")
        return
    home = scratch_dir() / "hot-range"
    discard(home)
    home.mkdir()
    try:
        with BenchServer(home / "server") as server:
            pack = _push_one_pack(server, home)
            with _Nginx(nginx, home, server.store / "packs") as beside:
                for label, size in _RANGES.items():
                    length = min(size, pack.stat().st_size)
                    _compare(server, beside, pack, rounds, (label, length))
    finally:
        discard(home)


def _push_one_pack(server: BenchServer, home: Path) -> Path:
    """Noise, which does not shrink: so its pack is as large as packs get."""
    source = home / "noise"
    source.write_bytes(os.urandom(40 << 20))
    measured([sys.executable, "-m", "casstore_client.cli", "push", str(source)], environ=server.environ())
    source.unlink()
    return max((server.store / "packs").rglob("*.pack"), key=lambda path: path.stat().st_size)


class _Nginx:
    """nginx on a free loopback port, on the store's own packs."""

    def __init__(self, command: str, home: Path, root: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.root = root
        self._configuration = home / "nginx.conf"
        # Its workers would be another user, who may not read the store.
        user = "user root;" if os.geteuid() == 0 else ""
        self._configuration.write_text(user + _CONFIGURATION.format(home=home, port=port, root=root))
        self._command = [command, "-c", str(self._configuration), "-e", str(home / "error.log")]
        self._port = port

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return self
            time.sleep(0.02)
        self.__exit__()
        raise RuntimeError("nginx did not start")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    @property
    def pid(self) -> int:
        """Its master process."""
        return self._process.pid


def _compare(server: BenchServer, beside: _Nginx, pack: Path, rounds: int, what: tuple[str, int]) -> None:
    label, length = what
    span = f"Range: bytes=0-{length - 1}"
    own_url = f"{server.url}/v1/packs/{pack.stem}"
    beside_url = f"{beside.url}/{pack.relative_to(beside.root)}"
    own: dict[int, float] = {}
    other: dict[int, float] = {}
    cpu = [0.0, 0.0]
    for number in range(rounds):
        for turn in ((0, 1), (1, 0))[number % 2]:
            watched = Watched(beside.pid if turn else server.pid)
            before = watched.cpu_s()
            if turn:
                other[number] = _wrk(beside_url, [span])
            else:
                own[number] = _wrk(own_url, [span, f"Authorization: Bearer {server.token()}"])
            cpu[turn] += watched.cpu_s() - before
    found = ratio(own, other)
    assert found is not None
    rates = [statistics.median(rates.values()) for rates in (own, other)]
    print(
        f"{f'GET {label} of a pack, {_CONNECTIONS} connections':44} "
        f"casstore {rates[0]:7.0f}/s {rates[0] * length / 1e6:6.0f} MB/s   nginx {rates[1]:7.0f}/s {rates[1] * length / 1e6:6.0f} MB/s   "
        f"ratio {found:.2f} (goal: 0.8)"
    )
    each = [1e6 * used / (rate * _SECONDS * rounds) for used, rate in zip(cpu, rates, strict=True)]
    print(f"{'  CPU of the server a request':44} casstore {each[0]:7.0f} µs                nginx {each[1]:7.0f} µs")


def _wrk(url: str, headers: list[str]) -> float:
    """Requests a second; every answer must be a 206, else there is no figure."""
    words = ["wrk", "--threads", "1", "--connections", str(_CONNECTIONS), "--duration", f"{_SECONDS}s"]
    for header in headers:
        words += ["--header", header]
    output = measured([*words, url]).output
    rate = _RATE.search(output)
    if rate is None or b"Non-2xx" in output or b"Socket errors" in output:
        raise SystemExit(f"wrk on {url} says: {output.decode(errors='replace')}")
    return float(rate[1])
