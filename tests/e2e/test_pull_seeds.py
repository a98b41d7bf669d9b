"""Pulling what is partly here: seeds, listings that were kept, what an interrupted pull has left.  A real server, real kills."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from casstore.chunking import Parameters
from casstore.errors import CapacityError, DamagedObject, InvalidInput, NotFound
from casstore.limits import KIB
from casstore_client import AsyncClient, Client, TransportError
from casstore_client import destination as destination_module
from casstore_client import transport as transport_module
from casstore_client import write_behind as write_behind_module
from casstore_client.config import cache_dir
from tests.support.fakecontent import FakeContent
from tests.support.filetrees import make_tree, odd_tree, read_tree
from tests.support.meddler import Meddler
from tests.support.server import ROOT, Running, ServerProcess, token_of
from tests.support.treebuild import BuiltTree, Directory, File, build_tree


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "PAUSE_FIRST_S", 0.001)


def open_client(server: Running, url: str | None = None) -> AsyncClient:
    return AsyncClient(url or server.url, token=server.created.token.secret)


def second_release(top: Path) -> Path:
    """Change a few things of :func:`odd_tree` in place."""
    chance = random.Random(2)
    make_tree(top, {b"many/0/file-0.txt": b"changed", b"many/new": chance.randbytes(1000), b"dir/x": b"y"})
    with open(top / "huge.bin", "r+b") as file:
        file.seek(5_000_000)
        file.write(b"changed in the middle")
    (top / "a-b").unlink()
    os.chmod(top / "just-at", 0o600)
    return top


# --- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [False, True])
async def test_the_second_release_beside_the_first(server: Running, tmp_path: Path, link: bool) -> None:
    top = odd_tree(tmp_path / "tree")
    async with open_client(server) as client:
        first = await client.push(top)
        second = await client.push(second_release(top))
        await client.pull(first.digest, tmp_path / "one")
        one = read_tree(tmp_path / "one")
        pulled = await client.pull(second.digest, tmp_path / "two", seeds=[tmp_path / "one"], link=link)
        assert read_tree(tmp_path / "two") == read_tree(top)
        assert read_tree(tmp_path / "one") == one
        assert pulled.reused_files > 300 - 60  # all but the empty ones and those that changed
        assert pulled.received_bytes < 1_500_000, "of huge.bin only the chunk that changed"
        shared = os.path.samefile(tmp_path / "one" / "dir" / "sub" / "large.bin", tmp_path / "two/dir/sub/large.bin")
        assert shared is link
        assert not os.path.samefile(tmp_path / "one" / "just-at", tmp_path / "two" / "just-at"), "its mode changed"
        again = await client.push(tmp_path / "two")
        assert again.digest == second.digest


async def test_everything_is_there_already(server: Running, tmp_path: Path) -> None:
    """Not a byte of content is asked for, and with the listing kept it is one small request."""
    top = odd_tree(tmp_path / "tree")
    async with open_client(server) as client:
        pushed = await client.push(top)
        first = await client.pull(pushed.digest, tmp_path / "one", seeds=[top])
        assert set(first.requests) == {"tree", "pages"}
        second = await client.pull(pushed.digest, tmp_path / "two", seeds=[tmp_path / "one"])
        assert second.requests == {"tree": 1}
        assert second.reused_bytes == second.size_bytes
        assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two") == read_tree(top)


@pytest.mark.parametrize("link", [False, True])
async def test_what_is_replaced_is_a_seed(server: Running, tmp_path: Path, link: bool) -> None:
    top = odd_tree(tmp_path / "tree")
    async with open_client(server) as client:
        first = await client.push(top)
        second = await client.push(second_release(top))
        await client.pull(first.digest, tmp_path / "copy")
        pulled = await client.pull(second.digest, tmp_path / "copy", replace=True, link=link)
        assert pulled.reused_files > 200
        assert read_tree(tmp_path / "copy") == read_tree(top)
        assert all(path.stat().st_nlink == 1 for path in (tmp_path / "copy").rglob("*") if path.is_file())
    assert sorted(os.listdir(tmp_path)) == ["copy", "store", "tree"]


async def test_hostile_seeds_change_nothing(server: Running, tmp_path: Path) -> None:
    top = odd_tree(tmp_path / "tree")
    hostile = tmp_path / "hostile"
    make_tree(tmp_path / "outside", {b"x": b"x"})
    make_tree(hostile, {b"a": b"FIRST", b"huge.bin/in": b"a directory", b"dir-y": b"yy", b"deep": b"a file"})
    os.symlink(tmp_path / "outside", hostile / "dir")
    os.symlink(top / "just-at", hostile / "just-at")
    os.mkfifo(hostile / "just-below")
    with open(hostile / "sparse.img", "wb") as file:
        file.truncate(20_000_003)
    os.symlink("many", hostile / "many")
    async with open_client(server) as client:
        pushed = await client.push(top)
        before = read_tree(tmp_path / "outside")
        for link in (False, True):
            pulled = await client.pull(pushed.digest, tmp_path / f"copy{link}", seeds=[hostile], link=link)
            assert pulled.reused_files == 0
            assert read_tree(tmp_path / f"copy{link}") == read_tree(top)
        assert read_tree(tmp_path / "outside") == before
        with pytest.raises(InvalidInput, match="open the seed"):
            await client.pull(pushed.digest, tmp_path / "no", seeds=[tmp_path / "missing"])
    assert not (tmp_path / "no").exists()


# --- listings that were kept -----------------------------------------------------------------------------------------


def big_tree(*, parameters: Parameters | None = None, changed: bytes = b"") -> BuiltTree:
    chance = random.Random(4)
    files: dict[bytes, bytes | File | Directory] = {b"d%d/%d" % (n % 9, n): chance.randbytes(700) for n in range(2500)}
    files |= {b"big": File(chance.randbytes(4_000_000), 0o600), b"ro": Directory(0o500)}
    if changed:
        files[b"d3/3"] = changed
    return build_tree(files, parameters=parameters) if parameters else build_tree(files)


async def test_only_pages_that_are_new_are_asked_for(server: Running, tmp_path: Path) -> None:
    chance = random.Random(1)
    top = make_tree(tmp_path / "tree", {b"d%d/f%d" % (n % 20, n): chance.randbytes(900) for n in range(4000)})
    async with open_client(server) as client:
        first = await client.push(top)
        make_tree(top, {b"d3/f3": b"changed"})
        second = await client.push(top)
        one = await client.pull(first.digest, tmp_path / "one")
        two = await client.pull(second.digest, tmp_path / "two", seeds=[tmp_path / "one"])
        assert read_tree(tmp_path / "two") == read_tree(top)
        assert two.received_bytes < one.received_bytes / 5
        kept = sorted(path for path in (cache_dir() / "pages").rglob("*") if path.is_file())
        assert len(kept) > 3
        # One that is lost and one that is damaged are asked for again; so are all of another client without a cache.
        kept[0].unlink()
        kept[2].write_bytes(kept[2].read_bytes()[:-1] + b"?")
        three = await client.pull(second.digest, tmp_path / "three")
        assert three.requests["pages"] >= 1
        assert read_tree(tmp_path / "three") == read_tree(top)
        four = await client.pull(second.digest, tmp_path / "four", cache=False)
        assert four.received_bytes > three.received_bytes


async def test_a_pack_that_is_gone_and_comes_back(start_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """A real server whose disk has lost packs, and a listing that was kept: a clear refusal, and nothing is left."""
    top = odd_tree(tmp_path / "tree")
    process = start_server()
    listen = ("--listen", process.url.removeprefix("http://"))
    async with AsyncClient(process.url, token=token_of(process.created)) as client:
        await client.push(top / "huge.bin")
        packs = sorted((process.directory / "packs").rglob("*.pack"))  # that one file, but no page and no root
        pushed = await client.push(top)
        await client.pull(pushed.digest, tmp_path / "one")
    process.stop()
    for pack in packs:
        pack.rename(pack.with_suffix(".away"))
    before = set(os.listdir(tmp_path))
    process = start_server(*listen)
    async with AsyncClient(process.url, token=token_of(process.created)) as client:
        with pytest.raises(NotFound):
            await client.pull(pushed.digest, tmp_path / "two")
        assert set(os.listdir(tmp_path)) == before
        for pack in packs:
            pack.with_suffix(".away").rename(pack)
        two = await client.pull(pushed.digest, tmp_path / "two")
        assert "pages" not in two.requests, "what was kept was of use"
    assert read_tree(tmp_path / "two") == read_tree(top)


async def test_packs_that_were_rewritten_since(tmp_path: Path) -> None:
    """What was kept says where the chunks lay then: the server is asked again."""
    built = big_tree()
    async with FakeContent().running() as fake, AsyncClient(fake.url) as client:
        fake.serve_tree(built)
        await client.pull(built.digest, tmp_path / "one")
        fake.serve_tree(built)
        fake.asked.clear()
        await client.pull(built.digest, tmp_path / "two")
        assert fake.asked.count("pages") >= 1
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two")


async def test_a_chunk_that_was_damaged_and_stored_anew(tmp_path: Path) -> None:
    """The old pack is still there and damaged; the server knows of a better place by now."""
    built = big_tree()
    async with FakeContent().running() as fake, AsyncClient(fake.url) as client:
        fake.serve_tree(built)
        await client.pull(built.digest, tmp_path / "one")
        damaged = {name: bytes(byte ^ 1 for byte in data) for name, data in fake.packs.items()}
        fake.serve_tree(built)
        fake.packs |= damaged
        await client.pull(built.digest, tmp_path / "two")
        assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two")
        fake.packs = {name: bytes(byte ^ 2 for byte in data) for name, data in fake.packs.items()}
        with pytest.raises(DamagedObject):
            await client.pull(built.digest, tmp_path / "three")


async def test_layouts_that_were_rewritten_since(tmp_path: Path) -> None:
    """The same tree out of other chunks: what was kept leads nowhere, so the listing is asked for anew."""
    built = big_tree()
    other = big_tree(parameters=Parameters(16 * KIB, 64 * KIB, 256 * KIB))
    assert other.digest == built.digest
    assert other.layouts != built.layouts
    async with FakeContent().running() as fake, AsyncClient(fake.url) as client:
        fake.serve_tree(built)
        await client.pull(built.digest, tmp_path / "one")
        fake.serve_tree(other)
        await client.pull(built.digest, tmp_path / "two")
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two")
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


# --- going on --------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from casstore_client import Client
import casstore_client.progress_events as progress_events
progress_events.INTERVAL_S = 0.0
url, token, digest, dest = sys.argv[1:]
def tell(event):
    if event.files > 8:
        print("busy", flush=True)
        sys.stdin.buffer.read(1)
with Client(url, token=token) as client:
    client.pull(digest, dest, progress=tell)
"""
BYTES_SCRIPT = SCRIPT.replace("event.files > 8", "event.bytes > 10_000_000")


def start_and_stop_pull(server: Running, digest: str, dest: Path, how: signal.Signals, script: str = SCRIPT) -> None:
    paths = [str(ROOT), str(ROOT / "server"), str(ROOT / "client")]
    process = subprocess.Popen(
        [sys.executable, "-c", script, server.url, server.token, digest, str(dest)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"busy\n"
    process.send_signal(how)
    process.communicate(b"go on" * 1000, timeout=60)
    assert process.returncode != 0


def some_tree(top: Path) -> Path:
    return make_tree(top, {b"d%d/%d" % (n % 3, n): random.Random(n).randbytes(3_000_000) for n in range(24)})


def test_a_killed_pull_is_gone_on_with(server: Running, tmp_path: Path) -> None:
    top = some_tree(tmp_path / "tree")
    with Client(server.url, token=server.token) as client:
        pushed = client.push(top)
        start_and_stop_pull(server, str(pushed.digest), tmp_path / "copy", signal.SIGKILL)
        (leftover,) = set(os.listdir(tmp_path)) - {"store", "tree"}
        assert leftover.startswith(".copy.casstore-")
        whole = {path.stat().st_ino for path in (tmp_path / leftover).rglob("*") if path.is_file()}
        pulled = client.pull(pushed.digest, tmp_path / "copy")
        assert 8 < pulled.reused_files < pulled.files
        assert pulled.received_bytes < pulled.size_bytes - pulled.reused_bytes + 1_000_000
        assert read_tree(tmp_path / "copy") == read_tree(top)
        kept = {path.stat().st_ino for path in (tmp_path / "copy").rglob("*") if path.is_file()}
        assert len(whole & kept) > 8, "they are the files themselves, not copies"
    assert sorted(os.listdir(tmp_path)) == ["copy", "store", "tree"]


def test_an_interrupted_pull_leaves_nothing(server: Running, tmp_path: Path) -> None:
    """Ctrl-C is somebody's wish."""
    top = some_tree(tmp_path / "tree")
    with Client(server.url, token=server.token) as client:
        pushed = client.push(top)
        start_and_stop_pull(server, str(pushed.digest), tmp_path / "copy", signal.SIGINT)
    assert sorted(os.listdir(tmp_path)) == ["store", "tree"]


def test_a_killed_pull_of_one_large_file_is_gone_on_with(server: Running, tmp_path: Path) -> None:
    """What was written of it before the kill is taken, chunk by chunk."""
    top = make_tree(tmp_path / "tree", {b"image": random.Random(1).randbytes(100_000_000)})
    make_tree(top, {b"%d" % n: b"%d" % n for n in range(12)})
    with Client(server.url, token=server.token) as client:
        pushed = client.push(top)
        start_and_stop_pull(server, str(pushed.digest), tmp_path / "copy", signal.SIGKILL, script=BYTES_SCRIPT)
        (leftover,) = set(os.listdir(tmp_path)) - {"store", "tree"}
        written = (tmp_path / leftover / "image").stat().st_size
        assert 10_000_000 < written < 100_000_000
        pulled = client.pull(pushed.digest, tmp_path / "copy")
        assert pulled.reused_bytes > written - 2_000_000
        assert pulled.received_bytes < 100_000_000 - written + 3_000_000
        assert read_tree(tmp_path / "copy") == read_tree(top)
    assert sorted(os.listdir(tmp_path)) == ["copy", "store", "tree"]


async def test_a_damaged_leftover_is_not_believed(server: Running, tmp_path: Path) -> None:
    top = some_tree(tmp_path / "tree")
    async with open_client(server) as client:
        pushed = await client.push(top)
        await client.pull(pushed.digest, tmp_path / ".copy.casstore-0123456789ab")
        for number, path in enumerate(sorted((tmp_path / ".copy.casstore-0123456789ab").rglob("*"))):
            if path.is_file() and number % 2:
                info = path.stat()
                with open(path, "r+b") as file:
                    file.seek(1_500_000)
                    file.write(b"damage")
                os.utime(path, ns=(info.st_mtime_ns, info.st_mtime_ns))
        pulled = await client.pull(pushed.digest, tmp_path / "copy")
        assert 0 < pulled.reused_files < pulled.files
        assert read_tree(tmp_path / "copy") == read_tree(top)
    assert sorted(os.listdir(tmp_path)) == ["copy", "store", "tree"]


async def test_what_is_in_use_or_not_ours_is_no_leftover(server: Running, tmp_path: Path) -> None:
    """Another pull to the same name goes on at this moment; a directory of another user; another name."""
    top = make_tree(tmp_path / "tree", {b"%d" % n: b"%d" % n for n in range(20)})
    names = [".copy.casstore-00000000000a", ".copy.casstore-xyz", ".copies.casstore-00000000000b", ".copy.casstore-"]
    for name in names:
        make_tree(tmp_path / name, {b"0": b"0"})
    os.symlink(top, tmp_path / ".copy.casstore-00000000000c")
    used = os.open(tmp_path / names[0], os.O_RDONLY)
    fcntl.flock(used, fcntl.LOCK_EX)
    async with open_client(server) as client:
        pushed = await client.push(top)
        before = set(os.listdir(tmp_path))
        pulled = await client.pull(pushed.digest, tmp_path / "copy")
    os.close(used)
    assert pulled.reused_files == 0
    assert set(os.listdir(tmp_path)) == before | {"copy"}


async def test_leftovers_do_not_pile_up(server: Running, tmp_path: Path) -> None:
    top = some_tree(tmp_path / "tree")
    meddler = Meddler(server.url)
    async with meddler.running(), open_client(server, meddler.url) as client:
        pushed = await client.push(top)
        for _ in range(5):
            meddler.cut_answer_after = [(b"GET /v1/packs/", 100_000)] * 50
            with pytest.raises(TransportError):
                await client.pull(pushed.digest, tmp_path / "copy")
        left = set(os.listdir(tmp_path)) - {"store", "tree"}
        assert 1 <= len(left) <= destination_module.LEFTOVERS_MAX + 1
        meddler.cut_answer_after = []
        await client.pull(pushed.digest, tmp_path / "copy")
    assert sorted(os.listdir(tmp_path)) == ["copy", "store", "tree"]


# --- the disk --------------------------------------------------------------------------------------------------------


async def test_a_disk_that_fails_while_the_pull_goes_on(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells of a failed write once: the early sync that hears of it must end the pull."""
    top = some_tree(tmp_path / "tree")
    calls: list[int] = []

    def fail_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(write_behind_module, "sync_file_system", fail_once)
    monkeypatch.setattr(destination_module, "sync_file_system", fail_once)
    async with open_client(server) as client:
        pushed = await client.push(top)
        with pytest.raises((InvalidInput, CapacityError), match="put on the disk"):
            await client.pull(pushed.digest, tmp_path / "copy")
        assert sorted(os.listdir(tmp_path)) == ["store", "tree"]
        calls.clear()
        await client.pull(pushed.digest, tmp_path / "quick", sync=False)
        assert calls == []
