"""The log's writer and reader: nothing is signed that was not read back, nothing is shown that was not signed."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from casstore.engine.nodes import encode_index, encode_node
from casstore.errors import (
    ClockUntrusted,
    DamagedObject,
    EntryNotFound,
    InvalidInput,
    LogUnavailable,
    MalformedDocument,
    OutcomeUnknown,
    ReadOnly,
)
from casstore.formats.proof import open_proof
from casstore.merkle import leaf_hash, root_at, verify_consistency
from casstore.storage.memory.ledger import MemoryLedger, MemoryLedgerTransaction
from casstore.storage.roles import Table
from casstore.tiles import decode_entries_tile, decode_hash_tile, format_tile_path, tiles_for_size
from tests.support.ledgerworld import API, ORIGIN, LedgerWorld, key_of


@pytest.fixture
def world() -> LedgerWorld:
    return LedgerWorld()


# --- writing -----------------------------------------------------------------------------------------------------------


class LyingLedger(MemoryLedger):
    """A ledger whose disk returns another byte than was written, in one row of the next commit."""

    lie: tuple[Table, int] | None = None

    @contextmanager
    def write(self) -> Iterator[MemoryLedgerTransaction]:
        with super().write() as tx:
            yield tx
            if self.lie is not None:
                table, back = self.lie
                key, value = tx.scan(table, reverse=True, limit=back)[-1]
                tx.put(table, key, bytes([value[0] ^ 1]) + value[1:])


@pytest.mark.parametrize("table", [Table.ENTRIES, Table.NODES])
def test_what_reads_back_differently_is_never_signed(table: Table) -> None:
    """A disk that lies must not become a signature that everyone holds for ever."""
    ledger = LyingLedger()
    world = LedgerWorld(ledger)
    one = world.publish("one")
    before = world.log.published()
    ledger.lie = (table, 1)
    with pytest.raises(OutcomeUnknown, match="reads back differently"):
        world.flip(API, one, None)
    ledger.lie = None
    assert world.log.published() == before
    assert world.heads.heads[-1].size == before.size
    with pytest.raises(OutcomeUnknown):
        world.flip(API, one, None)
    assert world.pointers.read.list().pointers == []
    # What the disk made of it is found again at open: no signature comes of it then either.
    try:
        world.reopen()
    except DamagedObject:
        assert table is Table.ENTRIES
    else:
        assert "another history" in (world.log.read_only or "")


def test_crash_between_commit_and_signature_heals_at_open(world: LedgerWorld) -> None:
    """The entry is there, nobody was told: opening signs it, and the client that asks again learns that it won."""
    one = world.publish("one")
    ask = world.ask_flip(API, one, None)
    before = world.log.published()
    world.heads.failing = True
    with pytest.raises(OutcomeUnknown):
        world.submit(ask)
    assert world.log.published() == before
    with pytest.raises(OutcomeUnknown):
        world.submit(world.ask_flip(API, one, None))
    world.heads.failing = False
    world.reopen()
    assert world.log.size == before.size + 1
    answer = world.one(ask)
    assert (answer.replayed, answer.pointers[0].snapshot) == (True, str(one))
    world.verify(answer.proof)
    assert world.fsck().ok


def test_head_is_on_record_before_it_is_signed(world: LedgerWorld) -> None:
    world.publish("one")
    published = world.log.published()
    assert world.heads.heads[-1] == (published.size, published.root)
    assert world.open_checkpoint(published.note).checkpoint == (ORIGIN, published.size, published.root)


def test_heads_are_compacted_at_open(world: LedgerWorld) -> None:
    """The highest head implies all lower ones, so the file does not grow for ever."""
    for name in "abc":
        world.publish(name)
    assert len(world.heads.heads) == 4
    world.reopen()
    assert [size for size, _ in world.heads.heads] == [4]


# --- the restore fence ---------------------------------------------------------------------------------------------------


def test_older_copy_of_the_ledger_only_reads(world: LedgerWorld) -> None:
    """A restored backup that signed on would be a second history under the same key, and every host would alarm."""
    one, two = world.publish("one"), world.publish("two")
    flip = world.flip(API, one, None)
    backup = dict(world.ledger._tables)
    world.flip(API, two, flip)
    world.ledger._tables = backup
    world.reopen()
    assert "an older copy" in (world.log.read_only or "")
    with pytest.raises(ReadOnly, match="has 4 entries, but a checkpoint of 5 was signed"):
        world.submit()
    with pytest.raises(LogUnavailable):
        _ = world.log.checkpoint
    with pytest.raises(LogUnavailable):
        world.pointers.read.pointer(API, proof=True)
    assert world.pointers.read.pointer(API).snapshot == str(one)
    assert [finding.code for finding in world.fsck().findings] == ["wrong-head"]


def test_other_history_only_reads(world: LedgerWorld) -> None:
    world.publish("one")
    other = LedgerWorld()
    other.publish("two")
    world.ledger._tables = other.ledger._tables
    world.reopen()
    assert "another history" in (world.log.read_only or "")
    assert any(finding.code == "wrong-head" for finding in world.fsck().findings)


# --- time ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [61_000, -61_000, 73 * 365 * 86_400_000])
def test_clock_that_jumps_stops_writing(world: LedgerWorld, jump: int) -> None:
    """One entry of the year 2099 would expire every intent for ever."""
    one = world.publish("one")
    world.clock.advance(3_600_000)
    world.flip(API, one, None)
    world.clock.jump(jump)
    note = world.log.checkpoint
    with pytest.raises(ClockUntrusted):
        world.one(world.ask_flip(API, one, None))
    with pytest.raises(ClockUntrusted):
        world.log.refresh_clock()
    assert world.log.checkpoint == note


def test_operator_can_confirm_the_clock(world: LedgerWorld) -> None:
    one = world.publish("one")
    world.clock.jump(120_000)
    with pytest.raises(ClockUntrusted):
        world.flip(API, one, None)
    world.guard.confirm(world.pointers.last_ts)
    assert world.flip(API, one, None)


def test_small_steps_back_do_not_make_time_run_backwards(world: LedgerWorld) -> None:
    """NTP sets the clock back by seconds: entries keep their order in time."""
    one = world.publish("one")
    world.clock.jump(-30_000)
    flip = world.flip(API, one, None)
    times = [world.pointers.read.snapshots().snapshots[0].published_at, world.pointers.read.pointer(API).since]
    assert times == sorted(times)
    assert flip == 2


def test_clock_behind_the_log_at_open(world: LedgerWorld) -> None:
    """A machine that boots in 1970 serves what it has, without vouching for the time, and writes nothing."""
    one = world.publish("one")
    world.clock.jump(-86_400_000)
    world.reopen()
    assert world.open_checkpoint(world.log.checkpoint).cosignatures == []
    assert world.log.checkpoint_age_s(world.clock.now_ms()) == float("inf")
    with pytest.raises(ClockUntrusted, match="before the newest entry"):
        world.one(world.ask_flip(API, one, None))
    world.guard.confirm(world.pointers.last_ts)
    world.log.refresh_clock()
    assert len(world.open_checkpoint(world.log.checkpoint).cosignatures) == 1


def test_time_on_the_checkpoint_is_refreshed(world: LedgerWorld) -> None:
    """A log in which nothing happens is told from a log that someone keeps from us."""
    before = world.open_checkpoint(world.log.checkpoint)
    world.clock.advance(60_000)
    assert world.log.checkpoint_age_s(world.clock.now_ms()) == 60
    world.log.refresh_clock()
    after = world.open_checkpoint(world.log.checkpoint)
    assert after.checkpoint == before.checkpoint
    assert after.cosignatures[0].time_ms == before.cosignatures[0].time_ms + 60_000
    assert world.log.checkpoint_age_s(world.clock.now_ms()) == 0


# --- reading -------------------------------------------------------------------------------------------------------------


def grow(world: LedgerWorld, size: int) -> list[bytes]:
    """Let the log grow to ``size`` entries, in batches; returns all entries."""
    one, two = world.publish("one"), world.publish("two")
    flip = world.flip(API, one, None)
    while world.log.size < size:
        flip = world.flip(API, two if flip % 2 else one, flip)
    return [world.ledger._tables[Table.ENTRIES].values[encode_index(index)] for index in range(size)]


def test_inclusion_proofs_of_every_size_open(world: LedgerWorld) -> None:
    entries = grow(world, 21)
    log = key_of(ORIGIN).verifier
    for size in (None, 1, 2, 13, 20, 21):
        for index in range(21 if size is None else size):
            proof = world.reader.inclusion(index, size)
            opened = open_proof(proof, leaf_hash(entries[index]), log, ORIGIN, [world.clock_key.verifier])
            assert opened.checkpoint.size == (size or 21)
            assert bool(opened.cosignatures) == (size in (None, 21))
    for index, size in ((-1, None), (21, None), (5, 5)):
        with pytest.raises(EntryNotFound):
            world.reader.inclusion(index, size)
    for size in (0, -1, 22):
        with pytest.raises(InvalidInput):
            world.reader.inclusion(0, size)


def test_consistency_proofs_between_all_sizes(world: LedgerWorld) -> None:
    grow(world, 18)
    nodes = world.ledger._tables[Table.NODES].values
    roots = [root_at(size, lambda ids: [nodes[encode_node(*node)] for node in ids]) for size in range(19)]
    for to_size in range(19):
        for from_size in range(to_size + 1):
            answer = world.reader.consistency(from_size, to_size)
            proof = [base64.b64decode(value) for value in answer.proof]
            if from_size:
                verify_consistency(from_size, to_size, roots[from_size], roots[to_size], proof)
            else:
                assert proof == []
    for bad in ((-1, 3), (4, 3), (3, 19)):
        with pytest.raises(InvalidInput):
            world.reader.consistency(*bad)


def test_tiles_are_slices_of_the_published_log(world: LedgerWorld) -> None:
    """Any tiles client can mirror the log; what it is not meant to see yet is not there."""
    entries = grow(world, 261)
    for tile in tiles_for_size(261):
        served = world.reader.tile(format_tile_path(*tile))
        assert served.full == (tile.width == 256)
        first = tile.n * 256
        if tile.level == "entries":
            assert decode_entries_tile(served.data, tile.width) == entries[first : first + tile.width]
        elif tile.level == 0:
            expected = [leaf_hash(entry) for entry in entries[first : first + tile.width]]
            assert decode_hash_tile(served.data, tile.width) == expected
        else:
            nodes = world.ledger._tables[Table.NODES].values
            assert decode_hash_tile(served.data, tile.width) == [nodes[encode_node(8, first)]]
    assert world.reader.tile("tile/0/000.p/255").data == world.reader.tile("tile/0/000").data[: 255 * 32]
    for path in ("tile/0/001", "tile/0/001.p/6", "tile/1/000.p/2", "tile/2/000.p/1", "tile/entries/001", "tile/9/000"):
        with pytest.raises(EntryNotFound):
            world.reader.tile(path)
    with pytest.raises(MalformedDocument):
        world.reader.tile("tile/00/000")


def test_lists_of_entries_are_proven_and_bounded(world: LedgerWorld) -> None:
    entries = grow(world, 12)
    page = world.reader.entries(3, 4)
    assert [proof.index for proof in page.entries] == [3, 4, 5, 6]
    assert [base64.b64decode(proof.entry) for proof in page.entries] == entries[3:7]
    assert world.reader.raw_entries(3, 4) == entries[3:7]
    assert world.reader.entries(12, 5).entries == []
    assert [proof.index for proof in world.reader.policies().entries] == [0]
    assert world.reader.policies(after=0).entries == []
    assert world.reader.entry(11).entries[0].index == 11
    with pytest.raises(EntryNotFound):
        world.reader.entry(12)
    for first, limit in ((-1, 5), (0, 0), (0, 1001)):
        with pytest.raises(InvalidInput):
            world.reader.entries(first, limit)
