"""What an act may do, and what stops it.  Who breaks these breaks deployers, or lets someone deploy who must not."""

from __future__ import annotations

import time
from typing import Any

import pytest

from casstore.errors import (
    CapacityError,
    CasstoreError,
    DamagedObject,
    Held,
    IntentExpired,
    InvalidInput,
    MalformedDocument,
    NoRollbackTarget,
    NotPermitted,
    PointerNotFound,
    PreconditionFailed,
    SeenMismatch,
    SignatureInvalid,
    SnapshotBad,
    SnapshotIncomplete,
    SnapshotNotFound,
    Superseded,
    TooLarge,
    Unsupported,
    VerificationError,
    WrongLog,
)
from casstore.formats.acts import GenesisArgs, MarkArgs, Member, PolicyArgs, SnapshotArgs, flip_args
from casstore.formats.entry import decode_entry, encode_entry, flips_of
from casstore.formats.intent import sign_intent
from casstore.limits import BAD_SNAPSHOTS_MAX, POINTERS_MAX
from casstore.transitions.authority import judge_entry, next_policy
from casstore.transitions.machine import Machine, SignedAct
from casstore.transitions.replay import Replay, replay_entry
from casstore.transitions.rollback import resolve_previous
from tests.support.logworld import ORIGIN, START_MS, World, key, policy_document, ptr, rule, snap

PTR = "prod/api"


def previous(world: World, pointer: str = PTR) -> Any:
    leaf = world.machine.state.pointer(ptr(pointer))
    assert leaf is not None
    assert world.machine.policy is not None
    applied = world.machine.policy.rule_for(ptr(pointer))
    assert applied is not None
    return resolve_previous(leaf, applied, ts=world.ts, lookup=world.lookup)


# --- the thin path -----------------------------------------------------------------------------------------------------


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


# --- compare and swap --------------------------------------------------------------------------------------------------


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


# --- rollback ----------------------------------------------------------------------------------------------------------


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
    assert {item["why"] for item in pytest.raises(NoRollbackTarget, previous, world).value.skipped or []} == {
        "not-good"
    }
    world.mark(PTR, "B", "good")
    assert previous(world).target == snap("B")
    world.ts += 2 * 24 * 3_600_000 + 10_000
    pytest.raises(NoRollbackTarget, previous, world)
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


# --- marks, holds, snapshots -------------------------------------------------------------------------------------------


def test_marks_and_holds_need_their_pointer_and_snapshot() -> None:
    world = World()
    for act in (lambda: world.mark(PTR, "A", "good"), lambda: world.hold(PTR), lambda: world.release(PTR)):
        with pytest.raises(PointerNotFound):
            act()
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


# --- signatures, policy, time ------------------------------------------------------------------------------------------


def test_a_stranger_and_a_forger_are_refused() -> None:
    """A key of no one, and a good key's name over other bytes."""
    world = World()
    payload = world.intent(world.flip_args(PTR, "A", "init"))
    with pytest.raises(SignatureInvalid, match="does not know"):
        world.plan(SignedAct(sign_intent(payload, [key("mallory")])))
    with pytest.raises(SignatureInvalid, match="does not know"):
        world.plan(SignedAct(sign_intent(payload, [key("alice"), key("mallory")])))
    other = sign_intent(world.intent(world.flip_args(PTR, "B", "init")), [key("alice")])
    good = sign_intent(payload, [key("alice")])
    forged = type(good)(payload=good.payload, payload_type=good.payload_type, signatures=other.signatures)
    with pytest.raises(SignatureInvalid, match="does not verify"):
        world.plan(SignedAct(forged))


def test_one_person_with_two_keys_counts_once() -> None:
    """Two of two means two people."""
    document = policy_document(rule("**", [], ["alice"], deploy={"threshold": 2, "who": ["alice", "bob"]}))
    keys = sorted([key("alice").verifier.encode(), key("alice-laptop").verifier.encode()])
    document["principals"][0]["keys"] = keys
    world = World(document)
    with pytest.raises(NotPermitted, match="takes 2 of alice, bob"):
        world.flip(PTR, "A", "init", ("alice", "alice-laptop"))
    world.flip(PTR, "A", "init", ("alice", "alice-laptop", "bob"))


def test_the_first_rule_decides_and_no_rule_denies() -> None:
    world = World(policy_document(rule("prod/**", ["alice"]), rule("dev/*", ["bob"], deploy=None)))
    with pytest.raises(NotPermitted, match="prod/api"):
        world.flip(PTR, "A", "init", ("bob",))
    with pytest.raises(NotPermitted, match="lets no one deploy dev/x"):
        world.flip("dev/x", "A", "init", ("bob",))
    with pytest.raises(NotPermitted, match="no rule for stage"):
        world.flip("stage", "A", "init", ("alice",))


def test_an_intent_is_for_one_log_one_policy_and_a_while() -> None:
    """What was signed for staging, under yesterday's policy, or last week does not work here and now."""
    world = World()
    args = world.flip_args(PTR, "A", "init")
    for change, error in (
        ({"log": "casstore/ffffffffffffffff"}, WrongLog),
        ({"policy": 2}, Superseded),
        ({"policy": 0}, Superseded),
        ({"iat": world.ts - 61_000, "exp": world.ts - 1}, IntentExpired),
        ({"iat": world.ts + 60_001, "exp": world.ts + 70_000}, IntentExpired),
        ({"iat": world.ts, "exp": world.ts + 3_600_001}, IntentExpired),
    ):
        with pytest.raises(error):
            world.plan(world.sign(args, **change))
    stranger = SignedAct(sign_intent(world.intent(args, log="casstore/ffffffffffffffff"), [key("mallory")]))
    with pytest.raises(WrongLog):
        world.plan(stranger)
    world.plan(world.sign(args, iat=world.ts + 60_000, exp=world.ts + 60_000 + 3_600_000))
    world.plan(world.sign(args, iat=world.ts - 60_000, exp=world.ts))


def test_what_the_signer_saw_must_be_this_log() -> None:
    """A server that forks gets intents that contradict one branch; a signer from the future is from another branch."""
    world = World()
    args = world.flip_args(PTR, "A", "init")
    world.plan(world.sign(args, seen_size=2, seen_root=world.roots[2]))
    world.plan(world.sign(args, seen_size=0, seen_root=world.roots[0]))
    with pytest.raises(SeenMismatch, match="not those"):
        world.plan(world.sign(args, seen_size=2, seen_root=world.roots[3]))
    with pytest.raises(SeenMismatch, match="saw a log of"):
        world.plan(world.sign(args, seen_size=len(world.entries) + 1))


def test_unsigned_only_where_the_rule_says_so() -> None:
    """curl with a token flips dev, never prod, and only as a principal whom the policy names."""
    world = World(policy_document(rule("dev/**", ["alice"], unsigned=True), rule("**", ["alice"])))
    with pytest.raises(NotPermitted, match="signed acts on prod/api"):
        world.plan(world.vouch(world.flip_args(PTR, "A", "init")))
    both = flip_args("init", [world.member("dev/a", "A"), world.member(PTR, "A")])
    with pytest.raises(NotPermitted, match="signed acts on prod/api"):
        world.plan(world.vouch(both))
    with pytest.raises(NotPermitted, match="not a principal"):
        world.plan(world.vouch(world.flip_args("dev/a", "A", "init"), "mallory"))
    with pytest.raises(NotPermitted, match="does not let bob deploy"):
        world.plan(world.vouch(world.flip_args("dev/a", "A", "init"), "bob"))
    with pytest.raises(NotPermitted, match="only acts on pointers"):
        world.plan(world.vouch(SnapshotArgs(digest=snap("Z"), parents=[], size=1)))
    planned = world.commit(world.plan(world.vouch(world.flip_args("dev/a", "A", "init"))))
    assert planned.principals == ("alice",)
    assert world.entry().auth is not None
    world.replay()


def test_signatures_come_before_the_precondition() -> None:
    """Who may not flip does not learn where a pointer is."""
    world = World(policy_document(rule("**", ["alice"])))
    world.flip(PTR, "A", "init")
    stale = flip_args("deploy", [Member(expect=1, pointer=ptr(PTR), to=snap("B"))])
    with pytest.raises(NotPermitted):
        world.plan(world.sign(stale, ("bob",)))
    with pytest.raises(PreconditionFailed):
        world.plan(world.sign(stale))


# --- policy ------------------------------------------------------------------------------------------------------------


def test_a_policy_needs_the_old_and_the_new_root() -> None:
    """The old root alone could lock everyone out by mistake, the new alone could take over."""
    world = World(policy_document(rule("**", ["alice"])))
    new = policy_document(
        rule("**", ["dave"]), people=("carol", "dave"), version=2, root={"threshold": 1, "who": ["dave"]}
    )
    args = PolicyArgs(policy=new, version=2)
    with pytest.raises(NotPermitted, match="make this the policy"):
        world.plan(world.sign(args))
    with pytest.raises(NotPermitted, match="change the policy"):
        world.plan(world.sign(args, ("dave",)))
    with pytest.raises(SignatureInvalid):
        world.plan(world.sign(args, ("alice", "dave", "mallory")))
    world.do(args, ("alice", "dave"))
    with pytest.raises(SignatureInvalid):
        world.flip(PTR, "A", "init", ("alice",))
    world.flip(PTR, "A", "init", ("dave",))
    replay = world.replay()
    assert replay.machine.policy is not None
    assert replay.machine.policy.version == 2


def test_policy_versions_count_up_by_one() -> None:
    world = World(policy_document())
    with pytest.raises(Superseded):
        world.set_policy(policy_document(version=3))
    with pytest.raises(MalformedDocument, match="speaks of"):
        world.do(PolicyArgs(policy=policy_document(version=2), version=3))
    world.set_policy(policy_document(version=2))
    with pytest.raises(MalformedDocument, match="one genesis"):
        world.do(GenesisArgs(policy=policy_document(), prev=None))


@pytest.mark.parametrize(
    "change",
    [
        {"gating": "hosts:50"},
        {"witness": {"deploy": "required", "rollback": "async"}},
        {"require": [{"predicate": "tests", "threshold": 1, "who": ["alice"]}]},
    ],
)
def test_a_policy_that_asks_for_what_is_not_there_yet_is_refused(change: dict[str, Any]) -> None:
    """It would look safer than it is."""
    with pytest.raises(Unsupported):
        World(policy_document(rule("**", ["alice"], **change)))


def test_the_first_entry_is_the_genesis() -> None:
    world = World()
    machine = Machine(ORIGIN)
    act = world.sign(world.flip_args(PTR, "A", "init"), policy=0, seen_size=0, seen_root=world.roots[0])
    with pytest.raises(SignatureInvalid):
        machine.plan(act, idx=0, ts=world.ts, lookup=world.lookup)
    with pytest.raises(Superseded, match="version 1"):
        World(policy_document(version=2))


# --- what the auditor sees ---------------------------------------------------------------------------------------------


def busy_world() -> World:
    """A log with one of everything."""
    world = World(policy_document(rule("dev/**", ["alice"], unsigned=True), rule("**", ["alice", "bob"])))
    world.flip(PTR, "A", "init")
    world.flip(PTR, "B")
    world.mark(PTR, "B", "good")
    world.rollback(PTR, "A")
    world.release(PTR)
    world.hold(PTR, world.ts + 60_000)
    world.commit(world.plan(world.vouch(world.flip_args("dev/x", "C", "init"))))
    world.set_policy(policy_document(version=2))
    world.flip(PTR, "C", "promote", clear=(False, True))
    world.flip("dev/x", None, "retire")
    return world


def test_replay_reproduces_every_kind_of_entry() -> None:
    world = busy_world()
    assert {decode_entry(data).type for data in world.entries} == {
        "genesis", "policy", "snapshot", "flip", "mark", "hold", "release",
    }  # fmt: skip
    world.replay()
    policy = None
    for data in world.entries:
        entry = decode_entry(data)
        judged = judge_entry(entry, policy)
        if entry.type in ("genesis", "policy"):
            policy = next_policy(policy, entry)
        assert judged.policy is policy or entry.type in ("genesis", "policy")


def test_a_body_that_lies_is_named_by_its_index() -> None:
    """The server alone writes the body: a `from`, a `seq`, a state root that do not follow are found, at their entry."""
    world = busy_world()
    index = next(i for i, data in enumerate(world.entries) if decode_entry(data).type == "flip" and i > 8)
    entry = decode_entry(world.entries[index])
    member = entry.body["members"][0]
    lies = [
        entry._replace(body={"members": [{**member, "seq": member["seq"] + 1}]}),
        entry._replace(body={"members": [{**member, "from": str(snap("F"))}]}),
        entry._replace(body={"members": [{**member, "to": str(snap("F"))}]}),
        entry._replace(state=entry.state._replace(root=bytes(32))),
        entry._replace(state=entry.state._replace(n=7)),
        entry._replace(ts=START_MS - 10_000_000),
        entry._replace(ts=entry.ts + 90_000_000),
        entry._replace(idx=index + 1),
        entry._replace(log="casstore/other"),
        entry._replace(auth=None),
        entry._replace(type="hold", body={}),
    ]
    for lie in lies:
        replay = Replay(lambda size: world.roots[size])
        for data in world.entries[:index]:
            replay.take(data)
        with pytest.raises(VerificationError) as error:
            replay_entry(replay.machine, encode_entry(lie), replay.lookup)
        assert error.value.index == index
        assert replay.machine.size == index


def test_a_target_that_was_not_signed_is_found_by_its_reader() -> None:
    """Also without replay: body and payload of one entry are held against each other."""
    world = World()
    world.flip(PTR, "A", "init")
    entry = world.entry()
    lie = entry._replace(body={"members": [{**entry.body["members"][0], "to": str(snap("F"))}]})
    with pytest.raises(VerificationError, match="not what was signed"):
        flips_of(lie)
    with pytest.raises(VerificationError):
        judge_entry(entry._replace(type="hold", body={}), world.machine.policy)


def test_an_intent_carried_out_twice_is_found() -> None:
    """Each act once: a server that replays an old release has its index named."""
    world = World()
    world.flip(PTR, "A", "init")
    world.flip(PTR, "B")
    act = world.sign(MarkArgs(pointer=ptr(PTR), snapshot=snap("A"), verdict="good"))
    world.commit(world.plan(act))
    world.mark(PTR, "A", "bad")
    world.commit(world.plan(act))
    with pytest.raises(VerificationError, match="earlier entry carried out"):
        world.replay()


def test_an_entry_that_does_nothing_is_found() -> None:
    world = World()
    world.flip(PTR, "A", "init")
    planned = world.plan(world.sign(world.flip_args(PTR, "B")))
    world.flip(PTR, "B")
    assert planned.entry is not None
    replay = world.replay()
    again = world.sign(world.flip_args(PTR, "B"))
    forged = planned.entry._replace(auth=again.envelope, idx=replay.machine.size, ts=world.ts)
    with pytest.raises(VerificationError, match="does nothing"):
        replay_entry(replay.machine, encode_entry(forged), replay.lookup)


def test_an_entry_that_no_leaf_could_hold_is_refused() -> None:
    """Before anything is written: the size of the entry counts, not the payload's alone."""
    world = World(policy_document(people=[f"person-{number:03d}" for number in range(300)]), snapshots="")
    people = [f"person-{number:03d}" for number in range(600)]
    with pytest.raises(TooLarge):
        world.do(PolicyArgs(policy=policy_document(people=people, version=2), version=2), ["person-000"])


def test_every_refusal_leaves_the_machine_as_it_was() -> None:
    world = busy_world()
    before, size = world.machine.root, world.machine.size
    for act in (
        world.sign(world.flip_args(PTR, "unknown")),
        world.sign(world.flip_args("new/x", "unknown", "init")),
        world.sign(world.flip_args(PTR, "B"), ("carol",)),
    ):
        with pytest.raises(CasstoreError):
            world.plan(act)
    assert (world.machine.root, world.machine.size) == (before, size)


def test_planning_is_quick() -> None:
    """A writer that takes a thousand flips a second has a millisecond for each: this is the best of many, unloaded."""
    world = World()
    for number in range(64):
        world.flip(f"prod/p{number}", "A", "init")
    act = world.sign(world.flip_args("prod/p7", "B"))
    best = 1.0
    for _ in range(50):
        start = time.perf_counter()
        world.plan(act)
        best = min(best, time.perf_counter() - start)
    assert best < 0.005
