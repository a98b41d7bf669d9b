"""Collection in a running server: beside pushes and pulls, by hand, and on a schedule."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from casstore.clock import ManualClock
from casstore.config import GcSettings, RetentionSettings, ServerSettings
from casstore.errors import CasstoreError, PinNotFound
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId, PointerName, SnapshotDigest
from casstore_client.blocking import Client
from tests.support.clients import client_of, release
from tests.support.server import Http, Running, make_store, run_in_thread

HOUR_MS = 60 * 60 * 1000
SETTINGS = ServerSettings(
    listen="127.0.0.1:0",
    metrics_listen="127.0.0.1:0",
    gc=GcSettings(interval_s=0, grace_s=2 * 3600, reader_grace_s=3600),
    retention=RetentionSettings(keep_artifacts=0, artifact_days=0, snapshot_days=0, history_days=0),
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def server(tmp_path: Path, clock: ManualClock) -> Iterator[Running]:
    created = make_store(tmp_path / "store", clock=clock)
    with run_in_thread(tmp_path / "store", created, settings=SETTINGS, clock=clock) as running:
        yield running


def write_tree(directory: Path, name: str, shared: bytes) -> Path:
    source = random.Random(name)
    top = directory / name
    (top / "lib").mkdir(parents=True)
    (top / "lib/shared").write_bytes(shared)
    (top / "lib/own").write_bytes(source.randbytes(200_000))
    for number in range(20):
        (top / f"small{number}").write_bytes(source.randbytes(500))
    return top


def read_tree(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def test_an_operator_collects_pins_and_undoes(server: Running, clock: ManualClock, tmp_path: Path) -> None:
    """By hand over HTTP: look first, collect, have it back, keep it, let it go."""
    with client_of(server, tmp_path / "state", clock=clock) as client:
        shared = random.Random(1).randbytes(100_000)
        first = client.push(write_tree(tmp_path / "in", "first", shared), name="first")
        clock.advance(2 * HOUR_MS)  # the push's lease is over
        planned = client.gc(dry_run=True)
        assert planned.condemned["root"] == 1
        done = client.gc()
        assert done.condemned == planned.condemned
        assert client.gc_undo().revived == sum(done.condemned.values())
        pin = client.pin("first", owner="release team", reason="CHG-7")
        assert [p.id for p in client.pins().pins] == [pin.id]
        kept = client.gc()
        assert kept.roots["pin"] == 1
        assert not kept.condemned
        client.unpin(pin.id)
        with pytest.raises(PinNotFound):
            client.unpin(pin.id)
        assert client.gc().condemned == done.condemned
        clock.advance(3 * HOUR_MS)
        gone = client.gc()
        assert gone.dropped == done.condemned
        assert gone.removed == [f"tree {first.artifact.digest}"]
        clock.advance(2 * HOUR_MS)
        assert client.gc().freed_bytes > 0
        assert client.artifacts().artifacts == []
        assert client.fsck(full=True).ok
    assert server.metrics_url is not None
    metrics = Http(server.metrics_url).get("/metrics").body.decode()
    assert f"casstore_gc_dropped_objects_total {float(sum(gone.dropped.values()))}" in metrics


def test_nothing_acknowledged_is_lost_while_collection_runs(
    server: Running, clock: ManualClock, tmp_path: Path
) -> None:
    """Pushes, snapshots, flips and pulls go on while collections follow each other and hours pass in between."""
    shared = random.Random(7).randbytes(300_000)
    faults: list[BaseException] = []
    ended = threading.Event()

    def collect() -> None:
        try:
            with client_of(server, tmp_path / "state-gc", clock=clock) as client:
                while not ended.is_set():
                    client.gc()
                    clock.advance(HOUR_MS)
        except BaseException as error:  # noqa: BLE001 (shown by the test's thread)
            faults.append(error)

    collector = threading.Thread(target=collect)
    collector.start()
    current: dict[str, tuple[str, dict[str, bytes]]] = {}
    try:
        patient = server._replace(created=server.created._replace(trust=server.created.trust._replace(max_age_s=10**9)))
        with client_of(patient, tmp_path / "state", clock=clock) as client:
            for number in range(12):
                name = f"r{number % 4}"  # the same content comes again after it was condemned, or dropped
                top = tmp_path / "in" / name
                if not top.exists():
                    write_tree(tmp_path / "in", name, shared)
                _flip_to(client, tmp_path, name, f"prod/p{number % 2}", current)
                for pointer, (digest, files) in current.items():
                    assert client.pointer(PointerName(pointer)).snapshot == digest
                    out = tmp_path / "out" / f"{number}-{pointer.replace('/', '-')}"
                    out.parent.mkdir(exist_ok=True)
                    client.pull(_tree_of(client, digest), out)
                    assert read_tree(out) == files
    finally:
        ended.set()
        collector.join()
    assert faults == []
    for _ in range(4):
        clock.advance(3 * HOUR_MS)
        report = server.http.post_json("/v1/gc", {})
        assert report.status == 200, report.body
    assert server.http.post_json("/v1/fsck?full=1", {}).json["findings"] == []


def _flip_to(
    client: Client, directory: Path, name: str, pointer: str, current: dict[str, tuple[str, dict[str, bytes]]]
) -> None:
    """Push, publish, flip; where collection was faster than a push, the push begins again, as its error says."""
    for _ in range(20):
        try:
            digest = release(client, directory / "in", name, {})
            now = client.pointer_or_none(PointerName(pointer))
            if now is None or now.snapshot != digest:
                client.flip(PointerName(pointer), digest, expect=None if now is None else now.flip)
        except CasstoreError as error:
            if error.code not in {"lease-lost", "snapshot-incomplete", "snapshot-not-found", "intent-expired"}:
                raise
            continue
        current[pointer] = (digest, read_tree(directory / "in" / name))
        return
    raise AssertionError("collection never let a push through")


def _tree_of(client: Client, snapshot: str) -> str:
    return str(client.snapshot_document(snapshot).components[0].digest)


def test_an_audit_tells_what_was_collected_from_what_is_lost(
    server: Running, clock: ManualClock, tmp_path: Path
) -> None:
    """A snapshot that was collected is excused by the log; one that a pointer names is not."""
    patient = server._replace(created=server.created._replace(trust=server.created.trust._replace(max_age_s=10**9)))
    with client_of(patient, tmp_path / "state", clock=clock) as client:
        old = release(client, tmp_path / "in", "old", {"a": b"old" * 1000})
        new = release(client, tmp_path / "in", "new", {"a": b"new" * 1000})
        client.flip(PointerName("prod/a"), new, expect=None)
        clock.advance(2 * HOUR_MS)
        client.gc()
        clock.advance(3 * HOUR_MS)
        report = client.gc()
        assert f"snapshot {old}" in report.removed
        [entry] = report.entries
        proven = client.entry(entry)
        assert proven.entry.type == "gc"
        assert client.gc_dropped(proven.entry.body["digest"]).dropped == report.removed
        audit = client.audit(full=True)
        assert audit.ok, audit.findings
        assert "1 snapshots were collected" in audit.levels[-1].detail
        index = server.server.context.store.packs.index  # type: ignore[union-attr]
        kept = SnapshotDigest.parse(new)
        index.condemn(ObjectKind.DOCUMENT, [kept], at_ms=1, mark=1)
        index.drop(index.condemned(after=(ObjectKind.DOCUMENT, bytes(32)), limit=1))
        server.server.context.store.presence.forget()  # type: ignore[union-attr]
        lost = client.audit()
        assert [finding.object for finding in lost.findings] == [f"snapshot {new}"]
        assert not client.fsck().ok


def test_a_deleted_pack_is_not_kept_open(server: Running, clock: ManualClock, tmp_path: Path) -> None:
    """A pack that somebody has read stays in the cache of open files: its space must come back all the same."""
    with client_of(server, tmp_path / "state", clock=clock) as client:
        pushed = client.push(write_tree(tmp_path / "in", "x", b"y" * 100_000), name="x")
        client.pull(str(pushed.artifact.digest), tmp_path / "out")
        clock.advance(2 * HOUR_MS)
        client.gc()
        clock.advance(3 * HOUR_MS)
        assert client.gc().packs_retired > 0
        clock.advance(2 * HOUR_MS)
        assert client.gc().packs_deleted > 0
    assert server.server is not None
    packs: list[PackId] = server.server.context.store.packs.store.list(limit=100)
    assert packs == []
    deleted = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    ]
    assert not [path for path in deleted if str(tmp_path) in path and path.endswith("(deleted)")]


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


@pytest.fixture
def by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(GcSettings, "check", lambda self: None)  # nobody may ask for it every second
    created = make_store(tmp_path / "store")
    settings = msgspec.structs.replace(SETTINGS, gc=GcSettings(interval_s=1, grace_s=2 * 3600))
    with run_in_thread(tmp_path / "store", created, settings=settings) as running:
        yield running


def test_a_server_collects_by_itself(by_itself: Running, tmp_path: Path) -> None:
    """A store that nobody looks after must not grow for ever."""
    with client_of(by_itself, tmp_path / "state") as client:
        client.push(write_tree(tmp_path, "one", b"shared"))
        wait_for(lambda: by_itself.log.getvalue().count('"collected"') >= 2)
        # Nothing keeps an unnamed artifact here: the next run that began after its push condemns it.
        wait_for(lambda: client.gc(dry_run=True).waiting > 0)


def test_a_schedule_that_ended_says_so(by_itself: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the disk fills up months later, and the log does not say why."""
    assert by_itself.server is not None

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(by_itself.server.context.store, "collect", fail)
    wait_for(lambda: "does not collect by itself any more" in by_itself.log.getvalue())
    assert "a fault of ours" in by_itself.log.getvalue()
    assert by_itself.http.get("/livez").status == 200
