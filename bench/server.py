"""A real server for the benches: a process of its own on a free loopback port, durable as by default, measured from outside."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from casstore_client import Client
from casstore_client.config import load_settings
from casstore_client.trust_store import TrustStore


class BenchServer:
    """``casstore serve`` on an empty store below ``home``; stopped and removed when the block ends."""

    def __init__(self, home: Path) -> None:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        self.home = home
        self.store = home / "store"
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith("CASSTORE_")}
        self._environ |= {
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CACHE_HOME": str(home / "cache"),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        cli = [sys.executable, "-m", "casstore_client.cli"]
        subprocess.run([*cli, "init", str(self.store)], env=self._environ, check=True, capture_output=True)
        port_file = self.home / "url"
        command = [*cli, "serve", "--store", str(self.store), "--listen", "127.0.0.1:0", "--port-file", str(port_file)]
        with (self.home / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--metrics-listen", "off"], env=self._environ, stdout=log, stderr=log
            )
        for _ in range(1000):
            if port_file.exists() and port_file.read_text().strip():
                self.url = port_file.read_text().strip()
                return self
            time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"the server did not start: {(self.home / 'server.log').read_text()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def stop(self) -> None:
        """Stop the process and wait for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)

    def client(self, user: str = "state") -> Client:
        """A client that signs and verifies, as ``init`` configured it; each user keeps what was verified apart."""
        from casstore.signing import SigningKey

        settings = load_settings({"url": self.url}, self._environ)
        assert settings.trust_file is not None
        trust = TrustStore.open(settings.trust_file, self.home / user)
        return Client(self.url, token=settings.read_token(), trust=trust, key=SigningKey.parse(settings.read_key()))

    def environ(self) -> dict[str, str]:
        """For command lines that talk to this server."""
        return {**self._environ, "CASSTORE_URL": self.url}

    def cpu_s(self) -> float:
        """Processor seconds that the server has used."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_memory_bytes(self) -> int:
        """The server's peak resident memory."""
        assert self._process is not None
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def stored_bytes(self) -> int:
        """What the packs take."""
        return sum(path.stat().st_size for path in (self.store / "packs").rglob("*.pack"))
