"""Flips, rollbacks, marks and holds: what a deployer is told, and what stays unchanged when the answer is no."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from casstore.engine.pointers import Caller, Expect, UnsignedRollback
from casstore.engine.targets import PREVIOUS
from casstore.errors import (
    CasstoreError,
    ClockUntrusted,
    DigestMismatch,
    Held,
    IdempotencyKeyReused,
    InvalidInput,
    NoRollbackTarget,
    NotPermitted,
    PointerNotFound,
    PreconditionFailed,
    SnapshotBad,
    SnapshotIncomplete,
    SnapshotNotFound,
    StoreFull,
    Superseded,
)
from casstore.formats.acts import Member, ReleaseArgs, SnapshotArgs, flip_args
from casstore.formats.snapshot import Component, Snapshot, encode_snapshot, snapshot_digest
from casstore.ids import BlobDigest, ComponentName, PointerName, PrincipalName, SnapshotDigest
from casstore.storage.memory.ledger import MemoryLedger, MemoryLedgerTransaction
from casstore.wire import RollbackTo, Submitted, decode_json, encode_json, format_ago
from tests.support.ledgerworld import API, OPEN, WEB, LedgerWorld, world_policy


@pytest.fixture
def world() -> LedgerWorld:
    return LedgerWorld()


def of(answer: Submitted | CasstoreError) -> Submitted:
    assert isinstance(answer, Submitted), answer
    return answer


# --- flips -----------------------------------------------------------------------------------------------------------


def test_flip_is_answered_with_proofs_of_one_size(world: LedgerWorld) -> None:
    """A deployer holds checkpoint, entry and state proof in hand when the answer comes, and needs no second request."""
    one = world.publish("one")
    answer = world.one(world.ask_flip(API, one, None))
    (leaf,) = world.verify(answer.proof)
    assert (leaf.pointer, leaf.snapshot, leaf.flip, leaf.seq) == (API, one, answer.entry, 1)
    (pointer,) = answer.pointers
    assert (pointer.snapshot, pointer.flip, pointer.kind, pointer.by) == (str(one), answer.entry, "init", "operator")
    assert pointer.etag == f'"f{answer.entry}.e{answer.entry}"'
    assert decode_json(encode_json(answer), Submitted) == answer


def test_beaten_flip_names_who_won_and_changes_nothing(world: LedgerWorld) -> None:
    """Two engineers at once: the second sees whose rollback it was, not a number."""
    one, two = world.publish("one"), world.publish("two")
    first = world.flip(API, one, None)
    second = world.flip(API, two, first)
    world.rollback(API, by="bob")
    world.clock.advance(12_000)
    before = world.pointers.read.pointer(API)
    with pytest.raises(PreconditionFailed) as caught:
        world.one(world.ask_flip(API, one, second))
    assert caught.value.detail == (
        f"prod/api is at f{before.flip} (rollback by bob, 12 s ago), you expected f{second}. Nothing changed."
    )
    assert caught.value.current is not None
    assert caught.value.current["flip"] == before.flip
    assert caught.value.current["by"] == "bob"
    assert world.pointers.read.pointer(API) == before


def test_flip_of_a_pointer_that_is_not_there(world: LedgerWorld) -> None:
    one = world.publish("one")
    flip = world.flip(WEB, one, None)
    with pytest.raises(PreconditionFailed, match="there is no pointer prod/api, you expected f"):
        world.one(world.ask_flip(API, one, flip))
    with pytest.raises(PreconditionFailed, match="you expected no such pointer yet"):
        world.one(world.ask_flip(WEB, one, None))


def test_batch_rejects_each_failure_alone(world: LedgerWorld) -> None:
    """One typo among sixty-four requests costs one answer, and its neighbours see nothing of it."""
    one = world.publish("one")
    never = SnapshotDigest(bytes(32))
    names = [PointerName(f"svc/p{number}") for number in range(6)]
    batch = [world.ask_flip(name, never if number % 2 else one, None) for number, name in enumerate(names)]
    answers = world.submit(*batch)
    assert [isinstance(answer, SnapshotNotFound) for answer in answers] == [False, True] * 3
    done = [of(answer) for answer in answers[::2]]
    assert [answer.entry for answer in done] == list(range(done[0].entry, done[0].entry + 3))
    for answer in done:
        world.verify(answer.proof)
    assert len({answer.proof.checkpoint for answer in done if answer.proof}) == 1
    assert [pointer.pointer for pointer in world.pointers.read.list("svc/").pointers] == names[::2]
    assert world.fsck().ok


def test_race_in_one_batch_has_one_winner(world: LedgerWorld) -> None:
    one, two = world.publish("one"), world.publish("two")
    first = world.flip(API, one, None)
    answers = world.submit(*(world.ask_flip(API, two, first, by=by) for by in ("alice", "bob", "operator")))
    assert [type(answer) for answer in answers] == [Submitted, PreconditionFailed, PreconditionFailed]
    assert world.pointers.read.pointer(API).seq == 2


def test_transaction_moves_all_pointers_or_none(world: LedgerWorld) -> None:
    one, two = world.publish("one"), world.publish("two")
    first = world.flip(API, one, None)
    members = [Member(expect=first, pointer=API, to=two), Member(expect=first, pointer=WEB, to=two)]
    with pytest.raises(PreconditionFailed):
        world.one(world.sign("flip", flip_args("deploy", members)))
    assert world.pointers.read.pointer(API).snapshot == str(one)
    members[1] = Member(expect=None, pointer=WEB, to=two)
    answer = world.one(world.sign("flip", flip_args("deploy", members)))
    assert [(pointer.pointer, pointer.flip) for pointer in answer.pointers] == [
        (API, answer.entry),
        (WEB, answer.entry),
    ]
    assert len(world.verify(answer.proof)) == 2


def test_flip_to_where_it_is_writes_nothing(world: LedgerWorld) -> None:
    """A GitOps loop that flips to the same snapshot every minute does not fill the log."""
    one = world.publish("one")
    first = world.flip(API, one, None)
    size = world.log.size
    answer = world.one(world.ask_flip(API, one, first))
    assert (answer.no_op, answer.entry, world.log.size) == (True, first, size)
    world.verify(answer.proof)


def test_retry_of_a_success_is_that_success(world: LedgerWorld) -> None:
    """A client whose connection broke asks again and learns that it won, though the pointer has moved on since."""
    one, two = world.publish("one"), world.publish("two")
    ask = world.ask_flip(API, one, None)
    first = world.one(ask)
    world.flip(API, two, first.entry)
    size = world.log.size
    again = world.one(ask)
    assert (again.replayed, again.entry, again.type) == (True, first.entry, "flip")
    assert again.pointers[0].snapshot == str(two)
    assert world.log.size == size
    world.verify(again.proof)
    world.reopen()
    assert world.one(ask).replayed
    twice = world.ask_flip(WEB, one, None)
    answers = [of(answer) for answer in world.submit(twice, twice)]
    assert [answer.replayed for answer in answers] == [False, True]
    assert answers[0].entry == answers[1].entry


def test_failure_is_not_remembered(world: LedgerWorld) -> None:
    """What failed for want of content succeeds, with the same intent, once the content is there."""
    document = encode_snapshot(Snapshot(metadata={"name": "late"}))
    digest = snapshot_digest(document)
    ask = world.sign("snapshot", SnapshotArgs(digest=digest, parents=[], size=len(document)))
    with pytest.raises(SnapshotNotFound):
        world.one(ask)
    world.content.put([document])
    assert not world.one(ask).replayed


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_incomplete_snapshot_is_not_published(world: LedgerWorld) -> None:
    """A flip that could not be served is stopped before there is anything to flip to, naming what to push."""
    lost = BlobDigest(b"\x07" * 32)
    component = Component(ComponentName("app"), "blob", lost)
    document = encode_snapshot(Snapshot(components=(component,)))
    world.content.put([document])
    args = SnapshotArgs(digest=snapshot_digest(document), parents=[], size=len(document))
    with pytest.raises(SnapshotIncomplete) as caught:
        world.one(world.sign("snapshot", args))
    assert caught.value.missing_count == 1
    assert caught.value.missing == [str(lost)]
    with pytest.raises(SnapshotNotFound):
        world.one(world.ask_flip(API, args.digest, None))


def test_snapshot_is_published_once(world: LedgerWorld) -> None:
    one = world.publish("one")
    document = world.content.document(one)
    args = SnapshotArgs(digest=one, parents=[], size=len(document))
    again = world.one(world.sign("snapshot", args))
    published = world.pointers.read.snapshots().snapshots[0]
    assert (again.no_op, again.entry) == (True, published.entry)
    child = encode_snapshot(Snapshot(parents=(one,)))
    world.content.put([child])
    wrong = world.sign("snapshot", SnapshotArgs(digest=snapshot_digest(child), parents=[], size=len(child)))
    with pytest.raises(DigestMismatch, match="another document"):
        world.one(wrong)


# --- back, marks, holds ------------------------------------------------------------------------------------------------


def test_second_rollback_goes_further_back(world: LedgerWorld) -> None:
    """At 2 AM the second attempt must not put the bad release back."""
    one, two, three = (world.publish(name) for name in ("one", "two", "three"))
    flip = world.flip(API, one, None)
    flip = world.flip(API, two, flip)
    world.flip(API, three, flip)
    assert world.rollback(API).pointers[0].snapshot == str(two)
    last = world.rollback(API).pointers[0]
    assert (last.snapshot, last.kind) == (str(one), "rollback")
    with pytest.raises(NoRollbackTarget):
        world.pointers.rollback_target(API)
    assert [item.status for item in world.pointers.read.history(API).items] == [
        "unmarked",
        "bad",
        "bad",
        "bad",
        "unmarked",
    ]


def test_rollback_leaves_a_hold_and_a_bad_mark(world: LedgerWorld) -> None:
    """Automation does not put the bad release back: the pointer is held, the release is marked."""
    one, two = world.publish("one"), world.publish("two")
    world.flip(API, two, world.flip(API, one, None))
    back = world.rollback(API, by="bob").pointers[0]
    assert back.hold is not None
    assert (back.hold.by, back.hold.entry, back.hold.reason) == ("bob", back.flip, "CHG-1")
    assert back.previous is not None
    assert (back.previous.snapshot, back.previous.status) == (str(two), "bad")
    with pytest.raises(SnapshotBad):
        world.one(world.ask_flip(API, two, back.flip))
    three = world.publish("three")
    with pytest.raises(Held):
        world.one(world.ask_flip(API, three, back.flip))
    forward = world.one(world.ask_flip(API, two, back.flip, clear=(True, True))).pointers[0]
    assert (forward.hold, forward.status) == (None, "unmarked")


def test_mark_and_hold_change_the_entity_tag(world: LedgerWorld) -> None:
    """Who saw the pointer before a hold cannot flip it by its old entity tag."""
    one = world.publish("one")
    flip = world.flip(API, one, None)
    marked = world.mark(API, one, "good").pointers[0]
    assert (marked.flip, marked.status) == (flip, "good")
    assert marked.entry > flip
    held = world.hold(API, until=world.clock.now_ms() + 5_000).pointers[0]
    assert held.entry > marked.entry
    assert held.hold is not None
    world.clock.advance(5_000)
    assert world.pointers.read.pointer(API).hold is None
    released = world.release(API).pointers[0]
    assert released.entry > held.entry
    assert world.one(world.sign("release", ReleaseArgs(pointer=API))).no_op


def test_rollback_whose_target_was_overtaken_is_superseded(world: LedgerWorld) -> None:
    """What was signed as previous is marked bad before it arrives: nobody is put onto it."""
    one, two, three = (world.publish(name) for name in ("one", "two", "three"))
    world.flip(API, three, world.flip(API, two, world.flip(API, one, None)))
    ask = world.ask_rollback(API)
    world.mark(API, two, "bad")
    with pytest.raises(Superseded):
        world.one(ask)
    assert world.rollback(API).pointers[0].snapshot == str(one)


@pytest.mark.parametrize("way", ["snapshot", "seq", "flip", "before"])
def test_rollback_target_can_be_named_in_each_way(world: LedgerWorld, way: str) -> None:
    one, two = world.publish("one"), world.publish("two")
    first = world.flip(API, one, None)
    world.clock.advance(60_000)
    moment = world.pointers.read.pointer(API).since.replace(".000Z", ".500Z")
    world.flip(API, two, first)
    to = {
        "snapshot": RollbackTo(snapshot=str(one)),
        "seq": RollbackTo(seq=1),
        "flip": RollbackTo(flip=first),
        "before": RollbackTo(before=moment),
    }[way]
    target = world.pointers.rollback_target(API, to)
    assert (target.target, target.target_flip, target.current.snapshot) == (str(one), first, str(two))


def test_rollback_target_that_says_nothing_or_too_much(world: LedgerWorld) -> None:
    world.flip(API, world.publish("one"), None)
    for to in (RollbackTo(), RollbackTo(previous=True, seq=1)):
        with pytest.raises(InvalidInput):
            world.pointers.rollback_target(API, to)
    for to in (RollbackTo(seq=9), RollbackTo(flip=0), RollbackTo(before="2001-01-01T00:00:00Z")):
        with pytest.raises(NoRollbackTarget):
            world.pointers.rollback_target(API, to)
    with pytest.raises(PointerNotFound):
        world.pointers.rollback_target(WEB)


# --- without a signature -------------------------------------------------------------------------------------------------


def test_unsigned_flip_where_the_rule_allows_it(world: LedgerWorld) -> None:
    """curl with a token is enough for a site whose rule says so; the log names the token's principal."""
    one, two = world.publish("one"), world.publish("two")
    first = world.one(world.ask_open(one, Expect(None)))
    assert first.pointers[0].by == "alice"
    with pytest.raises(PreconditionFailed):
        world.one(world.ask_open(two, Expect(None)))
    second = world.one(world.ask_open(two, Expect(first.entry)))
    world.verify(second.proof)
    back = UnsignedRollback(
        OPEN, PREVIOUS, Expect(second.entry), "oops", True, True, Caller("00112233aabbccdd", PrincipalName("bob"))
    )
    rolled = world.one(back)
    assert (rolled.pointers[0].snapshot, rolled.pointers[0].by, rolled.pointers[0].kind) == (
        str(one),
        "bob",
        "rollback",
    )
    with pytest.raises(PreconditionFailed, match="rollback by bob"):
        world.one(back)
    assert world.fsck().ok


def test_unsigned_flip_where_the_rule_asks_for_signatures(world: LedgerWorld) -> None:
    one = world.publish("one")
    ask = world.ask_open(one, Expect(None))._replace(pointer=API)
    with pytest.raises(NotPermitted):
        world.one(ask)
    with pytest.raises(NotPermitted):
        world.one(world.ask_open(one, Expect(None), by="mallory"))


def test_unsigned_flip_sees_marks_made_since(world: LedgerWorld) -> None:
    """If-Match names flip and entry: a hold that came in between is not run over."""
    one, two = world.publish("one"), world.publish("two")
    first = world.one(world.ask_open(one, Expect(None)))
    held = world.hold(OPEN).pointers[0]
    with pytest.raises(PreconditionFailed, match=f"entry {held.entry} marked, held or released it"):
        world.one(world.ask_open(two, Expect(first.entry, first.entry)))
    with pytest.raises(Held):
        world.one(world.ask_open(two, Expect(held.flip, held.entry)))


def test_idempotency_key_replays_and_refuses_reuse(world: LedgerWorld) -> None:
    """A script that retries with its key gets its first answer; another request under that key is an error, not a flip."""
    one, two = world.publish("one"), world.publish("two")
    ask = world.ask_open(one, Expect(None), key="deploy-1")
    first = world.one(ask)
    again = world.one(ask)
    assert (again.entry, again.replayed) == (first.entry, True)
    with pytest.raises(IdempotencyKeyReused):
        world.one(world.ask_open(two, Expect(first.entry), key="deploy-1"))
    other = world.one(world.ask_open(two, Expect(first.entry), key="deploy-1", by="bob"))
    assert not other.replayed
    for key in ("", "x" * 256, "new\nline", "ключ"):
        with pytest.raises(InvalidInput):
            world.one(world.ask_open(one, Expect(other.entry), key=key))
    assert world.fsck().ok


# --- when something fails ------------------------------------------------------------------------------------------------


class FullLedger(MemoryLedger):
    """A ledger whose next commit finds no space."""

    full = False

    @contextmanager
    def write(self) -> Iterator[MemoryLedgerTransaction]:
        with super().write() as tx:
            yield tx
            if self.full:
                raise StoreFull("no space left on device")


def test_full_disk_leaves_the_log_as_it_was() -> None:
    """After space was made the same request succeeds, and the log shows no trace of the failure."""
    ledger = FullLedger()
    world = LedgerWorld(ledger)
    one = world.publish("one")
    ask = world.ask_flip(API, one, None)
    ledger.full = True
    with pytest.raises(StoreFull):
        world.submit(ask)
    with pytest.raises(PointerNotFound):
        world.pointers.read.pointer(API)
    ledger.full = False
    assert not world.one(ask).replayed
    assert world.fsck().ok


def test_untrusted_clock_still_answers_retries(world: LedgerWorld) -> None:
    one = world.publish("one")
    ask = world.ask_flip(API, one, None)
    world.one(ask)
    world.clock.jump(3_600_000)
    assert world.one(ask).replayed
    with pytest.raises(ClockUntrusted):
        world.one(world.ask_flip(WEB, one, None))


def test_policy_change_takes_effect_for_the_next_act(world: LedgerWorld) -> None:
    """A deployer who was removed is refused from the next entry on, in the same batch too."""
    one, two = world.publish("one"), world.publish("two")
    first = world.flip(API, one, None, by="alice")
    policy = world_policy(version=2)
    for rule in policy["rules"]:
        rule["deploy"] = {"threshold": 1, "who": ["operator"]}
    late = world.ask_flip(API, two, first, by="alice")
    world.change_policy(policy)
    with pytest.raises(Superseded):
        world.one(late)
    with pytest.raises(NotPermitted):
        world.one(world.ask_flip(API, two, first, by="alice", policy=2))
    assert world.pointers.read.policy().version == 2
    assert len(world.reader.policies().entries) == 2
    assert world.one(world.ask_flip(API, two, first, policy=2)).type == "flip"
    assert world.fsck().ok


def test_everything_survives_a_restart(world: LedgerWorld) -> None:
    one, two = world.publish("one"), world.publish("two")
    world.flip(API, two, world.flip(API, one, None))
    world.rollback(API)
    before = (world.pointers.read.list(), world.pointers.read.history(API), world.log.published().root)
    world.reopen()
    assert (world.pointers.read.list(), world.pointers.read.history(API), world.log.published().root) == before


def test_ago_is_said_as_people_say_it() -> None:
    spans = {0: "0 s", 12_000: "12 s", 119_999: "119 s", 180_000: "3 min", 18_000_000: "5 h", 40 * 86_400_000: "40 d"}
    assert {ms: format_ago(ms) for ms in spans} == {ms: f"{text} ago" for ms, text in spans.items()}
