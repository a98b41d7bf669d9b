"""A real server on a fresh store, for tests: in a thread of this process, or as its own process that can be killed.

Use the fixtures ``server`` (a thread, started anew for each test) and ``start_server`` (a factory of processes) of
``tests/e2e/conftest.py``, or :func:`run_in_thread` and :class:`ServerProcess` directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from casstore.admin import Created, create_store
from casstore.clock import Clock
from casstore.config import ServerSettings
from casstore_server.fairloop import FairLoop
from casstore_server.serve import Server, open_server
from casstore_server.settings import Bounds

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 30.0


class Reply(NamedTuple):
    """An answer, read whole."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of a problem document."""
        assert self.headers.get_content_type() == "application/problem+json", (self.status, self.body[:500])
        problem = self.json
        assert problem["status"] == self.status
        return str(problem["code"])


class Http:
    """Asks a server, one connection a request; checks nothing.

    Args:
        url: of the server.
        token: sent with every request that does not say otherwise.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.host, self.port = parts.hostname, parts.port
        self.token = token

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        token: str | None = "",
    ) -> Reply:
        """Send one request and read the whole answer.

        Args:
            token: another token than the usual one; None sends none.
        """
        token = self.token if token == "" else token
        sent = {"Authorization": f"Bearer {token}"} if token else {}
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, path, body, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None, *, token: str | None = "") -> Reply:
        return self.request("GET", path, None, headers, token=token)

    def post(
        self, path: str, body: bytes, media: str = "application/json", *, token: str | None = "", **headers: str
    ) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", path, body, {"Content-Type": media, **named}, token=token)

    def post_json(self, path: str, document: Any, *, token: str | None = "") -> Reply:
        return self.post(path, json.dumps(document).encode(), token=token)


class Running(NamedTuple):
    """A server, and the keys of its store."""

    url: str
    metrics_url: str | None
    directory: Path
    created: Created
    http: Http
    log: io.StringIO
    server: Server | None

    @property
    def token(self) -> str:
        """The operator's bearer token, with every permission."""
        return token_of(self.created)

    def log_lines(self) -> list[dict[str, Any]]:
        """What the server has logged."""
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


def token_of(created: Created) -> str:
    """The operator's bearer token."""
    assert created.token.secret is not None
    return created.token.secret


def make_store(directory: Path, *, clock: Clock | None = None) -> Created:
    """A fresh store in ``directory``, which must not exist yet."""
    return create_store(directory) if clock is None else create_store(directory, clock=clock)


@contextlib.contextmanager
def run_in_thread(
    directory: Path,
    created: Created,
    *,
    settings: ServerSettings | None = None,
    bounds: Bounds | None = None,
    clock: Clock | None = None,
) -> Iterator[Running]:
    """The real server on a free loopback port, in a thread of this process; stopped gracefully at the end."""
    settings = settings or ServerSettings(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0")
    log = io.StringIO()
    started: threading.Event = threading.Event()
    ended: list[BaseException] = []
    running: list[Server] = []
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))
        async with open_server(directory, settings, bounds=bounds or Bounds(), clock=clock, log_to=log) as server:
            running.append(server)
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=FairLoop) as runner:
                runner.run(serve())
        except BaseException as error:  # noqa: BLE001  (raised again by the test's thread)
            ended.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="server-under-test")
    thread.start()
    assert started.wait(START_TIMEOUT_S)
    if not running:
        thread.join()
        raise ended[0]
    server = running[0]
    try:
        http_ = Http(server.url, token_of(created))
        yield Running(server.url, server.metrics_url, directory, created, http_, log, server)
    finally:
        loop, stop = loops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(START_TIMEOUT_S)
        assert not thread.is_alive(), "the server did not stop"
        if ended:
            raise ended[0]


class ServerProcess:
    """``casstore serve`` as its own process.

    Args:
        directory: the store.
        created: its keys.
        *arguments: more of ``casstore serve``.
    """

    def __init__(self, directory: Path, created: Created, *arguments: str) -> None:
        self.directory = directory
        self.created = created
        self.port_file = directory.with_name(directory.name + ".url")
        self.log_file = directory.with_name(directory.name + ".log")
        self.port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "casstore_client.cli", "serve", "--store", str(directory)]
        command += [
            "--listen",
            "127.0.0.1:0",
            "--metrics-listen",
            "off",
            "--port-file",
            str(self.port_file),
            *arguments,
        ]
        paths = [str(ROOT), str(ROOT / "server"), str(ROOT / "client"), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        self.url = self._wait_until_listening()
        self.http = Http(self.url, token_of(created))

    def _wait_until_listening(self) -> str:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.port_file.exists():
                return self.port_file.read_text("utf-8").strip()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.01)
                break
        self.kill()
        raise AssertionError(f"the server did not start:\n{self.log_file.read_text('utf-8')}")

    def kill(self) -> None:
        """``kill -9``: nothing of the process runs any more when this returns."""
        self.process.kill()
        self.process.wait(START_TIMEOUT_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it gracefully.

        Returns:
            its exit code.
        """
        self.process.send_signal(number)
        return self.process.wait(START_TIMEOUT_S)
