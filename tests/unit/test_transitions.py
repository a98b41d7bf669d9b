"""What each act does, and what stops it.  Who breaks these breaks deployers."""

from __future__ import annotations

import pytest

from casstore.errors import (
    CapacityError,
    DamagedObject,
    Held,
    NotPermitted,
    PointerNotFound,
    PreconditionFailed,
    SnapshotIncomplete,
    SnapshotNotFound,
)
from casstore.formats.acts import Member, SnapshotArgs, flip_args
from casstore.formats.entry import flips_of
from casstore.limits import POINTERS_MAX
from casstore.transitions.machine import Machine
from tests.support.logworld import ORIGIN, START_MS, World, policy_document, ptr, rule, snap

PTR = "prod/api"


# --- the thin path ---------------------------------------------------------------------------------------------------


def test_a_release_goes_out_and_the_auditor_agrees() -> None:
    """The main job: init, deploy, deploy, and the log replays to the same state from its bytes alone."""
    world = World()
    first = world.flip(PTR, "A", "init")
    second = world.flip(PTR, "B")
    assert world.live(PTR) == snap("B")
    assert [flip.seq for flip in (*first.flips, *second.flips)] == [1, 2]
    assert second.body == {"members": [{"from": str(snap("A")), "seq": 2, "to": str(snap("B"))}]}
    assert second.principals == ("alice",)
    replay = world.replay()
    assert [row.to for row in replay.lookup.history(ptr(PTR))] == [snap("B"), snap("A")]
    assert flips_of(world.entry())[0].from_ == snap("A")


def test_the_state_in_an_entry_is_the_state_after_it() -> None:
    """A reader proves a pointer against the newest leaf: it must not be one entry behind."""
    world = World()
    planned = world.flip(PTR, "A", "init")
    assert planned.entry is not None
    assert planned.entry.state == world.machine.root
    assert world.entry().state.n == 2


def test_planning_changes_nothing() -> None:
    """A batch plans, commits, and may lose the commit: until `apply` the machine is as it was."""
    world = World()
    world.flip(PTR, "A", "init")
    before = world.machine.root
    for name, to in ((PTR, "B"), ("prod/new", "B")):
        world.plan(world.sign(world.flip_args(name, to)))
        assert world.machine.root == before
    assert world.machine.size == len(world.entries)


def test_a_machine_opens_again_from_its_leaves() -> None:
    """A server that restarts judges the next act as if it had never stopped."""
    world = World()
    world.flip(PTR, "A", "init")
    world.hold(PTR)
    assert world.machine.policy is not None
    leaves = [leaf.encode() for leaf in world.machine.state.leaves()]
    document = world.machine.policy.document
    size, last_ts = world.machine.size, world.machine.last_ts
    again = Machine.from_leaves(leaves, document, size, last_ts, origin=ORIGIN)
    assert again.root == world.machine.root
    act = world.sign(world.flip_args(PTR, "B", clear=(False, True)))
    there = again.plan(act, idx=size, ts=world.ts, lookup=world.lookup)
    assert there.data == world.plan(act).data
    with pytest.raises(DamagedObject):
        Machine.from_leaves(leaves, {**document, "publishers": []}, size, last_ts, origin=ORIGIN)


def test_a_caller_that_loses_count_is_stopped() -> None:
    """An entry under a wrong index or a time that runs backwards would break every later proof."""
    world = World()
    act = world.sign(world.flip_args(PTR, "A", "init"))
    with pytest.raises(ValueError, match="follow"):
        world.machine.plan(act, idx=len(world.entries) + 1, ts=world.ts, lookup=world.lookup)
    with pytest.raises(ValueError, match="follow"):
        world.machine.plan(act, idx=len(world.entries), ts=START_MS - 1, lookup=world.lookup)
    one, two = world.plan(act), world.plan(world.sign(world.flip_args("prod/x", "A", "init")))
    world.commit(one)
    with pytest.raises(ValueError, match="follow"):
        world.machine.apply(two)


# --- compare and swap ------------------------------------------------------------------------------------------------


def test_two_racing_flips_have_one_winner() -> None:
    """The loser learns where the pointer is now and that nothing changed."""
    world = World()
    world.flip(PTR, "A", "init")
    one, two = world.sign(world.flip_args(PTR, "B")), world.sign(world.flip_args(PTR, "C"))
    winner = world.commit(world.plan(one))
    with pytest.raises(PreconditionFailed) as lost:
        world.plan(two)
    assert lost.value.current == {"pointer": PTR, "flip": winner.idx, "snapshot": str(snap("B")), "seq": 2}
    assert lost.value.expected == f"f{winner.idx - 1}"
    assert "Nothing changed" in lost.value.detail


def test_a_b_a_is_seen() -> None:
    """Back at A by two flips is not the A that the signer saw."""
    world = World()
    world.flip(PTR, "A", "init")
    stale = world.sign(world.flip_args(PTR, "C"))
    world.flip(PTR, "B")
    world.flip(PTR, "A")
    with pytest.raises(PreconditionFailed):
        world.plan(stale)


def test_a_pointer_that_exists_is_not_made_again_and_one_that_does_not_is_not_replaced() -> None:
    world = World()
    new = world.sign(world.flip_args(PTR, "B", "init"))
    world.flip(PTR, "A", "init")
    with pytest.raises(PreconditionFailed, match="no such pointer yet"):
        world.plan(new)
    args = flip_args("deploy", [Member(expect=3, pointer=ptr("prod/none"), to=snap("B"))])
    with pytest.raises(PreconditionFailed, match="does not exist"):
        world.plan(world.sign(args))


def test_a_flip_to_what_is_there_logs_nothing() -> None:
    """A GitOps loop that says the same every minute must not fill the log; it comes before holds and content."""
    world = World()
    world.flip(PTR, "A", "init")
    world.hold(PTR)
    world.lookup.incomplete.add(snap("A"))
    planned = world.flip(PTR, "A")
    assert planned.no_op
    assert planned.entry is None
    assert planned.data == b""
    assert world.machine.size == len(world.entries)


def test_members_flip_together_or_not_at_all() -> None:
    """api and web are released as one: one refused member leaves both where they were."""
    world = World()
    world.flip(PTR, "A", "init")
    world.flip("prod/web", "A", "init")
    both = [world.member("prod/web", "B"), world.member(PTR, "B")]
    world.hold("prod/web")
    with pytest.raises(Held):
        world.do(flip_args("deploy", both))
    assert world.live(PTR) == snap("A")
    planned = world.do(flip_args("deploy", both, clear=(False, True)))
    assert [flip.pointer for flip in planned.flips] == [PTR, "prod/web"]
    assert world.live("prod/web") == world.live(PTR) == snap("B")
    world.replay()


def test_a_member_that_stays_is_flipped_with_the_others() -> None:
    """One of two at its target already: the transaction is logged whole, and what did not move is not marked bad."""
    world = World()
    for name in (PTR, "prod/web"):
        world.flip(name, "A", "init")
    world.flip(PTR, "B")
    args = flip_args("rollback", [world.member(PTR, "A"), world.member("prod/web", "A")], left=(True, True))
    planned = world.do(args)
    assert [mark.pointer for mark in planned.marks] == [PTR]
    leaf = world.machine.state.pointer(ptr("prod/web"))
    assert leaf is not None
    assert leaf.bad == ()
    assert leaf.held is not None
    world.replay()


def test_retired_and_back() -> None:
    """A retired pointer keeps its history and its compare-and-swap."""
    world = World()
    world.flip(PTR, "A", "init")
    world.flip(PTR, None, "retire")
    assert world.live(PTR) is None
    world.flip(PTR, "B")
    assert [row.to for row in world.lookup.history(ptr(PTR))] == [snap("B"), None, snap("A")]
    world.rollback(PTR, "A")
    world.replay()


def test_the_log_has_a_bound_on_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    """State proofs are made from memory: the number of pointers is bounded, by name."""
    monkeypatch.setattr("casstore.formats.state.POINTERS_MAX", 2)
    assert POINTERS_MAX == 10_000
    world = World()
    world.flip("p/a", "A", "init")
    world.flip("p/b", "A", "init")
    with pytest.raises(CapacityError):
        world.flip("p/c", "A", "init")
    world.flip("p/a", "B")


def test_content_must_be_there() -> None:
    """A flip that could not be served is never accepted: it says what is missing."""
    world = World()
    world.lookup.incomplete.add(snap("B"))
    with pytest.raises(SnapshotIncomplete) as error:
        world.flip(PTR, "B", "init")
    assert error.value.missing_count == 1
    with pytest.raises(SnapshotNotFound):
        world.flip(PTR, "unknown", "init")


# --- marks, holds, snapshots -----------------------------------------------------------------------------------------


def test_marks_and_holds_need_their_pointer_and_snapshot() -> None:
    world = World()
    with pytest.raises(PointerNotFound):
        world.mark(PTR, "A", "good")
    with pytest.raises(PointerNotFound):
        world.hold(PTR)
    with pytest.raises(PointerNotFound):
        world.release(PTR)
    world.flip(PTR, "A", "init")
    with pytest.raises(SnapshotNotFound):
        world.mark(PTR, "unknown", "bad")


def test_publishing_twice_logs_once_and_parents_come_first() -> None:
    world = World()
    assert world.publish("A").no_op
    with pytest.raises(SnapshotNotFound, match="parent"):
        world.do(SnapshotArgs(digest=snap("Z"), parents=[snap("unknown")], size=1))
    planned = world.do(SnapshotArgs(digest=snap("Z"), parents=[snap("A")], size=1))
    assert planned.snapshot == snap("Z")


def test_who_marks_and_holds() -> None:
    """Bad: one who may roll back.  Good: those who deploy.  Hold: either.  And whom the rule's `mark` names."""
    deploy = {"threshold": 2, "who": ["alice", "bob"]}
    people = ("alice", "bob", "carol", "dave")
    world = World(
        policy_document(rule("**", [], ["carol"], deploy=deploy, mark={"threshold": 1, "who": ["dave"]}), people=people)
    )
    world.flip(PTR, "A", "init", ("alice", "bob"))
    with pytest.raises(NotPermitted):
        world.mark(PTR, "A", "bad", ("alice", "bob"))
    with pytest.raises(NotPermitted):
        world.mark(PTR, "A", "good", ("alice",))
    with pytest.raises(NotPermitted):
        world.hold(PTR, who=("dave",))
    world.mark(PTR, "A", "bad", ("carol",))
    world.mark(PTR, "A", "good", ("alice", "bob"))
    world.mark(PTR, "A", "bad", ("dave",))
    world.mark(PTR, "A", "good", ("dave",))
    world.hold(PTR, who=("bob",))
    world.hold(PTR, world.ts + 5000, who=("carol",))
    world.replay()
