"""The system calls: what each does on a real disk, and which error each failure becomes."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from casstore.errors import CasstoreError, Overloaded, ReadOnly, StoreFull, Unavailable
from casstore.storage.local.files import Files, is_full, read_file, refusal, write_new_file


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """Have the system itself cut writes short, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_new_file_never_replaces_one(tmp_path: Path) -> None:
    """Two pushes that meet in one temporary name would mix their bytes."""
    path = str(tmp_path / "file")
    write_new_file(Files(), path, b"first")
    with pytest.raises(FileExistsError):
        write_new_file(Files(), path, b"second")
    assert read_file(Files(), path, 100) == b"first"


def test_a_link_never_replaces_a_file(tmp_path: Path) -> None:
    """Put-once rests on this one call."""
    for name in ("source", "taken"):
        write_new_file(Files(), str(tmp_path / name), name.encode())
    with pytest.raises(FileExistsError):
        Files().link_new(str(tmp_path / "source"), str(tmp_path / "taken"))
    assert (tmp_path / "taken").read_bytes() == b"taken"
    Files().link_new(str(tmp_path / "source"), str(tmp_path / "free"))
    assert (tmp_path / "free").read_bytes() == b"source"


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    """Someone who may write into the store directory must not make the server write elsewhere."""
    target = tmp_path / "target"
    target.write_bytes(b"")
    (tmp_path / "link").symlink_to(target)
    for opening in (Files().open_append, Files().open_read, Files().open_lock, Files().open_write):
        with pytest.raises(OSError, match=r".") as caught:
            opening(str(tmp_path / "link"))
        assert caught.value.errno in (errno.ELOOP, errno.EEXIST)


def test_new_files_are_not_for_everyone(tmp_path: Path) -> None:
    """Content and keys of a store are not the business of every user of the machine."""
    before = os.umask(0)
    try:
        write_new_file(Files(), str(tmp_path / "file"), b"")
        write_new_file(Files(), str(tmp_path / "key"), b"", 0o600)
        Files().mkdir(str(tmp_path / "directory"))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"file": 0o640, "key": 0o600, "directory": 0o750}


def test_reading_stops_at_the_end_and_at_the_bound(tmp_path: Path) -> None:
    """A small file that someone made large must not fill the memory."""
    path = str(tmp_path / "file")
    write_new_file(Files(), path, b"0123456789")
    assert read_file(Files(), path, 4) == b"0123"
    assert read_file(Files(), path, 100) == b"0123456789"


def test_a_write_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    """The system may write a part and say so; what calls it a success loses the rest."""
    path = str(tmp_path / "file")
    with file_size_limit(1000), pytest.raises(OSError, match="too large"):
        write_new_file(Files(), path, b"x" * 3000)
    assert os.path.getsize(path) == 1000


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    """Two servers on one store would each believe to be the only writer."""
    first, second = (Files().open_lock(str(tmp_path / "lock")) for _ in range(2))
    Files().lock(first)
    with pytest.raises(BlockingIOError):
        Files().lock(second)
    Files().close(first)
    Files().lock(second)
    Files().close(second)


def test_a_full_device_is_a_full_store() -> None:
    """The one error that an operator can mend by deleting something must say so."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="space") as caught:
        Files().write(descriptor, b"x")
    os.close(descriptor)
    assert is_full(caught.value)
    error = refusal(caught.value, "write pack 01")
    assert isinstance(error, StoreFull)
    assert "write pack 01" in error.detail


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EROFS, ReadOnly),
        (errno.EACCES, ReadOnly),
        (errno.EPERM, ReadOnly),
        (errno.EMFILE, Overloaded),
        (errno.ENFILE, Overloaded),
        (errno.EIO, Unavailable),
        (errno.ENOENT, Unavailable),
    ],
)
def test_each_failure_has_its_error(number: int, expected: type[CasstoreError]) -> None:
    """Clients decide by it whether to retry, wait or call someone."""
    error = refusal(OSError(number, os.strerror(number)), "do it")
    assert type(error) is expected
    assert error.detail == f"the store cannot do it: {os.strerror(number)}"


def test_a_failure_without_a_number_keeps_its_words() -> None:
    """Otherwise the operator reads an empty sentence."""
    assert "odd thing" in refusal(OSError("odd thing"), "do it").detail
