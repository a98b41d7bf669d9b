"""Pull over HTTP: ranges, revalidation, streams that break rather than end short."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casstore.config import ServerSettings, TlsSettings
from casstore.formats.tree import decode_root
from casstore.ids import PackId
from casstore.wire import MEDIA_IDS, MEDIA_PACK, MEDIA_PAGES, MEDIA_TREE, PageRecordDecoder
from tests.support.acting import push
from tests.support.server import Running, make_store, run_in_thread, token_of
from tests.support.treebuild import build_blob, build_tree

FILES = {f"d{n % 7}/f{n}".encode(): os.urandom(50 + n * 37 % 5000) for n in range(400)} | {
    b"big": os.urandom(2_500_000)
}
TREE = build_tree(FILES)
BLOB = build_blob(os.urandom(3_000_000))
PLAIN_BLOB = b"".join(BLOB.chunks.values())


def test_a_pull_has_three_steps(server: Running) -> None:
    push(server.http, TREE, "app")
    root = server.http.get(f"/v1/trees/{TREE.digest}")
    assert (root.status, root.headers.get_content_type(), root.body) == (200, MEDIA_TREE, TREE.root)
    wanted = b"".join(ref.digest for ref in decode_root(root.body))
    answer = server.http.post(f"/v1/trees/{TREE.digest}/pages", wanted, MEDIA_IDS)
    assert answer.headers.get_content_type() == MEDIA_PAGES
    decoder = PageRecordDecoder()
    records = decoder.feed(answer.body)
    decoder.finish()
    assert [record.page for record in records] == [page.data for page in TREE.pages]
    place = records[0].chunks[0]
    frame = server.http.get(
        f"/v1/packs/{place.pack}", {"Range": f"bytes={place.offset}-{place.offset + place.stored_length - 1}"}
    )
    assert (frame.status, len(frame.body)) == (206, place.stored_length)
    assert frame.body[:2] == b"CF"


def test_pages_of_another_tree_or_out_of_order_are_refused(server: Running) -> None:
    push(server.http, TREE)
    pages = [page.ref.digest for page in TREE.pages]
    for body in (b"\0" * 32, b"".join(reversed([*pages, b"\0" * 32])), pages[0] + pages[0], b"\0" * 31, b""):
        assert server.http.post(f"/v1/trees/{TREE.digest}/pages", body, MEDIA_IDS).code == "invalid-request"


def chunk_pack(server: Running) -> Path:
    """The pack that holds the chunks; layouts lie in another, small one."""
    return max((server.directory / "packs").rglob("*.pack"), key=lambda path: path.stat().st_size)


def pack_of(server: Running) -> tuple[str, bytes]:
    path = chunk_pack(server)
    return path.stem, path.read_bytes()


def test_packs_answer_ranges(server: Running) -> None:
    push(server.http, BLOB)
    name, data = pack_of(server)
    url = f"/v1/packs/{name}"
    whole = server.http.get(url)
    assert (whole.status, whole.body) == (200, data)
    assert whole.headers.get_content_type() == MEDIA_PACK
    assert whole.headers["Cache-Control"] == "max-age=31536000, immutable"
    assert whole.headers["Accept-Ranges"] == "bytes"
    etag = whole.headers["ETag"]
    size = len(data)
    for header, first, last in (
        ("bytes=0-0", 0, 0),
        ("bytes=100-1000099", 100, 1_000_099),
        (f"bytes={size - 10}-", size - 10, size - 1),
        ("bytes=-10", size - 10, size - 1),
        (f"bytes=5-{size + 5}", 5, size - 1),
    ):
        part = server.http.get(url, {"Range": header})
        assert (part.status, part.body) == (206, data[first : last + 1])
        assert part.headers["Content-Range"] == f"bytes {first}-{last}/{size}"
        assert part.headers["Content-Length"] == str(last - first + 1)
        assert part.headers["ETag"] == etag
    beyond = server.http.get(url, {"Range": f"bytes={size}-"})
    assert (beyond.status, beyond.body, beyond.headers["Content-Range"]) == (416, b"", f"bytes */{size}")
    assert server.http.get(url, {"Range": "bytes=1-2", "If-Range": '"other"'}).status == 200
    assert server.http.get(url, {"Range": "bytes=1-2", "If-Range": etag}).status == 206
    unchanged = server.http.get(url, {"If-None-Match": etag})
    assert (unchanged.status, unchanged.body) == (304, b"")
    head = server.http.request("HEAD", url)
    assert (head.status, head.headers["Content-Length"], head.body) == (200, str(size), b"")


def test_blobs_answer_ranges(server: Running) -> None:
    push(server.http, BLOB)
    url = f"/v1/blobs/{BLOB.digest}"
    whole = server.http.get(url)
    assert (whole.status, whole.headers["Content-Length"]) == (200, "3000000")
    data = whole.body
    assert sorted(data) == sorted(PLAIN_BLOB)
    for first, last in ((0, 0), (1, 2_999_999), (1_048_570, 1_048_580), (2_999_999, 2_999_999), (999_999, 2_000_001)):
        part = server.http.get(url, {"Range": f"bytes={first}-{last}"})
        assert (part.status, part.body) == (206, data[first : last + 1])
    assert server.http.get(url, {"Range": "bytes=3000000-"}).status == 416
    assert server.http.get(url, {"If-None-Match": whole.headers["ETag"]}).status == 304
    head = server.http.request("HEAD", url)
    assert (head.status, head.headers["Content-Length"], head.body) == (200, "3000000", b"")


def test_an_empty_blob(server: Running) -> None:
    empty = build_blob(b"")
    push(server.http, empty)
    got = server.http.get(f"/v1/blobs/{empty.digest}")
    assert (got.status, got.body, got.headers["Content-Length"]) == (200, b"", "0")
    assert server.http.get(f"/v1/blobs/{empty.digest}", {"Range": "bytes=0-"}).status == 416
    assert server.http.get(f"/v1/blobs/{empty.digest}/layout").status == 200


def damage(server: Running, at: float) -> None:
    path = chunk_pack(server)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(int(path.stat().st_size * at))
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))


def test_a_damaged_blob_breaks_off_and_never_ends_short(server: Running) -> None:
    """200 and fewer bytes, or 200 and wrong bytes, would be taken for the file by a client that does not hash."""
    push(server.http, BLOB)
    damage(server, 0.7)
    connection = http.client.HTTPConnection(server.http.host, server.http.port, timeout=20)
    connection.request("GET", f"/v1/blobs/{BLOB.digest}", headers={"Authorization": f"Bearer {server.token}"})
    response = connection.getresponse()
    assert response.status == 200
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        response.read()
    connection.close()
    assert server.http.get("/livez").status == 200


def test_damage_that_shows_before_the_first_byte_is_a_problem(server: Running) -> None:
    push(server.http, BLOB)
    damage(server, 0.02)
    reply = server.http.get(f"/v1/blobs/{BLOB.digest}")
    assert (reply.status, reply.code) == (500, "damaged-object")
    assert "pack" in reply.json["where"]


def test_a_pack_that_shrank_breaks_off(server: Running) -> None:
    push(server.http, BLOB)
    name, data = pack_of(server)
    assert server.http.get(f"/v1/packs/{name}", {"Range": "bytes=0-1"}).status == 206  # it is open now
    path = chunk_pack(server)
    path.chmod(0o600)
    os.truncate(path, len(data) // 2)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        server.http.get(f"/v1/packs/{name}")
    assert server.http.get("/livez").status == 200


def test_more_packs_than_descriptors(server: Running) -> None:
    """Packs leave the cache of open files while others are being sent."""
    assert server.server is not None
    server.server.context.descriptors._limit = 2
    for number in range(5):
        push(server.http, build_blob(bytes([number]) * 100))
    names = sorted(path.stem for path in (server.directory / "packs").rglob("*.pack"))
    assert len(names) >= 5
    for _ in range(2):
        for name in names:
            reply = server.http.get(f"/v1/packs/{name}")
            assert reply.body[8:24] == PackId.parse(name)


def test_artifacts_are_listed_newest_first(server: Running) -> None:
    for number in range(5):
        push(server.http, build_blob(bytes([number]) * 10), "even" if number % 2 == 0 else "odd")
    first = server.http.get("/v1/artifacts?limit=3").json
    second = server.http.get(f"/v1/artifacts?limit=3&after={first['next']}").json
    numbers = [artifact["number"] for artifact in first["artifacts"] + second["artifacts"]]
    assert numbers == sorted(numbers, reverse=True)
    assert len(numbers) == 5
    assert {artifact["by"] for artifact in first["artifacts"]} == {"operator"}
    assert len(server.http.get("/v1/artifacts?name=odd").json["artifacts"]) == 2


def test_shortened_digests_and_differences(server: Running) -> None:
    other = build_tree({**FILES, b"d1/new": b"x", b"big": b"small"})
    push(server.http, TREE)
    push(server.http, other)
    short = str(TREE.digest)[len("blake3:") :][:12]
    assert server.http.get(f"/v1/resolve?prefix={short}").json["digests"] == [str(TREE.digest)]
    assert server.http.get("/v1/resolve?prefix=zz").status == 400
    diff = server.http.get(f"/v1/diff?from={TREE.digest}&to={other.digest}").json
    (component,) = diff["components"]
    assert {(file["path"], file["change"]) for file in component["files"]} == {("big", "changed"), ("d1/new", "added")}


def certificate(directory: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = directory / "tls.crt", directory / "tls.key"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


def test_packs_travel_under_tls_too(tmp_path: Path) -> None:
    """``sendfile`` does not work there; what takes its place must give the same bytes."""
    created = make_store(tmp_path / "store")
    cert, key = certificate(tmp_path)
    plain = ServerSettings(listen="127.0.0.1:0", metrics_listen="off")
    with run_in_thread(tmp_path / "store", created, settings=plain) as server:
        push(server.http, BLOB)
        name, data = pack_of(server)
    settings = ServerSettings(listen="127.0.0.1:0", metrics_listen="off", tls=TlsSettings(cert=str(cert), key=str(key)))
    with run_in_thread(tmp_path / "store", created, settings=settings) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection("localhost", server.http.port, context=context, timeout=20)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {token_of(created)}"}
            connection.request("GET", f"/v1/packs/{name}", headers=headers)
            assert connection.getresponse().read() == data
            connection.request("GET", f"/v1/packs/{name}", headers={**headers, "Range": "bytes=1000-2000000"})
            part = connection.getresponse()
            assert (part.status, part.read()) == (206, data[1000:2_000_001])
