"""The log as strangers read it: C2SP paths, caching, clipping."""

from __future__ import annotations

import base64
import hashlib

from casstore.formats.checkpoint import open_checkpoint
from casstore.merkle import leaf_hash, verify_consistency, verify_inclusion
from casstore.tiles import decode_entries_tile
from tests.support.acting import Signer
from tests.support.server import Http, Running


def anonymous(server: Running) -> Http:
    return Http(server.url)


def grow(server: Running, entries: int) -> None:
    signer = Signer(server.http, server.created.operator_key, server.created.origin)
    one = signer.release_of({b"a": b"1"})
    assert signer.flip("prod/api", one, None).status == 201
    while signer.http.get("/v1/status").json["log_size"] < entries:
        for act in (signer.hold, signer.release):
            assert act("prod/api").status == 201


def test_checkpoint_and_tiles_as_any_reader_knows_them(server: Running) -> None:
    grow(server, 5)
    http = anonymous(server)
    checkpoint = http.get("/log/checkpoint")
    assert checkpoint.headers["Cache-Control"] == "no-cache"
    assert checkpoint.headers.get_content_type() == "text/plain"
    log = server.server.context.store.log if server.server else None
    assert log is not None
    opened = open_checkpoint(checkpoint.body, log.verifier, log.origin, [log.clock_verifier])
    size = opened.checkpoint.size
    assert size >= 5
    hashes = http.get(f"/log/tile/0/000.p/{size}")
    assert hashes.headers["Cache-Control"] == "max-age=31536000, immutable"
    entries = decode_entries_tile(http.get(f"/log/tile/entries/000.p/{size}").body, size)
    assert hashes.body == b"".join(leaf_hash(entry) for entry in entries)
    assert hashlib.sha256(entries[0]).hexdigest() == http.get("/v1/config").json["log"]["genesis_sha256"]
    shorter = http.get("/log/tile/0/000.p/2")
    assert shorter.body == hashes.body[:64], "a partial tile of an earlier size stays readable"
    part = http.get(f"/log/tile/0/000.p/{size}", {"Range": "bytes=32-63"})
    assert (part.status, part.body) == (206, hashes.body[32:64])


def test_what_is_not_published_is_not_there_and_not_cached(server: Running) -> None:
    http = anonymous(server)
    size = server.http.get("/v1/status").json["log_size"]
    for path in (
        "0/000",
        f"0/000.p/{size + 1}",
        "0/001",
        "1/000.p/1",
        "0/000.p/0",
        "0/000.p/01",
        "00/000.p/1",
        "0/0.p/1",
        "0/x000/000.p/1",
        "63/000",
        "64/000",
        "-1/000",
        "entries/000",
        "0/000.p/1/",
        "..%2fcheckpoint",
    ):
        reply = http.get(f"/log/tile/{path}")
        assert (path, reply.status, reply.headers["Cache-Control"]) == (path, 404, "no-store")


def test_proofs_verify_with_nothing_but_the_checkpoint(server: Running) -> None:
    grow(server, 6)
    http = anonymous(server)
    listed = http.get("/v1/log/entries?from=1&limit=3").json
    lines = listed["checkpoint"].split("\n")
    size, root = int(lines[1]), base64.b64decode(lines[2])
    assert [entry["index"] for entry in listed["entries"]] == [1, 2, 3]
    for entry in listed["entries"]:
        proof = [base64.b64decode(value) for value in entry["proof"]]
        verify_inclusion(leaf_hash(base64.b64decode(entry["entry"])), entry["index"], size, proof, root)
    one = http.get("/v1/log/entries/2").json["entries"]
    assert one[0]["entry"] == listed["entries"][1]["entry"]
    early = http.get("/v1/log/proof/inclusion?index=1&size=3").body.split(b"\n\n", 1)[1].split(b"\n")
    answer = http.get(f"/v1/log/proof/consistency?from=3&to={size}").json
    hashes = [base64.b64decode(value) for value in answer["proof"]]
    verify_consistency(3, size, base64.b64decode(early[2]), root, hashes)
    witness = http.get("/v1/log/proof/consistency?from=3", {"Accept": "text/plain"})
    head, _, note = witness.body.decode().partition("\n\n")
    assert head.split("\n") == ["old 3", *answer["proof"]]
    assert note == listed["checkpoint"]
    assert http.get("/v1/log/policies").json["entries"][0]["index"] == 0
    assert http.get("/v1/log/policies?after=0").json["entries"] == []


def test_proofs_of_what_is_not_there(server: Running) -> None:
    http = anonymous(server)
    for path, code in (
        ("inclusion?index=99", "entry-not-found"),
        ("inclusion?index=0&size=99", "invalid-request"),
        ("inclusion?index=0&size=0", "invalid-request"),
        ("inclusion", "invalid-request"),
        ("inclusion?index=+0", "invalid-request"),
        ("consistency?from=5&to=2", "invalid-request"),
        ("consistency?from=1&to=99", "invalid-request"),
        ("consistency?from=01", "invalid-request"),
    ):
        assert http.get(f"/v1/log/proof/{path}").code == code, path
