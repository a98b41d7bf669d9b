"""Collection beside those who mean harm, and beside what happens once in years: nothing that is needed goes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from casstore.engine.gc.reached import Reached
from casstore.engine.pushes import Proof
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.storage.local.index import LocalChunkIndex
from casstore.store import Hands
from tests.support.gcworld import DAY_MS, HOUR_MS, GcWorld
from tests.support.treebuild import new_push
from tests.unit.test_gc import NOTHING_BY_AGE
from tests.unit.test_gc_packs import make_sparse

T = TypeVar("T")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GcWorld]:
    with GcWorld(tmp_path / "store") as opened:
        yield opened


def test_ids_that_were_made_to_agree_are_told_apart() -> None:
    """Two digests that share 64 bits cost four billion hashes: the second one's chunks must be walked all the same."""
    reached = Reached(100, hashlib.sha256(b"nobody knows").digest())
    ids = [front * 8 + back * 24 for front in (b"\x17", b"\xe8") for back in (b"\x01", b"\x02")]
    ids += [bytes(8) + b"\x01" + bytes(23), bytes(8) + b"\x02" + bytes(23)]
    for first, second in zip(ids[::2], ids[1::2], strict=True):
        for kind in (ObjectKind.LAYOUT, ObjectKind.ROOT, ObjectKind.DOCUMENT):
            reached.walk(kind, first)
            assert reached.is_walked(kind, first)
            assert not reached.is_walked(kind, second)
            assert not reached.has(kind, second)


def test_what_is_revived_while_packs_are_counted_keeps_its_pack(
    world: GcWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push commits between the count of what is live and the count of what is condemned: its pack is not empty."""
    tree = world.push("sleeper")
    world.age()
    world.collect(NOTHING_BY_AGE)
    index = world.store.packs.index
    assert isinstance(index, LocalChunkIndex)
    assert index.condemned(limit=1)
    scan = index._scan

    def scan_and_push(database: object, after: bytes) -> list[tuple[bytes, bytes]]:
        if database is index._condemned and index.condemned(limit=1):
            push = new_push()
            world.store.pushes.missing(push, ObjectKind.CHUNK, b"")
            world.store.pushes.commit(push, tree.request("again"), by="builder")
        return scan(database, after)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "_scan", scan_and_push)
    report = world.collect(NOTHING_BY_AGE._replace(artifact_days=90))
    monkeypatch.undo()
    assert not index.condemned(limit=1)
    assert report.packs_retired == 0
    world.clock.advance(2 * HOUR_MS)
    world.collect(NOTHING_BY_AGE._replace(artifact_days=90))
    assert world.is_whole(tree)
    world.check()


def test_packs_of_layouts_stay_while_chunks_are_missing(world: GcWorld) -> None:
    """A disk with some packs was not mounted when the index was built anew: what could not be proven is not thrown away."""
    tree = world.push("kept")
    world.flip("prod/a", world.snapshot(tree))
    page = tree.pages[0].ref.digest
    index = world.store.packs.index
    [layout] = index.locate(ObjectKind.LAYOUT, [page])
    assert layout is not None
    # As after a rebuild that found a chunk missing: the layout has no row.
    assert index.condemn(ObjectKind.LAYOUT, [page], at_ms=0, mark=0) == 1
    assert index.drop(index.condemned(limit=10)) == 1
    world.store.presence.forget()
    for _ in range(4):
        report = world.collect(NOTHING_BY_AGE)
        assert report.gaps
        world.clock.advance(25 * HOUR_MS)
    assert layout.pack in world.files()
    assert world.store.packs.store.read(layout.pack, layout.offset, layout.stored_length)


def test_a_read_that_was_wrong_once_takes_nothing_out_of_use(world: GcWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller hesitated while a pack was rewritten: what lies in it is sound, and pushes rely on it."""
    _, pack = make_sparse(world)
    read = world.store.packs.store.read
    wrong: list[PackId] = []

    def read_wrong_once(of: PackId, offset: int, length: int) -> bytes:
        data = read(of, offset, length)
        if of == pack and offset + length < 900_000 and length > 1000 and not wrong:
            wrong.append(of)
            return bytes(length)
        return data

    monkeypatch.setattr(world.store.packs.store, "read", read_wrong_once)
    report = world.collect(NOTHING_BY_AGE)
    assert wrong
    assert report.damaged == []
    assert not world.store.packs.index.quarantined(limit=1)
    assert report.packs_rewritten == 1
    world.check()


def test_a_clock_that_is_set_while_a_run_begins_makes_nothing_due(world: GcWorld) -> None:
    """It was looked at a moment ago, and was right then."""
    world.push("old")
    world.age()
    world.collect(NOTHING_BY_AGE)

    def write_and_jump(call: Callable[..., T], /, *args: object, **kwargs: object) -> T:
        answer = call(*args, **kwargs)
        world.clock.jump(2 * DAY_MS)
        return answer

    report = world.store.collect(NOTHING_BY_AGE, dry_run=False, hands=Hands(write_ledger=write_and_jump))
    assert not report.dropped
    assert world.store.packs.index.condemned(limit=1)


def test_condemning_makes_no_flip_look_everything_up_again(world: GcWorld) -> None:
    """The next flip would do so in its write, and every other flip would wait for it; a push must, for what it is told is a promise."""
    tree = world.push("kept")
    snapshot = world.snapshot(tree)
    world.flip("prod/a", snapshot)
    old = world.push("old")
    world.age()
    assert world.store.snapshots.completeness(snapshot).complete
    pages = [page.ref.digest for page in old.pages]
    assert world.store.presence.pages(pages) == [True]
    report = world.collect(NOTHING_BY_AGE)
    assert report.condemned
    assert not report.dropped
    assert world.store.snapshots.is_known_complete(snapshot)
    assert world.store.presence.pages(pages) == [False]
    world.clock.advance(25 * HOUR_MS)
    assert world.collect(NOTHING_BY_AGE).dropped
    assert not world.store.snapshots.is_known_complete(snapshot)


def test_what_was_collected_is_not_wanted_back(world: GcWorld) -> None:
    """A repair asks for what was lost; what nothing needed any more was not lost, and would else come back from every backup."""
    world.flip("prod/a", world.snapshot(world.push("kept")))
    world.snapshot(world.push("old"))
    world.age()
    world.collect_all(NOTHING_BY_AGE)
    assert world.store.repairs.plan().wanted == []


def test_a_clock_that_is_set_gives_orphans_their_grace_again(world: GcWorld) -> None:
    """A commit has written its layouts and waits for its turn: taken in now, their pack would be known without them."""
    tree = world.tree("slow")
    push = new_push()
    world.send_missing(push, tree)
    proof = world.store.pushes.prove(push, tree.request("slow"))
    assert isinstance(proof, Proof)
    world.collect(NOTHING_BY_AGE)
    world.clock.jump(2 * DAY_MS)
    world.store.confirm_clock()
    world.collect(NOTHING_BY_AGE)
    world.store.pushes.record(world.store.pushes.remember(proof), by="builder")
    assert world.is_whole(tree)
    world.check()
