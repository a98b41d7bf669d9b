"""A hostile holder of a push token, and hostile readers: what each of them cost before, and must not cost any more.

Every test here but those of trees failed once.  What is refused by a format is tested there; here it is what a running server
spends on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from casstore.engine.sessions import PENDING_LAYOUTS_EACH_MAX
from casstore.engine.snapshots import Completeness
from casstore.formats.layout import LAYOUT_MAGIC
from casstore.formats.pack import ObjectKind, PackEncoder, encode_pack, seal_frame
from casstore.formats.page import PAGE_MAGIC
from casstore.formats.tree import ROOT_MAGIC, page_digest, tree_digest
from casstore.hashing import CONTEXT_TREE, blake3_256, derive
from casstore.ids import ChunkId, PackId, SnapshotDigest
from casstore.limits import (
    LAYOUT_SIZE_MAX_BYTES,
    MIB,
    PACK_FRAMES_MAX,
    PUSH_SESSIONS_EACH_MAX,
    ROOT_SIZE_MAX_BYTES,
)
from casstore.signing import SigningKey
from casstore.wire import MEDIA_IDS, MEDIA_PACK
from casstore_server.answers import Answers
from casstore_server.settings import Bounds
from tests.support.acting import Signer, push, snapshot_document
from tests.support.server import Http, Reply, Running, ServerProcess, make_store, run_in_thread
from tests.support.treebuild import build_blob, build_tree, encode_packs

MEMORY_MAX_MIB = 300
Object = tuple[ObjectKind, bytes, bytes]


def token(http: Http, *permissions: str, name: str = "mallory") -> str:
    reply = http.post_json("/v1/tokens", {"name": name, "permissions": list(permissions)})
    assert reply.status == 201, reply.body
    return str(reply.json["secret"])


def pushing(http: Http) -> Http:
    """The same server, with a token that pushes and reads content and does nothing else."""
    attacker = Http("http://x:1", token(http, "content:push", "content:read"))
    attacker.host, attacker.port = http.host, http.port
    return attacker


def upload(http: Http, objects: Sequence[Object], push_id: str | None = None) -> Reply:
    pack = PackId(os.urandom(16))
    path = f"/v1/pushes/{push_id or os.urandom(16).hex()}/packs?pack={pack}"
    return http.post(path, encode_pack(pack, objects), MEDIA_PACK)


def head_of(http: Http, pack: PackId, length: int) -> bytes:
    """The head of a request that sends a pack of ``length`` bytes."""
    return (
        f"POST /v1/pushes/{os.urandom(16).hex()}/packs?pack={pack} HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {http.token}\r\nContent-Type: {MEDIA_PACK}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def eventually(holds: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.005)
    return True


def peak_mib(server: ServerProcess) -> int:
    """The most memory that the process ever had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def repeat(chunk: bytes, times: int) -> tuple[ChunkId, bytes]:
    """A layout of one file that is ``chunk`` over and over, and the chunk's id."""
    id = ChunkId(blake3_256(chunk))
    head = LAYOUT_MAGIC + struct.pack(">II32sII", 1, 1, id, len(chunk), times)
    return id, head + struct.pack(">III", 0, 0, len(chunk)) * times


EXTENTS_MAX = (LAYOUT_SIZE_MAX_BYTES - 64) // 12


# --- memory ----------------------------------------------------------------------------------------------------------


def test_layouts_that_swell_do_not_fill_the_memory(start_server: Callable[..., ServerProcess]) -> None:
    """A kilobyte of zstd holds a layout of the largest size; eight of them at once, committed, and read."""
    server = start_server()
    http = pushing(server.http)
    id, layout = repeat(b"a", EXTENTS_MAX)
    digest = blake3_256(b"a" * EXTENTS_MAX)
    objects = [(ObjectKind.CHUNK, bytes(id), b"a"), (ObjectKind.LAYOUT, digest, layout)]

    def attack(_: int) -> set[int]:
        push_id = os.urandom(16).hex()
        http.post(f"/v1/pushes/{push_id}/missing?kind=chunk", id, MEDIA_IDS)
        commit = {"kind": "blob", "digest": f"blake3:{digest.hex()}"}
        return {
            upload(http, objects, push_id).status,
            http.post_json(f"/v1/pushes/{push_id}/commit", commit).status,
            http.get(f"/v1/blobs/blake3:{digest.hex()}", {"Range": "bytes=5-6"}).status,
        }

    with ThreadPoolExecutor(8) as pool:
        statuses = set().union(*pool.map(attack, range(8)))
    assert statuses <= {201, 206, 404, 409, 503}
    assert 500 not in statuses
    assert peak_mib(server) <= MEMORY_MAX_MIB
    assert attack(0) == {201, 206}
    assert server.http.get(f"/v1/blobs/blake3:{digest.hex()}", {"Range": "bytes=0-9"}).body == b"a" * 10


def test_roots_that_swell_do_not_fill_the_memory(start_server: Callable[..., ServerProcess]) -> None:
    """A root need not be of a tree that was committed for a reader to ask for pages of it."""
    server = start_server()
    http = pushing(server.http)
    row = struct.pack(">32sIIQH", b"\1" * 32, 64, 1000, 0, 8)
    rows = (ROOT_SIZE_MAX_BYTES - 64) // (len(row) + 8)
    parts = [row + b"%08x" % number for number in range(1, rows)]
    root = ROOT_MAGIC + struct.pack(">I", rows) + row[:-2] + b"\0\0" + b"".join(parts)
    tree = tree_digest(root)
    assert upload(http, [(ObjectKind.ROOT, tree, root)]).status == 201
    with ThreadPoolExecutor(8) as pool:
        replies = pool.map(lambda _: http.post(f"/v1/trees/{tree}/pages", b"\1" * 32, MEDIA_IDS).status, range(8))
    assert set(replies) <= {409, 503}
    assert peak_mib(server) <= MEMORY_MAX_MIB


def test_large_objects_that_come_in_slowly_do_not_fill_the_memory(server: Running) -> None:
    """Of roots that stop one byte before their end only so many are held; the others are told to come again."""
    http = pushing(server.http)
    root = os.urandom(ROOT_SIZE_MAX_BYTES)
    answers: list[bytes] = []
    with contextlib.ExitStack() as stack:
        for number in range(3):
            connection = stack.enter_context(socket.create_connection((http.host, http.port), timeout=20))
            pack = PackId(os.urandom(16))
            data = encode_pack(pack, [(ObjectKind.ROOT, derive(CONTEXT_TREE, root), root)])
            with contextlib.suppress(ConnectionError):
                connection.sendall(head_of(http, pack, len(data)) + data[:-200])
            connection.settimeout(20 if number else 0.5)
            with contextlib.suppress(TimeoutError, ConnectionError):
                answers.append(connection.recv(1 << 16))
    assert [answer.split()[1] for answer in answers] == [b"503", b"503"]
    # The first one is gone, so its room is free again.
    assert eventually(lambda: upload(http, [(ObjectKind.ROOT, derive(CONTEXT_TREE, root), root)]).status == 201)


def test_layouts_that_are_never_committed_are_bounded(server: Running) -> None:
    """They wait in memory for their commit; what was refused stayed there all the same, and kept everyone out."""
    http = pushing(server.http)
    empty = LAYOUT_MAGIC + struct.pack(">II", 0, 0)
    many = [(ObjectKind.LAYOUT, number.to_bytes(32, "big"), empty) for number in range(PACK_FRAMES_MAX)]
    for start in range(0, PENDING_LAYOUTS_EACH_MAX, PACK_FRAMES_MAX):
        assert upload(http, many[start : start + PACK_FRAMES_MAX]).status == 201
    refused = upload(http, many[:10])
    assert (refused.status, refused.code) == (503, "overloaded")
    assert push(server.http, build_tree({b"a": b"1"}))["number"] == 1


def test_readers_that_do_not_read_are_bounded_and_given_up(tmp_path: Path) -> None:
    """Anyone may ask for the log: a thousand times, and take none of it."""
    created = make_store(tmp_path / "store")
    with run_in_thread(tmp_path / "store", created, bounds=Bounds(write_timeout_s=0.3)) as running:
        signer = Signer(running.http, created.operator_key, created.origin)
        flip, snapshots = None, [signer.release_of({b"f": text}) for text in (b"1", b"2")]
        for number in range(60):
            reply = signer.flip("prod/api", snapshots[number % 2], flip, why="x" * 900)
            flip = reply.json["pointers"][0]["flip"]
        size = len(running.http.get("/v1/log/entries?limit=1000").body)
        assert running.server is not None
        context = running.server.context
        context.answers = Answers(2 * size)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                connection = stack.enter_context(socket.socket())
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect((running.http.host, running.http.port))
                connection.sendall(b"GET /v1/log/entries?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n" * 40)
            assert eventually(lambda: any("read nothing" in line.get("error", "") for line in running.log_lines()))
        assert eventually(lambda: running.http.get("/v1/log/entries?limit=1000").status == 200)
        assert not any("exception" in line for line in running.log_lines())


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_pack_of_bombs_is_refused_before_it_is_decompressed(server: Running) -> None:
    """A frame of 152 bytes is a chunk of a megabyte: sixty thousand of them kept a thread busy for minutes."""
    http = pushing(server.http)
    for kind, plain, count in (
        (ObjectKind.CHUNK, bytes(MIB), 2000),
        (ObjectKind.LAYOUT, repeat(b"a", EXTENTS_MAX)[1], 20),
    ):
        id = blake3_256(plain)
        codec, stored = seal_frame(kind, id, plain)
        pack = PackId(os.urandom(16))
        encoder = PackEncoder(pack)
        encoder.fits = lambda stored_length: True  # type: ignore[method-assign]
        frames = [encoder.add(kind, id, codec, stored, len(plain)) for _ in range(count)] if encoder.header() else []
        data = b"".join([PackEncoder(pack).header(), *frames, encoder.finish()])
        assert len(data) < MIB
        began = time.monotonic()
        reply = http.post(f"/v1/pushes/{os.urandom(16).hex()}/packs?pack={pack}", data, MEDIA_PACK)
        assert (reply.status, reply.code) == (413, "too-large")
        assert time.monotonic() - began < 1.0


def test_files_that_repeat_a_chunk_for_terabytes_are_refused(server: Running) -> None:
    """Eight megabytes of layout, a kilobyte on the wire, name a file of 700 GB: hours of hashing."""
    http = pushing(server.http)
    zeros = bytes(MIB)
    id, layout = repeat(zeros, EXTENTS_MAX)
    push_id, digest = os.urandom(16).hex(), os.urandom(32)
    http.post(f"/v1/pushes/{push_id}/missing?kind=chunk", id, MEDIA_IDS)
    objects = [(ObjectKind.CHUNK, bytes(id), zeros), (ObjectKind.LAYOUT, digest, layout)]
    assert upload(http, objects, push_id).status == 201
    reply = http.post_json(f"/v1/pushes/{push_id}/commit", {"kind": "blob", "digest": f"blake3:{digest.hex()}"})
    assert (reply.status, reply.code) == (413, "too-large")


def test_long_proofs_keep_no_upload_waiting(server: Running) -> None:
    """Proofs of minutes, as many as there are threads for them: packs are taken in all the same, and flips go on."""
    http = pushing(server.http)
    zeros = bytes(MIB)
    id, layout = repeat(zeros, 16_000)
    assert server.server is not None
    context = server.server.context

    def commit() -> None:
        push_id, digest = os.urandom(16).hex(), os.urandom(32)
        http.post(f"/v1/pushes/{push_id}/missing?kind=chunk", id, MEDIA_IDS)
        upload(http, [(ObjectKind.CHUNK, bytes(id), zeros), (ObjectKind.LAYOUT, digest, layout)], push_id)
        http.post_json(f"/v1/pushes/{push_id}/commit", {"kind": "blob", "digest": f"blake3:{digest.hex()}"})

    threads = [threading.Thread(target=commit) for _ in range(context.bounds.worker_threads)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: context.bridge.provers.depth >= len(threads))
    assert upload(http, [(ObjectKind.CHUNK, blake3_256(b"x"), b"x")]).status == 201
    assert context.bridge.provers.depth, "the proofs ended before anything was shown"
    assert server.http.get("/v1/policy").status == 200
    for thread in threads:
        thread.join()


def test_an_upload_that_fails_while_the_workers_are_full_leaves_nothing(tmp_path: Path) -> None:
    """The clean-up of an upload was queued behind the others, and refused: file, slot and descriptor stayed for ever."""
    created = make_store(tmp_path / "store")
    with run_in_thread(tmp_path / "store", created, bounds=Bounds(linger_s=0.05, worker_threads=1)) as running:
        assert running.server is not None
        context = running.server.context
        ((pack, data),) = encode_packs(build_blob(os.urandom(3_000_000)).objects())
        room = context.bridge.workers._limit
        with socket.create_connection((running.http.host, running.http.port), timeout=20) as connection:
            connection.sendall(head_of(running.http, pack, len(data)) + data[:10])
            tmp = running.directory / "tmp"
            assert eventually(lambda: any(tmp.iterdir()))
            context.bridge.workers._limit = 0
        assert eventually(lambda: not any(tmp.iterdir()))
        context.bridge.workers._limit = room
        assert eventually(lambda: context.uploads == 0)
        assert running.http.post(f"/v1/pushes/{'ab' * 16}/packs?pack={pack}", data, MEDIA_PACK).status == 201


def test_one_principal_does_not_take_all_sessions(server: Running) -> None:
    """A thousand push ids, made up in two seconds, kept every push of everyone out for an hour."""
    http = pushing(server.http)
    for _ in range(PUSH_SESSIONS_EACH_MAX):
        assert http.post(f"/v1/pushes/{os.urandom(16).hex()}/missing?kind=chunk", bytes(32), MEDIA_IDS).status == 200
    reply = http.post(f"/v1/pushes/{os.urandom(16).hex()}/missing?kind=chunk", bytes(32), MEDIA_IDS)
    assert (reply.status, reply.code) == (503, "overloaded")
    assert push(server.http, build_tree({b"a": b"1"}))["number"] == 1


def test_who_cannot_sign_makes_nobody_read(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that may publish, without a key: the content of its snapshot was gone through before the signature was."""
    assert server.server is not None
    store = server.server.context.store
    looked: list[SnapshotDigest] = []

    def look(digest: SnapshotDigest) -> Completeness:
        looked.append(digest)
        return Completeness([], 0, 0)

    monkeypatch.setattr(store.snapshots, "completeness", look)
    document = snapshot_document({"app": "blake3:" + "1" * 64})
    stranger = Signer(server.http, SigningKey.generate("mallory", os.urandom(32)), server.created.origin)
    assert stranger.publish(document).code == "signature-invalid"
    assert looked == []


# --- trees -----------------------------------------------------------------------------------------------------------


def entry(path: bytes, kind: int = 2, target: bytes = b"") -> bytes:
    tail = struct.pack(">H", len(target)) + target if kind == 3 else b""
    return struct.pack(">H", len(path)) + path + struct.pack(">BH", kind, 0 if kind == 3 else 0o755) + tail


HOSTILE = {
    "parent": [entry(b""), entry(b"..")],
    "parent below": [entry(b""), entry(b"a"), entry(b"a/../../etc")],
    "absolute": [entry(b""), entry(b"/etc")],
    "empty component": [entry(b""), entry(b"a"), entry(b"a//b")],
    "NUL": [entry(b""), entry(b"a\0b")],
    "beneath a link": [entry(b""), entry(b"a", 3, b"/etc"), entry(b"a/passwd")],
    "without a parent": [entry(b""), entry(b"a/b")],
    "twice": [entry(b""), entry(b"a"), entry(b"a")],
    "unsorted": [entry(b""), entry(b"b"), entry(b"a")],
    "no root": [entry(b"a")],
    "root is a link": [entry(b"", 3, b"/")],
    "unknown type": [entry(b""), entry(b"a", 9)],
    "goes on behind the cut": [entry(b""), *(entry(b"%05d" % number) for number in range(4095))],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_trees_become_no_artifact(server: Running, name: str) -> None:
    """Everything but the names is right: hashes, root, layout, packs."""
    page = PAGE_MAGIC + b"".join(HOSTILE[name])
    first = HOSTILE[name][0]
    path = first[2 : 2 + int.from_bytes(first[:2], "big")]
    row = struct.pack(">32sIIQH", page_digest(page), len(HOSTILE[name]), len(page), 0, len(path)) + path
    root = ROOT_MAGIC + struct.pack(">I", 1) + row
    push_id = os.urandom(16).hex()
    server.http.post(f"/v1/pushes/{push_id}/missing?kind=page", page_digest(page), MEDIA_IDS)
    objects = [
        (ObjectKind.PAGE, bytes(page_digest(page)), page),
        (ObjectKind.LAYOUT, bytes(page_digest(page)), LAYOUT_MAGIC + struct.pack(">II", 0, 0)),
        (ObjectKind.ROOT, bytes(tree_digest(root)), root),
    ]
    assert upload(server.http, objects, push_id).status == 201
    reply = server.http.post_json(f"/v1/pushes/{push_id}/commit", {"kind": "tree", "digest": str(tree_digest(root))})
    assert reply.code in ("hostile-tree", "malformed-document"), reply.body
    assert reply.status in (400, 422)
    assert server.http.get("/v1/artifacts").json["artifacts"] == []
    pages = server.http.post(f"/v1/trees/{tree_digest(root)}/pages", page_digest(page), MEDIA_IDS)
    assert pages.status in (400, 409, 422), "a page that was never proven was handed out"


# --- logs ------------------------------------------------------------------------------------------------------------


def test_clients_that_vanish_are_no_errors_of_ours(tmp_path: Path) -> None:
    """A wrong pack whose sender is gone left a traceback in the log: anyone could fill it."""
    created = make_store(tmp_path / "store")
    with run_in_thread(tmp_path / "store", created, bounds=Bounds(linger_s=0.05)) as running:
        for _ in range(5):
            with socket.create_connection((running.http.host, running.http.port)) as connection:
                connection.sendall(head_of(running.http, PackId(os.urandom(16)), 9_000_000) + os.urandom(2 * MIB))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert running.server is not None
        context = running.server.context
        assert eventually(lambda: context.uploads == 0 and len(requests_of(running)) >= 5)
    assert [line for line in map(json.loads, running.log.getvalue().splitlines()) if line["level"] == "error"] == []


def requests_of(running: Running) -> list[dict[str, Any]]:
    return [line for line in running.log_lines() if line["event"] == "request"]
