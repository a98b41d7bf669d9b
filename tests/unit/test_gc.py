"""Collection: what is kept and why, when what is not is gone, and that nobody who relies on something loses it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from casstore.engine.gc.mark import Mark
from casstore.engine.gc.reached import Reached
from casstore.engine.gc.retention import HistoryRule, Retention
from casstore.engine.gc.run import GRACE_MIN_MS, GcTimes
from casstore.errors import InvalidInput, LeaseLost, PinNotFound, SnapshotIncomplete
from casstore.formats.entry import decode_entry, gc_of
from casstore.formats.pack import ObjectKind
from casstore.ids import BlobDigest, SnapshotDigest
from casstore.limits import PUSH_LEASE_MS
from casstore.storage.roles import Table
from casstore.store import Hands
from tests.support.gcworld import DAY_MS, HOUR_MS, GcWorld
from tests.support.treebuild import BuiltTree, build_blob, new_push

NOTHING_BY_AGE = Retention(history_days=0, snapshot_days=0, artifact_days=0, keep_artifacts=0)
"""Nothing is kept for its age: what is left is kept for another reason."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GcWorld]:
    with GcWorld(tmp_path / "store") as opened:
        yield opened


# --- the way of something that nobody needs --------------------------------------------------------------------------


def test_garbage_is_condemned_dropped_retired_and_deleted(world: GcWorld) -> None:
    """The whole way, from its last use to free space."""
    old = world.push("old")
    world.age()
    kept = world.push("kept")
    first = world.collect()
    assert first.condemned["root"] == 1
    assert not first.dropped
    assert world.is_there(old)  # condemned is there for who reads, and missing for who pushes
    assert not world.is_live(old)
    again = world.collect()
    assert not again.condemned
    assert not again.dropped
    assert again.waiting == sum(first.condemned.values())
    world.clock.advance(25 * HOUR_MS)
    last = world.collect()
    assert last.dropped == first.condemned
    assert last.packs_retired >= 1
    assert not world.is_there(old)
    assert world.is_whole(kept)
    before = len(world.files())
    world.clock.advance(2 * HOUR_MS)
    assert world.collect().packs_deleted == last.packs_retired
    assert len(world.files()) == before - last.packs_retired
    world.check()


def test_condemned_content_is_judged_as_there(world: GcWorld) -> None:
    """In every state on the way the judge finds nothing wrong: condemned, dropped, retired, deleted."""
    shared = world.push("old", label="a")
    world.push("other", label="b")
    world.flip("prod/a", world.snapshot(shared))
    world.age()
    for _ in range(4):
        world.collect(NOTHING_BY_AGE)
        world.check()
        world.clock.advance(13 * HOUR_MS)
    assert world.is_whole(shared)


def test_one_mark_never_drops(world: GcWorld) -> None:
    """Grace alone is not enough: what was condemned an age ago is dropped by a mark that did not reach it either."""
    world.push("old")
    world.age()
    world.collect()
    world.clock.advance(100 * DAY_MS)
    snapshot_of_old = world.tree("old")
    world.push_built(snapshot_of_old, "again")  # needed once more, after its grace is over
    assert not world.collect().dropped
    assert world.is_whole(snapshot_of_old)


def test_grace_ends_to_the_millisecond(world: GcWorld) -> None:
    """A mark that began a moment too early proves nothing."""
    world.push("old")
    world.age()
    world.collect()
    world.clock.advance(GcTimes().grace_ms - 1)
    assert not world.collect().dropped
    world.clock.advance(1)
    assert world.collect().dropped


def test_a_grace_that_a_push_could_outlive_is_refused(world: GcWorld) -> None:
    """A setting must not be able to lose data."""
    assert GRACE_MIN_MS > PUSH_LEASE_MS
    with pytest.raises(InvalidInput):
        world.collect(times=GcTimes(grace_ms=GRACE_MIN_MS - 1))


@pytest.mark.parametrize("jump_ms", [2 * DAY_MS, -2 * DAY_MS])
def test_a_clock_that_is_set_begins_grace_anew(world: GcWorld, jump_ms: int) -> None:
    """Somebody sets the clock two days ahead: what was condemned a minute ago has not had its day."""
    world.push("old")
    world.age()
    world.collect()
    world.clock.advance(60_000)
    world.clock.jump(jump_ms)
    refused = world.collect()  # the log does not believe the clock either
    assert not refused.dropped
    assert refused.blocked
    world.store.confirm_clock()
    after = world.collect()
    assert not after.dropped
    assert "grace begins anew" in " ".join(after.blocked)
    world.clock.advance(25 * HOUR_MS)
    assert world.collect().dropped


def test_many_small_steps_of_the_clock_add_up(world: GcWorld) -> None:
    """Each is too small to be noticed alone."""
    world.push("old")
    world.age()
    world.collect()
    for _ in range(3):
        world.clock.jump(50_000)
        world.clock.advance(1000)
        world.reopen()  # another process of the same boot
        last = world.collect()
        if last.blocked:
            break
    assert "clock" in " ".join(last.blocked)


def test_a_dry_run_says_it_all_and_changes_nothing(world: GcWorld) -> None:
    """What would be condemned, what would be dropped, and for whom the rest is kept."""
    world.push("old")
    world.age()
    kept = world.push("kept")
    plan = world.collect(dry_run=True)
    assert [(root.reason, root.digest, root.owner) for root in plan.kept if root.reason == "artifact"] == [
        ("artifact", str(kept.digest), "artifact 2 kept")
    ]
    assert world.is_live(world.tree("old"))
    assert world.collect().condemned == plan.condemned
    world.clock.advance(25 * HOUR_MS)
    dropping = world.collect(dry_run=True)
    assert dropping.removed == [f"tree {world.tree('old').digest}"]
    assert dropping.mark == world.collect().mark
    assert not world.is_there(world.tree("old"))


def test_what_is_condemned_can_be_had_back(world: GcWorld) -> None:
    """An operator sees the report and says no."""
    old = world.push("old")
    world.age()
    condemned = world.collect().condemned
    assert world.store.undo_collect() == sum(condemned.values())
    assert world.is_live(old)


def test_what_was_dropped_stands_in_the_log_before(world: GcWorld) -> None:
    """Afterwards anyone can see that the server said so, how much, and what by name."""
    old, blob = world.push("old"), build_blob(b"x" * 100_000)
    world.push_built(blob, "file")
    world.age()
    world.collect()
    world.clock.advance(25 * HOUR_MS)
    report = world.collect()
    [index] = report.entries
    with world.store._parts.ledger.read() as view:
        entry = decode_entry(view.get(Table.ENTRIES, index.to_bytes(8, "big")) or b"")
    body = gc_of(entry)
    assert body.counts.objects == sum(report.dropped.values())
    assert world.store.dropped(body.digest) == [f"tree {old.digest}", f"blob {blob.digest}"]
    world.reopen()  # replayed, signed, continued
    world.push("new")
    world.check()


def test_nothing_is_dropped_while_the_store_is_copied(world: GcWorld) -> None:
    """A backup copies the ledger, then the index, then the packs: what the first names must be in the last."""
    old = world.push("old")
    world.age()
    world.collect()
    world.clock.advance(25 * HOUR_MS)
    with world.store.holds.hold("a backup"):
        report = world.collect()
        assert not report.dropped
        assert not report.entries
        assert report.blocked
        assert world.is_whole(old)
    assert world.collect().dropped
    world.clock.advance(25 * HOUR_MS)
    with world.store.holds.hold("a backup"):
        assert world.collect().packs_deleted == 0
    assert world.collect().packs_deleted > 0


def test_a_store_that_may_not_write_its_log_collects_nothing(world: GcWorld) -> None:
    """It is an older copy, or another history: what it thinks nobody needs may be needed."""
    world.push("old")
    world.age()
    world.clock.jump(DAY_MS)  # the clock is not believed: nothing may be logged
    report = world.collect()
    assert not report.condemned
    assert report.blocked


def test_a_run_that_is_stopped_loses_nothing(world: GcWorld) -> None:
    """The server stops in the middle of any piece of work; the next run goes on."""
    from casstore.engine.gc.work import Interrupted

    kept = world.push("kept", label="kept")
    world.flip("prod/a", world.snapshot(kept))
    world.push("old")
    world.age()
    for stop_at in range(60):
        calls = iter(range(1000))

        def pause(at: int = stop_at, calls: Iterator[int] = calls) -> None:
            if next(calls) == at:
                raise Interrupted

        world.collect(NOTHING_BY_AGE, pause=pause)
        world.clock.advance(3 * HOUR_MS)
        assert world.is_whole(kept)
    world.check()
    world.collect_all(NOTHING_BY_AGE)
    assert not world.is_there(world.tree("old"))


# --- roots -----------------------------------------------------------------------------------------------------------


def survivors(world: GcWorld, trees: dict[str, BuiltTree], retention: Retention = NOTHING_BY_AGE) -> set[str]:
    """Whose trees are left once everything had its time to go."""
    world.collect_all(retention)
    world.check()
    return {name for name, tree in trees.items() if world.is_there(tree) and world.is_whole(tree)}


def test_what_a_pointer_names_is_kept_whatever_its_age(world: GcWorld) -> None:
    """And so is what it needs, though nothing else leads to it."""
    trees = {name: world.push(name) for name in ("current", "loose")}
    world.flip("prod/a", world.snapshot(trees["current"]))
    world.age(4000)
    assert survivors(world, trees) == {"current"}


def test_the_last_five_that_are_not_bad_are_kept_whatever_their_age(world: GcWorld) -> None:
    """A rollback, and one more, must be possible after years; what is known to be bad is no target."""
    trees = {f"r{number}": world.push(f"r{number}") for number in range(8)}
    snapshots = {name: world.snapshot(tree) for name, tree in trees.items()}
    for name in trees:
        world.flip("prod/a", snapshots[name])
    world.mark_bad("prod/a", snapshots["r5"])
    world.age(4000)
    assert survivors(world, trees) == {"r2", "r3", "r4", "r6", "r7"}


def test_distinct_snapshots_are_counted_not_flips(world: GcWorld) -> None:
    """Ten flips between two snapshots do not push the third one out."""
    trees = {name: world.push(name) for name in ("a", "b", "c")}
    snapshots = {name: world.snapshot(tree) for name, tree in trees.items()}
    for name in ("c", *("a", "b") * 5):
        world.flip("prod/a", snapshots[name])
    world.age(4000)
    assert survivors(world, trees) == {"a", "b", "c"}


def test_history_is_kept_for_as_long_as_the_pointers_rule_says(world: GcWorld) -> None:
    """Per pointer, by the first glob that covers it; counted from when the pointer left it."""
    trees = {f"{pointer}{n}": world.push(f"{pointer}{n}") for pointer in ("prod", "dev") for n in range(8)}
    for name, tree in trees.items():
        world.flip(f"{name[:-1]}/x", world.snapshot(tree))
    world.clock.advance(20 * DAY_MS)
    rules = Retention((HistoryRule("prod/**", 60),), 10, 0, 0, keep_artifacts=0)
    left = survivors(world, trees, rules)
    assert {name for name in left if name.startswith("prod")} == {f"prod{n}" for n in range(8)}
    assert {name for name in left if name.startswith("dev")} == {f"dev{n}" for n in range(3, 8)}


def test_published_snapshots_are_kept_for_their_time(world: GcWorld) -> None:
    """One that no pointer has named yet will be flipped to tomorrow."""
    tree = {"published": world.push("published")}
    snapshot = world.snapshot(tree["published"])
    month = Retention(history_days=0, snapshot_days=30, artifact_days=0, keep_artifacts=0)
    world.clock.advance(20 * DAY_MS)
    assert survivors(world, tree, month) == {"published"}
    world.clock.advance(20 * DAY_MS)
    assert survivors(world, tree, month) == set()
    with pytest.raises(SnapshotIncomplete):
        world.flip("prod/a", snapshot)


def test_artifacts_are_kept_for_their_time_and_the_newest_of_a_name_for_ever(world: GcWorld) -> None:
    """What goes loses its row first: nobody is shown an artifact that cannot be pulled."""
    trees = {}
    for number in range(4):
        trees[f"v{number}"] = world.push(f"v{number}", label="app")
    trees["other"] = world.push("other", label="other")
    trees["young"] = {}  # type: ignore[assignment]
    world.age()
    trees["young"] = world.push("young", label="app")
    two = Retention(history_days=0, snapshot_days=0, artifact_days=30, keep_artifacts=2)
    world.collect_all(two)
    world.check()
    left = {name for name, tree in trees.items() if world.is_there(tree)}
    assert left == {"v3", "other", "young"}
    assert [a.name for a in world.store.artifacts.list().artifacts] == ["app", "other", "app"]


def test_a_pin_keeps_until_it_is_taken_away_or_over(world: GcWorld) -> None:
    """A forensic copy stays for as long as somebody says, and why is on record."""
    trees = {name: world.push(name) for name in ("pinned", "until", "snap")}
    snapshot = world.snapshot(trees["snap"])
    pins = world.store.pins
    by = {"owner": "security", "reason": "INC-9", "by": "operator"}
    pin = pins.pin("tree", BlobDigest(trees["pinned"].digest), until_ms=None, **by)  # type: ignore[arg-type]
    until = world.clock.now_ms() + 10 * DAY_MS
    pins.pin("tree", BlobDigest(trees["until"].digest), until_ms=until, **by)  # type: ignore[arg-type]
    pins.pin("snapshot", BlobDigest(snapshot), until_ms=None, **by)  # type: ignore[arg-type]
    world.clock.advance(5 * DAY_MS)
    assert survivors(world, trees) == {"pinned", "until", "snap"}
    world.clock.advance(6 * DAY_MS)
    assert survivors(world, trees) == {"pinned", "snap"}
    assert len(pins.list().pins) == 2  # the one that was over is gone
    pins.unpin(pin.id)
    assert survivors(world, trees) == {"snap"}
    with pytest.raises(PinNotFound):
        pins.unpin(pin.id)


def test_what_is_not_all_there_is_not_pinned(world: GcWorld) -> None:
    """A pin would promise what the store does not have."""
    with pytest.raises(SnapshotIncomplete):
        world.store.pins.pin(
            "tree", BlobDigest(world.tree("x").digest), owner="a", reason="b", until_ms=None, by="operator"
        )


def test_targets_of_waiting_intents_are_kept(world: GcWorld) -> None:
    """A flip that waits for its second signature must find its snapshot."""
    trees = {"waiting": world.push("waiting"), "loose": world.push("loose")}
    submission = world.flip_to("prod/a", world.snapshot(trees["waiting"]))
    with world.store._parts.ledger.write() as transaction:
        transaction.put(Table.PENDING, b"i" * 32, msgspec.json.encode(submission.envelope))
    assert survivors(world, trees) == {"waiting"}


def test_a_waiting_intent_that_cannot_be_read_stops_collection(world: GcWorld) -> None:
    """Nobody knows what it needs."""
    world.push("old")
    world.age()
    with world.store._parts.ledger.write() as transaction:
        transaction.put(Table.PENDING, b"i" * 32, b"?")
    with pytest.raises(Exception, match="waiting intent"):
        world.collect()
    assert world.is_live(world.tree("old"))


def test_what_a_push_under_way_has_brought_is_spared(world: GcWorld) -> None:
    """Its chunks are not condemned while it holds its lease, so it is not asked to send them again."""
    tree = world.tree("slow")
    push = new_push()
    world.send_missing(push, tree)
    assert not world.collect(NOTHING_BY_AGE).condemned
    world.clock.advance(PUSH_LEASE_MS - 1)
    world.store.pushes.missing(push, ObjectKind.CHUNK, b"")  # renewed
    world.clock.advance(PUSH_LEASE_MS - 1)
    assert not world.collect(NOTHING_BY_AGE).condemned
    world.store.pushes.commit(push, tree.request("slow"), by="x")
    assert world.is_whole(tree)
    world.clock.advance(PUSH_LEASE_MS + 1)
    assert world.collect(NOTHING_BY_AGE).condemned


def test_pages_that_a_push_brings_are_not_taken_for_walked(world: GcWorld) -> None:
    """A push brings the root of a tree that an artifact needs: the tree is walked all the same."""
    tree = world.push("kept", label="kept")
    world.flip("prod/a", world.snapshot(tree))
    world.clock.advance(2 * HOUR_MS)
    world.send(new_push(), [item for item in tree.objects() if item[0] is not ObjectKind.CHUNK])
    assert not world.collect(NOTHING_BY_AGE).condemned
    assert world.is_whole(tree)


# --- marks -----------------------------------------------------------------------------------------------------------


def test_the_filter_never_forgets_and_rarely_invents(world: GcWorld) -> None:
    """What it forgot would be lost; what it invents is kept a while."""
    ids = [bytes([kind]) + number.to_bytes(31, "little") for kind in (1, 2) for number in range(20_000)]
    import hashlib

    hashed = [hashlib.sha256(id).digest() for id in ids]
    reached = Reached(20_000, hashlib.sha256(b"salt").digest())
    reached.add_chunks(hashed[:20_000])
    assert all(reached.has(ObjectKind.CHUNK, id) for id in hashed[:20_000])
    invented = sum(reached.has(ObjectKind.CHUNK, id) for id in hashed[20_000:])
    assert invented < 200  # 1 %
    other = Reached(20_000, hashlib.sha256(b"other salt").digest())
    other.add_chunks(hashed[:20_000])
    both = sum(reached.has(ObjectKind.CHUNK, id) and other.has(ObjectKind.CHUNK, id) for id in hashed[20_000:])
    assert both < max(10, invented)
    for id in hashed[:5000]:
        reached.walk(ObjectKind.PAGE, id)
        reached.keep(ObjectKind.LAYOUT, id)
    assert all(reached.has(ObjectKind.PAGE, id) and reached.is_walked(ObjectKind.PAGE, id) for id in hashed[:5000])
    assert not any(reached.has(ObjectKind.PAGE, id) for id in hashed[5000:])
    assert not any(reached.is_walked(ObjectKind.LAYOUT, id) for id in hashed)


def test_a_mark_that_cannot_follow_every_reference_drops_nothing(world: GcWorld) -> None:
    """A layout in quarantine leads to chunks that nobody knows: they must be there when it is healed."""
    tree = world.push("kept", label="kept")
    world.flip("prod/a", world.snapshot(tree))
    world.push("old")
    world.age()
    page = tree.pages[0].ref.digest
    index = world.store.packs.index
    [at] = index.locate(ObjectKind.LAYOUT, [page])
    assert at is not None
    world.collect(NOTHING_BY_AGE)
    world.clock.advance(25 * HOUR_MS)
    index.quarantine(ObjectKind.LAYOUT, page, at, at_ms=1, reason="a test")
    world.store.presence.forget()
    report = world.collect(NOTHING_BY_AGE)
    assert report.gaps
    assert not report.dropped
    index.release(ObjectKind.LAYOUT, page)
    assert world.collect(NOTHING_BY_AGE).dropped
    assert world.is_whole(tree)


def test_a_longer_window_does_not_ask_for_what_is_gone(world: GcWorld) -> None:
    """An operator makes the window longer: what was collected before is gone, and collection goes on."""
    old = world.push("old")
    world.snapshot(old)
    kept = world.push("kept", label="kept")
    world.flip("prod/a", world.snapshot(kept))
    world.age()
    world.collect_all(NOTHING_BY_AGE)
    assert not world.is_there(old)
    report = world.collect(Retention(snapshot_days=4000, artifact_days=0, keep_artifacts=0))
    assert report.gone == 1
    assert not report.gaps
    world.check()


# --- races -----------------------------------------------------------------------------------------------------------


def test_a_rollback_to_what_was_just_condemned_succeeds(world: GcWorld) -> None:
    """At 2 AM, a minute after a collection."""
    trees = [world.push(f"r{number}") for number in range(8)]
    snapshots = [world.snapshot(tree) for tree in trees]
    for snapshot in snapshots:
        world.flip("prod/a", snapshot)
    world.age()
    world.collect(NOTHING_BY_AGE)
    assert not world.is_live(trees[0])
    world.flip("prod/b", snapshots[0])
    assert world.collect(NOTHING_BY_AGE).revived
    assert world.is_live(trees[0])
    world.clock.advance(25 * HOUR_MS)
    world.collect(NOTHING_BY_AGE)
    assert world.is_whole(trees[0])


def test_a_flip_between_mark_and_drop_keeps_what_it_needs(world: GcWorld) -> None:
    """The mark has read the roots; then somebody flips to what is about to be dropped."""
    doomed = world.push("doomed")
    snapshot = world.snapshot(doomed)
    loose = world.push("loose")
    world.age()
    world.collect(NOTHING_BY_AGE)
    world.clock.advance(25 * HOUR_MS)
    flipped: list[int] = []

    def write_ledger(call, *args, **kwargs):  # type: ignore[no-untyped-def]
        # The last step before the drop: the entry that announces it.
        answer = call(*args, **kwargs)
        if isinstance(answer, int) and answer and not flipped:
            flipped.append(world.flip("prod/a", snapshot).entry)
        return answer

    report = world.store.collect(NOTHING_BY_AGE, hands=Hands(write_ledger=write_ledger))
    assert flipped
    assert report.dropped  # what nobody claimed goes
    assert not world.is_there(loose)
    assert world.is_whole(doomed)
    world.collect(NOTHING_BY_AGE)
    assert world.is_live(doomed)
    world.check()


def test_a_flip_that_has_looked_and_not_committed_keeps_what_it_needs(world: GcWorld) -> None:
    """The ledger's writer was told that all is there, and the drop comes before its commit."""
    doomed = world.push("doomed")
    snapshot = world.snapshot(doomed)
    world.age()
    world.collect(NOTHING_BY_AGE)
    world.clock.advance(25 * HOUR_MS)
    looked, dropped = threading.Event(), threading.Event()
    seen: list[bool] = []

    def commit() -> None:
        with world.store.presence.claims.scope():
            seen.append(world.store.snapshots.completeness(snapshot).complete)
            looked.set()
            dropped.wait(30)  # the commit takes its time

    writer = threading.Thread(target=commit)
    writer.start()
    assert looked.wait(30)
    report = world.collect(NOTHING_BY_AGE)
    dropped.set()
    writer.join()
    assert seen == [True]
    assert "root" not in report.dropped
    assert world.is_whole(doomed)
    assert "root" in world.collect(NOTHING_BY_AGE).dropped  # nobody relies on it any more


def test_a_flip_behind_the_drop_sees_that_it_is_gone(world: GcWorld) -> None:
    """Nothing may be answered from memory that was true before."""
    doomed = world.push("doomed")
    snapshot = world.snapshot(doomed)
    world.age()
    world.collect(NOTHING_BY_AGE)
    assert world.store.snapshots.completeness(snapshot).complete  # remembered
    world.store.snapshots.document(snapshot)
    world.clock.advance(25 * HOUR_MS)
    assert world.collect(NOTHING_BY_AGE).dropped
    with pytest.raises(SnapshotIncomplete):
        world.flip("prod/a", snapshot)


def test_a_claim_that_was_incomplete_is_walked_again(world: GcWorld) -> None:
    """The first time half of it was missing; the second time it is all there, and all of it counts."""
    doomed = world.push("doomed")
    world.age()
    world.collect(NOTHING_BY_AGE)
    claims = world.store.presence.claims
    from casstore.engine.claims import Claim

    claim = Claim("snapshot", b"s" * 32)
    with claims.watch():
        with claims.scope():
            claims.claim(claim)
            with claims.frozen() as first:
                assert first is not None
                number = first[claim]
            claims.claim(claim)
            with claims.frozen() as second:
                assert second is not None
                assert second[claim] > number
        with claims.frozen() as third:
            assert third is not None
            assert claim in third  # given back, and remembered as long as the run lasts
    with claims.frozen() as fourth:
        assert fourth == {}
    mark = Mark(world.store.packs, Reached(100, b"1" * 32), swept=False, pause=lambda: None)
    assert not mark.take_claim(claim)
    assert mark.complete
    assert mark.take_claim(Claim("tree", doomed.digest))


def test_more_claims_than_can_be_remembered_stop_the_drop(world: GcWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that does not know what others rely on drops nothing."""
    monkeypatch.setattr("casstore.engine.claims.CLAIMS_MAX", 2)
    claims = world.store.presence.claims
    from casstore.engine.claims import Claim

    with claims.watch():
        for number in range(3):
            with claims.scope():
                claims.claim(Claim("tree", bytes([number]) * 32))
        with claims.frozen() as known:
            assert known is None
    with claims.watch(), claims.frozen() as known:
        assert known == {}


def test_a_push_of_what_is_condemned_sends_it_again_and_revives_it(world: GcWorld) -> None:
    """Condemned is missing: what is about to be deleted is never promised to anyone."""
    tree = world.push("old")
    world.age()
    world.collect()
    old = world.store.packs.index.locate(ObjectKind.CHUNK, list(tree.chunks))
    world.push_built(tree, "again")
    new = world.store.packs.index.locate(ObjectKind.CHUNK, list(tree.chunks))
    assert world.is_live(tree)
    assert not set(old) & set(new)  # it lies in the pack that was just brought
    for _ in range(3):
        world.clock.advance(25 * HOUR_MS)
        world.collect()
    assert world.is_whole(tree)
    world.check()


def test_a_commit_revives_what_was_condemned_after_it_asked(world: GcWorld) -> None:
    """It was told that all is there, then a mark condemns it, then the commit comes."""
    tree = world.push("old")
    world.age()
    push = new_push()
    bitmap = world.store.pushes.missing(push, ObjectKind.CHUNK, b"".join(tree.chunks))
    assert not any(bitmap)
    world.collect()
    assert not world.is_live(tree)
    world.store.pushes.commit(push, tree.request("again"), by="x")
    assert world.is_live(tree)


def test_a_commit_that_took_longer_than_a_lease_begins_again(world: GcWorld) -> None:
    """Between the index and the ledger a machine was suspended for a day: what it saw may be gone."""
    tree = world.push("old")
    world.age()
    push = new_push()
    world.store.pushes.missing(push, ObjectKind.CHUNK, b"".join(tree.chunks))
    proof = world.store.pushes.prove(push, tree.request("again"))
    remembered = world.store.pushes.remember(proof)  # type: ignore[arg-type]
    world.collect()
    world.clock.advance(25 * HOUR_MS)
    assert world.collect().dropped
    with pytest.raises(LeaseLost):
        world.store.pushes.record(remembered, by="x")


def test_a_document_that_is_condemned_is_written_again(world: GcWorld) -> None:
    """Publishing relies on it: it must be live before it is relied upon."""
    tree = world.push("old", label="old")
    world.flip("prod/a", world.snapshot(tree))
    world.store.snapshots.put([world.document(tree, "unpublished")])
    digest = SnapshotDigest(world.digest_of(world.document(tree, "unpublished")))
    world.clock.advance(2 * HOUR_MS)
    world.collect()
    index = world.store.packs.index
    assert not index.has(ObjectKind.DOCUMENT, [digest])[0]
    world.store.snapshots.put([world.document(tree, "unpublished")])
    assert index.has(ObjectKind.DOCUMENT, [digest])[0]
