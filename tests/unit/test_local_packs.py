"""Packs as files: names on disk, descriptors, and what a failing disk does to writing and to reading."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from casstore.errors import (
    Conflict,
    DamagedObject,
    DestinationExists,
    NotInitialised,
    OutcomeUnknown,
    Overloaded,
    PackNotFound,
    StateError,
    StoreFull,
    Unavailable,
)
from casstore.ids import PackId
from casstore.storage.local.files import Files
from casstore.storage.local.packs import LocalPackStore
from tests.crash.faulty import Effect, FaultyFiles

PACK = PackId.parse("ab" + "0" * 30)
OTHER = PackId.parse("cd" + "0" * 30)


def make(directory: Path) -> LocalPackStore:
    LocalPackStore.lay_out(str(directory), Files())
    return LocalPackStore(str(directory), Files())


def put(store: LocalPackStore, pack: PackId, data: bytes = b"bytes") -> None:
    writer = store.create(pack)
    writer.write(data)
    writer.commit()


def open_faulty(directory: Path) -> tuple[LocalPackStore, FaultyFiles]:
    files = FaultyFiles(str(directory))
    return LocalPackStore(str(directory), files), files


def test_a_pack_lies_where_the_documents_say(tmp_path: Path) -> None:
    """Operators copy and look at these files."""
    store = make(tmp_path)
    put(store, PACK)
    path = tmp_path / "packs" / "ab" / f"{PACK}.pack"
    assert store.path(PACK) == str(path)
    assert path.read_bytes() == b"bytes"
    assert path.stat().st_nlink == 1
    assert os.listdir(tmp_path / "tmp") == []
    store.close()


def test_opening_does_not_create(tmp_path: Path) -> None:
    """A mount that is missing must not look like an empty store."""
    with pytest.raises(NotInitialised):
        LocalPackStore(str(tmp_path), Files())
    assert os.listdir(tmp_path) == []


def test_laying_out_does_not_overwrite(tmp_path: Path) -> None:
    """A second `init` must not touch the store of the first."""
    make(tmp_path).close()
    with pytest.raises(DestinationExists):
        LocalPackStore.lay_out(str(tmp_path), Files())


def test_foreign_files_are_not_packs(tmp_path: Path) -> None:
    """An editor's backup or a half-copied file below packs/ must not be taken for content."""
    store = make(tmp_path)
    put(store, PACK)
    for name in ("README", f"{PACK}.pack~", f"{PACK}", f"{str(PACK).upper()}.pack", f"{OTHER}.pack"):
        (tmp_path / "packs" / "ab" / name).write_bytes(b"")
    assert store.list(limit=10) == [PACK]
    store.close()


def test_a_pack_that_lost_its_end_is_damaged(tmp_path: Path) -> None:
    """The message must say which pack and where, so that someone can mend it."""
    store = make(tmp_path)
    put(store, PACK)
    os.truncate(tmp_path / "packs" / "ab" / f"{PACK}.pack", 3)
    with pytest.raises(DamagedObject) as caught:
        store.read(PACK, 0, 5)
    assert caught.value.object == str(PACK)
    assert caught.value.where == f"{tmp_path}/packs/ab/{PACK}.pack:0"
    assert (caught.value.expected, caught.value.found) == ("5", "3")
    store.close()


def test_descriptors_are_bounded_and_let_go(tmp_path: Path) -> None:
    """A server with 10,000 packs must not run out of descriptors, nor keep deleted packs on the disk."""
    store = make(tmp_path)
    packs = [PackId(number.to_bytes(16, "big")) for number in range(300)]
    before = len(os.listdir("/proc/self/fd"))
    for pack in packs:
        put(store, pack, bytes(pack))
        assert store.read(pack, 0, 16) == pack
    assert len(os.listdir("/proc/self/fd")) - before <= 128
    for pack in packs:
        store.delete(pack)
    assert len(os.listdir("/proc/self/fd")) == before
    store.close()


def test_a_lent_descriptor_outlives_its_eviction(tmp_path: Path) -> None:
    """A descriptor that is closed while a thread reads may be another file's the next moment."""
    store = make(tmp_path)
    put(store, PACK)
    path = store.path(PACK)
    assert path is not None
    with store._readers.lend(PACK, path) as descriptor:
        store.delete(PACK)
        assert Files().pread(descriptor, 5, 0) == b"bytes"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with pytest.raises(PackNotFound):
        store.read(PACK, 0, 5)
    store.close()


@pytest.mark.parametrize("name", ["fsync", "link_new", "fsync_dir"])
@pytest.mark.parametrize("effect", [Effect.NOTHING, Effect.ALL])
def test_after_a_failed_sync_no_pack_is_taken(tmp_path: Path, name: str, effect: Effect) -> None:
    """A disk that lost bytes once and said so may lose the next without a word; reading goes on."""
    store = make(tmp_path)
    put(store, OTHER)
    store.close()
    store, files = open_faulty(tmp_path)
    waiting = store.create(PackId(b"\x01" * 16))
    first = store.create(PACK)
    first.write(b"bytes")
    files.fail_next(name, effect)
    with pytest.raises(OutcomeUnknown):
        first.commit()
    with pytest.raises(OutcomeUnknown):
        store.create(PackId(b"\x02" * 16))
    with pytest.raises(OutcomeUnknown):
        waiting.commit()
    with pytest.raises(OutcomeUnknown):
        store.delete(OTHER)
    assert store.read(OTHER, 0, 5) == b"bytes"
    store.close()
    store = LocalPackStore(str(tmp_path), Files())
    assert OTHER in store.list(limit=9)
    put(store, PackId(b"\x02" * 16))
    store.close()


@pytest.mark.parametrize("name", ["open_write", "write", "fsync"])
def test_a_full_disk_drops_the_pack_and_no_more(tmp_path: Path, name: str) -> None:
    """When space was freed the next push must succeed without a restart."""
    make(tmp_path).close()
    store, files = open_faulty(tmp_path)
    files.fail_next(name, Effect.HALF, errno.ENOSPC)
    with pytest.raises(StoreFull):
        put(store, PACK)
    put(store, PACK, b"again")
    assert store.read(PACK, 0, 5) == b"again"
    store.close()


def test_a_writer_that_failed_cannot_commit(tmp_path: Path) -> None:
    """Bytes in the wrong place under a good name are damage."""
    make(tmp_path).close()
    store, files = open_faulty(tmp_path)
    files.fail_next("write", Effect.HALF)
    writer = store.create(PACK)
    with pytest.raises(Unavailable):
        writer.write(b"bytes")
    with pytest.raises(StateError):
        writer.write(b"bytes")
    with pytest.raises(StateError):
        writer.commit()
    writer.abort()
    assert store.list(limit=5) == []
    assert os.listdir(tmp_path / "tmp") == []
    store.close()


def test_a_lost_race_leaves_no_file(tmp_path: Path) -> None:
    """Retried uploads must not fill tmp/ until the next restart."""
    store = make(tmp_path)
    writers = [store.create(PACK) for _ in range(3)]
    writers[0].commit()
    for writer in writers[1:]:
        with pytest.raises(Conflict):
            writer.commit()
    assert os.listdir(tmp_path / "tmp") == []
    store.close()


def test_without_descriptors_nothing_is_in_doubt(tmp_path: Path) -> None:
    """A thousand idle clients may hold every descriptor: that must refuse a pack, not stop the store."""
    make(tmp_path).close()
    store, files = open_faulty(tmp_path)
    first = store.create(PACK)
    first.write(b"bytes")
    files.fail_next("open_dir", number=errno.EMFILE)
    with pytest.raises(Overloaded):
        first.commit()
    assert store.list(limit=9) == []
    put(store, PACK)
    assert store.read(PACK, 0, 5) == b"bytes"
    store.close()


def test_a_deletion_that_was_not_synced_is_unknown(tmp_path: Path) -> None:
    """A pack that comes back after a power cut must not have been reported as gone."""
    store = make(tmp_path)
    put(store, PACK)
    store.close()
    store, files = open_faulty(tmp_path)
    files.fail_next("fsync_dir")
    with pytest.raises(OutcomeUnknown):
        store.delete(PACK)
    store.close()
