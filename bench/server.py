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
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from casstore_client import Client


class BenchServer:
    """``casstore serve`` on an empty store below ``home``; stopped and removed when the block ends.

    Args:
        home: a folder of its own.
        preload: a shared object that the server is started with.
    """

    def __init__(self, home: Path, *, preload: str | None = None) -> None:
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
        self._preload = preload
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Make the store and wait until the server answers."""
        cli = [sys.executable, "-m", "casstore_client.cli"]
        subprocess.run([*cli, "init", str(self.store)], env=self._environ, check=True, capture_output=True)
        port_file = self.home / "url"
        command = [*cli, "serve", "--store", str(self.store), "--listen", "127.0.0.1:0", "--port-file", str(port_file)]
        environ = self._environ | ({"LD_PRELOAD": self._preload} if self._preload else {})
        with (self.home / "server.log").open("wb") as log:
            self._process = subprocess.Popen([*command, "--metrics-listen", "off"], env=environ, stdout=log, stderr=log)
        for _ in range(1000):
            if port_file.exists() and port_file.read_text().strip():
                self.url = port_file.read_text().strip()
                return
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
        from casstore_client import Client
        from casstore_client.config import load_settings
        from casstore_client.trust_store import TrustStore

        settings = load_settings({"url": self.url}, self._environ)
        assert settings.trust_file is not None
        trust = TrustStore.open(settings.trust_file, self.home / user)
        return Client(self.url, token=settings.read_token(), trust=trust, key=SigningKey.parse(settings.read_key()))

    def environ(self) -> dict[str, str]:
        """For command lines that talk to this server."""
        return {**self._environ, "CASSTORE_URL": self.url}

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    def token(self) -> str:
        """The bearer token that ``init`` made."""
        from casstore_client.config import load_settings

        token = load_settings({"url": self.url}, self._environ).read_token()
        assert token is not None
        return token
