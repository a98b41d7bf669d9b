"""Where a rollback goes: at 2 AM it must do what the engineer means, twice in a row too."""

from __future__ import annotations

from typing import Any

import pytest

from casstore.errors import (
    Held,
    InvalidInput,
    NoRollbackTarget,
    NotPermitted,
    SnapshotBad,
    Superseded,
)
from casstore.limits import BAD_SNAPSHOTS_MAX
from casstore.transitions.rollback import resolve_previous
from tests.support.logworld import World, policy_document, ptr, rule, snap

PTR = "prod/api"


def previous(world: World, pointer: str = PTR) -> Any:
    leaf = world.machine.state.pointer(ptr(pointer))
    assert leaf is not None
    assert world.machine.policy is not None
    applied = world.machine.policy.rule_for(ptr(pointer))
    assert applied is not None
    return resolve_previous(leaf, applied, ts=world.ts, lookup=world.lookup)


# --- rollback --------------------------------------------------------------------------------------------------------


def test_a_second_rollback_goes_further_back() -> None:
    """At 2 AM `rollback` twice must not bring back what was just rolled back from."""
    world = World()
    world.flip(PTR, "A", "init")
    world.flip(PTR, "B")
    world.flip(PTR, "C")
    assert previous(world).target == snap("B")
    world.rollback(PTR, "B")
    resolved = previous(world)
    assert resolved.target == snap("A")
    assert [(item.snapshot, item.why) for item in resolved.skipped] == [(snap("C"), "rolled-back")]
    world.rollback(PTR, "A")
    with pytest.raises(NoRollbackTarget) as error:
        previous(world)
    assert error.value.skipped is not None
    assert {item["why"] for item in error.value.skipped} == {"rolled-back"}
    world.replay()


def test_a_second_rollback_goes_further_back_also_without_marks() -> None:
    """Declining to mark what is left does not turn the next rollback into a step forward."""
    world = World()
    world.flip(PTR, "A", "init")
    world.flip(PTR, "B")
    world.flip(PTR, "C")
    world.rollback(PTR, "B", left=(False, False))
    assert previous(world).target == snap("A")
    world.flip(PTR, "D")
    assert previous(world).target == snap("B")
    world.rollback(PTR, "B", left=(False, False))
    assert previous(world).target == snap("A")
    world.replay()


def test_a_rollback_marks_what_it_leaves_and_holds() -> None:
    """Automation must not put the broken release back; a person who means it can."""
    world = World()
    world.flip(PTR, "A", "init")
    world.flip(PTR, "B")
    planned = world.rollback(PTR, "A")
    assert [(mark.snapshot, mark.verdict) for mark in planned.marks] == [(snap("B"), "bad")]
    with pytest.raises(SnapshotBad):
        world.flip(PTR, "B")
    with pytest.raises(Held):
        world.flip(PTR, "C")
    with pytest.raises(Held):
        world.flip(PTR, "B", clear=(True, False))
    forward = world.flip(PTR, "B", clear=(True, True))
    assert [(mark.snapshot, mark.verdict) for mark in forward.marks] == [(snap("B"), None)]
    leaf = world.machine.state.pointer(ptr(PTR))
    assert leaf is not None
    assert (leaf.bad, leaf.held) == ((), None)
    assert world.lookup.marks(ptr(PTR), snap("B")) is None
    world.replay()


def test_a_hold_does_not_stop_a_rollback_and_release_ends_it() -> None:
    world = World()
    world.flip(PTR, "A", "init")
    world.flip(PTR, "B")
    world.hold(PTR)
    world.rollback(PTR, "A", left=(False, False))
    with pytest.raises(Held):
        world.flip(PTR, "C")
    world.release(PTR)
    world.flip(PTR, "C")
    assert world.release(PTR).no_op
    world.replay()


def test_a_hold_with_an_end_ends() -> None:
    """Expiry changes no state, so every replay of the log agrees on it by the entries' times."""
    world = World()
    world.flip(PTR, "A", "init")
    until = world.ts + 10_000
    world.hold(PTR, until)
    assert world.hold(PTR, until).no_op
    with pytest.raises(Held):
        world.flip(PTR, "B")
    world.ts = until
    world.flip(PTR, "B")
    leaf = world.machine.state.pointer(ptr(PTR))
    assert leaf is not None
    assert leaf.held is not None
    with pytest.raises(InvalidInput, match="before it begins"):
        world.hold(PTR, world.ts)
    world.replay()


def test_the_resolved_target_must_still_be_the_answer() -> None:
    """Between asking what `previous` is and signing it someone marked it bad: the rollback is not done blindly."""
    world = World()
    for name in "ABC":
        world.flip(PTR, name, "init" if name == "A" else "deploy")
    act = world.sign(world.flip_args(PTR, "B", "rollback", resolve="previous"))
    world.mark(PTR, "B", "bad")
    with pytest.raises(Superseded):
        world.plan(act)
    with pytest.raises(Superseded, match="now"):
        world.rollback(PTR, "B")
    with pytest.raises(SnapshotBad):
        world.do(world.flip_args(PTR, "B", "rollback"))
    world.rollback(PTR, "A")


def test_incomplete_snapshots_are_passed_over_and_named() -> None:
    """The newest good release lost its content: the rollback takes the next, and a replay, which cannot know, agrees."""
    world = World()
    for name in "ABC":
        world.flip(PTR, name, "init" if name == "A" else "deploy")
    world.lookup.incomplete.add(snap("B"))
    resolved = previous(world)
    assert resolved.target == snap("A")
    assert [(item.snapshot, item.why) for item in resolved.skipped] == [(snap("B"), "incomplete")]
    world.rollback(PTR, "A")
    world.replay()


def test_a_rollback_goes_only_to_what_was_live_here() -> None:
    """One key rolls back where two deploy: it must not smuggle in something new."""
    world = World(
        policy_document(rule("**", ["alice", "bob"], ["carol"], deploy={"threshold": 2, "who": ["alice", "bob"]}))
    )
    both = ("alice", "bob")
    world.flip(PTR, "A", "init", both)
    world.flip(PTR, "B", who=both)
    with pytest.raises(NoRollbackTarget, match="never was live"):
        world.flip(PTR, "C", "rollback", ("carol",))
    with pytest.raises(NotPermitted) as error:
        world.flip(PTR, "A", "deploy", ("carol",))
    assert error.value.permission == f"deploy:{PTR}"
    with pytest.raises(NotPermitted):
        world.flip(PTR, "A", "rollback", both)
    world.flip(PTR, "A", "rollback", ("carol",), left=(True, True))
    world.replay()


def test_ending_a_hold_takes_as_many_keys_by_rollback_as_by_release() -> None:
    """Else one rollback key could lift what two deployers put on."""
    world = World(policy_document(rule("**", [], ["carol"], deploy={"threshold": 2, "who": ["alice", "bob"]})))
    both = ("alice", "bob")
    world.flip(PTR, "A", "init", both)
    world.flip(PTR, "B", who=both)
    world.hold(PTR, who=("alice",))
    with pytest.raises(NotPermitted):
        world.flip(PTR, "A", "rollback", ("carol",), clear=(False, True))
    with pytest.raises(NotPermitted):
        world.release(PTR, ("carol",))
    world.flip(PTR, "A", "rollback", ("alice", "bob", "carol"), clear=(False, True))
    world.replay()


def test_gating_and_age_bound_where_a_rollback_goes() -> None:
    """`mark_good`: only what was found good; `max_age_days`: only what was live lately."""
    verb = {"confirmed_good_only": False, "max_age_days": 2, "threshold": 1, "who": ["alice"]}
    world = World(policy_document(rule("**", ["alice"], gating="mark_good", rollback=verb)))
    for name in "ABCD":
        world.flip(PTR, name, "init" if name == "A" else "deploy")
    with pytest.raises(NoRollbackTarget) as error:
        previous(world)
    assert {item["why"] for item in error.value.skipped or []} == {"not-good"}
    world.mark(PTR, "B", "good")
    assert previous(world).target == snap("B")
    world.ts += 2 * 24 * 3_600_000 + 10_000
    with pytest.raises(NoRollbackTarget):
        previous(world)
    with pytest.raises(NoRollbackTarget, match="last 2 days"):
        world.flip(PTR, "B", "rollback")
    world.flip(PTR, "E")
    world.flip(PTR, "D", "rollback", left=(False, False))
    world.replay()


def test_confirmed_good_only() -> None:
    verb = {"confirmed_good_only": True, "max_age_days": None, "threshold": 1, "who": ["alice"]}
    world = World(policy_document(rule("**", ["alice"], rollback=verb)))
    world.flip(PTR, "A", "init")
    world.flip(PTR, "B")
    with pytest.raises(NoRollbackTarget, match="never marked good"):
        world.flip(PTR, "A", "rollback")
    world.mark(PTR, "A", "good")
    world.rollback(PTR, "A")
    world.replay()


def test_bad_marks_beyond_the_leaf_are_not_forgotten() -> None:
    """The leaf shows the newest 32; what fell off it still is bad."""
    names = [f"s{number}" for number in range(BAD_SNAPSHOTS_MAX + 2)]
    world = World()
    for name in names:
        world.publish(name)
    world.flip(PTR, "A", "init")
    for name in names:
        world.mark(PTR, name, "bad")
    leaf = world.machine.state.pointer(ptr(PTR))
    assert leaf is not None
    assert leaf.bad == tuple(snap(name) for name in names[-BAD_SNAPSHOTS_MAX:])
    with pytest.raises(SnapshotBad):
        world.flip(PTR, names[0])
    assert world.mark(PTR, names[0], "bad").no_op
    world.mark(PTR, names[0], "good")
    world.flip(PTR, names[0])
    world.replay()
