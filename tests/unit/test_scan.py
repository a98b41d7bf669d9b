"""The walk: in tree order, following nothing, and loud where it must not go on.

If the order is wrong, no page is cut where other machines cut it and the same directory gets another digest.  If a link is
followed, a push leaks files from outside.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore.errors import InvalidInput, SourceChanged
from casstore.formats.tree import EntryType
from casstore_client.beneath import Beneath
from casstore_client.scan import Scanned, walk
from tests.support.filetrees import make_tree, odd_tree, read_tree, run_as_nobody

NAMES = st.sampled_from([b"a", b"a-b", b"a!", b"a.b", b"a0", b"b", b"ab", b"\xff", b"z z", b"\n"])


def scan(top: Path) -> list[Scanned]:
    fd = os.open(top, os.O_RDONLY)
    try:
        return list(walk(fd))
    finally:
        os.close(fd)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=25))
def test_paths_come_in_the_order_of_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, paths: list[list[bytes]]
) -> None:
    """`a`, `a-b`, `a/x`: the content of a directory does not follow it directly."""
    top = tmp_path_factory.mktemp("walk")
    expected = {b""}
    for parts in paths:
        make_tree(top, {b"/".join(parts): None})
        expected |= {b"/".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
    assert [entry.path for entry in scan(top)] == sorted(expected)


def test_everything_is_seen_as_it_is(tmp_path: Path) -> None:
    top = odd_tree(tmp_path / "tree")
    expected = read_tree(top)
    found = {entry.path: entry for entry in scan(top)}
    assert set(found) == set(expected)
    for path, entry in found.items():
        seen = expected[path]
        if stat.S_ISLNK(seen.mode):
            assert (entry.type, entry.mode, os.fsdecode(entry.target)) == (EntryType.LINK, 0, seen.content)
        else:
            assert entry.mode == stat.S_IMODE(seen.mode)
            assert entry.type is (EntryType.DIRECTORY if stat.S_ISDIR(seen.mode) else EntryType.FILE)
            assert entry.size == seen.size


def test_a_link_to_a_directory_is_not_entered(tmp_path: Path) -> None:
    make_tree(tmp_path / "outside", {b"secret": b"x"})
    (tmp_path / "tree").mkdir()
    os.symlink(tmp_path / "outside", tmp_path / "tree" / "link")
    assert [entry.path for entry in scan(tmp_path / "tree")] == [b"", b"link"]


def test_a_special_file_is_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "queue")
    with pytest.raises(InvalidInput, match="queue is a named pipe"):
        scan(tmp_path)
    os.unlink(tmp_path / "queue")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fsencode(os.path.relpath(tmp_path / "s.sock")))
        with pytest.raises(InvalidInput, match=r"s\.sock is a socket"):
            scan(tmp_path)


def test_paths_longer_than_the_kernel_takes(tmp_path: Path) -> None:
    """200 levels of 255-byte names: no system call could be given such a path."""
    name = "n" * 255
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(200):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    os.close(fd)
    found = scan(tmp_path)
    assert len(found) == 202
    assert found[-1].path == b"/".join([name.encode()] * 200 + [b"file"])


@pytest.mark.parametrize(("vanishing", "named"), [("b", "b"), ("c/d", "c")])
def test_what_vanishes_during_the_walk_is_named(tmp_path: Path, vanishing: str, named: str) -> None:
    """A file is looked at once more when it is read; a link and a directory here."""
    make_tree(tmp_path / "tree", {b"a": b"", b"c/d": b""})
    os.symlink("a", tmp_path / "tree" / "b")
    fd = os.open(tmp_path / "tree", os.O_RDONLY)
    entries = walk(fd)
    assert [next(entries).path, next(entries).path] == [b"", b"a"]
    os.renames(tmp_path / "tree" / vanishing, tmp_path / "gone")
    with pytest.raises(SourceChanged, match=f"{named} vanished") as caught:
        list(entries)
    assert caught.value.path == named
    os.close(fd)


def test_a_directory_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    """Whoever can write to the source must not be able to send the walk elsewhere."""
    make_tree(tmp_path, {b"top/a": b"", b"top/d/inner": b"", b"outside/secret": b""})
    fd = os.open(tmp_path / "top", os.O_RDONLY)
    entries = walk(fd)
    assert [next(entries).path for _ in range(3)] == [b"", b"a", b"d"]
    os.rename(tmp_path / "top" / "d", tmp_path / "gone")
    os.symlink(tmp_path / "outside", tmp_path / "top" / "d")
    with pytest.raises(SourceChanged):
        next(entries)
    os.close(fd)


def test_a_directory_that_may_not_be_listed_is_named(tmp_path: Path) -> None:
    make_tree(tmp_path, {b"open/shut/x": b""})
    os.chmod(tmp_path / "open" / "shut", 0)
    fd = os.open(tmp_path / "open", os.O_RDONLY)

    def work() -> None:
        with pytest.raises(InvalidInput, match="cannot read shut: Permission denied"):
            list(walk(fd))

    try:
        run_as_nobody(work)
    finally:
        os.close(fd)
        os.chmod(tmp_path / "open" / "shut", 0o700)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    top = odd_tree(tmp_path / "tree")
    before = len(os.listdir("/proc/self/fd"))
    scan(top)
    assert len(os.listdir("/proc/self/fd")) == before


@given(
    steps=st.lists(st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=5), max_size=30), capacity=st.integers(2, 5)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_directories_beneath_are_the_right_ones(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[bytes]], capacity: int
) -> None:
    """A cache that hands out the descriptor of another directory would write one file over another."""
    top = tmp_path_factory.getbasetemp() / "beneath"
    for parts in steps:
        make_tree(top, {b"/".join(parts): None} if parts else {})
    os.makedirs(top, exist_ok=True)
    root = os.open(top, os.O_RDONLY)
    with Beneath(root, capacity) as below:
        for parts in steps:
            path = b"/".join(parts)
            found = os.fstat(below.directory(path))
            assert found.st_ino == os.stat(os.path.join(os.fsencode(top), path)).st_ino
            with pytest.raises(FileNotFoundError):
                below.directory(path + b"/missing" if path else b"missing")
    os.close(root)
