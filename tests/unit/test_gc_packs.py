"""Packs after a collection: rewritten, merged, retired, deleted; and what readers and writers of the old ones meet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.engine.gc.run import GcTimes
from casstore.errors import DamagedObject
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.storage.roles import Location
from tests.support.gcworld import HOUR_MS, GcWorld
from tests.support.treebuild import build_tree, encode_packs, flip_bit, new_push
from tests.unit.test_gc import NOTHING_BY_AGE


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GcWorld]:
    with GcWorld(tmp_path / "store") as opened:
        yield opened


def make_sparse(world: GcWorld) -> tuple[object, PackId]:
    """A pack that holds one tree that is needed and another, larger one, that is not."""
    kept = world.tree("kept", 80_000)
    loose = world.tree("loose", 900_000)
    push = new_push()
    world.store.pushes.missing(push, ObjectKind.CHUNK, b"")
    [pack] = world.send(push, [*kept.objects(), *loose.objects()])
    world.store.pushes.commit(push, kept.request("kept"), by="x")
    world.flip("prod/a", world.snapshot(kept))
    world.clock.advance(2 * HOUR_MS)
    world.collect(NOTHING_BY_AGE)
    world.clock.advance(25 * HOUR_MS)
    return kept, pack


def places(world: GcWorld, built) -> dict[tuple[ObjectKind, bytes], Location]:  # type: ignore[no-untyped-def]
    found = {}
    for kind, id, _ in built.objects():
        [at] = world.store.packs.index.locate(kind, [id])
        assert at is not None
        found[kind, id] = at
    return found


def test_a_sparse_pack_is_rewritten_and_its_space_comes_back(world: GcWorld) -> None:
    """What is used moves as it is, byte for byte; nothing else of the pack is left."""
    kept, pack = make_sparse(world)
    before = world.store.packs.store.size(pack)
    report = world.collect(NOTHING_BY_AGE)
    assert report.packs_rewritten == 1
    assert report.packs_retired >= 1
    assert report.rewritten_bytes < before / 2
    assert all(at.pack != pack for at in places(world, kept).values())
    assert world.is_whole(kept)
    world.check()
    assert pack in world.files()  # readers may still be in it
    world.clock.advance(2 * HOUR_MS)
    assert world.collect(NOTHING_BY_AGE).freed_bytes >= before
    assert pack not in world.files()
    assert world.is_whole(kept)
    world.check()


def test_a_reader_with_old_places_reads_on(world: GcWorld) -> None:
    """While the old file is there it is read where it was told; afterwards it is found where it lies now."""
    kept, pack = make_sparse(world)
    old = places(world, kept)
    chunks = [(id, at) for (kind, id), at in old.items() if kind is ObjectKind.CHUNK]
    plain = [kept.chunks[id] for id, _ in chunks]
    world.collect(NOTHING_BY_AGE)
    assert list(world.store.packs.read_located(ObjectKind.CHUNK, chunks)) == plain
    world.clock.advance(2 * HOUR_MS)
    world.collect(NOTHING_BY_AGE)
    assert pack not in world.files()
    assert list(world.store.packs.read_located(ObjectKind.CHUNK, chunks)) == plain


def test_a_lost_pack_is_still_damage(world: GcWorld) -> None:
    """A pack that is gone, and that the index still names, is not taken for a rewritten one."""
    tree = world.push("kept")
    [pack] = {at.pack for (kind, _), at in places(world, tree).items() if kind is ObjectKind.CHUNK}
    world.store.packs.store.delete(pack)
    with pytest.raises(DamagedObject):
        world.store.packs.read_objects(ObjectKind.CHUNK, [next(iter(tree.chunks))])


def test_many_small_packs_become_one(world: GcWorld) -> None:
    """Hundreds of small pushes must not leave hundreds of files."""
    trees = [world.push(f"small{number}", size=2000) for number in range(20)]
    world.clock.advance(2 * HOUR_MS)
    before = len(world.files())
    report = world.collect()
    assert report.packs_merged >= 20
    assert report.packs_written == 1
    world.clock.advance(2 * HOUR_MS)
    world.collect()
    assert len(world.files()) < before / 5
    assert all(world.is_whole(tree) for tree in trees)
    world.check()
    assert world.collect().packs_merged == 0  # and then there is peace


def test_a_few_small_packs_stay_as_they_are(world: GcWorld) -> None:
    """Merging two files gains nothing and costs two readers their places."""
    world.push("a", size=2000)
    world.clock.advance(2 * HOUR_MS)
    assert world.collect().packs_written == 0


def test_rewriting_is_bounded_in_each_run(world: GcWorld) -> None:
    """The disk belongs to those who push."""
    make_sparse(world)
    assert world.collect(NOTHING_BY_AGE, GcTimes(rewrite_max_bytes=1000)).packs_rewritten == 0
    assert world.collect(NOTHING_BY_AGE).packs_rewritten == 1


def test_a_damaged_object_does_not_move(world: GcWorld) -> None:
    """It is quarantined where it lies, said, and missing from now on; everything else moves."""
    kept, pack = make_sparse(world)
    chunk = max(kept.chunks, key=lambda id: len(kept.chunks[id]))  # type: ignore[attr-defined]
    at = places(world, kept)[ObjectKind.CHUNK, chunk]
    flip_bit(world.store.packs.store, pack, at.offset + at.stored_length - 5)
    report = world.collect(NOTHING_BY_AGE)
    assert len(report.damaged) == 1
    assert chunk.hex() in report.damaged[0]
    [row] = world.store.packs.index.quarantined(limit=10)
    assert (row.kind, row.id, row.location) == (ObjectKind.CHUNK, chunk, at)
    rest = [other for other in kept.chunks if other != chunk]  # type: ignore[attr-defined]
    assert all(found and found.pack != pack for found in world.store.packs.index.locate(ObjectKind.CHUNK, rest))
    assert pack in world.files()
    world.push_built(kept, "again")  # type: ignore[arg-type]  (the next push heals it)
    assert world.is_whole(kept)  # type: ignore[arg-type]


def test_the_packs_of_a_push_under_way_are_left_alone(world: GcWorld) -> None:
    """Its layouts are read from there at commit, though no row points to them yet."""
    tree = build_tree({b"a": b"x"})
    push = new_push()
    layouts = [item for item in tree.objects() if item[0] is ObjectKind.LAYOUT]
    rest = [item for item in tree.objects() if item[0] is not ObjectKind.LAYOUT]
    world.store.pushes.missing(push, ObjectKind.CHUNK, b"")
    [alone] = world.send(push, layouts)
    world.send(push, rest)
    assert world.collect(NOTHING_BY_AGE).packs_retired == 0
    assert alone in world.files()
    world.store.pushes.commit(push, tree.request("x"), by="x")
    assert world.is_whole(tree)
    world.clock.advance(2 * HOUR_MS)
    assert world.collect().packs_retired == 1  # the proven layout lies in a pack of the store's own


def test_a_retired_pack_that_is_sent_again_is_in_use_again(world: GcWorld) -> None:
    """Collected, then uploaded again under the same name: the push must not meet the deletion."""
    tree = world.tree("old")
    push = new_push()
    packs = list(encode_packs(tree.objects()))
    world.store.pushes.missing(push, ObjectKind.CHUNK, b"")

    def send() -> None:
        for pack, data in packs:
            ingest = world.store.pushes.begin_pack(push, pack)
            try:
                ingest.feed(data)
                ingest.finish()
            finally:
                ingest.abort()

    send()
    world.clock.advance(2 * HOUR_MS)
    for _ in range(2):
        world.collect(NOTHING_BY_AGE)
        world.clock.advance(25 * HOUR_MS)
    assert world.store.packs.index.is_retired(packs[0][0])
    push = new_push()
    world.store.pushes.missing(push, ObjectKind.CHUNK, b"")
    send()
    world.store.pushes.commit(push, tree.request("old"), by="x")
    world.collect()
    assert world.is_whole(tree)
    world.check()


def test_a_pack_that_the_index_does_not_know_is_taken_in_after_grace(world: GcWorld) -> None:
    """A crash between pack and index leaves it; once no push can be about to record it, it goes the way of all content."""
    tree = world.tree("orphan")
    [(pack, data)] = encode_packs(tree.objects())
    writer = world.store.packs.store.create(pack)
    writer.write(data)
    writer.commit()
    assert world.collect().orphans == 1
    world.clock.advance(23 * HOUR_MS)
    assert world.collect().orphans == 1
    assert world.store.packs.index.pack(pack) is None
    world.clock.advance(2 * HOUR_MS)
    world.collect()
    assert world.store.packs.index.pack(pack) is not None
    assert all(world.store.packs.index.has(ObjectKind.CHUNK, list(tree.chunks)))
    for _ in range(3):
        world.collect(NOTHING_BY_AGE)
        world.clock.advance(25 * HOUR_MS)
    world.collect(NOTHING_BY_AGE)
    assert pack not in world.files()
    world.check()


def test_a_damaged_orphan_is_named_and_left(world: GcWorld) -> None:
    """It may be all that is left of something; who deletes it is a person."""
    pack = PackId(os.urandom(16))
    writer = world.store.packs.store.create(pack)
    writer.write(b"not a pack")
    writer.commit()
    world.collect()
    world.clock.advance(25 * HOUR_MS)
    report = world.collect()
    assert str(pack) in report.damaged[0]
    assert pack in world.files()
