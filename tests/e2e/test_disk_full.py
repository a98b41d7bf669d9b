"""A disk that is full: nothing is lost, a rollback still goes through, and all goes on when there is space again.

Three disks: one that says that it is full (every run), a small tmpfs and a small ext4 that are (the slow run; they are mounted,
which needs root, and where that is not allowed these tests fail and say so).  The server, the socket and the store are real.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from casstore import store as store_module
from casstore.admin import Created, fsck_directory
from casstore.config import ServerSettings
from casstore.errors import StoreFull
from casstore.ids import SnapshotDigest
from casstore.limits import KIB, MIB
from casstore.storage.local.files import Committable, Files, Space
from casstore.storage.local.heads import RECORD_BYTES
from casstore.wire import MEDIA_PACK
from casstore_client import Client
from casstore_server.settings import Bounds
from tests.support.acting import Signer, push
from tests.support.server import Http, Running, ServerProcess, make_store, run_in_thread
from tests.support.smalldisk import filled, mounted
from tests.support.treebuild import build_blob, build_tree, encode_packs

DISK_BYTES = 64 * MIB
RESERVE_BYTES = 2 * MIB
SETTINGS = ServerSettings(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", disk_reserve_bytes=RESERVE_BYTES)


class SaysFull(Files):
    """A disk that has as many bytes as it is told, whatever the real one has."""

    free: int = DISK_BYTES

    def space(self, path: str) -> Space:
        return Space(DISK_BYTES, self.free, None)

    def _demand(self) -> None:
        if not self.free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_write(self, path: str, mode: int = 0o640) -> int:
        self._demand()
        return super().open_write(path, mode)

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        self._demand()
        super().write(descriptor, data)

    def allocate(self, descriptor: int, offset: int, length: int) -> None:
        self._demand()
        super().allocate(descriptor, offset, length)

    def commit(self, transaction: Committable) -> None:
        self._demand()
        super().commit(transaction)


class Disk(NamedTuple):
    """Where the store lies, and how to fill up what is around it."""

    directory: Path
    fill: Callable[[int], contextlib.AbstractContextManager[None]]
    """Leave that many bytes free for as long as the block lasts."""


@pytest.fixture(
    params=["says", pytest.param("tmpfs", marks=pytest.mark.slow), pytest.param("ext4", marks=pytest.mark.slow)]
)
def disk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    if request.param == "says":
        files = SaysFull()
        monkeypatch.setattr(store_module, "Files", lambda: files)

        @contextlib.contextmanager
        def say(leave_bytes: int) -> Iterator[None]:
            files.free = leave_bytes
            yield
            files.free = DISK_BYTES

        yield Disk(tmp_path, say)
        return
    with mounted(tmp_path, request.param, DISK_BYTES) as where:
        yield Disk(where, lambda leave_bytes: filled(where, leave_bytes=leave_bytes))


class World(NamedTuple):
    """A server with two releases, the second of them live."""

    running: Running
    signer: Signer
    one: SnapshotDigest
    two: SnapshotDigest

    @property
    def flip(self) -> int:
        return int(self.running.http.get("/v1/pointers/prod/api").json["flip"])

    def turn(self) -> Any:
        """Flip to the release that is not live."""
        live = self.running.http.get("/v1/pointers/prod/api").json
        to = self.two if live["snapshot"] == str(self.one) else self.one
        return self.signer.flip("prod/api", to, live["flip"])

    def history(self) -> int:
        return len(self.running.http.get("/v1/pointers/prod/api/history?limit=1000").json["items"])


@contextlib.contextmanager
def world_on(directory: Path, created: Created, bounds: Bounds | None = None) -> Iterator[World]:
    bounds = bounds or Bounds(disk_look_s=0.05, linger_s=0.2)
    with run_in_thread(directory / "store", created, settings=SETTINGS, bounds=bounds) as running:
        signer = Signer(running.http, created.operator_key, created.origin)
        one, two = signer.release_of({b"f": b"1" * 5000}), signer.release_of({b"f": b"2" * 5000})
        first = signer.flip("prod/api", one, None).json["entry"]
        assert signer.flip("prod/api", two, first).status == 201
        yield World(running, signer, one, two)


@pytest.fixture
def world(disk: Disk) -> Iterator[World]:
    created = make_store(disk.directory / "store")
    with world_on(disk.directory, created) as found:
        yield found


def upload(http: Http, size: int = 3 * MIB) -> Any:
    ((pack, data),) = encode_packs(build_blob(os.urandom(size)).objects())
    return http.post(f"/v1/pushes/{os.urandom(16).hex()}/packs?pack={pack}", data, MEDIA_PACK)


def eventually(holds: Callable[[], bool]) -> bool:
    import threading
    import time

    deadline = time.monotonic() + 10
    while not holds():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.01)
    return True


def changes(running: Running) -> list[str]:
    return [line["event"] for line in running.log_lines() if line["event"].startswith("the disk")]


def demand_whole(world: World) -> None:
    """Nothing half is left, and every reference holds."""
    assert list((world.running.directory / "tmp").iterdir()) == []
    report = world.running.http.post("/v1/fsck?full=1", b"").json
    assert report["ok"], report


def test_a_push_leaves_the_reserve_and_a_rollback_uses_it(disk: Disk, world: World) -> None:
    """A disk full of pushes at two in the morning: the rollback that undoes the last of them must not be refused for it."""
    running = world.running
    with disk.fill(RESERVE_BYTES + 512 * KIB):
        reply = upload(running.http)
        assert (reply.status, reply.code) == (507, "store-full")
        assert "no more content" in reply.json["detail"]
        assert "no restart" in reply.json["hint"]
        assert int(reply.headers["Retry-After"]) >= 60
        rolled = world.signer.flip("prod/api", world.one, world.flip, kind="rollback")
        assert rolled.status == 201, rolled.body
        for _ in range(20):
            assert world.turn().status == 201
        before = world.history()
        demand_whole(world)
    assert upload(running.http).status == 201
    assert world.history() == before == 23
    demand_whole(world)


def test_a_pack_whose_length_nobody_knows_stops_at_the_reserve(disk: Disk, world: World) -> None:
    """Chunked, so that it cannot be refused before it is sent: it is refused in the middle, and its file is gone."""
    import http.client

    ((pack, data),) = encode_packs(build_blob(os.urandom(6 * MIB)).objects())
    with disk.fill(RESERVE_BYTES + MIB // 2):
        connection = http.client.HTTPConnection(world.running.http.host, world.running.http.port, timeout=30)
        pieces = (data[at : at + MIB] for at in range(0, len(data), MIB))
        headers = {"Authorization": f"Bearer {world.running.token}", "Content-Type": MEDIA_PACK}
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(
                "POST", f"/v1/pushes/{'ab' * 16}/packs?pack={pack}", pieces, headers, encode_chunked=True
            )
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (507, "store-full")
        connection.close()
        assert eventually(lambda: not list((world.running.directory / "tmp").iterdir()))
    assert upload(world.running.http).status == 201
    demand_whole(world)


def test_nothing_is_lost_when_there_is_no_byte_left(disk: Disk, world: World) -> None:
    """Somebody else filled the disk.  What was answered is there; what was refused is not; nobody restarts anything."""
    running = world.running
    done = world.history()
    with disk.fill(0):
        statuses = []
        for _ in range(30):
            reply = world.turn()
            statuses.append(reply.status)
            assert reply.status == 201 or (reply.status, reply.code) == (507, "store-full"), reply.body
        assert 507 in statuses, "the disk was not full"
        refused = upload(running.http)
        assert (refused.status, refused.code) == (507, "store-full")
        with ThreadPoolExecutor(32) as pool:
            reads = list(pool.map(lambda _: running.http.get("/v1/pointers/prod/api").status, range(200)))
        assert set(reads) == {200}
        assert running.http.get("/v1/trees/" + component(running, world.one)).status == 200
        assert world.history() == done + statuses.count(201)
        assert running.server is not None
        assert not running.server.sealed.is_set(), "a full disk is no reason to stop"
    assert world.turn().status == 201
    assert push(running.http, build_tree({b"new": os.urandom(100_000)}))["number"] >= 1
    assert world.history() == done + statuses.count(201) + 1
    demand_whole(world)


def test_the_client_says_what_it_is(disk: Disk, world: World, tmp_path: Path) -> None:
    """A job that pushes ends at once, with a sentence, and not after minutes of trying again."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(8):
        (source / f"f{number}").write_bytes(os.urandom(3 * MIB))
    with Client(world.running.url, token=world.running.token) as client:
        with disk.fill(RESERVE_BYTES + MIB), pytest.raises(StoreFull, match="no more content"):
            client.push(source, name="app")
        client.push(source, name="app")
    assert running_names(world) == ["app"]
    demand_whole(world)


def running_names(world: World) -> list[str | None]:
    found = world.running.http.get("/v1/artifacts?name=app").json["artifacts"]
    return [artifact["name"] for artifact in found]


def component(running: Running, snapshot: SnapshotDigest) -> str:
    return str(running.http.get(f"/v1/snapshots/{snapshot}").json["components"][0]["digest"])


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["tmpfs", "ext4"], indirect=True)
def test_the_last_head_of_a_block_seals_nothing(disk: Disk, world: World) -> None:
    """The ledger finds free pages in itself, the record of heads needs a new block: that must be known before the commit."""
    heads = world.running.directory / "signed-heads"
    assert world.running.server is not None
    for pages in range(1, 13):
        while heads.stat().st_size % 4096 < 4096 - RECORD_BYTES:
            assert world.turn().status == 201
        with disk.fill(pages * 4096):
            assert {world.turn().status for _ in range(3)} <= {201, 507}
            assert not world.running.server.sealed.is_set(), pages
    assert world.turn().status == 201
    demand_whole(world)


def test_operators_see_it_once(disk: Disk, world: World) -> None:
    """One line when the disk fills up and one when it has room again, whatever the number of pushes between them."""
    running = world.running
    assert running.http.get("/readyz").body == b"ready\n"
    with disk.fill(RESERVE_BYTES // 2):
        assert eventually(lambda: changes(running) == ["the disk is full: pushes are refused"])
        for _ in range(5):
            assert upload(running.http, 10_000).status == 507
        ready = running.http.get("/readyz")
        assert ready.status == 200, "pulls and rollbacks go on"
        assert b"pushes are refused" in ready.body
        assert gauge(running, "casstore_disk_reserve_bytes") == RESERVE_BYTES
        assert eventually(lambda: 0 < gauge(running, "casstore_disk_free_bytes") < RESERVE_BYTES)
    assert eventually(lambda: running.http.get("/readyz").body == b"ready\n")
    assert changes(running) == ["the disk is full: pushes are refused", "the disk has room again: pushes are taken"]
    assert not [line for line in running.log_lines() if "exception" in line]


def gauge(running: Running, name: str) -> float:
    assert running.metrics_url is not None
    text = Http(running.metrics_url).get("/metrics").body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith(name + " ")]
    return float(line.split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_server_starts_on_a_full_disk(tmp_path: Path, kind: str) -> None:
    """A machine that rebooted with a full disk must still say what is live, and roll back once there is a little room."""
    with mounted(tmp_path, kind, DISK_BYTES) as where:
        created = make_store(where / "store")
        server = ServerProcess(where / "store", created)
        signer = Signer(server.http, created.operator_key, created.origin)
        one = signer.release_of({b"f": b"1"})
        entry = signer.flip("prod/api", one, None).json["entry"]
        with filled(where):
            server.kill()
            # What the starting server writes for itself does not belong on that disk.
            server.port_file.unlink(missing_ok=True)
            again = restart(server, tmp_path)
            try:
                assert again.http.get("/v1/pointers/prod/api").json["flip"] == entry
                assert upload(again.http).status == 507
                signer.http = again.http
                statuses = {signer.flip("prod/api", None, entry, kind="retire").status for _ in range(3)}
                assert statuses <= {201, 200, 412, 507}
                assert again.stop() == 0
            finally:
                again.kill()
        assert fsck_directory(where / "store", full=True).ok


def restart(server: ServerProcess, beside: Path) -> ServerProcess:
    """The same store again, its log and port file elsewhere."""
    (beside / "link").symlink_to(server.directory)
    return ServerProcess(beside / "link", server.created)


@pytest.mark.slow
def test_no_file_can_be_made_any_more(tmp_path: Path) -> None:
    """Inodes run out before bytes do, on a disk of small files: pushes are refused in the same way, flips go on."""
    with mounted(tmp_path, "tmpfs", DISK_BYTES, files=420) as where:
        created = make_store(where / "store")
        with world_on(where, created) as world:
            statuses = []
            for number in range(200):
                reply = upload(world.running.http, 1000)
                statuses.append(reply.status)
                if reply.status != 201:
                    assert (reply.status, reply.code) == (507, "store-full")
                    assert "more files" in reply.json["detail"]
                    break
                assert number < 190
            assert statuses.count(201) >= 10
            others = []
            with contextlib.suppress(OSError):
                for number in range(1000):
                    others.append(where / f"other-{number}")
                    others[-1].touch()
            assert world.turn().status == 201
            for path in others:
                path.unlink(missing_ok=True)
            demand_whole(world)
