"""The server as an operator meets it: start, stop, kill, a second one, TLS, metrics, fsck."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster
from prometheus_client.parser import text_string_to_metric_families

from casstore.config import ServerSettings
from casstore.errors import ConfigurationError, StoreBusy
from casstore.wire import MEDIA_PACK
from casstore_client import Client
from casstore_server.settings import Bounds
from tests.support.acting import Signer, push
from tests.support.server import ROOT, Http, Running, ServerProcess, make_store, run_in_thread
from tests.support.treebuild import build_blob, build_tree, encode_packs

Start = Callable[..., ServerProcess]


def casstore(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "server"), str(ROOT / "client")])
    return subprocess.run(
        [sys.executable, "-m", "casstore_client.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": paths, **(env or {})},
        check=False,
    )


def test_init_serve_and_stop(tmp_path: Path) -> None:
    """What the README's two commands do."""
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state")}
    made = casstore("init", str(tmp_path / "store"), "--json", env=env)
    assert made.returncode == 0, made.stderr
    config = tmp_path / "config" / "casstore"
    assert json.loads(made.stdout)["config"] == str(config / "config.toml")
    for name in ("config.toml", "token", "trust.json", "keys/operator.key"):
        assert (config / name).stat().st_mode & 0o777 == 0o600, name
    secrets = [(config / name).read_text("utf-8").strip() for name in ("token", "keys/operator.key")]
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(secret.encode() in data for secret in secrets), path
    again = casstore("init", str(tmp_path / "other"), env=env)
    assert again.returncode != 0
    assert "there already" in again.stderr
    assert not (tmp_path / "other").exists()


def test_a_graceful_stop(start_server: Start) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start_server()
        assert process.http.get("/readyz").status == 200
        assert process.stop(number) == 0
        lines = process.log_file.read_text("utf-8").splitlines()
        assert f"listening on {process.url}" in lines
        for line in lines:
            assert line in (f"listening on {process.url}", "stopped") or line.startswith("{") or "listening on" in line


def test_kill_9_and_start_again_without_a_repair_step(start_server: Start) -> None:
    """What was acknowledged is there, fsck is clean, and the next one opens as if nothing had been."""
    process = start_server()
    signer = Signer(process.http, process.created.operator_key, process.created.origin)
    one = signer.release_of({b"a": os.urandom(100_000)})
    flip = signer.flip("prod/api", one, None).json["entry"]
    ((pack, data),) = encode_packs(build_blob(os.urandom(3_000_000)).objects()[:1])
    ended = threading.Event()

    def upload_for_ever() -> None:
        while not ended.is_set():
            try:
                process.http.post(f"/v1/pushes/{'ab' * 16}/packs?pack={pack}", data, MEDIA_PACK)
            except OSError:
                return

    thread = threading.Thread(target=upload_for_ever)
    thread.start()
    process.kill()
    ended.set()
    thread.join()
    process = start_server()
    assert process.http.get("/v1/pointers/prod/api").json["flip"] == flip
    assert process.http.get("/v1/artifacts").json["artifacts"][0]["by"] == "operator"
    report = process.http.post("/v1/fsck?full=1", b"").json
    assert report["ok"], report
    assert process.stop() == 0


def test_a_second_server_on_the_same_store_is_refused(start_server: Start, tmp_path: Path) -> None:
    start_server()
    second = casstore("serve", "--store", str(tmp_path / "store"), "--listen", "127.0.0.1:0")
    assert second.returncode == 75
    assert "another" in second.stderr or "open" in second.stderr
    checked = casstore("fsck", "--store", str(tmp_path / "store"))
    assert checked.returncode == 75


def test_fsck_of_a_directory(tmp_path: Path) -> None:
    created = make_store(tmp_path / "store")
    with run_in_thread(tmp_path / "store", created) as server:
        push(server.http, build_tree({b"a": os.urandom(100_000)}))
    clean = casstore("fsck", "--full", "--json", "--store", str(tmp_path / "store"))
    assert (clean.returncode, json.loads(clean.stdout)["ok"]) == (0, True), clean.stderr
    pack = max((tmp_path / "store" / "packs").rglob("*.pack"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    damaged = casstore("fsck", "--full", "--json", "--store", str(tmp_path / "store"))
    assert damaged.returncode == 6, damaged.stderr
    report = json.loads(damaged.stdout)
    assert not report["ok"]
    assert any(pack.stem in json.dumps(finding) for finding in report["findings"])


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "example.com:80"])
def test_listening_elsewhere_without_tls_must_be_asked_for_by_name(tmp_path: Path, listen: str) -> None:
    """Tokens would travel in the clear."""
    created = make_store(tmp_path / "store")
    with (
        pytest.raises(ConfigurationError, match="without TLS"),
        run_in_thread(tmp_path / "store", created, settings=ServerSettings(listen=listen, metrics_listen="off")),
    ):
        pass
    refused = casstore("serve", "--store", str(tmp_path / "store"), "--listen", listen)
    assert refused.returncode == 2
    assert "TLS" in refused.stderr


def test_an_address_that_is_taken_is_a_sentence(server: Running, tmp_path: Path) -> None:
    created = make_store(tmp_path / "second")
    settings = ServerSettings(listen=f"127.0.0.1:{server.http.port}", metrics_listen="off")
    with (
        pytest.raises(ConfigurationError, match="cannot listen"),
        run_in_thread(tmp_path / "second", created, settings=settings),
    ):
        pass
    with run_in_thread(tmp_path / "second", created):  # and the store was closed again
        pass


def test_a_store_that_is_open_stays_with_its_server(server: Running) -> None:
    with pytest.raises(StoreBusy), run_in_thread(server.directory, server.created):
        pass
    assert server.http.get("/readyz").status == 200


def samples(server: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    assert server.metrics_url is not None
    reply = Http(server.metrics_url).get("/metrics")
    assert reply.status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }


def test_metrics_count_what_happened(server: Running) -> None:
    signer = Signer(server.http, server.created.operator_key, server.created.origin)
    one = signer.release_of({b"a": os.urandom(200_000)})
    signer.flip("prod/api", one, None)
    server.http.get("/nowhere/" + "x" * 50)

    def value(name: str, **labels: str) -> float:
        return samples(server)[name, frozenset(labels.items())]

    assert value("casstore_pushes_total") == 1
    assert value("casstore_packs_stored_total") >= 1
    assert value("casstore_entries_total", type="flip") == 1
    assert value("casstore_entries_total", type="snapshot") == 1
    assert value("casstore_log_size") == 3
    assert 0 <= value("casstore_checkpoint_age_seconds") < 60
    assert value("casstore_queue_depth", lane="readers") == 0
    assert value("casstore_http_requests_total", method="POST", route="/v1/flips", status="201") == 1
    assert value("casstore_http_requests_total", method="GET", route="unknown", status="404") == 1
    assert value("casstore_http_received_bytes_total") > 200_000
    assert value("casstore_http_sent_bytes_total") > 0
    assert value("casstore_http_request_seconds_count", method="POST", route="/v1/flips") == 1
    assert Http(server.url).get("/metrics").status == 404, "metrics are not for those who reach the API"


def test_a_drain_is_bounded(tmp_path: Path) -> None:
    """A client that never finishes its upload must not keep the server from stopping."""
    import socket

    created = make_store(tmp_path / "store")
    data = next(encode_packs(build_blob(os.urandom(1_000_000)).objects()))[1]
    with run_in_thread(tmp_path / "store", created, bounds=Bounds(drain_s=0.2)) as server:
        connection = socket.create_connection((server.http.host, server.http.port))
        head = (
            f"POST /v1/pushes/{'ab' * 16}/packs?pack={'cd' * 16} HTTP/1.1\r\nHost: x\r\nContent-Type: {MEDIA_PACK}\r\n"
            f"Content-Length: {len(data)}\r\nAuthorization: Bearer {server.token}\r\n\r\n"
        )
        connection.sendall(head.encode() + data[:1000])
        assert server.server is not None
        while server.server.context.uploads == 0:
            threading.Event().wait(0.002)
    connection.close()
    assert not list((tmp_path / "store" / "tmp").iterdir())


def test_nothing_blocks_the_loop(tmp_path: Path) -> None:
    """One file operation on the loop would stop every request for as long as a sick disk takes."""
    created = make_store(tmp_path / "store")
    guard = BlockBuster(scanned_modules=["casstore", "casstore_server"])
    with run_in_thread(tmp_path / "store", created) as server:
        guard.activate()
        try:
            signer = Signer(server.http, created.operator_key, created.origin)
            built = build_tree({f"f{n}".encode(): os.urandom(3000) for n in range(100)})
            push(server.http, built)
            blob = build_blob(os.urandom(2_000_000))
            push(server.http, blob)
            one = signer.release_of({b"a": b"1"})
            statuses = [signer.flip("prod/api", one, None).status]
            paths = [f"/v1/blobs/{blob.digest}", f"/v1/trees/{built.digest}", "/v1/artifacts", "/v1/config"]
            paths += ["/v1/pointers", "/v1/pointers/prod/api?proof=1", "/v1/pointers/prod/api/history", "/v1/status"]
            paths += ["/log/checkpoint", "/log/tile/0/000.p/1", "/v1/log/entries", "/v1/policy", "/v1/tokens"]
            paths += [f"/v1/packs/{path.stem}" for path in (server.directory / "packs").rglob("*.pack")]
            statuses += [server.http.get(path).status for path in paths]
            statuses.append(server.http.post("/v1/fsck?full=1", b"").status)
        finally:
            guard.deactivate()
    assert set(statuses) == {200, 201}
    failures: list[Any] = [line for line in server.log_lines() if line.get("exception")]
    assert failures == []


def test_a_commit_reads_nothing_that_came_in_with_its_push(server: Running, tmp_path: Path) -> None:
    """Small files in bundles, files of many chunks, several packs: all of it was hashed on the way in."""
    top = tmp_path / "tree"
    top.mkdir()
    for number in range(300):
        (top / f"small{number}").write_bytes(os.urandom(number * 3))
    for number in range(3):
        (top / f"large{number}").write_bytes(os.urandom(9_000_000 + number))
    with Client(server.url, token=server.created.token.secret) as client:
        client.push(top)
        assert samples(server)["casstore_proof_read_bytes_total", frozenset()] == 0
        (top / "large1").write_bytes(b"changed" + (top / "large1").read_bytes())
        client.push(top)
    # Of the changed file some chunks were there, so it was put together from what is stored; the others were proven before.
    assert 9_000_000 <= samples(server)["casstore_proof_read_bytes_total", frozenset()] < 10_000_000
