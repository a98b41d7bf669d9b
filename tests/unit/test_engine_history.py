"""The past of a pointer: what was live when, provably; which flips there were; what it may go back to."""

from __future__ import annotations

import pytest

from casstore.engine.history import HistoryFilter, parse_flip
from casstore.errors import EntryNotFound, InvalidInput, PointerNotFound
from casstore.formats.acts import FlipArgs
from casstore.formats.canonical import decode_b64
from casstore.formats.entry import decode_entry
from casstore.formats.snapshot import Component, Snapshot, encode_snapshot, snapshot_digest
from casstore.ids import BlobDigest, ComponentName, PointerName, SnapshotDigest
from casstore.storage.roles import Table
from casstore.wire import format_time
from tests.support.ledgerworld import API, WEB, LedgerWorld


@pytest.fixture
def world() -> LedgerWorld:
    return LedgerWorld()


def walk(world: LedgerWorld, count: int) -> list[tuple[int, int, SnapshotDigest]]:
    """``count`` flips a minute apart; flip, time in ms, snapshot of each."""
    names = [world.publish(name) for name in ("one", "two", "three")]
    flips: list[tuple[int, int, SnapshotDigest]] = []
    for number in range(count):
        world.clock.advance(60_000)
        to = names[number % 3]
        flip = world.flip(API, to, flips[-1][0] if flips else None, by="alice" if number % 2 else "bob")
        flips.append((flip, world.clock.now_ms(), to))
    return flips


def test_at_names_what_was_live_at_every_moment(world: LedgerWorld) -> None:
    """An auditor asks for any millisecond, and gets the flip, the flip that ended it, and the interval between."""
    flips = walk(world, 9)
    for number, (flip, time, to) in enumerate(flips):
        last = number == len(flips) - 1
        for asked in (format_time(time), f"f{flip}", *(() if last else (format_time(time + 59_999), f"f{flip}"))):
            was = world.pointers.read.at(API, asked)
            assert was.snapshot == str(to)
            assert was.flip is not None
            assert (was.flip.flip, was.flip.seq) == (flip, number + 1)
            assert was.valid_from == format_time(time)
            assert was.valid_until == (None if last else format_time(flips[number + 1][1]))


def test_at_before_the_first_flip_and_in_the_future(world: LedgerWorld) -> None:
    flips = walk(world, 2)
    was = world.pointers.read.at(API, format_time(flips[0][1] - 1), proof=True)
    assert (was.snapshot, was.flip, was.valid_from, was.valid_until) == (None, None, None, format_time(flips[0][1]))
    world.verify(was.proof)
    with pytest.raises(InvalidInput):
        world.pointers.read.at(API, format_time(world.clock.now_ms() + 1))
    with pytest.raises(EntryNotFound):
        world.pointers.read.at(API, f"f{world.log.size}")
    with pytest.raises(PointerNotFound):
        world.pointers.read.at(WEB, "f1")
    for spelling in ("f", "f01", "f-1", "f1.e2", "f٣", "yesterday"):
        with pytest.raises(InvalidInput):
            world.pointers.read.at(API, spelling)


def test_at_comes_with_a_proof(world: LedgerWorld) -> None:
    """The next flip's `expect` names the flip in question, so nothing can have been in between; or the state says so."""
    flips = walk(world, 4)
    was = world.pointers.read.at(API, f"f{flips[1][0]}", proof=True)
    assert was.proof is not None
    world.verify(was.proof)
    assert [proof.index for proof in was.proof.entries] == [flips[1][0], flips[2][0]]
    args = decode_entry(decode_b64(was.proof.entries[1].entry)).intent()[1]
    assert isinstance(args, FlipArgs)
    assert args.members[0].expect == flips[1][0]
    now = world.pointers.read.at(API, f"f{flips[3][0]}", proof=True)
    assert now.proof is not None
    (leaf,) = world.verify(now.proof)
    assert leaf == world.pointers._view.leaf(API)[1]


def test_history_is_newest_first_and_pages(world: LedgerWorld) -> None:
    flips = walk(world, 70)
    whole = world.pointers.read.history(API, limit=1000)
    assert [item.flip for item in whole.items] == [flip for flip, _, _ in reversed(flips)]
    assert whole.next is None
    paged: list[int] = []
    before: int | None = None
    while True:
        page = world.pointers.read.history(API, HistoryFilter(before=before), limit=32)
        paged += [item.flip for item in page.items]
        if page.next is None:
            break
        before = parse_flip(page.next)
    assert paged == [item.flip for item in whole.items]


def test_history_filters(world: LedgerWorld) -> None:
    flips = walk(world, 10)
    read = world.pointers.read.history
    assert len(read(API, HistoryFilter(by="alice")).items) == 5
    assert [item.kind for item in read(API, HistoryFilter(kind="init")).items] == ["init"]
    span = HistoryFilter(since=flips[3][1], until=flips[6][1])
    assert [item.flip for item in read(API, span).items] == [flips[5][0], flips[4][0], flips[3][0]]
    assert read(API, HistoryFilter(until=flips[0][1])).items == []
    assert read(API, HistoryFilter(since=flips[9][1] + 1)).items == []
    for limit in (0, 1001):
        with pytest.raises(InvalidInput):
            read(API, limit=limit)


def test_retired_pointer_keeps_its_past(world: LedgerWorld) -> None:
    flips = walk(world, 2)
    world.clock.advance(60_000)
    gone = world.flip(API, None, flips[1][0], kind="retire")
    pointer = world.pointers.read.pointer(API)
    assert (pointer.snapshot, pointer.kind, pointer.flip) == (None, "retire", gone)
    assert pointer.previous is not None
    assert pointer.previous.flip == flips[1][0]
    assert world.pointers.read.at(API, f"f{flips[1][0]}").snapshot == str(flips[1][2])
    assert world.pointers.read.at(API, f"f{gone}").snapshot is None
    assert world.flip(API, flips[0][2], gone) > gone
    assert world.fsck().ok


def test_candidates_say_which_are_whole(world: LedgerWorld) -> None:
    """Someone who must roll back sees at once what is bad and what is not all there."""
    flips = walk(world, 4)
    world.mark(API, flips[1][2], "bad")
    found = world.pointers.read.candidates(API).candidates
    assert [(item.snapshot, item.flip, item.status) for item in found] == [
        (str(flips[2][2]), flips[2][0], "unmarked"),
        (str(flips[1][2]), flips[1][0], "bad"),
    ]
    assert all(item.complete for item in found)


def test_pointers_are_listed_by_prefix_in_pages(world: LedgerWorld) -> None:
    one = world.publish("one")
    names = [PointerName(name) for name in ("a", "prod/a", "prod/b", "prod/c", "prod.x", "z/prod")]
    world.submit(*(world.ask_flip(name, one, None) for name in names))
    read = world.pointers.read.list
    assert [pointer.pointer for pointer in read().pointers] == sorted(names)
    assert [pointer.pointer for pointer in read("prod/").pointers] == ["prod/a", "prod/b", "prod/c"]
    page = read("prod/", limit=2)
    assert page.next == "prod/b"
    rest = read("prod/", after=page.next)
    assert ([pointer.pointer for pointer in rest.pointers], rest.next) == (["prod/c"], None)


def test_snapshots_are_listed_newest_first_and_found_by_their_beginning(world: LedgerWorld) -> None:
    digests = [world.publish(f"snapshot {number}") for number in range(5)]
    first = world.pointers.read.snapshots(limit=2)
    assert [info.digest for info in first.snapshots] == [str(digest) for digest in digests[:2:-1]]
    assert first.next is not None
    rest = world.pointers.read.snapshots(after=first.next)
    assert [info.digest for info in rest.snapshots] == [str(digest) for digest in digests[2::-1]]
    assert rest.next is None
    for digest in digests:
        assert digest in world.pointers.read.resolve(digest.hex()[:5])
        assert list(world.pointers.read.resolve(digest.hex())) == [digest]
    for digits in ("abc", "ABCD", "blake3:", "0" * 65):
        with pytest.raises(InvalidInput):
            world.pointers.read.resolve(digits)


def test_flip_can_be_asked_for_by_its_number(world: LedgerWorld) -> None:
    flips = walk(world, 3)
    answer = world.pointers.read.flip(flips[0][0])
    assert [pointer.flip for pointer in answer.pointers] == [flips[2][0]]
    world.verify(answer.proof)
    for index in (0, 1, -1, 10_000):
        with pytest.raises(EntryNotFound):
            world.pointers.read.flip(index)


def test_snapshot_whose_document_is_gone_is_still_listed(world: LedgerWorld) -> None:
    """The log says that it was published; a list that fails because one document is lost would hide all others."""
    component = Component(ComponentName("app"), "blob", BlobDigest(bytes(32)))
    document = encode_snapshot(Snapshot(components=(component,)))
    lost = snapshot_digest(document)
    one = world.publish("one")
    with world.ledger.write() as tx:
        row = tx.get(Table.SNAPSHOTS, one)
        order = tx.scan(Table.SNAPSHOT_ORDER, limit=1)[0][0]
        assert row is not None
        tx.put(Table.SNAPSHOTS, lost, row)
        tx.put(Table.SNAPSHOT_ORDER, order, lost)
    assert [info.digest for info in world.pointers.read.snapshots().snapshots] == [str(lost)]
    codes = {finding.code for finding in world.fsck().findings}
    assert {"wrong-row", "wrong-count"} <= codes
