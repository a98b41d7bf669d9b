"""Backups and restores of a store: what they hold, what they refuse, and what a restored store may do."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest

from casstore.admin import Created, create_store, fsck_directory, rebuild_index
from casstore.backup import BackupOptions, backup_store, verify_backup
from casstore.errors import (
    ConfigurationError,
    DamagedObject,
    DestinationExists,
    InvalidInput,
    NotFound,
    NotInitialised,
    StoreBusy,
    StoreNotFound,
    StoreTooNew,
    Unavailable,
    VerificationError,
)
from casstore.formats.pack import ObjectKind
from casstore.hashing import blake3_256
from casstore.restoring import Known, restore_backup
from casstore.storage.local.backup import BackupDirectory
from casstore.storage.local.files import Files
from casstore.store import Store
from tests.crash.lifetime import STEPS, Script

LOST = Known(lost=True)


SEEDS = itertools.count(100)


def opened_at(script: Script, directory: Path) -> Store:
    """The store, whose packs get other names each time that it is opened."""
    return script.open(str(directory), Files(), seed=next(SEEDS))


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(str(tmp_path / "store"))


@pytest.fixture
def store(script: Script, tmp_path: Path) -> Path:
    """A store with two releases, flipped and rolled back."""
    ask(script, tmp_path / "store", *STEPS)
    return tmp_path / "store"


def ask(script: Script, directory: Path, *steps: str) -> None:
    with opened_at(script, directory) as opened:
        for step in steps:
            script.ask(opened, step)


def back_up(script: Script, store: Path, backup: Path, **options: bool) -> None:
    with opened_at(script, store) as opened:
        backup_store(opened, backup, BackupOptions(**options))


def test_what_is_restored_is_the_store(script: Script, store: Path, tmp_path: Path) -> None:
    """Content, history, tokens, artifacts: all of it, and the log goes on."""
    with opened_at(script, store) as opened:
        report = backup_store(opened, tmp_path / "backup")
        size, checkpoint = opened.log.size, opened.log.published().root
    assert (report.log_size, report.keys, report.absent_packs) == (size, True, 0)
    assert report.packs == report.new_packs > 0
    assert verify_backup(tmp_path / "backup").ok
    done = restore_backup(tmp_path / "backup", tmp_path / "restored", LOST, full=True)
    assert done.report is not None
    assert done.report.ok
    assert (done.read_only, done.missing) == (None, [])
    with opened_at(script, tmp_path / "restored") as opened:
        assert (opened.log.size, opened.log.published().root) == (size, checkpoint)
        assert opened.fsck(full=True).ok
        script.ask(opened, "push three")
        script.ask(opened, "publish three")
        script.ask(opened, "flip web")
        assert opened.log.size == size + 2
    assert fsck_directory(tmp_path / "restored", full=True).ok


def test_secrets_are_the_owners_alone(script: Script, store: Path, tmp_path: Path) -> None:
    """Whoever reads a backup could sign as the log."""
    old = os.umask(0)
    try:
        back_up(script, store, tmp_path / "backup")
        restore_backup(tmp_path / "backup", tmp_path / "restored", LOST)
    finally:
        os.umask(old)
    backup = tmp_path / "backup"
    assert backup.stat().st_mode & 0o777 == 0o700
    [run] = os.listdir(backup / "state")
    assert (backup / "state" / run).stat().st_mode & 0o777 == 0o700
    for name in ("keys/log", "keys/clock", "ledger/data.mdb", "signed-heads"):
        assert (backup / "state" / run / name).stat().st_mode & 0o777 == 0o600, name
    assert (tmp_path / "restored" / "keys" / "log").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "restored" / "keys").stat().st_mode & 0o777 == 0o700


def test_a_second_backup_copies_what_is_new(script: Script, store: Path, tmp_path: Path) -> None:
    """A nightly backup of a terabyte takes as long as the day's pushes."""
    backup = tmp_path / "backup"
    back_up(script, store, backup, link=False)
    ask(script, store, "push three")
    with opened_at(script, store) as opened:
        report = backup_store(opened, backup, BackupOptions(link=False))
    assert 0 < report.new_packs < report.packs
    assert report.linked_packs == 0
    assert len(os.listdir(backup / "state")) == 1
    assert verify_backup(backup).ok


def test_packs_are_linked_on_the_same_file_system(script: Script, store: Path, tmp_path: Path) -> None:
    back_up(script, store, tmp_path / "linked")
    back_up(script, store, tmp_path / "copied", link=False)
    for name, links in (("linked", 2), ("copied", 1)):
        packs = list((tmp_path / name / "packs").rglob("*.pack"))
        assert packs
        # Those of `linked` have their name in the store and this one.
        assert {pack.stat().st_nlink for pack in packs} == {links}


def test_packs_that_are_not_needed_go_when_asked(script: Script, store: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    back_up(script, store, backup)
    stray = backup / "packs" / "ab" / f"ab{'0' * 30}.pack"
    stray.write_bytes(b"what the store has collected since")
    back_up(script, store, backup)
    assert stray.exists(), "nothing is removed unasked"
    assert verify_backup(backup).ok
    with opened_at(script, store) as opened:
        report = backup_store(opened, backup, BackupOptions(prune=True))
    assert (report.pruned_packs, report.pruned_bytes) == (1, 34)
    assert not stray.exists()
    assert verify_backup(backup).ok


def test_nothing_may_be_removed_while_a_backup_is_made(script: Script, store: Path, tmp_path: Path) -> None:
    """Collection asks the holds before each deletion; here is what it is told."""
    seen: list[list[str]] = []
    with opened_at(script, store) as opened:
        backup_store(opened, tmp_path / "backup", stop=lambda: seen.append(opened.holds.holders()) is not None)
        assert opened.holds.holders() == []
    assert seen
    assert all(holders == [f"a backup to {tmp_path / 'backup'}"] for holders in seen)


def test_a_backup_that_is_told_to_stop_changes_nothing(script: Script, store: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    back_up(script, store, backup)
    before = (backup / "backup.json").read_bytes()
    ask(script, store, "push three")
    with opened_at(script, store) as opened, pytest.raises(Unavailable):
        backup_store(opened, backup, stop=lambda: True)
    assert (backup / "backup.json").read_bytes() == before
    assert verify_backup(backup).ok


def test_a_store_that_lacks_a_pack_is_backed_up_and_said_to(script: Script, store: Path, tmp_path: Path) -> None:
    """On the day after a bad disk the backup of what is left matters most."""
    victim, short = sorted((store / "packs").rglob("*.pack"))[:2]
    victim.unlink()
    with short.open("r+b") as stream:
        stream.truncate(100)
    with opened_at(script, store) as opened:
        report = backup_store(opened, tmp_path / "backup")
    assert report.absent_packs == 2
    assert set(report.absent) == {victim.stem, short.stem}
    found = verify_backup(tmp_path / "backup")
    assert not found.ok
    assert victim.stem in str(found.findings)


def test_what_the_store_has_lost_is_not_pruned(script: Script, store: Path, tmp_path: Path) -> None:
    """A disk is lost and the index built anew without it; then the nightly backup comes, with ``--prune``."""
    backup = tmp_path / "backup"
    back_up(script, store, backup)
    with opened_at(script, store) as opened:
        chunks = [at.pack for _, at in opened.packs.index.objects(ObjectKind.CHUNK, limit=1)]
    [victim] = [path for path in (store / "packs").rglob("*.pack") if path.stem == str(chunks[0])]
    victim.unlink()
    rebuild_index(store)
    with opened_at(script, store) as opened, pytest.raises(DamagedObject, match="nothing was pruned"):
        backup_store(opened, backup, BackupOptions(prune=True))
    assert list((backup / "packs").rglob(victim.name))
    shutil.copy(next((backup / "packs").rglob(victim.name)), victim)
    rebuild_index(store)
    with opened_at(script, store) as opened:
        backup_store(opened, backup, BackupOptions(prune=True))
    assert verify_backup(backup).ok


class BadSector(Files):
    """Files, one of which the disk cannot read."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bad: set[int] = set()

    def open_read(self, path: str) -> int:
        descriptor = super().open_read(path)
        (self._bad.add if self._name in path else self._bad.discard)(descriptor)
        return descriptor

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        if descriptor in self._bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().pread(descriptor, length, offset)


def test_a_pack_that_the_disk_cannot_read_does_not_stop_the_backup(script: Script, store: Path, tmp_path: Path) -> None:
    """One bad sector would else be the end of all backups, on the day on which they matter most."""
    victim = min((store / "packs").rglob("*.pack")).stem
    with script.open(str(store), BadSector(victim), seed=next(SEEDS)) as opened:
        report = backup_store(opened, tmp_path / "backup", BackupOptions(link=False))
    assert report.absent == [victim]
    assert not list((tmp_path / "backup" / "tmp").iterdir())
    assert not verify_backup(tmp_path / "backup").ok


def test_a_pack_that_the_disk_cannot_read_does_not_stop_a_restore(script: Script, store: Path, tmp_path: Path) -> None:
    """A store that lacks one pack can be healed; one that is not there can not."""
    backup = tmp_path / "backup"
    back_up(script, store, backup)
    victim = min((backup / "packs").rglob("*.pack")).stem
    restored = restore_backup(backup, tmp_path / "new", LOST, files=BadSector(victim))
    assert restored.missing == [victim]
    assert not list((tmp_path / "new").rglob(f"{victim}.pack"))


@pytest.mark.parametrize("where", ["store/backup", "store", "."])
def test_a_backup_never_goes_into_its_store(script: Script, store: Path, tmp_path: Path, where: str) -> None:
    with opened_at(script, store) as opened, pytest.raises(InvalidInput, match="cannot lie in"):
        backup_store(opened, tmp_path / where)


def test_a_backup_never_goes_over_something_else(script: Script, store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    create_store(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with opened_at(script, store) as opened:
        for name in ("mine", "other", "file"):
            with pytest.raises(DestinationExists):
                backup_store(opened, tmp_path / name)
        backup_store(opened, tmp_path / "backup")
    assert os.listdir(tmp_path / "mine") == ["letter"]
    with Store.open(tmp_path / "other") as opened, pytest.raises(InvalidInput, match="holds a backup of"):
        backup_store(opened, tmp_path / "backup")
    assert verify_backup(tmp_path / "backup").ok


def test_two_backups_do_not_write_to_one_directory(script: Script, store: Path, tmp_path: Path) -> None:
    with opened_at(script, store) as opened:
        backup_store(opened, tmp_path / "backup")
        with BackupDirectory(tmp_path / "backup", Files()), pytest.raises(StoreBusy):
            backup_store(opened, tmp_path / "backup")


# --- checking ----------------------------------------------------------------------------------------------------------


def parts(backup: Path) -> list[str]:
    return [part["name"] for part in json.loads((backup / "backup.json").read_text())["parts"]]


def test_a_flipped_bit_in_any_part_is_found_and_not_restored(script: Script, store: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    back_up(script, store, backup, link=False)
    state = backup / "state" / os.listdir(backup / "state")[0]
    assert set(parts(backup)) >= {"ledger/data.mdb", "index/data.mdb", "keys/log", "signed-heads", "packs.list"}
    for name in parts(backup):
        data = bytearray((state / name).read_bytes())
        data[len(data) // 2] ^= 4
        whole = (state / name).read_bytes()
        (state / name).write_bytes(data)
        with pytest.raises(DamagedObject) as caught:
            restore_backup(backup, tmp_path / "restored", LOST)
        assert caught.value.object == name
        assert not (tmp_path / "restored").exists()
        (state / name).unlink()
        with pytest.raises(DamagedObject):
            restore_backup(backup, tmp_path / "restored", LOST)
        (state / name).write_bytes(whole)
    assert verify_backup(backup).ok


def test_a_flipped_bit_in_a_pack_is_found(script: Script, store: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    back_up(script, store, backup, link=False)
    pack = max((backup / "packs").rglob("*.pack"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 3] ^= 1
    pack.write_bytes(data)
    report = verify_backup(backup)
    assert not report.ok
    assert pack.stem in str(report.findings)
    assert verify_backup(backup, full=False).checked["packs"] > 0
    # What is left is worth restoring, and said to be damaged.
    done = restore_backup(backup, tmp_path / "restored", LOST, full=True)
    assert done.report is not None
    assert not done.report.ok
    pack.unlink()
    done = restore_backup(backup, tmp_path / "again", LOST)
    assert done.missing == [pack.stem]
    assert (tmp_path / "again" / "format").exists()


def test_a_manifest_that_is_none_is_refused(script: Script, store: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    with pytest.raises(StoreNotFound):
        verify_backup(backup)
    back_up(script, store, backup)
    manifest = json.loads((backup / "backup.json").read_text())
    for wrong in (
        b"",
        b"[]",
        b"{}",
        json.dumps({**manifest, "run": "../../etc"}).encode(),
        json.dumps({**manifest, "parts": [{"name": "../log", "size": 1, "blake3": "0" * 64}]}).encode(),
        json.dumps({**manifest, "more": 1}).encode(),
        b"[" * 100_000,
    ):
        (backup / "backup.json").write_bytes(wrong)
        for use in (lambda: verify_backup(backup), lambda: restore_backup(backup, tmp_path / "restored", LOST)):
            with pytest.raises(DamagedObject):
                use()
    (backup / "backup.json").write_text(json.dumps({**manifest, "backup": 2}))
    with pytest.raises(StoreTooNew):
        restore_backup(backup, tmp_path / "restored", LOST)
    (backup / "backup.json").unlink()
    with pytest.raises(NotInitialised):
        restore_backup(backup, tmp_path / "restored", LOST)
    assert not (tmp_path / "restored").exists()


# --- the restore fence -------------------------------------------------------------------------------------------------


def test_whoever_restores_must_say_what_was_signed_since(script: Script, store: Path, tmp_path: Path) -> None:
    """Signing on from an older copy makes two histories under one key: nobody may slip into that."""
    back_up(script, store, tmp_path / "backup")
    with pytest.raises(InvalidInput, match="signed after this backup"):
        restore_backup(tmp_path / "backup", tmp_path / "restored", Known())
    assert not (tmp_path / "restored").exists()


def test_an_older_backup_with_the_heads_that_survived_is_read_only(script: Script, store: Path, tmp_path: Path) -> None:
    back_up(script, store, tmp_path / "backup")
    ask(script, store, "push three", "publish three")
    known = Known(heads=str(store / "signed-heads"))
    done = restore_backup(tmp_path / "backup", tmp_path / "restored", known, full=True)
    assert done.read_only is not None
    assert done.head.size == done.manifest.log_size + 1
    assert done.report is not None
    assert done.report.ok, "what was restored is whole: it is older, not damaged"
    with opened_at(script, tmp_path / "restored") as opened:
        assert "older copy" in (opened.read_only or "")
    # A backup of now is whole, so the same heads allow it to go on.
    back_up(script, store, tmp_path / "newer")
    assert restore_backup(tmp_path / "newer", tmp_path / "whole", known).read_only is None
    with opened_at(script, tmp_path / "whole") as opened:
        assert opened.read_only is None


def test_a_checkpoint_that_somebody_holds_is_as_good(script: Script, store: Path, tmp_path: Path) -> None:
    back_up(script, store, tmp_path / "backup")
    ask(script, store, "push three", "publish three")
    with opened_at(script, store) as opened:
        note = opened.log.checkpoint
    done = restore_backup(tmp_path / "backup", tmp_path / "restored", Known(checkpoint=note))
    assert done.read_only is not None
    with opened_at(script, tmp_path / "restored") as opened:
        assert opened.read_only is not None
    other = create_store(tmp_path / "other")
    with Store.open(tmp_path / "other") as opened:
        foreign = opened.log.checkpoint
    assert isinstance(other, Created)
    with pytest.raises(VerificationError):
        restore_backup(tmp_path / "backup", tmp_path / "third", Known(checkpoint=foreign))
    assert not (tmp_path / "third").exists()


def test_heads_that_say_nothing_are_refused(script: Script, store: Path, tmp_path: Path) -> None:
    back_up(script, store, tmp_path / "backup")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "torn").write_bytes((store / "signed-heads").read_bytes()[:50])
    (tmp_path / "odd").write_bytes((store / "signed-heads").read_bytes().replace(b" ", b"-") * 2)
    for name, error in (("empty", InvalidInput), ("torn", InvalidInput), ("odd", DamagedObject), ("none", NotFound)):
        with pytest.raises(error):
            restore_backup(tmp_path / "backup", tmp_path / "restored", Known(heads=str(tmp_path / name)))
    assert not (tmp_path / "restored").exists()


def test_a_backup_without_keys_needs_them_from_elsewhere(script: Script, store: Path, tmp_path: Path) -> None:
    back_up(script, store, tmp_path / "backup", keys=False)
    assert not [name for name in parts(tmp_path / "backup") if name.startswith("keys/")]
    with pytest.raises(ConfigurationError, match="without the server's keys"):
        restore_backup(tmp_path / "backup", tmp_path / "restored", LOST)
    create_store(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="the log key is that of"):
        restore_backup(tmp_path / "backup", tmp_path / "restored", LOST, keys=str(tmp_path / "other" / "keys"))
    assert not (tmp_path / "restored").exists()
    restore_backup(tmp_path / "backup", tmp_path / "restored", LOST, keys=str(store / "keys"))
    with opened_at(script, tmp_path / "restored") as opened:
        assert opened.read_only is None


def test_a_restore_never_goes_over_anything(script: Script, store: Path, tmp_path: Path) -> None:
    back_up(script, store, tmp_path / "backup")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    for name in ("store", "mine", "backup"):
        with pytest.raises(DestinationExists):
            restore_backup(tmp_path / "backup", tmp_path / name, LOST)
    (tmp_path / "empty").mkdir()
    restore_backup(tmp_path / "backup", tmp_path / "empty", LOST, link=True)
    assert fsck_directory(tmp_path / "empty", full=True).ok


def test_a_backup_of_an_older_format_is_restored_as_it_is(
    script: Script, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup from before an upgrade is the way back: it must not be converted behind anybody's back."""
    backup = tmp_path / "backup"
    back_up(script, store, backup)
    state = backup / "state" / os.listdir(backup / "state")[0]
    (state / "format").write_text('{"casstore": "0.1.0", "format": 1}\n')
    manifest = json.loads((backup / "backup.json").read_text())
    data = (state / "format").read_bytes()
    for part in manifest["parts"]:
        if part["name"] == "format":
            part.update(size=len(data), blake3=blake3_256(data).hex())
    (backup / "backup.json").write_text(json.dumps({**manifest, "format": 1}))
    done = restore_backup(backup, tmp_path / "restored", LOST)
    assert done.report is None
    assert (tmp_path / "restored" / "format").read_bytes() == data


def test_what_arrives_during_a_backup_is_in_it_whole_or_not_at_all(script: Script, store: Path, tmp_path: Path) -> None:
    """Between any two steps of a backup the store goes on: what the backup has of it must fit together."""
    steps = iter(("push three", "publish three", "flip web"))
    extra = iter(range(100))
    with opened_at(script, store) as opened:

        def meanwhile() -> bool:
            step = next(steps, None)
            if step is not None:
                script.ask(opened, step)
            data = b"chunk %d" % next(extra, 0)
            opened.packs.put_objects([(ObjectKind.CHUNK, blake3_256(data), data)])
            return False

        report = backup_store(opened, tmp_path / "backup", stop=meanwhile)
    assert verify_backup(tmp_path / "backup").ok
    done = restore_backup(tmp_path / "backup", tmp_path / "restored", LOST, full=True)
    assert done.report is not None
    assert done.report.ok
    assert done.read_only is None
    shutil.rmtree(tmp_path / "restored")
    assert report.log_size >= 6
