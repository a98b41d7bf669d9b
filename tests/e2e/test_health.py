"""Damage on a server's disk: it is met, found, taken out of use, and healed, without anyone stopping the server."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from casstore.config import ScrubSettings, ServerSettings
from casstore.errors import DamagedObject, InvalidInput, NotFound, NotPermitted, RateLimited
from casstore.formats.pack import FRAME_HEADER_BYTES, ObjectKind
from casstore.ids import BlobDigest
from casstore.limits import DAMAGE_CHECKS_PER_MINUTE, DAMAGE_REPORT_MAX
from casstore.storage.roles import Location
from casstore.wire import ScrubStatus
from casstore_client import AsyncClient
from tests.support.clients import client_of
from tests.support.filetrees import make_tree, read_tree
from tests.support.server import Running, make_store, run_in_thread

WAIT_S = 30.0


@pytest.fixture(autouse=True)
def quick_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casstore_server.upkeep.COUNT_S", 0.05)


def flip_object(server: Running, kind: ObjectKind, id: bytes) -> Location:
    """Flip a bit of an object as it lies on the disk of a running server."""
    assert server.server is not None
    location = server.server.context.store.packs.index.locate(kind, [id])[0]
    assert location is not None
    name = str(location.pack)
    path = server.directory / "packs" / name[:2] / f"{name}.pack"
    at = location.offset + FRAME_HEADER_BYTES + (location.stored_length - FRAME_HEADER_BYTES) // 2
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)
    return location


def ids_of(server: Running, kind: ObjectKind) -> list[bytes]:
    assert server.server is not None
    return [id for id, _ in server.server.context.store.packs.index.objects(kind, limit=1000)]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def scrub(server: Running, tmp_path: Path, **asked: object) -> ScrubStatus:
    with client_of(server, tmp_path / "state") as client:
        found = client.scrub(full_pass=True, rate_bytes_s=0)
        while found.running:
            time.sleep(0.02)
            found = client.scrub_status()
        return found


def make_top(tmp_path: Path, count: int = 300) -> Path:
    files = {b"d%d/f%d" % (n % 7, n): b"content %d " % n * 900 for n in range(count)}
    return make_tree(tmp_path / "tree", files)


async def test_a_flipped_bit_from_the_pull_that_meets_it_to_the_push_that_heals_it(
    server: Running, tmp_path: Path
) -> None:
    """The whole of it: a pull fails closed and says so, a scrub finds it, a push sends exactly that, a pull succeeds."""
    top = make_top(tmp_path)
    async with AsyncClient(server.url, token=server.token) as client:
        pushed = await client.push(top, name="app")
        chunk = ids_of(server, ObjectKind.CHUNK)[0]
        flip_object(server, ObjectKind.CHUNK, chunk)
        with pytest.raises(DamagedObject) as met:
            await client.pull(pushed.digest, tmp_path / "copy")
        assert met.value.object == str(BlobDigest(chunk))
        assert not (tmp_path / "copy").exists()
        # The pull has reported it, so it is out of use already; who reads it now is told what it is.
        (lost,) = [found async for found in client.quarantine()]
        assert (lost.kind, lost.id) == ("chunk", str(BlobDigest(chunk)))
        with pytest.raises(DamagedObject, match="quarantine") as told:
            await client.pull(pushed.digest, tmp_path / "copy")
        assert chunk.hex() in str(told.value.object)
        report = await client.fsck()
        assert {finding.code for finding in report.findings if finding.severity == "error"} >= {"quarantined"}
        again = await client.push(top, name="app")
        assert (again.digest, again.new_chunks) == (pushed.digest, 1)
        assert [found async for found in client.quarantine()] == []
        await client.pull(pushed.digest, tmp_path / "copy")
        assert read_tree(tmp_path / "copy") == read_tree(top)
        report = await client.fsck(full=True)
        assert [finding.code for finding in report.findings] == ["dead-frame"]
        assert report.ok
    wait_until(lambda: _metrics(server)["casstore_healed_objects_total"] == 1)
    gauges = _metrics(server)
    assert gauges["casstore_damaged_objects_total"] == 1
    assert gauges["casstore_quarantined_objects"] == 0
    assert gauges["casstore_scrub_bytes_total"] == gauges["casstore_scrub_last_full_pass_timestamp_seconds"] == 0


def _metrics(server: Running) -> dict[str, float]:
    assert server.metrics_url is not None
    with urllib.request.urlopen(f"{server.metrics_url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#") and "{" not in line}


@pytest.mark.parametrize("kind", [ObjectKind.CHUNK, ObjectKind.PAGE, ObjectKind.LAYOUT, ObjectKind.ROOT])
def test_what_a_scrub_finds_a_push_heals(server: Running, tmp_path: Path, kind: ObjectKind) -> None:
    top = make_top(tmp_path)
    with client_of(server, tmp_path / "state") as client:
        pushed = client.push(top, name="app")
        id = ids_of(server, kind)[0]
        flip_object(server, kind, id)
        found = scrub(server, tmp_path)
        assert (found.damaged, found.quarantined) == (1, 1)
        assert found.verified_bytes == found.total_bytes == _metrics(server)["casstore_scrub_bytes_total"]
        assert _metrics(server)["casstore_scrub_last_full_pass_timestamp_seconds"] > 0
        assert [finding.object for finding in found.findings] == [f"{kind.name.lower()} blake3:{id.hex()}"]
        with pytest.raises(DamagedObject, match="quarantine"):
            client.pull(pushed.digest, tmp_path / "copy")
        again = client.push(top, name="app")
        assert (again.digest, again.new_chunks) == (pushed.digest, int(kind is ObjectKind.CHUNK))
        client.pull(pushed.digest, tmp_path / "copy")
        assert scrub(server, tmp_path).quarantined == 0
    assert read_tree(tmp_path / "copy") == read_tree(top)


def test_a_server_reads_what_it_serves_and_notices(server: Running, tmp_path: Path) -> None:
    """Pages and blobs go through the server's hands: it needs nobody to tell it."""
    (tmp_path / "blob").write_bytes(b"x" * 300_000)
    with client_of(server, tmp_path / "state") as client:
        pushed = client.push(tmp_path / "blob")
        flip_object(server, ObjectKind.CHUNK, ids_of(server, ObjectKind.CHUNK)[0])
        server.http.get(f"/v1/blobs/{pushed.digest}")
        wait_until(lambda: len(list(client.quarantine())) == 1)


def test_nobody_is_believed(server: Running, tmp_path: Path) -> None:
    """A reader that says that something is damaged takes nothing out of use."""
    with client_of(server, tmp_path / "state") as client:
        client.push(make_top(tmp_path))
        chunks = ids_of(server, ObjectKind.CHUNK)
        objects = [{"id": f"blake3:{chunk.hex()}", "kind": "chunk"} for chunk in chunks]
        reply = server.http.post_json("/v1/damage", {"objects": [*objects, {"id": "blake3:" + "0" * 64}]})
        assert [row["verdict"] for row in reply.json["verdicts"]] == [*["sound"] * len(chunks), "missing"]
        assert list(client.quarantine()) == []
        with pytest.raises(NotFound):
            client.release_object(f"blake3:{chunks[0].hex()}")


def test_reports_are_bounded(server: Running) -> None:
    one = {"id": "blake3:" + "0" * 64}
    assert server.http.post_json("/v1/damage", {"objects": []}).code == InvalidInput.code
    assert server.http.post_json("/v1/damage", {"objects": [one] * (DAMAGE_REPORT_MAX + 1)}).code == InvalidInput.code
    for _ in range(DAMAGE_CHECKS_PER_MINUTE // DAMAGE_REPORT_MAX):
        assert server.http.post_json("/v1/damage", {"objects": [one] * DAMAGE_REPORT_MAX}).status == 200
    refused = server.http.post_json("/v1/damage", {"objects": [one]})
    assert (refused.code, refused.status) == (RateLimited.code, 429)
    assert int(refused.headers["Retry-After"]) >= 1


def test_what_reads_right_again_can_be_released(server: Running, tmp_path: Path) -> None:
    with client_of(server, tmp_path / "state") as client:
        client.push(make_top(tmp_path))
        chunk = ids_of(server, ObjectKind.CHUNK)[0]
        flip_object(server, ObjectKind.CHUNK, chunk)
        scrub(server, tmp_path)
        with pytest.raises(DamagedObject, match="stays in quarantine"):
            client.release_object(f"blake3:{chunk.hex()}")
        assert server.server is not None
        row = server.server.context.store.packs.find_quarantined(ObjectKind.CHUNK, chunk)
        assert row is not None
        name = str(row.location.pack)
        path = server.directory / "packs" / name[:2] / f"{name}.pack"
        data = bytearray(path.read_bytes())
        data[row.location.offset + FRAME_HEADER_BYTES + (row.location.stored_length - FRAME_HEADER_BYTES) // 2] ^= 4
        path.write_bytes(data)
        client.release_object(f"blake3:{chunk.hex()}")
        assert list(client.quarantine()) == []


def test_who_may_ask(server: Running) -> None:
    made = server.http.post_json("/v1/tokens", {"name": "host", "permissions": ["content:read"]}).json
    reader = made["secret"]
    for method, path in (("POST", "/v1/scrub"), ("GET", "/v1/scrub"), ("GET", "/v1/quarantine")):
        headers = {"Content-Type": "application/json"}
        assert server.http.request(method, path, b"{}", headers, token=reader).code == NotPermitted.code
    report = {"objects": [{"id": "blake3:" + "0" * 64}]}
    assert server.http.post_json("/v1/damage", report, token=reader).status == 200


def test_a_server_scrubs_by_itself_and_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the background, slowly; a stop does not wait for its end, and the next start goes on."""
    monkeypatch.setattr("casstore_server.upkeep.FIRST_LOOK_S", 0.05)
    created = make_store(tmp_path / "store")
    plain = ServerSettings(listen="127.0.0.1:0", metrics_listen="off", scrub=ScrubSettings(interval_s=0))
    with (
        run_in_thread(tmp_path / "store", created, settings=plain) as server,
        client_of(server, tmp_path / "state") as client,
    ):
        for number in range(4):
            client.push(make_tree(tmp_path / f"t{number}", {b"a": b"%d" % number * 70_000}))
        assert client.scrub_status().pass_number == 0
    slow = ServerSettings(listen="127.0.0.1:0", metrics_listen="off", scrub=ScrubSettings(rate_bytes_s=1))
    with (
        run_in_thread(tmp_path / "store", created, settings=slow) as server,
        client_of(server, tmp_path / "state") as client,
    ):
        wait_until(lambda: client.scrub_status().verified_bytes > 0)
        half = client.scrub_status()
        assert half.running
        assert half.rate_bytes_s == 1
    with (
        run_in_thread(tmp_path / "store", created, settings=slow) as server,
        client_of(server, tmp_path / "state") as client,
    ):
        found = client.scrub(rate_bytes_s=0)
        wait_until(lambda: not client.scrub_status().running)
        found = client.scrub_status()
        assert (found.pass_number, found.pass_active) == (1, False)
        assert found.verified_bytes == found.total_bytes
        assert found.oldest_verified_at is not None
