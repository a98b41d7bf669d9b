"""Who may do what, under which policy and when.  Who breaks these lets someone deploy who must not."""

from __future__ import annotations

from typing import Any

import pytest

from casstore.errors import (
    IntentExpired,
    MalformedDocument,
    NotPermitted,
    PreconditionFailed,
    SeenMismatch,
    SignatureInvalid,
    Superseded,
    Unsupported,
    WrongLog,
)
from casstore.formats.acts import GenesisArgs, Member, PolicyArgs, PreviousLog, SnapshotArgs, flip_args
from casstore.formats.intent import sign_intent
from casstore.transitions.machine import Machine, SignedAct
from tests.support.logworld import ORIGIN, World, key, policy_document, ptr, rule, snap

PTR = "prod/api"


# --- signatures, policy, time ----------------------------------------------------------------------------------------


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


# --- policy ----------------------------------------------------------------------------------------------------------


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


def test_a_log_does_not_continue_itself() -> None:
    """Who lost entries starts a log of another name, so that no one takes the two for one."""
    for origin, match in ((ORIGIN, "continue itself"), ("casstore/before", "")):
        world = World(policy_document(), snapshots="")
        prev = PreviousLog(origin=origin, root="00" * 32, size=7)
        args = GenesisArgs(policy=policy_document(), prev=prev)
        act = world.sign(args, policy=0, seen_size=0, seen_root=world.roots[0])
        machine = Machine(ORIGIN)
        if match:
            with pytest.raises(MalformedDocument, match=match):
                machine.plan(act, idx=0, ts=world.ts, lookup=world.lookup)
        else:
            assert machine.plan(act, idx=0, ts=world.ts, lookup=world.lookup).entry is not None


def test_the_first_entry_is_the_genesis() -> None:
    world = World()
    machine = Machine(ORIGIN)
    act = world.sign(world.flip_args(PTR, "A", "init"), policy=0, seen_size=0, seen_root=world.roots[0])
    with pytest.raises(SignatureInvalid):
        machine.plan(act, idx=0, ts=world.ts, lookup=world.lookup)
    with pytest.raises(Superseded, match="version 1"):
        World(policy_document(version=2))
