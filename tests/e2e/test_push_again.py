"""Pushing a directory again, against a real server: nothing is read that need not be, and the tree is never another.

If the stat cache is believed too readily, a deploy runs yesterday's file; that is worse than any slowness.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from casstore.chunking import DEFAULT_PARAMETERS
from casstore.errors import InvalidInput, SourceChanged
from casstore_client import Client, stat_cache
from casstore_client import source as source_module
from casstore_client import unread as unread_module
from casstore_client.push import Pushed
from casstore_client.stat_cache import locate_cache
from tests.support.filetrees import make_tree, odd_tree, read_tree
from tests.support.server import ROOT, Running, ServerProcess, make_store, run_in_thread


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    with Client(server.url, token=server.token) as client:
        yield client


@pytest.fixture
def believing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were made a moment ago are believed too: as if the test had waited for two seconds."""
    monkeypatch.setattr(stat_cache, "RACY_NS", -(10**12))


class Reads:
    """Counts the files that are opened to be read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[bytes] = []
        real = source_module._open

        def noting(below: source_module.Beneath, path: bytes) -> int:
            self.paths.append(path)
            return real(below, path)

        monkeypatch.setattr(source_module, "_open", noting)

    def take(self) -> list[bytes]:
        taken, self.paths = sorted(self.paths), []
        return taken


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


def many_files(top: Path, count: int = 3000) -> Path:
    chance = random.Random(7)
    files: dict[bytes, bytes | None] = {
        b"d%02d/f%04d" % (n % 40, n): chance.randbytes(chance.choice((10, 900, 30_000))) for n in range(count)
    }
    files[b"large/one"] = chance.randbytes(9_000_000)
    files[b"large/two"] = chance.randbytes(300_000)
    files[b"empty"] = b""
    return make_tree(top, files)


@pytest.mark.usefixtures("believing")
def test_an_unchanged_directory_is_not_read(client: Client, tmp_path: Path, reads: Reads) -> None:
    top = odd_tree(tmp_path / "tree")
    first = client.push(top)
    assert reads.take()
    again = client.push(top, name="again")
    assert reads.take() == []
    assert again.requests == {"missing": 1, "commit": 1}
    assert again.artifact.name == "again"
    counted = ("digest", "files", "directories", "links", "size_bytes", "chunks", "chunk_bytes")
    assert [getattr(again, name) for name in counted] == [getattr(first, name) for name in counted]
    assert (again.new_chunks, again.sent_bytes) == (0, 0)
    assert client.push(top, cache=False).digest == first.digest
    assert len(reads.take()) > 100


@pytest.mark.usefixtures("believing")
def test_of_a_changed_directory_only_what_changed_is_read(client: Client, tmp_path: Path, reads: Reads) -> None:
    top = many_files(tmp_path / "tree")
    client.push(top)
    reads.take()
    make_tree(top, {b"d07/f0007": b"changed", b"d20/new": b"new"})
    (top / "d30" / "f0030").unlink()
    second = client.push(top)
    opened = reads.take()
    # The changed files, and their neighbours in the bundles that they disturb: a few hundred KiB.
    assert {b"d07/f0007", b"d20/new"} <= set(opened)
    assert len(opened) < 300
    assert not any(path.startswith(b"large") for path in opened)
    assert second.digest == client.push(top, cache=False).digest
    reads.take()
    assert client.push(top).digest == second.digest
    assert reads.take() == []
    client.pull(second.digest, tmp_path / "copy")
    assert read_tree(tmp_path / "copy") == read_tree(top)


@pytest.mark.usefixtures("believing")
def test_what_another_server_lacks_is_read_and_sent(client: Client, tmp_path: Path, reads: Reads) -> None:
    """The cache says what a file is, never where it is: a store that was collected or replaced gets everything."""
    top = many_files(tmp_path / "tree")
    first = client.push(top)
    reads.take()
    created = make_store(tmp_path / "other-store")
    with run_in_thread(tmp_path / "other-store", created) as other, Client(other.url, token=other.token) as there:
        pushed = there.push(top)
        assert len(set(reads.take())) == first.files - 1  # the empty one is never read
        assert (pushed.digest, pushed.new_chunks) == (first.digest, first.chunks)
        there.pull(pushed.digest, tmp_path / "copy")
        assert read_tree(tmp_path / "copy") == read_tree(top)
        # Half of it: what is there is not read.
        make_tree(tmp_path / "half", {b"x": (top / "large" / "one").read_bytes()})
    created = make_store(tmp_path / "third-store")
    with run_in_thread(tmp_path / "third-store", created) as third, Client(third.url, token=third.token) as there:
        there.push(tmp_path / "half")
        reads.take()
        there.push(top)
        assert b"large/one" not in reads.take()


@pytest.mark.usefixtures("believing")
def test_a_file_that_changes_behind_the_walk_of_an_unread_push(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the cache spared the push to read is held against its stamp before it is sent."""
    top = many_files(tmp_path / "tree", 50)
    client.push(top)
    real = unread_module.open_scanned

    def meddling(below: unread_module.Beneath, scanned: unread_module.Scanned) -> int:
        with open(top / "large" / "one", "r+b") as file:
            file.write(b"!")
        return real(below, scanned)

    monkeypatch.setattr(unread_module, "open_scanned", meddling)
    created = make_store(tmp_path / "other-store")
    with run_in_thread(tmp_path / "other-store", created) as other, Client(other.url, token=other.token) as there:
        with pytest.raises(SourceChanged, match="large/one"):
            there.push(top)
        assert there.artifacts().artifacts == []


@pytest.mark.usefixtures("believing")
@pytest.mark.parametrize(("path", "also_chunks"), [(b"large/one", False), (b"large/one", True), (b"d03/f0003", False)])
def test_a_cache_that_is_wrong_is_found_out(
    client: Client, tmp_path: Path, path: bytes, also_chunks: bool, reads: Reads
) -> None:
    """Only by someone who writes valid hashes into it; the push begins again without it."""
    top = many_files(tmp_path / "tree", 50)
    right = client.push(top)
    place = locate_cache(os.fsencode(top), DEFAULT_PARAMETERS)
    assert place is not None
    forged = stat_cache.CacheWriter(place, 10**19)
    cache = stat_cache.StatCache.open(place)
    assert cache is not None
    for entry in stat_cache_files(top):
        known = cache.find_file(*entry)
        assert known is not None
        digest, chunks = known
        if entry[0] == path:
            digest = type(digest)(bytes(32))
            if also_chunks:
                chunks = [(type(chunk)(bytes(4) + chunk[4:]), length) for chunk, length in chunks]
        forged.add_file(*entry, digest, chunks)
    forged.commit(stat_cache.Summary(place.directory, tuple(place.parameters), b"", b"", 0, 0, 0, 0, 0, 0))
    cache.close()
    pushed = client.push(top)
    assert pushed.digest == right.digest
    reads.take()
    assert client.push(top).digest == right.digest
    assert reads.take() == []


def stat_cache_files(top: Path) -> list[tuple[bytes, stat_cache.Stamp]]:
    from casstore_client.scan import walk

    fd = os.open(top, os.O_RDONLY)
    found = [(entry.path, entry.stamp) for entry in walk(fd) if entry.stamp is not None and entry.size]
    os.close(fd)
    return found


def test_files_as_young_as_the_push_are_read_again(client: Client, tmp_path: Path, reads: Reads) -> None:
    """A file that is rewritten in the same tick of the clock, with the same size, has the stamp that it had."""
    top = make_tree(tmp_path / "tree", {b"a": b"0" * 1000, b"b": b"old"})
    for number in range(1, 30):
        client.push(top)
        before = os.stat(top / "a")
        with open(top / "a", "r+b") as file:
            file.write(b"%d" % (number % 10) * 1000)
        os.utime(top / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
        reads.take()
        cached = client.push(top)
        assert b"a" in reads.take(), "younger than the clock can tell"
        assert cached.digest == client.push(top, cache=False).digest


@pytest.mark.usefixtures("believing")
def test_patterns_decide_what_is_pushed_and_what_is_remembered(client: Client, tmp_path: Path, reads: Reads) -> None:
    top = make_tree(tmp_path / "tree", {b"a.c": b"1", b"a.o": b"2", b"build/x": b"3", b"\xff.o": b"4"})
    plain = client.push(top)
    without = client.push(top, exclude=["*.o", "build/"])
    assert without.digest != plain.digest
    assert without.files == 1
    reads.take()
    assert client.push(top, exclude=["*.o", "build/"]).digest == without.digest
    assert reads.take() == []
    (top / "a.o").write_bytes(b"touched, and of no interest")
    assert client.push(top, exclude=["*.o", "build/"]).digest == without.digest
    (top / ".casstoreignore").write_bytes(b"*.o\nbuild/\n")
    same = client.push(top)
    assert [entry.path for entry in client.ls(same.digest)] == [b".casstoreignore", b"a.c"]
    client.pull(same.digest, tmp_path / "copy")
    assert client.push(tmp_path / "copy").digest == same.digest
    (top / ".casstoreignore").write_bytes(b"*.o\n")
    assert client.push(top).files == 3
    with pytest.raises(InvalidInput, match="pattern"):
        client.push(top, exclude=["["])
    with pytest.raises(InvalidInput, match="this is a file"):
        client.push(top / "a.c", exclude=["x"])


# --- any edits at all ------------------------------------------------------------------------------------------------

PATHS = st.sampled_from([b"a", b"a-b", b"b/x", b"b/y", b"b-c", b"c/d/e", b"c/d/f", b"big", b"b/big", b"z"])
SIZES = st.sampled_from([0, 1, 10, 3000, 65_535, 65_536, 200_000])


class Edits(RuleBasedStateMachine):
    """A directory is edited at random and pushed with the cache: the tree is always that of a push without."""

    running: Running
    directory: Path
    number = 0

    @initialize()
    def begin(self) -> None:
        type(self).number += 1
        self.top = self.directory / f"tree-{self.number}"
        make_tree(self.top, {b"%d/%d" % (n % 5, n): b"%d" % n * 500 for n in range(150)})
        self.client = Client(self.running.url, token=self.running.token)

    @rule(path=PATHS, size=SIZES, seed=st.integers(0, 3))
    def write(self, path: bytes, size: int, seed: int) -> None:
        make_tree(self.top, {path: random.Random(seed).randbytes(size)})

    @rule(path=PATHS)
    def remove(self, path: bytes) -> None:
        if os.path.exists(os.path.join(os.fsencode(self.top), path)):
            os.unlink(os.path.join(os.fsencode(self.top), path))

    @rule(path=PATHS, mode=st.sampled_from([0o644, 0o600, 0o755]))
    def change_mode(self, path: bytes, mode: int) -> None:
        if os.path.exists(os.path.join(os.fsencode(self.top), path)):
            os.chmod(os.path.join(os.fsencode(self.top), path), mode)

    @rule(one=PATHS, other=PATHS)
    def rename(self, one: bytes, other: bytes) -> None:
        source, target = (os.path.join(os.fsencode(self.top), path) for path in (one, other))
        if os.path.exists(source) and os.path.isdir(os.path.dirname(target)):
            os.rename(source, target)

    @rule()
    def lose_the_cache(self) -> None:
        place = locate_cache(os.fsencode(self.top), DEFAULT_PARAMETERS)
        assert place is not None
        place.path.unlink(missing_ok=True)

    @rule()
    def damage_the_cache(self) -> None:
        place = locate_cache(os.fsencode(self.top), DEFAULT_PARAMETERS)
        assert place is not None
        if place.path.exists():
            data = bytearray(place.path.read_bytes())
            data[len(data) // 3] ^= 1
            place.path.write_bytes(data)

    @invariant()
    def same_tree(self) -> None:
        if hasattr(self, "client"):
            with_cache: Pushed = self.client.push(self.top)
            assert with_cache.digest == self.client.push(self.top, cache=False).digest

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.client.close()
            shutil.rmtree(self.top)


def test_any_edits_at_all(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stat_cache, "RACY_NS", -(10**12))
    Edits.running, Edits.directory = server, tmp_path
    machine = Edits.TestCase
    machine.settings = settings(
        max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
    )
    machine().runTest()


# --- pushes that are interrupted -------------------------------------------------------------------------------------

ENDING = """
import os
from casstore_client import upload
from casstore_client.cli import main

real = upload.Uploader._upload

async def uploading(self, sealed):
    await real(self, sealed)
    os.kill(os.getpid(), int(os.environ["SIGNAL"]))

upload.Uploader._upload = uploading
main()
"""
"""The command line, and a signal as soon as the server has acknowledged a pack."""


def push_and_end(
    server: ServerProcess, top: Path, cache: Path, number: signal.Signals
) -> subprocess.CompletedProcess[str]:
    token = server.created.token.secret
    assert token is not None
    environ = {"CASSTORE_URL": server.url, "CASSTORE_TOKEN": token, "CASSTORE_CACHE_DIR": str(cache)}
    paths = [str(ROOT), str(ROOT / "server"), str(ROOT / "client")]
    return subprocess.run(
        [sys.executable, "-c", ENDING, "push", str(top)],
        env={**os.environ, **environ, "PYTHONPATH": os.pathsep.join(paths), "SIGNAL": str(int(number))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def stored_bytes(store: Path) -> int:
    return sum(path.stat().st_size for path in (store / "packs").rglob("*.pack"))


def random_files(top: Path) -> Path:
    """Bytes that do not compress, so that what a pack holds is what it weighs; five packs of them."""
    chance = random.Random(3)
    return make_tree(top, {b"%02d" % n: chance.randbytes(4_000_000) for n in range(20)})


def test_a_push_that_was_killed_goes_on_where_it_was(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """What the server has stored is not sent again, though nothing was committed."""
    server = start_server()
    top = random_files(tmp_path / "tree")
    done = push_and_end(server, top, tmp_path / "cache", signal.SIGKILL)
    assert done.returncode == -signal.SIGKILL
    with Client(server.url, token=server.created.token.secret) as client:
        assert client.artifacts().artifacts == []
        before = stored_bytes(server.directory)
        assert before > 16_000_000
        pushed = client.push(top)
        assert 0 < pushed.new_bytes <= pushed.chunk_bytes - before + 1_000_000
        assert pushed.sent_bytes <= 1.01 * pushed.new_bytes + 100_000
        assert stored_bytes(server.directory) < 1.01 * pushed.chunk_bytes + 1_000_000
        client.pull(pushed.digest, tmp_path / "copy")
        assert read_tree(tmp_path / "copy") == read_tree(top)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_push_that_is_interrupted_leaves_nothing_half(
    start_server: Callable[..., ServerProcess], tmp_path: Path, number: signal.Signals
) -> None:
    server = start_server()
    top = random_files(tmp_path / "tree")
    done = push_and_end(server, top, tmp_path / "cache", number)
    assert done.returncode == 128 + number
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("Interrupted. Nothing was left half done")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    with Client(server.url, token=server.created.token.secret) as client:
        assert client.artifacts().artifacts == []
        pushed = client.push(top)
        assert pushed.new_bytes < pushed.chunk_bytes
