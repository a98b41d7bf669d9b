"""The judge of the ledger: whatever is changed in it, by a disk or by hand, is named."""

from __future__ import annotations

import random

import pytest

from casstore.engine.nodes import encode_index
from casstore.engine.pointers import Expect
from casstore.storage.roles import Table
from tests.support.ledgerworld import API, OPEN, LedgerWorld

LOGGED = [
    Table.ENTRIES,
    Table.NODES,
    Table.STATE,
    Table.POINTERS,
    Table.HISTORY,
    Table.MARKS,
    Table.SNAPSHOTS,
    Table.SNAPSHOT_ORDER,
    Table.POLICIES,
]


def lived_in() -> LedgerWorld:
    """A log in which every act has happened."""
    world = LedgerWorld()
    one, two, three = (world.publish(name) for name in ("one", "two", "three"))
    flip = world.flip(API, one, None)
    flip = world.flip(API, two, flip)
    world.rollback(API)
    world.mark(API, one, "good")
    world.release(API)
    first = world.one(world.ask_open(three, Expect(None), key="k"))
    world.hold(OPEN)
    world.flip(OPEN, one, first.entry, clear=(False, True))
    return world


@pytest.fixture(scope="module")
def whole() -> LedgerWorld:
    return lived_in()


@pytest.fixture
def world(whole: LedgerWorld) -> LedgerWorld:
    """The same log, to be damaged: a transaction on it replaces tables and leaves those of ``whole`` alone."""
    copy = object.__new__(LedgerWorld)
    copy.__dict__.update(whole.__dict__)
    copy.ledger = type(whole.ledger)()
    copy.ledger._tables = dict(whole.ledger._tables)
    return copy


def rows_of(world: LedgerWorld, table: Table) -> list[tuple[bytes, bytes]]:
    with world.ledger.read() as view:
        return view.scan(table, limit=10_000)


def put(world: LedgerWorld, table: Table, key: bytes, value: bytes | None) -> None:
    with world.ledger.write() as tx:
        if value is None:
            tx.delete(table, key)
        else:
            tx.put(table, key, value)


def test_honest_log_is_clean(whole: LedgerWorld) -> None:
    report = whole.fsck()
    assert report.ok, report.findings
    assert report.findings == []
    assert report.checked["entries"] == whole.log.size
    assert report.checked["heads"] == len(whole.heads.heads)


@pytest.mark.parametrize("table", [*LOGGED, Table.INTENTS], ids=lambda table: table.value)
def test_every_changed_row_is_found(whole: LedgerWorld, world: LedgerWorld, table: Table) -> None:
    """One bit in any row of the log, or of what follows from it."""
    rows = rows_of(whole, table)
    assert rows, "the log has to hold such rows"
    chance = random.Random(table.value)
    for key, value in rows:
        place = chance.randrange(len(value))
        changed = bytearray(value)
        changed[place] ^= 1 << chance.randrange(8)
        if table is Table.INTENTS and len(key) == 33:
            continue  # not logged: only its reference is checked
        put(world, table, key, bytes(changed))
        report = world.fsck()
        assert not report.ok, (table, key, place)
        if table is Table.ENTRIES:
            index = int.from_bytes(key, "big")
            assert f"log entry {index}" in {finding.object for finding in report.findings}
        put(world, table, key, value)
    assert world.fsck().ok


@pytest.mark.parametrize("table", [*LOGGED, Table.INTENTS], ids=lambda table: table.value)
def test_every_missing_or_extra_row_is_found(whole: LedgerWorld, world: LedgerWorld, table: Table) -> None:
    rows = rows_of(whole, table)
    for key, value in rows:
        if table is Table.INTENTS and len(key) == 33:
            continue
        if table is Table.ENTRIES and key == rows[-1][0]:
            continue  # a log that ends earlier: the signed heads tell, below
        put(world, table, key, None)
        assert not world.fsck().ok, (table, key)
        put(world, table, key, value)
    extra = rows[-1][0][:-1] + bytes([rows[-1][0][-1] ^ 0x80])
    put(world, table, extra, rows[-1][1])
    assert not world.fsck().ok


def test_cut_log_contradicts_its_signed_heads(world: LedgerWorld) -> None:
    put(world, Table.ENTRIES, encode_index(world.log.size - 1), None)
    report = world.fsck()
    assert "wrong-head" in {finding.code for finding in report.findings}


def test_entry_and_its_node_changed_together_is_found(world: LedgerWorld) -> None:
    """Someone with access to the disk rewrites an entry and repairs the hashes above it: signature and heads tell."""
    from casstore.engine.nodes import encode_node
    from casstore.merkle import Frontier, leaf_hash

    entries = [value for _, value in rows_of(world, Table.ENTRIES)]
    index = 4
    entries[index] = entries[index].replace(b'"ts":17858', b'"ts":17857')
    frontier = Frontier()
    for number, entry in enumerate(entries):
        put(world, Table.ENTRIES, encode_index(number), entry)
        for node, value in frontier.append(leaf_hash(entry)):
            put(world, Table.NODES, encode_node(*node), value)
    report = world.fsck()
    findings = {(finding.code, finding.object) for finding in report.findings}
    assert ("wrong-entry", f"log entry {index}") in findings
    assert any(code == "wrong-head" for code, _ in findings)


def test_idempotency_key_that_leads_nowhere_is_found(whole: LedgerWorld, world: LedgerWorld) -> None:
    (key, value), *_ = [row for row in rows_of(whole, Table.INTENTS) if len(row[0]) == 33]
    signed = rows_of(whole, Table.HISTORY)
    assert signed
    for changed in (b"{}", value.replace(b'"entry":', b'"entry":9'), b'{"entry":0,"request":""}'):
        put(world, Table.INTENTS, key, changed)
        assert not world.fsck().ok
