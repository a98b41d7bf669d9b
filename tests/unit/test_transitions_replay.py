"""What an auditor finds.  Who breaks these lets a server rewrite what was signed."""

from __future__ import annotations

import time

import pytest

from casstore.errors import (
    CasstoreError,
    TooLarge,
    VerificationError,
)
from casstore.formats.acts import MarkArgs, PolicyArgs
from casstore.formats.entry import decode_entry, encode_entry, flips_of
from casstore.transitions.authority import judge_entry, next_policy
from casstore.transitions.replay import Replay, replay_entry
from tests.support.logworld import START_MS, World, policy_document, ptr, rule, snap

PTR = "prod/api"


# --- what the auditor sees -------------------------------------------------------------------------------------------


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
