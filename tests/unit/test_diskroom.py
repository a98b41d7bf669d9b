"""The reserve, and the blocks that are had before they are needed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from casstore.errors import StoreFull
from casstore.limits import GIB, KIB, MIB
from casstore.storage.local.diskroom import RESERVE_FILES, DiskRoom
from casstore.storage.local.files import Files, Space
from casstore.storage.local.heads import SignedHeads
from casstore.storage.local.ledger import LocalLedger
from tests.support.server import ROOT
from tests.support.smalldisk import filled, mounted


class Told(Files):
    """A file system that has what it is told."""

    def __init__(self, total: int, free: int, files: int | None = None) -> None:
        self.told = Space(total, free, files)

    def space(self, path: str) -> Space:
        return self.told


def test_the_reserve_is_a_fiftieth_and_at_most_a_gigabyte() -> None:
    assert DiskRoom("x", Told(64 * MIB, 0)).look().reserve_bytes == 64 * MIB // 50
    assert DiskRoom("x", Told(1000 * GIB, 0)).look().reserve_bytes == GIB
    assert DiskRoom("x", Told(1000 * GIB, 0), 7).look().reserve_bytes == 7


@pytest.mark.parametrize(
    ("free", "wanted", "fits"), [(100, 0, True), (99, 0, False), (150, 50, True), (149, 50, False)]
)
def test_a_pack_fits_if_the_reserve_stays(free: int, wanted: int, fits: bool) -> None:
    room = DiskRoom("x", Told(1000, free), 100)
    if fits:
        room.demand(wanted)
    else:
        with pytest.raises(StoreFull, match=f"{free} bytes are free, and 100 are kept"):
            room.demand(wanted)


def test_files_are_kept_too() -> None:
    DiskRoom("x", Told(1000, 1000, RESERVE_FILES), 100).demand(0)
    with pytest.raises(StoreFull, match="more files"):
        DiskRoom("x", Told(1000, 1000, RESERVE_FILES - 1), 100).demand(0)


def test_without_a_reserve_the_disk_itself_refuses() -> None:
    DiskRoom("x", Told(1000, 0, 0), 0).demand(10**9)


def test_room_for_heads_is_had_before_it_is_needed(tmp_path: Path) -> None:
    """A commit whose head finds no block would leave entries that cannot be signed, and a sealed store."""
    SignedHeads.lay_out(str(tmp_path), Files())
    heads = SignedHeads(str(tmp_path), Files())
    heads.make_room()
    found = (tmp_path / "signed-heads").stat()
    assert found.st_size == 0, "no byte of it is to be read"
    assert found.st_blocks * 512 >= 64 * KIB
    heads.append(1, bytes(32))
    heads.close()
    again = SignedHeads(str(tmp_path), Files())
    assert [head.size for head in again.read_all()] == [1]
    again.close()


def test_no_room_for_a_head_is_a_full_disk_and_nothing_more(tmp_path: Path) -> None:
    class Full(Files):
        full = True

        def allocate(self, descriptor: int, offset: int, length: int) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    SignedHeads.lay_out(str(tmp_path), Files())
    files = Full()
    heads = SignedHeads(str(tmp_path), files)
    with pytest.raises(StoreFull):
        heads.make_room()
    files.full = False
    heads.make_room()
    heads.append(1, bytes(32))
    heads.close()


def test_the_lock_files_of_the_databases_are_not_sparse(tmp_path: Path) -> None:
    """On a full disk the kernel ends a process that writes into a hole of a mapped file."""
    LocalLedger.lay_out(str(tmp_path), Files())
    LocalLedger(str(tmp_path), Files()).close()
    lock = (tmp_path / "ledger" / "lock.mdb").stat()
    assert lock.st_blocks * 512 >= lock.st_size > 4 * KIB


READERS = """
import sys, threading
from casstore.storage.local.files import Files
from casstore.storage.local.ledger import LocalLedger
ledger = LocalLedger(sys.argv[1], Files())
begun, end = threading.Semaphore(0), threading.Event()
def read():
    with ledger.read():
        begun.release()
        end.wait()
threads = [threading.Thread(target=read) for _ in range(200)]
print("open", flush=True)
sys.stdin.readline()
for thread in threads:
    thread.start()
for _ in threads:
    begun.acquire()
end.set()
print("read", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_two_hundred_readers_on_a_full_disk_end_no_process(tmp_path: Path, kind: str) -> None:
    with mounted(tmp_path, kind, 32 * MIB) as where:
        LocalLedger.lay_out(str(where), Files())
        process = subprocess.Popen(
            [sys.executable, "-c", READERS, str(where)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process, filled(where):
            assert process.stdout.readline() == "open\n"
            print("go", file=process.stdin, flush=True)
            assert process.stdout.readline() == "read\n", "the kernel has ended the process"
        assert process.returncode == 0
