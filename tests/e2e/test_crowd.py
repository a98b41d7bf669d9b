"""Thousands of clients: every one is answered, or told to come again, and nobody else notices.

The small forms run each time, against a server that serves a few; the slow run brings five thousand connections from a process of
their own, and ``CASSTORE_CROWD=20000`` as many as one likes and the descriptors allow.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from casstore.config import LimitSettings, ServerSettings
from casstore.wire import MEDIA_IDS, MEDIA_PACK
from casstore_server.holding import Bodies
from casstore_server.settings import Bounds
from tests.support.acting import push
from tests.support.server import ROOT, Http, Running, ServerProcess, make_store, run_in_thread
from tests.support.treebuild import build_tree

FEW = 20
CROWD = int(os.environ.get("CASSTORE_CROWD", "5000"))
MEMORY_MAX_MIB = 300


def eventually(holds: Callable[[], bool], timeout_s: float = 15.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.01)
    return True


@contextlib.contextmanager
def serving(
    tmp_path: Path, *, connections: int = FEW, bounds: Bounds | None = None, **limits: int
) -> Iterator[Running]:
    created = make_store(tmp_path / "store")
    settings = ServerSettings(
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        limits=LimitSettings(connections=connections, **limits),
    )
    with run_in_thread(tmp_path / "store", created, settings=settings, bounds=bounds) as running:
        yield running


@pytest.fixture
def few(tmp_path: Path) -> Iterator[Running]:
    """A server that serves ``FEW`` connections."""
    with serving(tmp_path) as running:
        yield running


def connect(running: Running) -> socket.socket:
    return socket.create_connection((running.http.host, running.http.port), timeout=20)


def ask(connection: socket.socket, path: str) -> tuple[int, dict[str, str], bytes]:
    """One request on an open connection."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(1 << 16)
        if not piece:
            raise ConnectionResetError
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    while len(body) < int(headers["content-length"]):
        body += connection.recv(1 << 16)
    return int(lines[0].split()[1]), headers, body


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has ended it; waits for that."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def metric(running: Running, name: str, **labels: str) -> float:
    from prometheus_client.parser import text_string_to_metric_families

    assert running.metrics_url is not None
    text = Http(running.metrics_url).get("/metrics").body.decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    raise AssertionError(f"no {name} {labels}")


# --- connections -----------------------------------------------------------------------------------------------------


def test_who_is_too_many_is_told_to_come_again(few: Running) -> None:
    """A sentence and a time, not a connection that hangs; and a supervisor learns that the process lives."""
    with contextlib.ExitStack() as stack:
        for _ in range(FEW):
            stack.enter_context(connect(few))
        assert eventually(lambda: metric(few, "casstore_connections", state="silent") == FEW)
        late = stack.enter_context(connect(few))
        status, headers, body = ask(late, "/v1/config")
        problem = json.loads(body)
        assert (status, problem["code"]) == (503, "overloaded")
        assert f"{FEW} are served" in problem["detail"]
        assert 1 <= int(headers["retry-after"]) <= 10
        assert headers["connection"] == "close"
        assert is_closed(late)
        assert few.http.get("/livez").status == 200
        assert metric(few, "casstore_refused_total", reason="crowd") == 1
    assert eventually(lambda: few.http.get("/v1/config").status == 200)


def test_who_is_idle_gives_way(few: Running) -> None:
    """Hosts that keep a connection for the next poll do not keep out the one who wants to roll back."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(few)) for _ in range(FEW)]
        for connection in held:
            assert ask(connection, "/livez")[0] == 200
        gate = few.server.context.gate if few.server else None
        assert gate is not None
        assert eventually(lambda: gate.states["idle"] == FEW)
        oldest = next(iter(gate._idle.values()))
        assert eventually(lambda: time.monotonic() - oldest.since > 1.1)
        assert few.http.get("/v1/config").status == 200
        assert is_closed(held[0]), "the one that was idle for longest"
        assert ask(held[-1], "/livez")[0] == 200
        assert metric(few, "casstore_refused_total", reason="idle") >= 1


def test_beyond_all_bounds_connections_are_reset(few: Running) -> None:
    gate = few.server.context.gate if few.server else None
    assert gate is not None
    gate._spare = 3
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(few)) for _ in range(FEW + 3)]
        assert eventually(lambda: gate.states["silent"] == FEW + 3)
        for _ in range(5):
            with contextlib.suppress(ConnectionResetError):  # it may come before connect() is done
                assert is_closed(stack.enter_context(connect(few)))
        assert gate.refused["reset"] == 5
        assert ask(held[0], "/v1/config")[0] == 200, "who was there is served"
    assert eventually(lambda: sum(gate.states.values()) == 0)
    assert eventually(lambda: few.http.get("/v1/config").status == 200)


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"\r\n"])
def test_who_asks_for_nothing_is_closed(tmp_path: Path, sent: bytes) -> None:
    """A head that comes byte by byte is no request: bytes do not renew the time."""
    with serving(tmp_path, bounds=Bounds(first_request_s=0.4)) as running, connect(running) as connection:
        connection.sendall(sent)
        ended = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while sent and not ended.wait(0.05):
                    connection.sendall(b"x" if sent.startswith(b"GET") else b"\r\n")

        thread = threading.Thread(target=drip)
        thread.start()
        assert is_closed(connection)
        ended.set()
        thread.join()
        assert metric(running, "casstore_refused_total", reason="silent") >= 1
        assert running.http.get("/livez").status == 200


def test_who_has_asked_is_not_silent(tmp_path: Path) -> None:
    with serving(tmp_path, bounds=Bounds(first_request_s=0.2)) as running, connect(running) as connection:
        for _ in range(4):
            assert ask(connection, "/livez")[0] == 200
            threading.Event().wait(0.2)
        assert running.server is not None
        assert running.server.context.gate.refused["silent"] == 0


def test_connections_are_counted_by_what_they_do(few: Running) -> None:
    gate = few.server.context.gate if few.server else None
    assert gate is not None
    with connect(few) as silent, connect(few) as idle, connect(few) as busy:
        ask(idle, "/livez")
        head = f"POST /v1/pushes/{'ab' * 16}/missing?kind=chunk HTTP/1.1\r\nHost: x\r\nContent-Length: 32\r\n"
        busy.sendall((head + f"Content-Type: {MEDIA_IDS}\r\nAuthorization: Bearer {few.token}\r\n\r\n").encode())
        assert eventually(lambda: gate.states == {"silent": 1, "idle": 1, "busy": 1})
        assert silent.fileno() > 0
    assert eventually(lambda: gate.states == {"silent": 0, "idle": 0, "busy": 0})


def test_the_limit_follows_the_descriptors(tmp_path: Path) -> None:
    """More connections than descriptors would stop the server from accepting, and from opening packs."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(tmp_path, connections=10 * soft) as running:
        assert running.server is not None
        assert 0 < running.server.context.gate.limit < soft
        (line,) = [line for line in running.log_lines() if line["event"] == "fewer connections than wanted"]
        assert line["wanted"] == 10 * soft


# --- requests --------------------------------------------------------------------------------------------------------


def block(running: Running, lane_name: str) -> contextlib.AbstractContextManager[None]:
    """Keep all threads of a lane busy for as long as the block lasts."""

    @contextlib.contextmanager
    def blocking() -> Iterator[None]:
        assert running.server is not None
        lane = getattr(running.server.context.bridge, lane_name)
        end, began = threading.Event(), threading.Semaphore(0)

        def wait() -> None:
            began.release()
            end.wait(30)

        futures = [lane.executor.submit(wait) for _ in range(lane.executor._max_workers)]
        for _ in futures:
            assert began.acquire(timeout=20)
        try:
            yield
        finally:
            end.set()

    return blocking()


def test_one_principal_does_not_fill_a_queue(tmp_path: Path) -> None:
    """A build farm gone mad leaves half of the queue to everyone else."""
    with serving(tmp_path, connections=500) as running:
        assert running.server is not None
        bridge = running.server.context.bridge
        greedy = running.http.post_json("/v1/tokens", {"name": "ci", "permissions": ["content:read"]}).json["secret"]
        with ThreadPoolExecutor(90) as pool, block(running, "scanners"):
            bridge.scanners.shares._each = 30
            asked = [pool.submit(running.http.get, "/v1/artifacts", token=greedy) for _ in range(60)]
            assert eventually(lambda: sum(one.done() for one in asked) == 30)
            other = pool.submit(running.http.get, "/v1/artifacts")
            assert eventually(lambda: bridge.scanners.depth == 31)
            refused = [one.result() for one in asked if one.done()]
        assert {(reply.status, reply.code) for reply in refused} == {(429, "rate-limited")}
        assert all(int(reply.headers["Retry-After"]) >= 1 for reply in refused)
        assert other.result().status == 200
        assert [one.result().status for one in asked].count(200) == 30
        assert metric(running, "casstore_refused_total", reason="share") == 30


def test_requests_that_wait_too_long_for_their_turn_are_refused(tmp_path: Path) -> None:
    """The readers hang on a sick disk: nobody waits for ever, and ``/livez`` says that the process is not to blame."""
    with serving(tmp_path, connections=500, bounds=Bounds(turn_max_s=0.3), reader_queue=8) as running:
        with ThreadPoolExecutor(60) as pool, block(running, "readers"):
            asked = [pool.submit(running.http.get, "/v1/policy") for _ in range(50)]
            assert eventually(lambda: sum(one.done() for one in asked) >= 35)
            assert running.http.get("/livez").status == 200
            refused = [one.result() for one in asked if one.done()]
        assert {(reply.status, reply.code) for reply in refused} == {(503, "overloaded")}
        assert all(int(reply.headers["Retry-After"]) >= 1 for reply in refused)
        assert {one.result().status for one in asked} == {200, 503}
        assert running.http.get("/v1/policy").status == 200


def test_bodies_are_bounded_together(few: Running) -> None:
    """Each of them is allowed: a thousand of them, read slowly side by side, would be gigabytes.  A flip passes them."""
    assert few.server is not None
    context = few.server.context
    context.bodies = Bodies(100_000)
    path = f"/v1/pushes/{'ab' * 16}/missing?kind=chunk"
    for size, code in ((128_000, "overloaded"), (64_000, "rate-limited"), (32_000, None)):
        reply = few.http.post(path, bytes(size), MEDIA_IDS)
        assert reply.status == 200 if code is None else reply.code == code
    context.bodies.held = 100_000
    assert few.http.post(path, bytes(9600), MEDIA_IDS).code == "overloaded"
    assert few.http.post(path, bytes(6400), MEDIA_IDS).status == 200
    assert eventually(lambda: context.bodies.held == 100_000)
    assert not context.bodies._by


def test_a_body_that_is_held_whole_has_an_end(tmp_path: Path) -> None:
    """It comes evenly, and would come for an hour."""
    with serving(tmp_path, bounds=Bounds(whole_body_timeout_s=0.3)) as running, connect(running) as connection:
        head = f"POST /v1/pushes/{'ab' * 16}/missing?kind=chunk HTTP/1.1\r\nHost: x\r\nContent-Length: 64000\r\n"
        connection.sendall(
            (head + f"Content-Type: {MEDIA_IDS}\r\nAuthorization: Bearer {running.token}\r\n\r\n").encode()
        )
        ended = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not ended.wait(0.02):
                    connection.sendall(bytes(32))

        thread = threading.Thread(target=drip)
        thread.start()
        answer = connection.recv(1 << 16)
        ended.set()
        thread.join()
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_bodies_that_nobody_wants_yet_are_not_read(tmp_path: Path) -> None:
    """Authentication waits for the readers: meanwhile no more of the body is read than came with the head."""
    with serving(tmp_path, connections=500) as running, ThreadPoolExecutor(1) as pool:
        assert running.server is not None
        bodies = running.server.context.bodies
        with block(running, "readers"):
            sent = pool.submit(
                running.http.post, f"/v1/pushes/{'ab' * 16}/packs?pack={'cd' * 16}", bytes(600_000), MEDIA_PACK
            )
            assert eventually(lambda: bodies.waiting == 1)
        assert sent.result().code == "malformed-document"
        assert eventually(lambda: bodies.waiting == 0)


# --- thousands -------------------------------------------------------------------------------------------------------


def gather(server: ServerProcess, connections: int, rounds: int) -> dict[str, Any]:
    """The crowd, from a process of its own; what became of it."""
    command = [sys.executable, "-m", "tests.support.crowd", server.http.host, str(server.http.port)]
    command += [str(connections), str(rounds), str(server.http.token)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "server"), str(ROOT / "client")])
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": paths}, check=False
    )
    assert ended.returncode == 0, ended.stderr
    outcome: dict[str, Any] = json.loads(ended.stdout)
    print(outcome)
    return outcome


def status_of(server: ServerProcess, field: str) -> int:
    text = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
    return int(text.split(field + ":")[1].split()[0])


def descriptors(server: ServerProcess) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def demand_descriptors(wanted: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= wanted + 1100, (
        f"{wanted} connections need {wanted + 1100} descriptors a process, {hard} are allowed: nothing was tested"
    )


@pytest.mark.slow
def test_five_thousand_at_once(start_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """They connect together, ask together, and are answered; the server keeps nothing of it."""
    demand_descriptors(CROWD)
    (tmp_path / "settings.toml").write_text(f"[limits]\nconnections = {CROWD + 100}\n")
    server = start_server("--settings", str(tmp_path / "settings.toml"))
    before = descriptors(server)
    outcome = gather(server, CROWD, 3)
    assert outcome["hung"] == 0
    assert outcome["reset"] == 0
    assert outcome["without_retry_after"] == 0
    assert set(outcome["statuses"]) <= {"200", "429", "503"}
    assert sum(outcome["statuses"].values()) == 3 * CROWD
    assert outcome["livez_asked"] >= 3
    assert status_of(server, "VmHWM") // 1024 <= MEMORY_MAX_MIB
    assert eventually(lambda: descriptors(server) <= before + 4)
    assert push(server.http, build_tree({b"a": os.urandom(100_000)}))["number"] == 1
    assert server.http.post("/v1/fsck?full=1", b"").json["ok"]


@pytest.mark.slow
def test_five_thousand_where_a_thousand_are_served(start_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """Beyond its limit a server says so: no request hangs, and those who are served are served."""
    demand_descriptors(CROWD)
    (tmp_path / "settings.toml").write_text("[limits]\nconnections = 1000\n")
    server = start_server("--settings", str(tmp_path / "settings.toml"))
    before = descriptors(server)
    outcome = gather(server, CROWD, 1)
    assert outcome["hung"] == 0
    assert outcome["without_retry_after"] == 0
    assert set(outcome["statuses"]) <= {"200", "429", "503"}
    assert outcome["statuses"]["200"] >= 900
    assert sum(outcome["statuses"].values()) + outcome["reset"] == CROWD
    assert status_of(server, "VmHWM") // 1024 <= MEMORY_MAX_MIB
    assert eventually(lambda: descriptors(server) <= before + 4)
    assert push(server.http, build_tree({b"a": os.urandom(100_000)}))["number"] == 1


@pytest.mark.slow
def test_a_thousand_strangers_who_send_bodies(start_server: Callable[..., ServerProcess]) -> None:
    """Without a token, half a megabyte each, all at once: refused, and not gathered in the memory meanwhile."""
    server = start_server()
    head = f"POST /v1/pushes/{'ab' * 16}/packs?pack={'cd' * 16} HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"

    def attack(_: int) -> bool:
        with contextlib.ExitStack() as stack:
            connections = [
                stack.enter_context(socket.create_connection((server.http.host, server.http.port), timeout=30))
                for _ in range(63)
            ]
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.setblocking(False)
                    connection.send(head.encode() + bytes(1 << 20))
            for connection in connections:
                connection.settimeout(30)
                with contextlib.suppress(ConnectionError):
                    answer = connection.recv(1 << 16)
                    assert not answer or answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 503")), answer[:100]
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(attack, range(32)))
    assert status_of(server, "VmHWM") // 1024 <= MEMORY_MAX_MIB
    assert server.http.get("/v1/policy").status == 200
