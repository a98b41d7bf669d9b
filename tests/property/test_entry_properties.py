"""Entries and transitions under random histories."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.errors import CasstoreError
from casstore.formats.entry import decode_entry, encode_entry
from casstore.formats.state import State
from casstore.transitions.rollback import resolve_previous
from tests.support.logworld import World, policy_document, ptr, rule, snap

POINTERS = st.sampled_from(["prod/api", "prod/web"])
SNAPS = st.sampled_from("ABCD")
STEPS = st.one_of(
    st.tuples(st.just("flip"), POINTERS, SNAPS, st.booleans(), st.booleans()),
    st.tuples(st.just("rollback"), POINTERS, st.booleans(), st.booleans()),
    st.tuples(st.just("mark"), POINTERS, SNAPS, st.sampled_from(["good", "bad"])),
    st.tuples(st.just("hold"), POINTERS),
    st.tuples(st.just("release"), POINTERS),
    st.tuples(st.just("retire"), POINTERS),
)


def step(world: World, what: tuple[Any, ...]) -> None:
    name, pointer = what[0], what[1]
    leaf = world.machine.state.pointer(ptr(pointer))
    if name == "flip":
        world.flip(pointer, what[2], "deploy", clear=(what[3], what[4]))
    elif name == "mark":
        world.mark(pointer, what[2], what[3])
    elif name == "hold":
        world.hold(pointer)
    elif name == "release":
        world.release(pointer)
    elif leaf is None:
        return
    elif name == "retire":
        world.flip(pointer, None, "retire", clear=(False, True))
    else:
        assert world.machine.policy is not None
        applied = world.machine.policy.rule_for(ptr(pointer))
        assert applied is not None
        target = resolve_previous(leaf, applied, ts=world.ts, lookup=world.lookup).target
        left_before = rolled_back_from(world, pointer)
        # The promise: never what was just rolled back from.
        assert target not in left_before
        letter = next(letter for letter in "ABCDEF" if snap(letter) == target)
        world.rollback(pointer, letter, left=(what[2], what[3]))


def rolled_back_from(world: World, pointer: str) -> set[object]:
    """What the run of rollbacks that ends at the current flip has left."""
    rows = list(world.lookup.history(ptr(pointer)))
    left: set[object] = set()
    for newer, older in pairwise(rows):
        if newer.kind != "rollback":
            break
        left.add(older.to)
    return left


@given(st.lists(STEPS, max_size=14))
@settings(max_examples=60, deadline=None)
def test_whatever_was_accepted_replays(steps: list[tuple[Any, ...]]) -> None:
    """Server and auditor come to the same state by the same bytes, whatever happened in between."""
    world = World(policy_document(rule("**", ["alice"])), snapshots="ABCD")
    for what in steps:
        with suppress(CasstoreError):
            step(world, what)
    replay = world.replay()
    assert State(replay.machine.state.leaves()).root == world.machine.root
    for data in world.entries:
        assert encode_entry(decode_entry(data)) == data


BASE = World(snapshots="A")
BASE.flip("prod/api", "A", "init")


@given(st.sampled_from(BASE.entries), st.integers(0, 10_000), st.integers(0, 255))
@settings(deadline=None)
def test_a_changed_byte_is_refused_or_read_as_what_it_spells(data: bytes, at: int, byte: int) -> None:
    mutated = bytearray(data)
    mutated[at % len(data)] = byte
    try:
        entry = decode_entry(bytes(mutated))
    except CasstoreError:
        return
    assert encode_entry(entry) == bytes(mutated)


@given(st.binary(max_size=300))
def test_any_bytes_give_an_entry_or_our_own_error(data: bytes) -> None:
    try:
        decode_entry(data)
    except CasstoreError:
        return
    raise AssertionError("random bytes are no entry")
