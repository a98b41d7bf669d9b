"""The ledger on disk: opening, what a real failed commit does, and agreement with the one in memory."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import closing
from pathlib import Path

import lmdb
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from casstore.errors import DamagedObject, DestinationExists, NotInitialised, OutcomeUnknown, StateError, StoreFull
from casstore.storage.local.files import Committable, Files
from casstore.storage.local.ledger import LocalLedger
from casstore.storage.memory import MemoryLedger
from casstore.storage.roles import Ledger, LedgerTransaction, Table
from tests.unit.test_local_files import file_size_limit


def make(directory: Path, files: Files | None = None) -> LocalLedger:
    LocalLedger.lay_out(str(directory), Files())
    return LocalLedger(str(directory), files or Files())


def put(ledger: Ledger, key: bytes, value: bytes = b"v") -> None:
    with ledger.write() as transaction:
        transaction.put(Table.ENTRIES, key, value)


def keys(ledger: Ledger) -> list[bytes]:
    with ledger.read() as view:
        return [key for key, _ in view.scan(Table.ENTRIES, limit=1000)]


def test_tables_have_their_names_on_disk(tmp_path: Path) -> None:
    """A renamed table is an empty one: the log would be gone."""
    ledger = make(tmp_path)
    put(ledger, b"k")
    ledger.close()
    with lmdb.open(str(tmp_path / "ledger"), max_dbs=32, create=False, lib_version=0) as environment:
        assert sorted(environment.dbs()) == sorted(table.value.encode() for table in Table)
        with environment.begin() as transaction:
            table = environment.open_db(b"entries", transaction, create=False)
            assert list(transaction.cursor(table)) == [(b"k", b"v")]


def test_opening_does_not_create(tmp_path: Path) -> None:
    """An empty ledger in place of a missing one would begin a second history under the same name."""
    with pytest.raises(NotInitialised):
        LocalLedger(str(tmp_path), Files())
    assert os.listdir(tmp_path) == []
    make(tmp_path).close()
    with pytest.raises(DestinationExists):
        LocalLedger.lay_out(str(tmp_path), Files())
    (tmp_path / "ledger" / "data.mdb").write_bytes(b"x" * 8192)
    with pytest.raises(DamagedObject) as caught:
        LocalLedger(str(tmp_path), Files())
    assert "backup" in str(caught.value.hint)


def test_a_commit_that_the_system_cuts_short_seals(tmp_path: Path) -> None:
    """The disk took a part of the pages: only reopening tells what is there, and what was there before still is."""
    ledger = make(tmp_path)
    put(ledger, b"before")
    size = os.path.getsize(tmp_path / "ledger" / "data.mdb")
    with file_size_limit(size + 6000), pytest.raises(OutcomeUnknown, match="sealed"):
        put(ledger, b"cut", b"x" * 60_000)
    with pytest.raises(OutcomeUnknown), ledger.read():
        pass
    with pytest.raises(OutcomeUnknown), ledger.write():
        pass
    ledger.close()
    ledger = LocalLedger(str(tmp_path), Files())
    assert keys(ledger) == [b"before"]
    put(ledger, b"after", b"x" * 60_000)
    assert keys(ledger) == [b"after", b"before"]
    ledger.close()


class FullOnce(Files):
    """A disk on which the first commit finds no room, reported as LMDB reports it."""

    def __init__(self, code: int, free_bytes: int) -> None:
        self.error: lmdb.Error | None = lmdb.Error("mdb_txn_commit")
        vars(self.error)["code"] = code
        self.free = free_bytes

    def commit(self, transaction: Committable) -> None:
        error, self.error = self.error, None
        if error is not None:
            transaction.abort()
            raise error
        super().commit(transaction)

    def free_bytes(self, path: str) -> int:
        return self.free


@pytest.mark.parametrize(("code", "free_bytes"), [(errno.ENOSPC, 1 << 30), (errno.EDQUOT, 1 << 30), (errno.EIO, 4096)])
def test_a_full_disk_refuses_the_commit_and_no_more(tmp_path: Path, code: int, free_bytes: int) -> None:
    """LMDB calls a write that a full disk cut short an I/O error; sealing for it would cost a restart for nothing."""
    ledger = make(tmp_path, FullOnce(code, free_bytes))
    with pytest.raises(StoreFull):
        put(ledger, b"refused")
    put(ledger, b"taken")
    assert keys(ledger) == [b"taken"]
    ledger.close()


def test_an_io_error_with_room_left_seals(tmp_path: Path) -> None:
    """A dying disk must not pass for a full one."""
    ledger = make(tmp_path, FullOnce(errno.EIO, 1 << 30))
    with pytest.raises(OutcomeUnknown):
        put(ledger, b"refused")
    with pytest.raises(OutcomeUnknown):
        put(ledger, b"refused too")
    ledger.close()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    """Waiting for oneself is a server that hangs; waiting for another thread hides that there are two writers."""
    ledger = make(tmp_path)
    refused: list[StateError] = []

    def other() -> None:
        try:
            put(ledger, b"other")
        except StateError as error:
            refused.append(error)

    with ledger.write() as transaction:
        transaction.put(Table.ENTRIES, b"k", b"v")
        with pytest.raises(StateError):
            put(ledger, b"nested")
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert keys(ledger) == [b"k"]
    ledger.close()


byte_strings = st.binary(min_size=1, max_size=3) | st.sampled_from([b"a", b"a\x00", b"a\xff", b"\xff", b"a" * 511])
bounds = st.none() | st.binary(max_size=3) | st.sampled_from([b"a" * 600, b"\xff" * 600])


class TwoLedgers(RuleBasedStateMachine):
    """The ledger on disk and the one in memory, given the same commands."""

    directory: Path

    @initialize()
    def start(self) -> None:
        path = TwoLedgers.directory / os.urandom(8).hex()
        path.mkdir()
        self.path = path
        self.local = make(path)
        self.memory = MemoryLedger()

    @rule(
        changes=st.lists(
            st.tuples(st.sampled_from([Table.STATE, Table.NODES]), byte_strings, st.none() | st.binary(max_size=5)),
            max_size=5,
        ),
        gives_up=st.booleans(),
    )
    def write(self, changes: list[tuple[Table, bytes, bytes | None]], gives_up: bool) -> None:
        for ledger in (self.local, self.memory):
            try:
                with ledger.write() as transaction:
                    self._apply(transaction, changes)
                    if gives_up:
                        raise KeyError
            except KeyError:
                assert gives_up

    @staticmethod
    def _apply(transaction: LedgerTransaction, changes: list[tuple[Table, bytes, bytes | None]]) -> None:
        for table, key, value in changes:
            if value is None:
                transaction.delete(table, key)
            else:
                transaction.put(table, key, value)

    @rule(
        prefix=st.binary(max_size=2) | st.sampled_from([b"a\xff", b"\xff\xff", b"a" * 512]),
        after=bounds,
        before=bounds,
        reverse=st.booleans(),
        limit=st.integers(0, 4),
    )
    def scan(self, prefix: bytes, after: bytes | None, before: bytes | None, reverse: bool, limit: int) -> None:
        with self.local.read() as local, self.memory.read() as memory:
            found, wanted = (
                view.scan(Table.STATE, prefix=prefix, after=after, before=before, reverse=reverse, limit=limit)
                for view in (local, memory)
            )
        assert found == wanted

    @rule()
    def reopen(self) -> None:
        self.local.close()
        self.local = LocalLedger(str(self.path), Files())

    @invariant()
    def hold_the_same(self) -> None:
        with self.local.read() as local, self.memory.read() as memory:
            for table in (Table.STATE, Table.NODES):
                assert local.scan(table, limit=100) == memory.scan(table, limit=100)
                assert local.count(table) == memory.count(table)

    def teardown(self) -> None:
        if hasattr(self, "local"):
            self.local.close()


def test_disk_and_memory_agree(tmp_path: Path) -> None:
    """Engine tests run on the ledger in memory; what they prove must hold for the one on disk."""
    TwoLedgers.directory = tmp_path
    machine = TwoLedgers.TestCase
    machine.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)
    machine("runTest").runTest()


@pytest.mark.parametrize("table", [Table.ARTIFACTS, Table.ARTIFACT_NAMES, Table.TOKENS, Table.PINS])
def test_a_flipped_bit_in_a_row_beside_the_log_is_found(tmp_path: Path, table: Table) -> None:
    """Nothing else says what stands there: a token that may push could become one that may flip."""
    LocalLedger.lay_out(str(tmp_path), Files())
    value = b"" if table is Table.ARTIFACT_NAMES else b'{"permissions":["push"]}'
    with closing(LocalLedger(str(tmp_path), Files())) as ledger:
        with ledger.write() as transaction:
            transaction.put(table, b"key", value)
        ledger.verify_storage()
        with ledger.read() as view:
            assert view.get(table, b"key") == value
            assert view.scan(table, limit=9) == [(b"key", value)]
    stored = _raw_row(tmp_path, table, None)
    assert len(stored) == len(value) + 5
    for bit in range(8 * len(stored)):
        flipped = bytearray(stored)
        flipped[bit // 8] ^= 1 << bit % 8
        _raw_row(tmp_path, table, bytes(flipped))
        with closing(LocalLedger(str(tmp_path), Files())) as ledger, ledger.read() as view:
            with pytest.raises(DamagedObject):
                view.get(table, b"key")
            with pytest.raises(DamagedObject):
                view.scan(table, limit=9)
            with pytest.raises(DamagedObject):
                ledger.verify_storage()


def test_a_row_from_before_checksums_is_read_as_it_is(tmp_path: Path) -> None:
    """A store that an earlier version has filled opens as it did."""
    LocalLedger.lay_out(str(tmp_path), Files())
    for table, value in ((Table.ARTIFACTS, b'{"name":"x"}'), (Table.ARTIFACT_NAMES, b"")):
        _raw_row(tmp_path, table, value)
        with closing(LocalLedger(str(tmp_path), Files())) as ledger, ledger.read() as view:
            assert view.get(table, b"key") == value
            ledger.verify_storage()


def _raw_row(directory: Path, table: Table, value: bytes | None) -> bytes:
    """Write the row of one key past the ledger, or read it."""
    path = str(directory / "ledger")
    with lmdb.open(path, max_dbs=32, create=False, lib_version=0) as environment:
        database = environment.open_db(table.value.encode(), create=False)
        with environment.begin(write=value is not None) as transaction:
            if value is not None:
                transaction.put(b"key", value, db=database)
            return bytes(transaction.get(b"key", b"", database))
