"""Restoring: exact, verified, never through a link, complete or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.errors import DamagedObject, DestinationExists, InvalidInput
from casstore.formats.tree import EntryType, TreeEntry
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest, ChunkId, PackId, PageDigest
from casstore.wire import ChunkAt
from casstore_client.destination import Destination
from casstore_client.fetch import Chunk, plan_ranges
from casstore_client.removal import remove_tree
from casstore_client.restore import FileJob, Part, TreeWriter, mtime_ns
from casstore_client.system_calls import exchange, rename_new, sync_file_system
from tests.support.filetrees import make_tree, odd_tree, read_tree, run_as_nobody

PAGE = PageDigest(bytes(32))


def chunk_of(data: bytes) -> Chunk:
    chunk = Chunk(ChunkId(blake3_256(data)), len(data), ChunkAt(PackId(bytes(16)), 24, 100), PAGE)
    chunk.plain = data
    return chunk


def job_of(path: bytes, *pieces: bytes, mode: int | None = 0o644) -> FileJob:
    data = b"".join(pieces)
    return FileJob(path, mode, len(data), BlobDigest(blake3_256(data)), [Part(chunk_of(p), 0, len(p)) for p in pieces])


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root").mkdir()
    fd = os.open(tmp_path / "root", os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("mode", [0, 0o400, 0o644, 0o755, 0o777, 0o4755, 0o2711, 0o1600, 0o7777])
def test_modes_are_exact_whatever_the_umask(tmp_path: Path, root: int, mode: int) -> None:
    before = os.umask(0o077)
    try:
        TreeWriter(root).write_files([job_of(b"file", b"content", mode=mode)])
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(tmp_path / "root" / "file").st_mode) == mode


def test_the_time_of_a_file_comes_from_its_content(tmp_path: Path, root: int) -> None:
    """Two contents of equal size must not get the same entity tag from a web server after a flip."""
    writer = TreeWriter(root)
    writer.write_files([job_of(b"one", b"1"), job_of(b"two", b"2"), job_of(b"again", b"1")])
    times = {name: os.stat(tmp_path / "root" / name).st_mtime_ns for name in ("one", "two", "again")}
    assert times["one"] == times["again"] != times["two"]
    assert times["one"] == (946_684_800 + (int.from_bytes(blake3_256(b"1")[:4], "big") >> 3)) * 10**9
    assert mtime_ns(b"\xff" * 32) < 2**31 * 10**9  # fits 32-bit clocks


def test_content_in_one_slice_several_pieces_and_none(tmp_path: Path, root: int) -> None:
    bundle = chunk_of(b"..slice..")
    sliced = FileJob(b"slice", 0o644, 5, BlobDigest(blake3_256(b"slice")), [Part(bundle, 2, 5)])
    TreeWriter(root).write_files([sliced, job_of(b"pieces", b"a" * 70_000, b"b" * 70_000), job_of(b"empty")])
    assert (tmp_path / "root" / "slice").read_bytes() == b"slice"
    assert (tmp_path / "root" / "pieces").read_bytes() == b"a" * 70_000 + b"b" * 70_000
    assert (tmp_path / "root" / "empty").read_bytes() == b""


@pytest.mark.parametrize(
    "job",
    [
        job_of(b"f", b"right")._replace(digest=BlobDigest(blake3_256(b"other"))),
        job_of(b"f", b"two", b"pieces")._replace(digest=BlobDigest(blake3_256(b"other"))),
        job_of(b"f", b"right")._replace(size=6),
        job_of(b"f", b"two", b"pieces")._replace(size=10),
        job_of(b"f")._replace(digest=BlobDigest(blake3_256(b"other"))),
        FileJob(b"f", 0o644, 3, BlobDigest(blake3_256(b"abc")), [Part(chunk_of(b"abcd"), 1, 3)]),
    ],
)
def test_a_file_that_is_not_its_digest_is_refused(root: int, job: FileJob) -> None:
    """A layout is a hint: chunks that are right may still be the wrong ones."""
    with pytest.raises(DamagedObject, match="does not reassemble") as caught:
        TreeWriter(root).write_files([job])
    assert caught.value.expected == str(job.digest)
    large = TreeWriter(root).open_large(job._replace(path=b"g"))
    with pytest.raises(DamagedObject):
        large.write(job.parts, final=True)
    large.close()


def test_a_large_file_run_by_run_with_holes(tmp_path: Path, root: int) -> None:
    zeros = bytes(1 << 20)
    pieces = [b"begin", *[zeros] * 20, b"middle", zeros]
    job = job_of(b"image", *pieces)
    large = TreeWriter(root).open_large(job)
    large.write(job.parts[:10], final=False)
    large.write(job.parts[10:], final=True)
    info = os.stat(tmp_path / "root" / "image")
    assert info.st_size == job.size
    assert info.st_blocks * 512 < 200_000, "zeros were written out"
    assert (tmp_path / "root" / "image").read_bytes() == b"".join(pieces)


def test_nothing_is_written_through_a_link(tmp_path: Path, root: int) -> None:
    """Even if someone plants a link in the temporary directory, what is outside stays as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"precious")
    os.symlink(tmp_path / "outside", tmp_path / "root" / "d")
    os.symlink(tmp_path / "outside" / "file", tmp_path / "root" / "f")
    writer = TreeWriter(root)
    for path in (b"d/file", b"d/new", b"f"):
        with pytest.raises(InvalidInput):
            writer.write_files([job_of(path, b"evil")])
    with pytest.raises(InvalidInput):
        writer.make_directories([TreeEntry(b"d/x", EntryType.DIRECTORY, 0o755)])
    with pytest.raises(InvalidInput):
        writer.set_directory_modes([TreeEntry(b"d", EntryType.DIRECTORY, 0)])
    assert read_tree(tmp_path / "outside").keys() == {b"", b"file"}
    assert (tmp_path / "outside" / "file").read_bytes() == b"precious"


def _restore_read_only(top: Path) -> None:
    fd = os.open(top, os.O_RDONLY)
    directories = [
        TreeEntry(path, EntryType.DIRECTORY, mode) for path, mode in ((b"", 0o555), (b"a", 0), (b"a/b", 0o500))
    ]
    writer = TreeWriter(fd)
    writer.make_directories(directories)
    writer.make_links([TreeEntry(b"a/b/l", EntryType.LINK, 0, target=b"../..")])
    writer.write_files([job_of(b"a/b/f", b"x", mode=0)])
    writer.set_directory_modes(directories)
    os.close(fd)
    assert stat.S_IMODE(os.lstat(top).st_mode) == 0o555
    assert stat.S_IMODE(os.lstat(top / "a").st_mode) == 0


def test_read_only_directories_work_for_root_and_for_others(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    _restore_read_only(tmp_path / "r")
    spool = tmp_path / "nobody"
    spool.mkdir()
    os.chmod(spool, 0o777)
    spool_fd = os.open(spool, os.O_RDONLY)

    def work() -> None:
        os.fchdir(spool_fd)
        os.mkdir("n")
        _restore_read_only(Path("n"))
        remove_tree(b"n", dir_fd=spool_fd)
        assert os.listdir(spool_fd) == []
        # A read-only tree is put in place, replaces another read-only tree, and is removed again.
        for replace in (False, True):
            with Destination(b"dest", replace=replace) as destination:
                os.close(destination.make_directory())
                _restore_read_only(Path(os.fsdecode(destination.temporary)))
                destination.publish(sync=False)
                destination.discard()
            assert os.listdir(spool_fd) == ["dest"]

    run_as_nobody(work)
    os.close(spool_fd)


# --- removing --------------------------------------------------------------------------------------------------------


def test_removal_takes_everything_and_nothing_else(tmp_path: Path) -> None:
    odd_tree(tmp_path / "tree")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"x")
    os.symlink(tmp_path / "kept", tmp_path / "tree" / "out")
    fd = os.open(tmp_path / "tree", os.O_RDONLY)
    for _ in range(200):  # deeper than a path may be long
        os.mkdir("d" * 255, 0o700, dir_fd=fd)
        below = os.open("d" * 255, os.O_RDONLY, dir_fd=fd)
        os.fchmod(fd, 0o500)
        os.close(fd)
        fd = below
    os.close(fd)
    fd = os.open(tmp_path, os.O_RDONLY)
    remove_tree(b"tree", dir_fd=fd)
    remove_tree(b"tree", dir_fd=fd)  # gone already is fine
    os.close(fd)
    assert read_tree(tmp_path).keys() == {b"", b"kept", b"kept/file"}


# --- the destination -------------------------------------------------------------------------------------------------


def publish(path: Path, *, replace: bool = False, content: bytes = b"new") -> None:
    with Destination(os.fsencode(path), replace=replace) as destination:
        fd = destination.make_directory()
        TreeWriter(fd).write_files([job_of(b"file", content)])
        os.close(fd)
        try:
            destination.publish(sync=True)
        finally:
            destination.discard()


def test_a_destination_appears_whole(tmp_path: Path) -> None:
    publish(tmp_path / "dest")
    assert (tmp_path / "dest" / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["dest"]


def test_an_empty_directory_may_be_the_destination(tmp_path: Path) -> None:
    (tmp_path / "dest").mkdir()
    publish(tmp_path / "dest")
    assert (tmp_path / "dest" / "file").read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["file", "full", "link", "dangling"])
def test_what_is_there_is_left_alone(tmp_path: Path, kind: str) -> None:
    dest = tmp_path / "dest"
    if kind == "file":
        dest.write_bytes(b"old")
    elif kind == "full":
        make_tree(dest, {b"old": b"old"})
    else:
        os.symlink("/" if kind == "link" else "nowhere", dest)
    before = read_tree(tmp_path)
    with pytest.raises(DestinationExists):
        publish(dest)
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "full", "link", "nothing"])
def test_what_is_there_can_be_replaced_in_one_step(tmp_path: Path, kind: str) -> None:
    dest = tmp_path / "dest"
    if kind == "file":
        dest.write_bytes(b"old")
    elif kind == "full":
        make_tree(dest, {b"old/er": b"old"})
        os.chmod(dest / "old", 0o500)
    elif kind == "link":
        os.symlink(tmp_path, dest)
    publish(dest, replace=True)
    assert os.listdir(dest) == ["file"]
    assert os.listdir(tmp_path) == ["dest"]


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with Destination(os.fsencode(tmp_path / "dest"), replace=False) as destination:
        os.close(destination.make_directory())
        make_tree(tmp_path / "dest", {b"theirs": b"x"})
        with pytest.raises(DestinationExists):
            destination.publish(sync=False)
        destination.discard()
    assert os.listdir(tmp_path / "dest") == ["theirs"]
    assert os.listdir(tmp_path) == ["dest"]


@pytest.mark.parametrize("path", [b"/", b"", b"missing/dest"])
def test_what_is_no_destination(tmp_path: Path, path: bytes) -> None:
    with pytest.raises((InvalidInput, DestinationExists)):
        Destination(path, replace=False)


def test_an_empty_name_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`casstore pull web "$UNSET" --replace` must not put an end to where the script stands."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="empty"):
        Destination(b"", replace=True)


def test_what_was_replaced_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may forget a rename that was not synced: until it is, the old tree is all there is."""
    make_tree(tmp_path / "dest", {b"old": b"x"})
    done: list[str] = []

    def sync(fd: int) -> None:
        done.append(f"sync, {len(os.listdir(tmp_path))} there")

    monkeypatch.setattr("casstore_client.destination.os.fsync", sync)
    publish(tmp_path / "dest", replace=True)
    assert done == ["sync, 2 there"]
    assert os.listdir(tmp_path) == ["dest"]


def test_what_was_replaced_and_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's directory in a shared one: the new one is in place, and the message says so."""
    make_tree(tmp_path / "dest", {b"old": b"x"})

    def refuse(name: bytes, *, dir_fd: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("casstore_client.destination.remove_tree", refuse)
    with pytest.raises(InvalidInput, match="dest is in place; what it replaced cannot be removed") as refused:
        publish(tmp_path / "dest", replace=True)
    assert "casstore-" in str(refused.value.hint)


def test_system_calls(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(FileExistsError):
        rename_new(b"a", b"b", dir_fd=fd)
    assert exchange(b"a", b"b", dir_fd=fd)
    assert (tmp_path / "a").read_bytes() == b"b"
    rename_new(b"a", b"c", dir_fd=fd)
    with pytest.raises(FileNotFoundError):
        rename_new(b"a", b"d", dir_fd=fd)
    sync_file_system(fd)
    os.close(fd)
    with pytest.raises(OSError) as caught:
        sync_file_system(fd)
    assert caught.value.errno == errno.EBADF


# --- which bytes to ask for ------------------------------------------------------------------------------------------


def test_ranges_are_gathered_within_a_pack_and_no_further() -> None:
    one, two = PackId(b"1" * 16), PackId(b"2" * 16)
    places = [(two, 24, 100), (one, 24, 100), (one, 124, 50), (one, 174 + 128 * 1024, 10), (one, 400_000, 10)]
    places += [(one, 500_000, 8 * 1024 * 1024)]
    chunks = [Chunk(ChunkId(bytes([n]) * 32), 1, ChunkAt(*place), PAGE) for n, place in enumerate(places)]
    found = [(part.pack, part.start, part.end, len(part.chunks)) for part in plan_ranges(chunks)]
    assert found == [
        (one, 24, 174 + 128 * 1024 + 10, 3),  # a gap of exactly 128 KiB is still cheaper than a request
        (one, 400_000, 400_010, 1),
        (one, 500_000, 500_000 + 8 * 1024 * 1024, 1),
        (two, 24, 124, 1),
    ]
