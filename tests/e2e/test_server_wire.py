"""Hostile and unlucky clients: whatever comes, a problem document or a closed connection, nothing stored half, bounded memory."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casstore.ids import PackId
from casstore.limits import JSON_BODY_MAX_BYTES, MISSING_IDS_MAX, PACK_SIZE_MAX_BYTES
from casstore.wire import MEDIA_IDS, MEDIA_PACK
from casstore_server.settings import Bounds
from tests.support.acting import push
from tests.support.server import Http, Running, make_store, run_in_thread
from tests.support.treebuild import build_blob, build_tree, encode_packs

PUSH = "/v1/pushes/" + "ab" * 16
BLOB = build_blob(os.urandom(3_000_000))


def one_pack() -> tuple[PackId, bytes]:
    ((pack, data),) = encode_packs(BLOB.objects())
    return pack, data


def stored_files(server: Running) -> list[Path]:
    """Packs, and whatever else an ingest could leave behind."""
    return [path for top in ("packs", "tmp") for path in (server.directory / top).rglob("*") if path.is_file()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """The server of other tests, but that it does not linger after a refusal: these tests wait for the connection's end."""
    created = make_store(tmp_path / "store")
    with run_in_thread(tmp_path / "store", created, bounds=Bounds(linger_s=0.05)) as running:
        yield running


@contextlib.contextmanager
def raw(server: Running, head: str) -> Iterator[socket.socket]:
    """A connection on which the head of a request was sent."""
    with socket.create_connection((server.http.host, server.http.port), timeout=20) as connection:
        lines = [head, "Host: x", f"Authorization: Bearer {server.token}", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    """Everything until the server closes; a connection that stays open fails by its timeout."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def problem_of(answer: bytes) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, answer[:500]
    return dict(json.loads(body))


def eventually(holds: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether something that another thread does has come true; asks often, ends early."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.005)
    return True


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/tokens", "/v1/flips", "/v1/snapshots", "/v1/policy", PUSH + "/commit"])
def test_100_mb_of_json_are_refused_before_they_are_read(server: Running, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 104857600"
    with raw(server, head) as connection:
        problem = problem_of(read_to_end(connection))
    assert problem["code"] == "too-large"
    assert problem["limit"] == JSON_BODY_MAX_BYTES


def test_endless_json_without_a_length_is_cut_at_the_bound(server: Running) -> None:
    head = "POST /v1/tokens HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked"
    piece = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    with raw(server, head) as connection:
        sent = 0
        with contextlib.suppress(ConnectionError):
            for _ in range(1600):
                connection.sendall(piece)
                sent += 65_536
        assert sent < 30_000_000, "the server drained what it had refused"
        assert problem_of(read_to_end(connection))["code"] == "too-large"


@pytest.mark.parametrize(
    ("path", "media", "length", "limit"),
    [
        (PUSH + "/missing?kind=chunk", MEDIA_IDS, MISSING_IDS_MAX * 32 + 32, MISSING_IDS_MAX * 32),
        (PUSH + "/packs?pack=" + "cd" * 16, MEDIA_PACK, PACK_SIZE_MAX_BYTES + 1, PACK_SIZE_MAX_BYTES),
    ],
)
def test_binary_bodies_are_bounded_too(server: Running, path: str, media: str, length: int, limit: int) -> None:
    with raw(server, f"POST {path} HTTP/1.1\r\nContent-Type: {media}\r\nContent-Length: {length}") as connection:
        problem = problem_of(read_to_end(connection))
    assert (problem["code"], problem["limit"]) == ("too-large", limit)


def test_a_json_bomb_of_brackets_is_refused(server: Running) -> None:
    reply = server.http.post("/v1/tokens", b"[" * 1_000_000)
    assert (reply.status, reply.code) == (400, "invalid-request")
    assert server.http.get("/livez").status == 200


# --- type and encoding -----------------------------------------------------------------------------------------------


def test_compressed_bodies_are_refused(server: Running) -> None:
    """Decompressing would let 4 MB of body become 4 GB."""
    body = gzip.compress(b'{"name":"x","permissions":["admin"]}')
    reply = server.http.post("/v1/tokens", body, Content_Encoding="gzip")
    assert (reply.status, reply.code) == (415, "unsupported-media-type")
    pack, data = one_pack()
    reply = server.http.post(f"{PUSH}/packs?pack={pack}", data, MEDIA_PACK, Content_Encoding="zstd")
    assert reply.code == "unsupported-media-type"
    assert stored_files(server) == []


@pytest.mark.parametrize("media", ["text/plain", "application/octet-stream", "application/jsonx"])
def test_another_media_type_is_refused(server: Running, media: str) -> None:
    assert server.http.post("/v1/tokens", b"{}", media).code == "unsupported-media-type"
    assert server.http.post(f"{PUSH}/packs?pack={'cd' * 16}", b"x", media).code == "unsupported-media-type"


WRONG = [
    ("GET", "/v1/nothing", "route-not-found", 404),
    ("GET", "/", "route-not-found", 404),
    ("PATCH", "/v1/tokens", "method-not-allowed", 405),
    ("GET", "/v1/artifacts?limt=5", "invalid-request", 400),
    ("GET", "/v1/artifacts?limit=5&limit=6", "invalid-request", 400),
    ("GET", "/v1/artifacts?limit=0", "invalid-request", 400),
    ("GET", "/v1/artifacts?limit=05", "invalid-request", 400),
    ("GET", "/v1/artifacts?limit=" + "9" * 5000, "invalid-request", 400),
    ("GET", "/v1/trees/blake3:xyz", "invalid-digest", 400),
    ("GET", "/v1/trees/sha256:" + "0" * 64, "invalid-digest", 400),
    ("GET", "/v1/trees/blake3:" + "0" * 64, "tree-not-found", 404),
    ("GET", "/v1/blobs/blake3:" + "0" * 64, "blob-not-found", 404),
    ("GET", "/v1/blobs/blake3:" + "0" * 64 + "/layout", "blob-not-found", 404),
    ("GET", "/v1/packs/" + "0" * 32, "pack-not-found", 404),
    ("GET", "/v1/packs/" + "A" * 32, "invalid-digest", 400),
    ("GET", "/v1/packs/..%2f..%2fkeys%2flog", "invalid-digest", 400),
    ("GET", "/v1/snapshots/blake3:" + "0" * 64, "snapshot-not-found", 404),
    ("GET", "/v1/pointers/prod/api", "pointer-not-found", 404),
    ("GET", "/v1/pointers/Prod", "invalid-name", 400),
    ("GET", "/v1/pointers/a/b/c/d/e", "invalid-name", 400),
    ("GET", "/v1/pointers/../tokens", "invalid-name", 400),
    ("GET", "/v1/pointers/prod/rollback", "invalid-name", 400),
    ("GET", "/v1/flips/0", "entry-not-found", 404),
    ("GET", "/v1/flips/99999999", "entry-not-found", 404),
    ("GET", "/v1/flips/x", "invalid-request", 400),
    ("GET", "/v1/log/entries/7", "entry-not-found", 404),
    ("GET", "/v1/diff?from=blake3:" + "0" * 64, "invalid-request", 400),
]


def test_what_is_not_there_or_not_well_formed(server: Running) -> None:
    for method, path, code, status in WRONG:
        reply = server.http.request(method, path)
        assert (path, reply.status, reply.code) == (path, status, code)
        assert reply.json["request_id"] == reply.headers["X-Request-Id"]


def test_what_is_not_http_is_refused_and_closed(server: Running) -> None:
    for nonsense in (b"BREW /v1/tokens HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET\r\n\r\n"):
        with socket.create_connection((server.http.host, server.http.port), timeout=20) as connection:
            connection.sendall(nonsense)
            assert read_to_end(connection).startswith(b"HTTP/1.0 400 ")
    assert server.http.get("/livez").status == 200


# --- packs -----------------------------------------------------------------------------------------------------------


def test_a_pack_that_lies_leaves_nothing(server: Running) -> None:
    pack, data = one_pack()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for body, codes in (
        (bytes(flipped), {"digest-mismatch", "malformed-document"}),
        (data[:-1], {"malformed-document"}),
        (data + b"\0", {"malformed-document"}),
        (b"", {"malformed-document"}),
        (os.urandom(200_000), {"malformed-document"}),
    ):
        reply = server.http.post(f"{PUSH}/packs?pack={pack}", body, MEDIA_PACK)
        assert reply.code in codes, reply.body
        assert reply.status in (400, 422)
        assert stored_files(server) == []
    assert server.http.post(f"{PUSH}/packs?pack={'cd' * 16}", data, MEDIA_PACK).code == "malformed-document"
    assert stored_files(server) == []
    assert server.http.post(f"{PUSH}/packs?pack={pack}", data, MEDIA_PACK).status == 201
    again = server.http.post(f"{PUSH}/packs?pack={pack}", data, MEDIA_PACK)
    assert (again.status, again.json["duplicate"]) == (200, True)


def test_a_client_that_vanishes_half_way_leaves_nothing(server: Running) -> None:
    pack, data = one_pack()
    head = f"POST {PUSH}/packs?pack={pack} HTTP/1.1\r\nContent-Type: {MEDIA_PACK}\r\nContent-Length: {len(data)}"
    assert server.server is not None
    context = server.server.context
    with raw(server, head) as connection:
        connection.sendall(data[: len(data) // 2])
        assert eventually(lambda: stored_files(server) != [])
    assert eventually(lambda: context.uploads == 0)
    assert stored_files(server) == []
    assert server.http.post(f"{PUSH}/packs?pack={pack}", data, MEDIA_PACK).status == 201


def test_a_body_longer_than_declared_is_not_read_as_part_of_it(server: Running) -> None:
    pack, data = one_pack()
    head = f"POST {PUSH}/packs?pack={pack} HTTP/1.1\r\nContent-Type: {MEDIA_PACK}\r\nContent-Length: {len(data) - 1}"
    with raw(server, head) as connection:
        connection.sendall(data)
        head_and_body = read_to_end(connection).split(b"\r\n\r\n")
    assert json.loads(head_and_body[1].partition(b"HTTP/")[0])["code"] == "malformed-document"
    assert stored_files(server) == []


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Running]:
    created = make_store(tmp_path / "store")
    bounds = Bounds(body_timeout_s=0.3, body_rate_min_bytes_s=1_000_000, uploads_max=1, linger_s=0.05)
    with run_in_thread(tmp_path / "store", created, bounds=bounds) as running:
        yield running


def test_a_sender_that_stops_is_given_up(impatient: Running) -> None:
    """A slow client must not hold an upload slot for ever."""
    pack, data = one_pack()
    head = f"POST {PUSH}/packs?pack={pack} HTTP/1.1\r\nContent-Type: {MEDIA_PACK}\r\nContent-Length: {len(data)}"
    with raw(impatient, head) as connection:
        connection.sendall(data[:1000])
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert problem_of(answer)["code"] == "invalid-request"
    assert stored_files(impatient) == []
    assert impatient.http.post(f"{PUSH}/packs?pack={pack}", data, MEDIA_PACK).status == 201


def test_a_sender_that_drips_is_given_up(impatient: Running) -> None:
    """One byte every tenth of a second never meets the timeout of a piece; the average rate gives it away."""
    pack, data = one_pack()
    head = f"POST {PUSH}/packs?pack={pack} HTTP/1.1\r\nContent-Type: {MEDIA_PACK}\r\nContent-Length: {len(data)}"
    with raw(impatient, head) as connection:
        ended = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                for byte in data:
                    connection.sendall(bytes([byte]))
                    if ended.wait(0.05):
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        answer = connection.recv(1 << 16)
        ended.set()
        thread.join()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert stored_files(impatient) == []


def test_too_many_uploads_at_once_are_told_to_wait(impatient: Running) -> None:
    pack, data = one_pack()
    head = f"POST {PUSH}/packs?pack={pack} HTTP/1.1\r\nContent-Type: {MEDIA_PACK}\r\nContent-Length: {len(data)}"
    assert impatient.server is not None
    context = impatient.server.context
    with raw(impatient, head) as connection:
        connection.sendall(data[:10])
        assert eventually(lambda: context.uploads == 1)
        reply = impatient.http.post(f"{PUSH}/packs?pack={'ee' * 16}", data, MEDIA_PACK)
        assert (reply.status, reply.code) == (503, "overloaded")
        assert 1 <= int(reply.headers["Retry-After"]) <= 2
    assert eventually(lambda: context.uploads == 0)


def test_a_hostile_tree_is_refused_at_commit(server: Running) -> None:
    """What the tree format refuses is tested there; here: it does not become an artifact, and the answer says why."""
    built = build_tree({b"a": b"1", b"b": b"2"})
    root = built.root.replace(b"a", b"/", 1) if b"a" in built.root else bytes([*built.root[:-1], built.root[-1] ^ 1])
    from casstore.formats.pack import ObjectKind
    from casstore.formats.tree import tree_digest

    hostile = tree_digest(root)
    objects = [(kind, id, data) for kind, id, data in built.objects() if kind is not ObjectKind.ROOT]
    server.http.post(f"{PUSH}/missing?kind=chunk", b"".join(built.chunks), MEDIA_IDS)
    for pack, data in encode_packs([*objects, (ObjectKind.ROOT, hostile, root)]):
        assert server.http.post(f"{PUSH}/packs?pack={pack}", data, MEDIA_PACK).status == 201
    reply = server.http.post_json(f"{PUSH}/commit", {"kind": "tree", "digest": str(hostile)})
    assert reply.code in ("malformed-document", "hostile-tree", "snapshot-incomplete")
    assert server.http.get("/v1/artifacts").json["artifacts"] == []


def test_a_commit_says_what_is_missing(server: Running) -> None:
    built = build_tree({b"a": b"1" * 100, b"b": os.urandom(200_000)})
    server.http.post(f"{PUSH}/missing?kind=chunk", b"".join(built.chunks), MEDIA_IDS)
    reply = server.http.post_json(f"{PUSH}/commit", {"kind": "tree", "digest": str(built.digest)})
    assert (reply.status, reply.code) == (409, "snapshot-incomplete")
    assert str(built.digest) in reply.json["missing"]
    never = server.http.post_json(f"/v1/pushes/{'ff' * 16}/commit", {"kind": "tree", "digest": str(built.digest)})
    assert (never.status, never.code) == (409, "lease-lost")


def test_requests_are_traced(server: Running) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    reply = server.http.get("/v1/policy", {"X-Request-Id": "deploy-42", "traceparent": trace})
    assert reply.headers["X-Request-Id"] == "deploy-42"
    assert reply.headers["traceparent"] == trace
    for bad in ("a b", "x" * 65, "ä"):
        assert (
            server.http.get("/livez", {"X-Request-Id": bad.encode().decode("latin-1")}).headers["X-Request-Id"] != bad
        )
    assert "traceparent" not in server.http.get("/livez", {"traceparent": "<script>"}).headers
    assert eventually(lambda: any(line.get("request_id") == "deploy-42" for line in server.log_lines()))
    (line,) = [line for line in server.log_lines() if line.get("request_id") == "deploy-42"]
    assert (line["method"], line["route"], line["status"], line["principal"]) == ("GET", "/v1/policy", 200, "operator")
    assert line["traceparent"] == trace


def test_many_connections_at_once(server: Running) -> None:
    """After a restart of the server every host comes back in the same second."""
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection((server.http.host, server.http.port), timeout=20))
        assert server.http.get("/readyz").status == 200


def test_a_push_still_works_after_all_that(server: Running) -> None:
    push(server.http, BLOB, "big")
    got = Http(server.url, server.token).get(f"/v1/blobs/{BLOB.digest}")
    assert got.status == 200
    assert len(got.body) == 3_000_000
