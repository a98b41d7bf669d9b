"""Answers against facts: every field that a person acts on must be what the log proves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from casstore.errors import InvalidDigest, InvalidInput, VerificationError
from casstore.formats.acts import AnyArgs, HoldArgs, MarkArgs, ReleaseArgs, SnapshotArgs
from casstore.wire import HistoryItem, HoldInfo, Pointer, Submitted, WasLive, format_time
from casstore_client.claims import check_pointer, check_submitted, check_was_live, snapshot_of
from casstore_client.facts import Facts, check_bundle
from tests.support.bundles import Tree, bundle_of
from tests.support.logworld import World, ptr, snap

PTR = "prod/api"


def facts_of(world: World, *pointers: str, entries: list[int] | None = None) -> Facts:
    facts = check_bundle(bundle_of(world, *pointers, entries=entries), Tree(world.entries).checkpoint)
    return facts._replace(principals={index: ["alice"] for index in facts.entries})


def answer_of(world: World, name: str = PTR) -> Pointer:
    leaf = world.machine.state.pointer(ptr(name))
    assert leaf is not None
    entry = world.entry(leaf.flip)
    return Pointer(
        pointer=name,
        snapshot=None if leaf.snapshot is None else str(leaf.snapshot),
        flip=leaf.flip,
        seq=leaf.seq,
        entry=leaf.flip,
        since=format_time(entry.ts),
        by="alice",
        reason="because",
        kind=entry.intent()[0].args["kind"],
        status="unmarked",
    )


LIES: dict[str, Any] = {
    "snapshot": str(snap("B")),
    "flip": 2,
    "seq": 7,
    "since": "2026-08-05T00:00:00.000Z",
    "by": "mallory",
    "reason": "another",
    "kind": "rollback",
    "hold": HoldInfo(entry=1, until=None, by="alice", reason=""),
    "pointer": "prod/other",
}


@pytest.mark.parametrize("field", LIES)
def test_no_field_of_a_pointer_is_believed(field: str) -> None:
    """`status` shows who, when, why and what: a server that changes any of it is caught."""
    world = World(snapshots="AB")
    world.flip(PTR, "A", "init")
    honest, facts = answer_of(world), facts_of(world, PTR)
    check_pointer(honest, facts)
    with pytest.raises(VerificationError):
        check_pointer(msgspec.structs.replace(honest, **{field: LIES[field]}), facts)
    with pytest.raises(VerificationError):
        check_pointer(msgspec.structs.replace(honest, pointer="../x"), facts)


def test_a_retired_and_a_held_pointer() -> None:
    """Nothing, and a hold, are told by the state as well."""
    world = World(snapshots="AB")
    world.flip(PTR, "A", "init")
    held = world.hold(PTR).idx
    facts = facts_of(world, PTR)
    hold = HoldInfo(entry=held, until=None, by="alice", reason="because")
    check_pointer(msgspec.structs.replace(answer_of(world), hold=hold), facts)
    world.release(PTR)
    world.flip(PTR, None, "retire")
    check_pointer(answer_of(world), facts_of(world, PTR))


def submitted(world: World, entry: int, *names: str, no_op: bool = False) -> Submitted:
    return Submitted(entry=entry, type="any", pointers=[answer_of(world, name) for name in names], no_op=no_op)


def test_what_was_logged_is_what_was_signed() -> None:
    """A server that logs another payload, or proves another entry, has not done what was asked."""
    world = World(snapshots="AB")
    planned = world.flip(PTR, "A", "init")
    payload = planned.entry.payload if planned.entry else None
    assert payload is not None
    facts = facts_of(world, PTR, entries=[2, 3])
    check_submitted(submitted(world, 3, PTR), facts, payload)
    for answer, signed in (
        (submitted(world, 2, PTR), payload),
        (submitted(world, 1, PTR), payload),
        (submitted(world, 3), payload),
        (submitted(world, 3, PTR), world.intent(world.flip_args(PTR, "B"))),
    ):
        with pytest.raises(VerificationError):
            check_submitted(answer, facts, signed)


def test_nothing_to_do_must_be_so() -> None:
    """`Nothing to do` is an answer too: it ends a deploy."""
    world = World(snapshots="AB")
    world.flip(PTR, "A", "init")
    facts = facts_of(world, PTR, entries=[1, 3])
    said = submitted(world, 3, PTR, no_op=True)

    def refuse(answer: Submitted, args: AnyArgs) -> None:
        with pytest.raises(VerificationError):
            check_submitted(answer, facts, world.intent(args))

    check_submitted(said, facts, world.intent(world.flip_args(PTR, "A")))
    refuse(said, world.flip_args(PTR, "B"))
    check_submitted(said, facts, world.intent(ReleaseArgs(pointer=ptr(PTR))))
    refuse(said, HoldArgs(pointer=ptr(PTR), until=None))
    check_submitted(said, facts, world.intent(MarkArgs(pointer=ptr(PTR), snapshot=snap("A"), verdict="good")))
    published = submitted(world, 1, no_op=True)
    check_submitted(published, facts, world.intent(SnapshotArgs(digest=snap("A"), parents=[], size=100)))
    refuse(published, SnapshotArgs(digest=snap("B"), parents=[], size=100))


def was_live(world: World, asked: str, flip: int | None, until: int | None) -> WasLive:
    item = None
    if flip is not None:
        entry = world.entry(flip)
        args = entry.intent()[0].args
        item = HistoryItem(
            pointer=PTR,
            flip=flip,
            seq=flip - 2,
            kind=args["kind"],
            from_=None,
            to=args["members"][0]["to"],
            at=format_time(entry.ts),
            by="alice",
            reason="because",
            status="unmarked",
        )
    return WasLive(
        pointer=PTR,
        asked=asked,
        snapshot=None if item is None else item.to,
        flip=item,
        valid_from=None if item is None else item.at,
        valid_until=None if until is None else format_time(world.entry(until).ts),
    )


@pytest.fixture
def three() -> World:
    """Snapshots at 1 and 2, then the flips 3 (A), 4 (B), 5 (A)."""
    world = World(snapshots="AB")
    world.flip(PTR, "A", "init")
    world.flip(PTR, "B")
    world.flip(PTR, "A")
    return world


def test_what_was_live_is_proven_from_both_sides(three: World) -> None:
    """The flip before and the flip behind, which names the first as what it replaced; or the state of now."""
    moment = format_time(three.entry(4).ts)
    check_was_live(was_live(three, moment, 4, 5), facts_of(three, entries=[4, 5]))
    check_was_live(was_live(three, "f4", 4, 5), facts_of(three, entries=[4, 5]))
    check_was_live(was_live(three, "f5", 5, None), facts_of(three, PTR, entries=[5]))
    check_was_live(was_live(three, "f2", None, 3), facts_of(three, entries=[3]))


@pytest.mark.parametrize(
    ("lie", "names", "entries"),
    [
        pytest.param(lambda w: was_live(w, "f4", 3, 5), (), [3, 5], id="a flip in between is left out"),
        pytest.param(lambda w: was_live(w, "f4", 3, 4), (), [3, 4], id="what ended before"),
        pytest.param(lambda w: was_live(w, "f4", 5, None), (PTR,), [5], id="what came after"),
        pytest.param(lambda w: was_live(w, "f4", 4, None), (PTR,), [4], id="said to be live still"),
        pytest.param(lambda w: was_live(w, "f4", 4, None), (), [4], id="no state proof"),
        pytest.param(lambda w: was_live(w, "f4", 4, 5), (), [4], id="no flip behind"),
        pytest.param(lambda w: was_live(w, "f4", None, 3), (), [3], id="nothing, though it existed"),
        pytest.param(lambda w: was_live(w, "f2", None, 4), (), [4], id="the first flip is left out"),
        pytest.param(lambda w: was_live(w, "f2", None, None), (), [], id="nothing at all"),
        pytest.param(
            lambda w: msgspec.structs.replace(was_live(w, "f4", 4, 5), snapshot=str(snap("A"))),
            (),
            [4, 5],
            id="another snapshot",
        ),
        pytest.param(
            lambda w: msgspec.structs.replace(was_live(w, "f2", None, 3), snapshot=str(snap("A"))),
            (),
            [3],
            id="a snapshot without a flip",
        ),
        pytest.param(
            lambda w: msgspec.structs.replace(was_live(w, "f4", 4, 5), valid_until=format_time(0)),
            (),
            [4, 5],
            id="another end",
        ),
    ],
)
def test_lies_about_the_past(
    three: World, lie: Callable[[World], WasLive], names: tuple[str, ...], entries: list[int]
) -> None:
    """ "What was live in prod at that time" decides who is to blame: no way to answer it wrongly."""
    with pytest.raises(VerificationError):
        check_was_live(lie(three), facts_of(three, *names, entries=entries))


def test_only_whole_digests_are_signed() -> None:
    """A shortened digest in an intent would mean what the server likes."""
    assert snapshot_of(str(snap("A"))) == snap("A")
    with pytest.raises(InvalidInput):
        snapshot_of("abcdef123456")
    with pytest.raises(InvalidDigest):
        snapshot_of("blake3:abc")
