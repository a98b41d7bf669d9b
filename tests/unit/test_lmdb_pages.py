"""The pages of an LMDB file: sound ones are accepted whatever has happened to them, damaged ones are named."""

from __future__ import annotations

import random
import struct
import threading
from contextlib import closing
from pathlib import Path

import lmdb
import pytest

from casstore.admin import create_store, fsck_directory
from casstore.errors import DamagedObject
from casstore.storage.local.files import Files
from casstore.storage.local.ledger import LocalLedger
from casstore.storage.local.lmdb_pages import PAGE_HEADER, check_pages
from casstore.storage.roles import Table
from casstore.store import Store

PAGE = 4096


def check(data: bytes, transaction: int | None = None) -> bool:
    return check_pages(lambda at, n: data[at : at + n], len(data), "there", "index", transaction=transaction)


def churn(environment: lmdb.Environment, chance: random.Random, tables: list[object]) -> None:
    """One transaction of puts, deletes, large values, emptied tables; sometimes taken back."""
    with environment.begin(write=True) as transaction:
        for _ in range(chance.randrange(1, 300)):
            table = chance.choice(tables)
            key = (
                chance.randbytes(chance.choice([4, 8, 32, 60]))
                if chance.random() < 0.7
                else b"%d" % chance.randrange(2000)
            )
            what = chance.random()
            if what < 0.3:
                with transaction.cursor(table) as cursor:  # type: ignore[arg-type]
                    if cursor.set_range(key):
                        cursor.delete()
            else:
                size = chance.choice([2100, 5000, 20_000]) if what < 0.33 else chance.choice([0, 1, 8, 33, 200, 900])
                transaction.put(key, chance.randbytes(size), db=table)  # type: ignore[arg-type]
        if chance.random() < 0.05:
            transaction.drop(chance.choice(tables), delete=False)  # type: ignore[arg-type]
        if chance.random() < 0.1:
            transaction.abort()


@pytest.mark.parametrize(
    "seed", [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_sound_file_is_accepted(tmp_path: Path, seed: int) -> None:
    """A check that cries wolf would send an operator to the backup for nothing."""
    chance = random.Random(seed)
    with lmdb.open(str(tmp_path), map_size=1 << 30, max_dbs=8, lib_version=0, sync=False) as environment:
        data = tmp_path / "data.mdb"
        assert check(data.read_bytes())
        tables: list[object] = [environment.open_db(b"t%d" % number) for number in range(4)]
        for _ in range(30):
            for _ in range(5):
                churn(environment, chance, tables)
            with environment.begin() as reader:
                assert check(data.read_bytes())
                churn(environment, chance, tables)
                assert check(data.read_bytes(), reader.id()), "what a reader holds is not used again"


def test_a_reader_that_comes_too_late_is_told(tmp_path: Path) -> None:
    """The meta pages know the last two transactions only."""
    with lmdb.open(str(tmp_path), max_dbs=2, lib_version=0, sync=False) as environment:
        with environment.begin() as reader:
            old = reader.id()
        for number in range(3):
            with environment.begin(write=True) as transaction:
                transaction.put(b"k", b"%d" % number)
        assert not check((tmp_path / "data.mdb").read_bytes(), old)


def test_a_ledger_is_verified_while_it_is_written(tmp_path: Path) -> None:
    """A server checks itself without standing still."""
    LocalLedger.lay_out(str(tmp_path), Files())
    with closing(LocalLedger(str(tmp_path), Files())) as ledger:
        ended = threading.Event()

        def write() -> None:
            chance = random.Random(5)
            while not ended.is_set():
                with ledger.write() as transaction:
                    for _ in range(20):
                        key = b"%d" % chance.randrange(500)
                        transaction.put(Table.STATE, key, chance.randbytes(chance.randrange(1000)))
                        transaction.delete(Table.STATE, b"%d" % chance.randrange(500))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(20):
                ledger.verify_storage()
        finally:
            ended.set()
            writer.join()


def test_damage_that_would_end_the_process_is_a_finding(tmp_path: Path) -> None:
    """An operator whose server dies at once is told which part it is, by a program that does not die of it."""
    create_store(tmp_path / "store")
    path = tmp_path / "store" / "ledger" / "data.mdb"
    good = path.read_bytes()
    leaves = [at for at in range(2 * PAGE, len(good), PAGE) if PAGE_HEADER.unpack_from(good, at)[2] == 2]
    found = 0
    for at in leaves:
        data = bytearray(good)
        _, _, _, lower, _ = PAGE_HEADER.unpack_from(data, at)
        if lower == PAGE_HEADER.size:
            continue
        # The first node lies behind the end of the page.
        struct.pack_into("<H", data, at + PAGE_HEADER.size, 0xFFF0)
        path.write_bytes(data)
        report = fsck_directory(tmp_path / "store")
        if not report.ok:
            [finding] = report.findings
            assert (finding.code, finding.object) == ("damaged-object", "ledger")
            assert f"page {at // PAGE} " in finding.found
            assert "restore ledger/ from a backup" in finding.hint
            found += 1
    assert found >= 5, "the others are pages that nothing leads to any more"
    path.write_bytes(good)
    with Store.open(tmp_path / "store") as store:
        assert store.fsck().ok
        assert store.fsck().checked["environments"] == 2


def test_a_page_that_is_free_and_in_use_is_found(tmp_path: Path) -> None:
    """The next commit would write over it, and nothing would have been wrong until then."""
    with lmdb.open(str(tmp_path), max_dbs=2, lib_version=0, sync=False) as environment:
        table = environment.open_db(b"t")
        for number in range(6):
            with environment.begin(write=True) as transaction:
                transaction.put(b"k", b"%d" % number, db=table)
    data = bytearray((tmp_path / "data.mdb").read_bytes())
    assert check(bytes(data))
    newest = max((0, PAGE), key=lambda at: struct.unpack_from("<Q", data, at + 144)[0])
    (root,) = struct.unpack_from("<Q", data, newest + 16 + 24 + 48 + 40)
    (free,) = struct.unpack_from("<Q", data, newest + 16 + 24 + 40)
    lower = PAGE_HEADER.unpack_from(data, free * PAGE)[3]
    [first, *_] = struct.unpack_from(f"<{(lower - 16) // 2}H", data, free * PAGE + 16)
    value = free * PAGE + first + 8 + 8  # behind the node's header and the number of the transaction
    (count,) = struct.unpack_from("<Q", data, value)
    struct.pack_into("<Q", data, value + 8 * count, root)
    with pytest.raises(DamagedObject, match="free list"):
        check(bytes(data))


@pytest.mark.parametrize("length", [0, 100, PAGE, PAGE + 100, 2 * PAGE, -100])
def test_a_file_that_was_cut_is_damage(tmp_path: Path, length: int) -> None:
    create_store(tmp_path / "store")
    whole = (tmp_path / "store" / "index" / "data.mdb").read_bytes()
    with pytest.raises(DamagedObject):
        check(whole[:length])
