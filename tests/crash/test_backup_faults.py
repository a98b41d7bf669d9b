"""Fail every disk operation of a backup and of a restore, and look at what is left.

The promise under test: there is always a whole backup once there was one, the newest that was acknowledged at the least; and a
directory that a restore was interrupted in is no store, or a whole one.  If it breaks, whoever lost a disk learns that the copy
was lost with it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.admin import create_store, fsck_directory
from casstore.backup import BackupOptions, backup_store, verify_backup
from casstore.errors import CasstoreError, DestinationExists, NotInitialised, StoreNotFound
from casstore.formats.pack import ObjectKind
from casstore.hashing import blake3_256
from casstore.restoring import Known, restore_backup
from casstore.storage.local.files import Files
from casstore.store import Store
from tests.crash.faulty import Effect, Fault, FaultyFiles, Loss, Picture, fingerprint, picture_of, restore

LOST = Known(lost=True)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """In memory where the machine has such a place: the power cut is simulated."""
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="casstore-test-", dir=place) as directory:
        yield Path(directory)


def fill(store: Path, *contents: bytes) -> None:
    with Store.open(store) as opened:
        for data in contents:
            opened.packs.put_objects([(ObjectKind.CHUNK, blake3_256(data), data)])


def run_of(backup: Path) -> str:
    return str(json.loads((backup / "backup.json").read_text())["run"])


LOOKING = frozenset({"pread", "stat", "open_read", "listdir", "lock", "close"})
FOLDERS = frozenset({"mkdir", "fsync_dir", "listdir"})


def faults(calls: list[str], *, every: int = 1) -> Iterator[Fault]:
    """Each operation fails, once and for good, which is where the process dies; those that write with and without effect."""
    for at, name in enumerate(calls):
        # 256 folders of packs are made and synced, each like the other.
        if at % 16 and FOLDERS.issuperset(calls[max(0, at - 2) : at + 3]):
            continue
        for effect in Effect:
            if effect is Effect.HALF and name != "write":
                continue
            if name in LOOKING and effect is not Effect.NOTHING:
                continue
            for for_good in (False, True):
                if at % every == 0:
                    yield Fault(at, effect, for_good)


@pytest.mark.parametrize("link", [False, True], ids=["copied", "linked"])
def test_the_backup_before_stands_until_the_new_one_does(scratch: Path, link: bool) -> None:
    root = scratch / "root"
    root.mkdir()
    store, backup, left = root / "store", root / "backup", scratch / "left"
    create_store(store)
    fill(store, b"one")
    options = BackupOptions(link=link, prune=True)
    with Store.open(store) as opened:
        backup_store(opened, backup, options)
        opened.packs.put_objects([(ObjectKind.CHUNK, blake3_256(b"two"), b"two")])
        first = run_of(backup)
    # A pack that is not needed any more, which --prune removes.
    (backup / "packs" / "00" / f"{'0' * 32}.pack").write_bytes(b"of an earlier run")
    start = picture_of(str(root))

    def attempt(fault: Fault | None) -> tuple[FaultyFiles, bool]:
        restore(start, str(root))
        with Store.open(store) as opened:
            files = FaultyFiles(str(root), fault)
            opened.home.files = files
            try:
                backup_store(opened, backup, options)
            except CasstoreError:
                return files, False
        return files, True

    counted, done = attempt(None)
    assert done
    judged: set[bytes] = set()
    states = 0
    # Links differ from copies in how packs come in, and in nothing else.
    for fault in faults(counted.calls, every=3 if link else 1):
        files, done = attempt(fault)
        for loss in Loss:
            picture = {
                name[len("backup/") :]: content
                for name, content in files.picture(loss).items()
                if name.startswith("backup/")
            }
            key = fingerprint(picture) + bytes([done])
            if key in judged:
                continue
            judged.add(key)
            states += 1
            restore(picture, str(left))
            say = (fault, counted.calls[fault.at], loss)
            assert verify_backup(left).ok, say
            assert not done or run_of(left) != first, say
    # What is left is no obstacle either.
    with Store.open(store) as opened:
        backup_store(opened, backup, options)
    assert verify_backup(backup).ok
    print(f"{len(counted.calls)} operations, {states} distinct states")
    assert states > 20


def test_a_first_backup_that_was_interrupted_is_none_and_in_nobodys_way(scratch: Path) -> None:
    store, backup = scratch / "store", scratch / "backup"
    create_store(store)
    fill(store, b"one")
    place = scratch / "place"
    place.mkdir()
    backup = place / "backup"
    with Store.open(store) as opened:
        counted = FaultyFiles(str(place))
        opened.home.files = counted
        backup_store(opened, backup, BackupOptions(link=False))
        # Every seventh: the others differ from their neighbours by little, and each takes 256 directories.
        for at in range(0, len(counted.calls), 7):
            shutil.rmtree(backup)
            opened.home.files = FaultyFiles(str(place), Fault(at, Effect.ALL, for_good=True))
            with pytest.raises(CasstoreError):
                backup_store(opened, backup, BackupOptions(link=False))
            opened.home.files = Files()
            if not (backup / "backup.json").exists():
                with pytest.raises((NotInitialised, StoreNotFound)):
                    verify_backup(backup)
                with pytest.raises((NotInitialised, StoreNotFound)):
                    restore_backup(backup, scratch / "restored", LOST)
            assert not (scratch / "restored").exists()
            backup_store(opened, backup, BackupOptions(link=False))
            assert verify_backup(backup).ok


def test_a_restore_that_was_interrupted_leaves_no_store_or_a_whole_one(scratch: Path) -> None:
    store, backup, left = scratch / "store", scratch / "backup", scratch / "left"
    create_store(store)
    fill(store, b"one", b"two")
    with Store.open(store) as opened:
        backup_store(opened, backup)
    root = scratch / "root"
    root.mkdir()

    def attempt(fault: Fault | None) -> tuple[FaultyFiles, bool]:
        restore({}, str(root))
        files = FaultyFiles(str(root), fault)
        try:
            return files, restore_backup(backup, root / "store", LOST, files=files).read_only is None
        except CasstoreError:
            return files, False

    counted, done = attempt(None)
    assert done
    judged: set[bytes] = set()
    whole = 0
    for fault in faults(counted.calls):
        files, done = attempt(fault)
        for loss in Loss:
            picture: Picture = files.picture(loss)
            key = fingerprint(picture) + bytes([done])
            if key in judged:
                continue
            judged.add(key)
            restore(picture, str(left))
            say = (fault, counted.calls[fault.at], loss)
            if (left / "store" / "format").exists():
                assert fsck_directory(left / "store", full=True).ok, say
                with Store.open(left / "store") as opened:
                    assert opened.read_only is None
                whole += 1
            else:
                assert not done, say
                if (left / "store").exists():
                    with pytest.raises(NotInitialised):
                        Store.open(left / "store")
                    if os.listdir(left / "store"):
                        with pytest.raises(DestinationExists):
                            restore_backup(backup, left / "store", LOST)
    assert whole > 1
    print(f"{len(counted.calls)} operations, {len(judged)} distinct states, {whole} of them stores")
