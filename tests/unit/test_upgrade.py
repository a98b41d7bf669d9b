"""Upgrades: an older store is refused, converted when asked for, and whole whenever that is interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lmdb
import pytest

from casstore import limits
from casstore.admin import create_store, fsck_directory
from casstore.errors import CasstoreError, OutcomeUnknown, StoreBusy, StoreTooNew, StoreTooOld, Unsupported
from casstore.storage.local import home as home_module
from casstore.storage.local import upgrade as upgrade_module
from casstore.storage.local.files import Files
from casstore.storage.local.home import Home
from casstore.storage.local.upgrade import STEPS, upgrade_store
from casstore.store import Store
from tests.crash.faulty import Effect, Fault, FaultyFiles, Loss, restore

TABLES_OF_FORMAT_1 = {
    "index": ["chunk", "page", "root", "layout", "document", "packs", "pack-numbers", "memo"],
    "ledger": [
        *(
            "meta",
            "entries",
            "nodes",
            "state",
            "intents",
            "pointers",
            "history",
            "marks",
            "snapshots",
            "snapshot-order",
        ),
        *("policies", "artifacts", "artifact-names", "tokens", "pins", "pending", "aliases"),
    ],
}
"""Written down from the program that made such stores; never changed."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store as casstore of format 1 left it."""
    directory = tmp_path / "store"
    create_store(directory)
    for name, tables in TABLES_OF_FORMAT_1.items():
        environment = lmdb.open(str(directory / name), max_dbs=32, lib_version=0)
        with environment.begin(write=True) as transaction:
            present = [bytes(key) for key, _ in transaction.cursor()]
            for table in present:
                if table.decode() not in tables:
                    transaction.drop(environment.open_db(table, txn=transaction, create=False))
            assert sorted(bytes(key).decode() for key, _ in transaction.cursor()) == sorted(tables)
        environment.close()
    (directory / "format").write_text('{"casstore": "0.1.0", "format": 1}\n')
    return directory


def test_there_is_a_step_from_every_older_format() -> None:
    """A store of any released version has a way to this one."""
    assert set(STEPS) == set(range(1, limits.FORMAT_VERSION))


def test_an_older_store_is_refused_and_told_what_to_do(old: Path) -> None:
    """Nobody's store changes because a package was updated."""
    before = (old / "format").read_bytes()
    for opening in (lambda: Store.open(old), lambda: fsck_directory(old)):
        with pytest.raises(StoreTooOld, match="format 1") as caught:
            opening()
        assert f"casstore upgrade --store {old}" in (caught.value.hint or "")
    assert (old / "format").read_bytes() == before


def test_an_upgraded_store_works(old: Path) -> None:
    planned = upgrade_store(old, Files(), dry_run=True)
    with pytest.raises(StoreTooOld):
        Store.open(old)
    done = upgrade_store(old, Files())
    assert done == planned
    assert [step.version for step in done] == list(range(2, limits.FORMAT_VERSION + 1))
    assert any("index: table condemned" in step.changes for step in done)
    assert json.loads((old / "format").read_text())["format"] == limits.FORMAT_VERSION
    assert upgrade_store(old, Files()) == []
    with Store.open(old) as store:
        assert store.log.size == 1
        assert store.fsck(full=True).ok


def test_a_store_that_is_served_is_not_upgraded(old: Path) -> None:
    """The server of the older version would go on writing to what it does not know."""
    held = Home.open(old, Files(), any_format=True)
    with pytest.raises(StoreBusy):
        upgrade_store(old, Files())
    held.close()


def test_a_newer_store_is_not_touched(old: Path) -> None:
    (old / "format").write_text('{"casstore": "9.9", "format": 999}\n')
    with pytest.raises(StoreTooNew):
        upgrade_store(old, Files())


def test_a_version_without_a_step_is_said_to_be_one(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade_module, "STEPS", {})
    with pytest.raises(Unsupported, match="format 1"):
        upgrade_store(old, Files())


def test_steps_follow_each_other(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is interrupted between two steps goes on with the second."""
    monkeypatch.setattr(home_module, "FORMAT_VERSION", 3)
    ran: list[int] = []

    def second(_: Home, dry_run: bool) -> list[str]:
        ran.append(json.loads((old / "format").read_text())["format"])
        if len(ran) == 2:
            raise OutcomeUnknown("the disk is full of holes")
        return [f"dry run {dry_run}"]

    monkeypatch.setattr(upgrade_module, "STEPS", {**STEPS, 2: upgrade_module.Step("does more", second)})
    assert [done.version for done in upgrade_store(old, Files(), target=3, dry_run=True)] == [2, 3]
    with pytest.raises(OutcomeUnknown):
        upgrade_store(old, Files(), target=3)
    assert json.loads((old / "format").read_text())["format"] == 2
    assert [done.changes for done in upgrade_store(old, Files(), target=3)] == [["dry run False"]]
    assert ran == [1, 2, 2]


def test_an_upgrade_that_fails_anywhere_is_done_again(old: Path, tmp_path: Path) -> None:
    """Every disk operation of an upgrade fails in turn, with all that a crash may lose: the store is an old or a new one."""
    start, left = tmp_path / "start", tmp_path / "left"
    shutil.copytree(old, start)
    counted = FaultyFiles(str(old))
    upgrade_store(old, counted)
    assert "commit" in counted.calls
    states = 0
    for at, name in enumerate(counted.calls):
        for effect in Effect:
            if effect is Effect.HALF and name != "write":
                continue
            shutil.rmtree(old)
            shutil.copytree(start, old)
            files = FaultyFiles(str(old), Fault(at, effect, for_good=True))
            answered = False
            try:
                upgrade_store(old, files)
                answered = True
            except CasstoreError:
                pass
            for loss in Loss:
                restore(files.picture(loss), str(left))
                if answered:
                    Store.open(left).close()
                upgrade_store(left, Files())
                with Store.open(left) as store:
                    assert store.fsck().ok, (name, effect, loss)
                states += 1
    assert states > 50
