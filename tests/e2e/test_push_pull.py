"""Push and pull against a real server: bit for bit, in three steps, and whatever breaks, all or nothing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import (
    ArtifactNotFound,
    BlobNotFound,
    CasstoreError,
    DamagedObject,
    DestinationExists,
    DigestMismatch,
    HostileTree,
    InvalidDigest,
    InvalidInput,
    InvalidName,
    MalformedDocument,
    PathNotFound,
    SourceChanged,
    TreeNotFound,
    Unauthenticated,
)
from casstore.formats.layout import LayoutBuilder
from casstore.formats.page import PAGE_MAGIC
from casstore.formats.tree import EntryType, PageRef, TreeEntry, encode_entry, encode_root, page_digest, tree_digest
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest, PackId, TreeDigest
from casstore.wire import ChunkAt, PageRecord
from casstore_client import AsyncClient, Client, Phase, ProgressEvent, TransportError, progress_events
from casstore_client import pages as pages_module
from casstore_client import transport as transport_module
from casstore_client.errors import ProtocolError
from casstore_client.restore import mtime_ns
from tests.support.fakecontent import FakeContent
from tests.support.filetrees import make_tree, odd_tree, read_tree
from tests.support.meddler import Meddler
from tests.support.server import ROOT, Running
from tests.support.treebuild import Directory, File, build_tree


def open_client(server: Running, url: str | None = None) -> AsyncClient:
    return AsyncClient(url or server.url, token=server.created.token.secret)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "PAUSE_FIRST_S", 0.001)


# --- what goes in comes out ------------------------------------------------------------------------------------------


async def test_a_directory_comes_back_bit_for_bit(server: Running, tmp_path: Path) -> None:
    top = odd_tree(tmp_path / "tree")
    async with open_client(server) as client:
        pushed = await client.push(top, name="odd/tree", labels={"rev": "1"})
        pulled = await client.pull(pushed.digest, tmp_path / "copy")
        assert read_tree(tmp_path / "copy") == read_tree(top)
        assert (pulled.files, pulled.size_bytes) == (pushed.files, pushed.size_bytes)
        # Bit for bit says more than equal: the copy has the same digest, and nothing of it must be sent.
        again = await client.push(tmp_path / "copy")
        assert (again.digest, again.new_chunks, again.sent_bytes) == (pushed.digest, 0, 0)
        (newest, first) = (await client.artifacts()).artifacts
        assert (first.name, first.digest, first.files) == ("odd/tree", str(pushed.digest), pushed.files)
        assert newest.name is None
    assert sorted(os.listdir(tmp_path)) == ["copy", "store", "tree"]


async def test_a_push_takes_three_steps_and_so_does_a_pull(server: Running, tmp_path: Path) -> None:
    top = make_tree(tmp_path / "tree", {b"%d" % n: b"%d" % n * 100 for n in range(100)})
    async with open_client(server) as client:
        pushed = await client.push(top)
        assert pushed.requests == {"config": 1, "missing": 2, "packs": 1, "commit": 1}
        pulled = await client.pull(pushed.digest, tmp_path / "copy")
        assert pulled.requests == {"tree": 1, "pages": 1, "ranges": 1}
        unchanged = await client.push(top)
        assert unchanged.requests == {"missing": 2, "commit": 1}, "the root alone is not worth a pack"


async def test_the_second_release_sends_what_is_new(server: Running, tmp_path: Path) -> None:
    chance = random.Random(1)
    top = make_tree(tmp_path / "tree", {b"d%d/f%d" % (n % 20, n): chance.randbytes(20_000) for n in range(500)})
    async with open_client(server) as client:
        first = await client.push(top)
        make_tree(top, {b"d3/f3": b"changed", b"d3/new": chance.randbytes(20_000)})
        (top / "d4" / "f4").unlink()
        second = await client.push(top)
        assert second.digest != first.digest
        assert second.new_bytes < first.new_bytes / 10
        await client.pull(second.digest, tmp_path / "two")
        await client.pull(first.digest, tmp_path / "one")
        assert read_tree(tmp_path / "two") == read_tree(top)
        diff = await client.diff(str(first.digest), str(second.digest))
        changes = {(file.change, file.path) for part in diff.components for file in part.files}
        assert changes >= {("changed", "d3/f3"), ("added", "d3/new"), ("removed", "d4/f4")}


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 5_000_000, 20_000_000])
async def test_a_file_and_a_stream_are_the_same_blob(server: Running, tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "blob").write_bytes(data)
    async with open_client(server) as client:
        pushed = await client.push(tmp_path / "blob", name="blob")
        assert pushed.digest == BlobDigest(blake3_256(data))
        assert (pushed.kind, pushed.files, pushed.size_bytes) == ("blob", 1, size)
        with open(tmp_path / "blob", "rb") as file:
            streamed = await client.push_stream(file.fileno())
        assert (streamed.digest, streamed.new_chunks) == (pushed.digest, 0)
        assert b"".join([piece async for piece in client.cat(pushed.digest)]) == data
        await client.pull(str(pushed.digest), tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data
        assert os.stat(tmp_path / "copy").st_mtime_ns == mtime_ns(pushed.digest)
        with pytest.raises(DestinationExists):
            await client.pull(pushed.digest, tmp_path / "copy")


async def test_a_pipe_is_read_to_its_end(server: Running) -> None:
    data = random.Random(9).randbytes(300_000)
    read_end, write_end = os.pipe()

    def write() -> None:
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    async with open_client(server) as client:
        pushed = await client.push_stream(read_end)
    writer.join()
    os.close(read_end)
    assert pushed.digest == BlobDigest(blake3_256(data))


def test_standard_input_and_the_blocking_client(server: Running, tmp_path: Path) -> None:
    script = (
        "import sys; from casstore_client import Client\n"
        "with Client(sys.argv[1], token=sys.argv[2]) as client: print(client.push('-').digest)"
    )
    done = run_script(script, server.url, server.created.token.secret, input=b"from a pipe")
    assert done.stdout.decode().strip() == str(BlobDigest(blake3_256(b"from a pipe")))
    with Client(server.url, token=server.created.token.secret) as client:
        top = odd_tree(tmp_path / "tree")
        pushed = client.push(top, name="odd")
        client.pull(pushed.digest, tmp_path / "copy")
        assert read_tree(tmp_path / "copy") == read_tree(top)
        assert b"".join(client.cat(pushed.digest, "dir/x")) == b"x"
        assert [entry.path for entry in client.ls(pushed.digest, "dir")] == [b"dir/sub", b"dir/upwards", b"dir/x"]
        assert client.resolve_artifact("odd") == ("tree", str(pushed.digest))
        iterator = client.ls(pushed.digest, recursive=True)
        next(iterator)
        with pytest.raises(TreeNotFound):
            client.pull(TreeDigest(bytes(32)), tmp_path / "none")
    client.close()


# --- looking into the store ------------------------------------------------------------------------------------------


async def test_listing_and_reading_single_files(server: Running, tmp_path: Path) -> None:
    chance = random.Random(2)
    files = {b"a/%04d" % n: chance.randbytes(50) for n in range(3000)}
    files |= {b"a-b": b"between", b"b/c/d": b"deep", b"large": chance.randbytes(9_000_000)}
    top = make_tree(tmp_path / "tree", files)
    os.symlink("a-b", top / "link")
    async with open_client(server) as client:
        digest = (await client.push(top)).digest
        assert isinstance(digest, TreeDigest)

        async def ls(path: str, **options: Any) -> list[bytes]:
            return [entry.path async for entry in client.ls(digest, path, **options)]

        assert await ls("") == [b"a", b"a-b", b"b", b"large", b"link"]
        assert await ls("a") == sorted(path for path in files if path.startswith(b"a/"))
        assert await ls("b/") == [b"b/c"]
        assert await ls("b", recursive=True) == [b"b", b"b/c", b"b/c/d"]
        assert await ls("a-b") == [b"a-b"]
        for path in (b"a/0000", b"a/2999", b"b/c/d", b"large"):
            assert b"".join([piece async for piece in client.cat(digest, path)]) == files[path]
        for path in ("a/3000", "b/c/d/e", "zzz", "a/"):
            with pytest.raises((PathNotFound, InvalidInput)):
                [piece async for piece in client.cat(digest, path)]
        with pytest.raises(PathNotFound):
            await ls("no/where")
        with pytest.raises(InvalidInput, match="link to a-b"):
            [piece async for piece in client.cat(digest, "link")]
        with pytest.raises(InvalidInput, match="is a tree"):
            [piece async for piece in client.cat(BlobDigest(digest))]


async def test_what_a_person_may_call_an_artifact(server: Running, tmp_path: Path) -> None:
    async with open_client(server) as client:
        tree = await client.push(make_tree(tmp_path / "t", {b"f": b"1"}), name="team/api", labels={"rev": "1"})
        (tmp_path / "blob").write_bytes(b"blob")
        blob = await client.push(tmp_path / "blob", name="blob")
        newer = await client.push(make_tree(tmp_path / "t", {b"f": b"2"}), name="team/api", labels={"rev": "2"})
        assert await client.resolve_artifact("team/api") == ("tree", str(newer.digest))
        assert await client.resolve_artifact(str(tree.digest)) == ("tree", str(tree.digest))
        assert await client.resolve_artifact(str(blob.digest)) == ("blob", str(blob.digest))
        assert await client.resolve_artifact(tree.digest.hex()[:10]) == ("tree", str(tree.digest))
        for unknown in ("nobody", "0" * 12, "not a name"):
            with pytest.raises(ArtifactNotFound):
                await client.resolve_artifact(unknown)
        with pytest.raises(BlobNotFound):
            await client.resolve_artifact("blake3:" + "00" * 32)
        with pytest.raises(InvalidDigest):
            await client.find_digests("xyz")
        labelled = await client.artifacts(name="team/api", label="rev=1")
        assert [artifact.digest for artifact in labelled.artifacts] == [str(tree.digest)]
        page = await client.artifacts(limit=2)
        assert page.next is not None
        assert len((await client.artifacts(limit=2, after=page.next)).artifacts) == 1


# --- progress --------------------------------------------------------------------------------------------------------


async def test_progress_only_grows_and_ends_at_all(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_events, "INTERVAL_S", 0.0)
    top = odd_tree(tmp_path / "tree")
    events: list[ProgressEvent] = []
    async with open_client(server) as client:
        pushed = await client.push(top, progress=events.append)
        assert next(event.phase for event in events) is Phase.PUSH
        assert events[-1][:3] == (Phase.DONE, pushed.files, pushed.size_bytes)
        assert events[-1].transferred_bytes > pushed.sent_bytes
        growing = [(event.files, event.bytes, event.transferred_bytes) for event in events]
        assert growing == sorted(growing)
        events.clear()
        await client.pull(pushed.digest, tmp_path / "copy", progress=events.append)
        assert events[-1][:5] == (Phase.DONE, pushed.files, pushed.size_bytes, pushed.files, pushed.size_bytes)
        growing = [(event.files, event.bytes, event.transferred_bytes) for event in events]
        assert growing == sorted(growing)
        assert {event.phase for event in events} == {Phase.LIST, Phase.PULL, Phase.SYNC, Phase.DONE}


async def test_a_callback_that_raises_ends_the_operation(server: Running, tmp_path: Path) -> None:
    def stop(event: ProgressEvent) -> None:
        if event.phase is Phase.SYNC:
            raise InvalidInput("enough")

    async with open_client(server) as client:
        pushed = await client.push(odd_tree(tmp_path / "tree"))
        with pytest.raises(InvalidInput, match="enough"):
            await client.pull(pushed.digest, tmp_path / "copy", progress=stop)
    assert sorted(os.listdir(tmp_path)) == ["store", "tree"]


# --- pushes that must not succeed ------------------------------------------------------------------------------------


async def test_a_file_that_vanishes_while_pushed(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is committed, and the file is named."""
    monkeypatch.setattr(progress_events, "INTERVAL_S", 0.0)
    for number in range(60):
        with open(tmp_path / f"big-{number:02}", "wb") as file:
            file.truncate(4_500_000)
    top = tmp_path / "tree"
    top.mkdir()
    for number in range(60):
        os.rename(tmp_path / f"big-{number:02}", top / f"big-{number:02}")
    (top / "z-last").write_bytes(b"here for now")

    def vanish(event: ProgressEvent) -> None:
        if event.files:
            (top / "z-last").unlink(missing_ok=True)

    async with open_client(server) as client:
        with pytest.raises(SourceChanged, match="z-last") as caught:
            await client.push(top, progress=vanish)
        assert caught.value.path == "z-last"
        assert (await client.artifacts()).artifacts == []


async def test_names_labels_and_tokens_that_are_refused(server: Running, tmp_path: Path) -> None:
    top = make_tree(tmp_path / "tree", {b"f": b"x"})
    async with open_client(server) as client:
        with pytest.raises(InvalidName):
            await client.push(top, name="no such name!")
        with pytest.raises(CasstoreError):
            await client.push(top, labels={"key": "x" * 100_000})
        with pytest.raises(InvalidInput, match="No such file"):
            await client.push(tmp_path / "missing")
    async with AsyncClient(server.url, token="cas_0000000000000000_" + "A" * 43) as client:
        with pytest.raises(Unauthenticated):
            await client.push(top)
        with pytest.raises(Unauthenticated):
            await client.pull(TreeDigest(bytes(32)), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


# --- connections that break ------------------------------------------------------------------------------------------


async def test_a_connection_that_breaks_in_the_middle_of_an_upload(server: Running, tmp_path: Path) -> None:
    """The same pack is sent again; the artifact is there once."""
    top = make_tree(tmp_path / "tree", {b"%d" % n: random.Random(n).randbytes(3_000_000) for n in range(8)})
    meddler = Meddler(server.url)
    async with meddler.running(), open_client(server, meddler.url) as client:
        meddler.cut_after = [(b"/packs?pack=", 1_000_000)]
        meddler.cut_answer_after = [(b"/packs?pack=", 0), (b"/commit", 0)]
        pushed = await client.push(top)
        assert meddler.cuts == 3
        assert client.stats.retries >= 3
        await client.pull(pushed.digest, tmp_path / "copy")
        assert read_tree(tmp_path / "copy") == read_tree(top)
        assert len((await client.artifacts()).artifacts) == 1


async def test_connections_that_break_during_a_pull(server: Running, tmp_path: Path) -> None:
    top = odd_tree(tmp_path / "tree")
    meddler = Meddler(server.url)
    async with meddler.running(), open_client(server, meddler.url) as client:
        pushed = await client.push(top)
        meddler.cut_answer_after = [(b"GET /v1/trees/", 100), (b"/pages", 5000), (b"GET /v1/packs/", 300_000)]
        await client.pull(pushed.digest, tmp_path / "copy")
        assert meddler.cuts == 3
        assert read_tree(tmp_path / "copy") == read_tree(top)


async def test_a_server_that_goes_away_for_good(server: Running, tmp_path: Path) -> None:
    top = odd_tree(tmp_path / "tree")
    meddler = Meddler(server.url)
    async with meddler.running(), open_client(server, meddler.url) as client:
        pushed = await client.push(top)
        meddler.cut_answer_after = [(b"GET /v1/packs/", 100_000)] * 50
        with pytest.raises(TransportError) as broken:
            await client.pull(pushed.digest, tmp_path / "copy")
        (kept,) = set(os.listdir(tmp_path)) - {"store", "tree"}
        assert kept.startswith(".copy.casstore-")
        assert kept in str(broken.value.hint)
        meddler.cut_answer_after = []
        await client.pull(pushed.digest, tmp_path / "copy")
        assert read_tree(tmp_path / "copy") == read_tree(top)
    assert sorted(os.listdir(tmp_path)) == ["copy", "store", "tree"]


# --- pulls that must not succeed -------------------------------------------------------------------------------------


async def test_a_damaged_pack_is_named_and_nothing_is_left(server: Running, tmp_path: Path) -> None:
    top = odd_tree(tmp_path / "tree")
    async with open_client(server) as client:
        pushed = await client.push(top)
        pack = max((server.directory / "packs").rglob("*.pack"), key=lambda path: path.stat().st_size)
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        os.chmod(pack, 0o600)
        pack.write_bytes(data)
        with pytest.raises(DamagedObject, match=f"did not arrive whole from pack {pack.stem}"):
            await client.pull(pushed.digest, tmp_path / "copy")
    assert sorted(os.listdir(tmp_path)) == ["store", "tree"]


def hostile_root(paths: list[TreeEntry]) -> tuple[bytes, bytes, bytes]:
    """A root and its one page, with whatever paths."""
    page = PAGE_MAGIC + b"".join(encode_entry(entry) for entry in paths)
    ref = PageRef(page_digest(page), len(paths), len(page), sum(entry.size for entry in paths), b"")
    return encode_root([ref]), ref.digest, page


TOP = TreeEntry(b"", EntryType.DIRECTORY, 0o755)
DATA = b"evil"


def file_at(path: bytes) -> TreeEntry:
    return TreeEntry(path, EntryType.FILE, 0o644, len(DATA), BlobDigest(blake3_256(DATA)))


@pytest.mark.parametrize(
    "entries",
    [
        [file_at(b"../evil")],
        [file_at(b"..")],
        [file_at(b"/tmp/evil")],
        [file_at(b"a/../../evil")],
        [file_at(b"./evil")],
        [file_at(b"a//evil")],
        [file_at(b"evil/")],
        [file_at(b"ev\0il")],
        [file_at(b"a"), file_at(b"a")],
        [file_at(b"b"), file_at(b"a")],
        [file_at(b"no/parent")],
        [file_at(b"a"), file_at(b"a/b")],
        [TreeEntry(b"link", EntryType.LINK, 0, target=b"/tmp"), file_at(b"link/evil")],
    ],
)
async def test_a_hostile_tree_writes_nothing(tmp_path: Path, entries: list[TreeEntry]) -> None:
    """The server may be anybody's: what it names must not reach the disk."""
    fake = FakeContent()
    fake.root, page_id, page = hostile_root([TOP, *entries])
    fake.digest = str(tree_digest(fake.root))
    layout = LayoutBuilder()
    for entry in entries:
        if entry.size:
            layout.add_file([(entry.digest, len(DATA), 0, len(DATA))])  # type: ignore[list-item]
    fake.records[page_id] = PageRecord(page, layout.encode(), [ChunkAt(PackId(bytes(16)), 24, 60)])
    (tmp_path / "in").mkdir()
    async with fake.running(), AsyncClient(fake.url) as client:
        with pytest.raises(HostileTree):
            await client.pull(fake.digest, tmp_path / "in" / "copy")
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == []
    assert "pack" not in fake.asked


def big_tree() -> Any:
    chance = random.Random(4)
    files: dict[bytes, Any] = {b"d%d/%d" % (n % 9, n): chance.randbytes(700) for n in range(2500)}
    return build_tree({**files, b"big": File(chance.randbytes(12_000_000), 0o600), b"ro": Directory(0o500)})


async def test_other_bytes_than_the_digest_names(tmp_path: Path) -> None:
    """Every byte of root and pages is held against the digest before a file is made."""
    built = big_tree()
    assert len(built.pages) > 2
    last = built.pages[-1].ref.digest
    async with FakeContent().running() as fake, AsyncClient(fake.url) as client:
        fake.serve_tree(built)
        honest_root, honest_records = fake.root, dict(fake.records)

        async def expect(error: type[CasstoreError]) -> None:
            with pytest.raises(error):
                await client.pull(built.digest, tmp_path / "copy", cache=False)
            assert os.listdir(tmp_path) == []
            fake.root, fake.records = honest_root, dict(honest_records)
            fake.pages_from = lambda data: data

        fake.root = fake.root[:-1]
        await expect(DigestMismatch)
        record = fake.records[last]
        fake.records[last] = record._replace(page=record.page[:-1])
        await expect(DigestMismatch)
        fake.records[last] = record._replace(layout=record.layout[:-1])
        await expect(MalformedDocument)
        fake.records[last] = record._replace(chunks=record.chunks[:-1])
        await expect(MalformedDocument)
        fake.records[last] = record._replace(layout=honest_records[built.pages[0].ref.digest].layout)
        await expect(MalformedDocument)
        wrong = [ChunkAt(at.pack, at.offset + 1, at.stored_length) for at in record.chunks]
        fake.records[last] = record._replace(chunks=wrong)
        await expect(DamagedObject)
        fake.records[last] = record._replace(chunks=[ChunkAt(at.pack, at.offset, 2**31) for at in record.chunks])
        await expect(ProtocolError)
        fake.pages_from = lambda data: data[:-100]
        await expect(TransportError)
        fake.pages_from = lambda data: b""
        await expect(ProtocolError)
        fake.pages_from = lambda data: data + data
        await expect(MalformedDocument)
        fake.pages_from = lambda data: b"\x00" + data
        await expect(MalformedDocument)
        await client.pull(built.digest, tmp_path / "copy")


async def test_a_pack_that_was_rewritten_meanwhile(tmp_path: Path) -> None:
    """Collection moves chunks between packs while a pull goes on: the pages are asked once more, and the pull succeeds."""
    built = big_tree()
    fake = FakeContent()
    fake.serve_tree(built)
    moved: list[bool] = []

    def rewrite() -> None:
        if not moved:
            moved.append(True)
            fake.serve_tree(built)

    fake.before_pack = rewrite
    async with fake.running(), AsyncClient(fake.url) as client:
        await client.pull(built.digest, tmp_path / "copy")
        assert fake.asked.count("pages") > 1
        fake.before_pack = fake.packs.clear
        with pytest.raises(CasstoreError, match="pack-not-found"):
            await client.pull(built.digest, tmp_path / "gone")
    assert os.listdir(tmp_path) == ["copy"]
    assert (tmp_path / "copy" / "big").stat().st_size == 12_000_000


async def test_a_tree_too_large_to_stay_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "DECODED_ENTRIES_MAX", 100)
    built = big_tree()
    async with FakeContent().running() as fake, AsyncClient(fake.url) as client:
        fake.serve_tree(built)
        pulled = await client.pull(built.digest, tmp_path / "copy")
    assert pulled.files == 2501
    assert len(read_tree(tmp_path / "copy")) == 2501 + 11


# --- interrupted -----------------------------------------------------------------------------------------------------


def run_script(script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=script_environment(),
        capture_output=True,
        check=True,
        timeout=60,
        **options,
    )


def script_environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "server"), str(ROOT / "client")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize("which", ["push", "pull"])
def test_an_interrupt_leaves_nothing_half(server: Running, tmp_path: Path, which: str) -> None:
    """Ctrl-C in the middle: no destination, no temporary directory, no artifact."""
    script = """
import sys
from casstore_client import Client
import casstore_client.progress_events as progress_events
progress_events.INTERVAL_S = 0.0
url, token, which, source, dest = sys.argv[1:]
def tell(event):
    if event.bytes:
        print("busy", flush=True)
        sys.stdin.buffer.read(1)
with Client(url, token=token) as client:
    try:
        if which == "push":
            client.push(source, progress=tell)
        else:
            client.pull(client.artifacts().artifacts[0].digest, dest, progress=tell)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""
    top = make_tree(tmp_path / "tree", {b"%d" % n: random.Random(n).randbytes(5_000_000) for n in range(12)})
    secret = server.created.token.secret
    assert secret is not None
    with Client(server.url, token=secret) as client:
        if which == "pull":
            client.push(top)
        before = len(client.artifacts().artifacts)
        arguments = [server.url, secret, which, str(top), str(tmp_path / "copy")]
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env=script_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"busy\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(b"go on" * 1000, timeout=60)
        assert out.endswith(b"interrupted\n")
        assert len(client.artifacts().artifacts) == before
    assert sorted(os.listdir(tmp_path)) == ["store", "tree"]


async def test_a_cancelled_pull_leaves_nothing_half(server: Running, tmp_path: Path) -> None:
    async with open_client(server) as client:
        pushed = await client.push(odd_tree(tmp_path / "tree"))
        task: asyncio.Task[Any] | None = None

        def cancel(event: ProgressEvent) -> None:
            if event.phase is Phase.PULL:
                assert task is not None
                task.cancel()

        task = asyncio.create_task(client.pull(pushed.digest, tmp_path / "copy", progress=cancel))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(os.listdir(tmp_path)) == ["store", "tree"]
        await client.pull(pushed.digest, tmp_path / "copy")
