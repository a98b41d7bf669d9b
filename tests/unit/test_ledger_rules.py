"""Rules of the signed log that hold for whole batches, across restarts, and when the ledger itself is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from casstore.engine.nodes import encode_index, encode_node
from casstore.engine.pointers import Caller, Expect, UnsignedRollback
from casstore.engine.targets import PREVIOUS
from casstore.errors import (
    CasstoreError,
    DamagedObject,
    Held,
    IdempotencyKeyReused,
    MalformedDocument,
    NoRollbackTarget,
    NotPermitted,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    ReadOnly,
    SeenMismatch,
    StoreFull,
    Superseded,
    Unsupported,
)
from casstore.formats.acts import PolicyArgs
from casstore.ids import PointerName, PrincipalName, SnapshotDigest
from casstore.storage.memory.ledger import MemoryLedger, MemoryLedgerTransaction, MemoryLedgerView
from casstore.storage.roles import Table
from casstore.wire import Submitted
from tests.support.ledgerworld import API, OPEN, ORIGIN, WEB, LedgerWorld, MemoryHeads, key_of, world_policy

TOKEN = "00112233aabbccdd"


@pytest.fixture
def world() -> LedgerWorld:
    return LedgerWorld()


def of(answer: Submitted | CasstoreError) -> Submitted:
    assert isinstance(answer, Submitted), answer
    return answer


# --- what is signed ------------------------------------------------------------------------------------------------------


def test_earlier_size_is_signed_only_if_the_published_root_continues_it(world: LedgerWorld) -> None:
    """A rotten node would become a second history at that size, under the log's own signature, for ever."""
    for name in "abcd":
        world.publish(name)
    assert world.open_checkpoint(world.log.checkpoint_of(3)).checkpoint.size == 3
    with world.ledger.write() as tx:
        tx.put(Table.NODES, encode_node(0, 2), bytes(32))
    assert world.open_checkpoint(world.log.checkpoint).checkpoint.size == 5
    for ask in (lambda: world.log.checkpoint_of(3), lambda: world.reader.inclusion(0, 3)):
        with pytest.raises(DamagedObject, match="at size 3"):
            ask()


def test_crash_in_a_batch_reads_every_unsigned_entry_back_at_open(world: LedgerWorld) -> None:
    """Not the last one alone: whatever the next signature covers for the first time was seen on the disk."""
    one = world.publish("one")
    first = world.log.size
    world.heads.failing = True
    with pytest.raises(OutcomeUnknown):
        world.submit(*(world.ask_flip(PointerName(f"dev/{name}"), one, None) for name in "abc"))
    world.heads.failing = False
    with world.ledger.write() as tx:
        data = tx.get(Table.ENTRIES, encode_index(first))
        assert data is not None
        tx.put(Table.ENTRIES, encode_index(first), data.replace(b"dev/a", b"dev/z") + b" ")
    with pytest.raises(DamagedObject, match="is not the hash of what lies under it"):
        world.reopen()
    assert world.heads.heads[-1].size == first


class DeafLedger(MemoryLedger):
    """A ledger that commits, and then cannot be read."""

    deaf = False
    committed = False

    @contextmanager
    def read(self) -> Iterator[MemoryLedgerView]:
        if self.deaf and self.committed:
            raise Overloaded("the ledger has more readers than slots", retry_after_s=1)
        with super().read() as view:
            yield view

    @contextmanager
    def write(self) -> Iterator[MemoryLedgerTransaction]:
        with super().write() as tx:
            yield tx
        self.committed = True


def test_whatever_fails_behind_the_commit_seals_the_store() -> None:
    """ "Try again" would be a lie: the flip is on disk, unsigned, and memory is ahead of what readers see."""
    ledger = DeafLedger()
    world = LedgerWorld(ledger)
    one = world.publish("one")
    ask = world.ask_flip(API, one, None)
    ledger.deaf, ledger.committed = True, False
    with pytest.raises(OutcomeUnknown):
        world.submit(ask)
    ledger.deaf = False
    with pytest.raises(OutcomeUnknown):
        world.submit(ask)
    world.reopen()
    assert world.one(ask).replayed
    assert world.fsck().ok


def test_answer_that_cannot_be_proven_fails_alone(world: LedgerWorld) -> None:
    """One client's old flip lies on a damaged page: the other 255 of the batch are told that theirs are done."""
    one, two = world.publish("one"), world.publish("two")
    old = world.ask_flip(API, one, None)
    first = world.one(old).entry
    world.flip(API, two, first)
    with world.ledger.write() as tx:
        tx.put(Table.NODES, encode_node(0, first ^ 1), b"short")
    retry, fresh = world.submit(old, world.ask_flip(WEB, one, None))
    assert isinstance(retry, DamagedObject)
    assert of(fresh).pointers[0].snapshot == str(one)
    assert world.pointers.read.pointer(WEB).snapshot == str(one)


class FullHeads(MemoryHeads):
    """No room for the new file of a compaction; appending works."""

    full = False

    def compact(self, size: int, root: bytes) -> None:
        if self.full:
            raise StoreFull("no space left on device")
        super().compact(size, root)


def test_full_disk_does_not_keep_the_store_shut(world: LedgerWorld) -> None:
    """The heads on record say the same as the one that would replace them."""
    heads = FullHeads()
    heads.heads = world.heads.heads
    world.heads = heads
    world.publish("one")
    before = world.log.published().root
    heads.full = True
    world.reopen()
    assert world.log.published().root == before
    assert len(heads.heads) == 2
    assert world.publish("two")


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_head_on_record_is_held_against_the_log(world: LedgerWorld, size: int) -> None:
    """The newest one agreeing is not enough: a machine that went back and grew again has signed two logs."""
    for name in "abc":
        world.publish(name)
    assert [head.size for head in world.heads.heads] == [1, 2, 3, 4]
    world.heads.heads[size - 1] = world.heads.heads[size - 1]._replace(root=bytes(32))
    world.reopen()
    assert f"signed at size {size}" in (world.log.read_only or "")
    with pytest.raises(ReadOnly):
        world.submit()


def test_refreshed_time_never_shows_a_shorter_log(world: LedgerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit may overtake the refresh while it signs: the longer checkpoint stays."""
    honest = world.log._sign

    def overtaken(size: int, root: bytes) -> object:
        fresh = honest(size, root)
        monkeypatch.setattr(world.log, "_sign", honest)
        world.publish("one")
        return fresh

    before = world.log.size
    monkeypatch.setattr(world.log, "_sign", overtaken)
    world.log.refresh_clock()
    assert world.log.size == before + 1


# --- batches -------------------------------------------------------------------------------------------------------------


def test_answers_of_one_batch_are_all_of_one_size(world: LedgerWorld) -> None:
    """Also those of a retry, of a flip to where it is, and of what comes before others in the batch."""
    one, two = world.publish("one"), world.publish("two")
    first = world.ask_flip(API, one, None)
    at = world.one(first).entry
    batch = [
        world.ask_flip(WEB, one, None),
        first,
        world.ask_flip(API, one, at),
        world.ask_flip(API, two, 0),
        world.ask_flip(OPEN, two, None),
    ]
    answers = world.submit(*batch)
    assert isinstance(answers.pop(3), PreconditionFailed)
    sizes = {answer.proof.size for answer in map(of, answers) if answer.proof is not None}
    assert sizes == {world.log.size}
    for answer in map(of, answers):
        world.verify(answer.proof)
    assert [of(answer).replayed for answer in answers] == [False, True, False, False]
    assert of(answers[2]).no_op


def test_policy_change_in_the_middle_of_a_batch(world: LedgerWorld) -> None:
    """What was signed under the old policy and comes behind the change is not judged by either: it is signed again."""
    one = world.publish("one")
    policy = world_policy(version=2)
    for rule in policy["rules"]:
        rule["deploy"] = {"threshold": 1, "who": ["operator"]}
    change = world.sign("policy", PolicyArgs(policy=policy, version=2))
    early, late = world.ask_flip(API, one, None, by="alice"), world.ask_flip(WEB, one, None, by="alice")
    answers = world.submit(early, change, late, world.ask_open(one, Expect(None), by="alice"))
    assert (of(answers[0]).entry, of(answers[1]).entry) == (2, 3)
    assert isinstance(answers[2], Superseded)
    assert isinstance(answers[3], NotPermitted)
    assert world.fsck().ok


def test_one_request_twice_in_a_batch_happens_once(world: LedgerWorld) -> None:
    one = world.publish("one")
    signed, unsigned = world.ask_flip(API, one, None), world.ask_open(one, Expect(None), key="k")
    answers = [of(answer) for answer in world.submit(signed, signed, unsigned, unsigned)]
    assert [answer.replayed for answer in answers] == [False, True, False, True]
    assert len({answer.entry for answer in answers}) == 2


def test_seen_counts_only_what_is_there_when_the_act_is_written(world: LedgerWorld) -> None:
    """A signer cannot have seen an entry that this log does not have, nor another one in its place."""
    one = world.publish("one")
    published = world.log.published()
    for size, root in ((published.size + 1, published.root), (published.size, bytes(32)), (0, bytes(32))):
        with pytest.raises(SeenMismatch):
            world.one(world.ask_flip(API, one, None, seen_size=size, seen_root=root))


# --- idempotency -----------------------------------------------------------------------------------------------------------


def test_retries_are_known_after_a_restart_and_before_any_check(world: LedgerWorld) -> None:
    """The policy, the hold and the pointer have moved on; the success of then is still that success."""
    one, two = world.publish("one"), world.publish("two")
    signed, unsigned = world.ask_flip(API, one, None, by="alice"), world.ask_open(one, Expect(None), key="k")
    entries = [world.one(ask).entry for ask in (signed, unsigned)]
    world.hold(API)
    world.mark(OPEN, one, "bad")
    policy = world_policy(version=2)
    for rule in policy["rules"]:
        rule["deploy"] = {"threshold": 1, "who": ["operator"]}
    world.change_policy(policy)
    world.clock.advance(3_600_000)
    world.reopen()
    again = [world.one(ask) for ask in (signed, unsigned)]
    assert [answer.entry for answer in again] == entries
    assert all(answer.replayed for answer in again)
    for other in (
        world.ask_open(two, Expect(None), key="k"),
        world.ask_open(one, Expect(1), key="k"),
        UnsignedRollback(OPEN, PREVIOUS, Expect(1), "", True, True, Caller(TOKEN, PrincipalName("alice"), "k")),
    ):
        with pytest.raises(IdempotencyKeyReused):
            world.one(other)


# --- unsigned requests: the order of checks ------------------------------------------------------------------------------


def test_policy_is_asked_before_the_expectation_of_an_unsigned_request(world: LedgerWorld) -> None:
    """Whom the policy does not know is told so, and not where the pointer is and who put it there."""
    one = world.publish("one")
    at = world.one(world.ask_open(one, Expect(None))).entry
    world.hold(OPEN)
    mallory = Caller(TOKEN, PrincipalName("mallory"))
    for expect in (Expect(None), Expect(0), Expect(at, at), Expect(at)):
        with pytest.raises(NotPermitted):
            world.one(world.ask_open(one, expect, by="mallory"))
        with pytest.raises(NotPermitted):
            world.one(UnsignedRollback(OPEN, PREVIOUS, expect, "", True, True, mallory))
    with pytest.raises(NotPermitted):
        world.one(UnsignedRollback(API, PREVIOUS, Expect(0), "", True, True, Caller(TOKEN, PrincipalName("alice"))))


def test_expectation_beyond_the_log_is_a_lost_race_and_no_malformed_request(world: LedgerWorld) -> None:
    """A tag of another log, or of one that was restored since: 412 with how the pointer is."""
    one = world.publish("one")
    with pytest.raises(PreconditionFailed, match="there is no pointer"):
        world.one(world.ask_open(one, Expect(99, 99)))
    world.one(world.ask_open(one, Expect(None)))
    with pytest.raises(PreconditionFailed) as caught:
        world.one(world.ask_open(one, Expect(99, 99)))
    assert (caught.value.current or {})["snapshot"] == str(one)


# --- rolling back ------------------------------------------------------------------------------------------------------------


def test_nothing_to_roll_back_to_where_all_before_is_bad(world: LedgerWorld) -> None:
    one, two, three = (world.publish(name) for name in ("one", "two", "three"))
    at = world.flip(API, three, world.flip(API, two, world.flip(API, one, None)))
    for snapshot in (one, two):
        world.mark(API, snapshot, "bad")
    with pytest.raises(NoRollbackTarget) as caught:
        world.pointers.rollback_target(API)
    assert [item["why"] for item in caught.value.skipped or []] == ["bad", "bad"]
    unsigned = world_policy(version=2)
    for rule in unsigned["rules"]:
        rule["unsigned"] = True
    world.change_policy(unsigned)
    with pytest.raises(NoRollbackTarget):
        world.one(UnsignedRollback(API, PREVIOUS, Expect(at), "", True, True, Caller(TOKEN, PrincipalName("bob"))))
    assert world.pointers.read.pointer(API).snapshot == str(three)


def test_rollback_goes_past_retirements(world: LedgerWorld) -> None:
    """From a retired pointer to what it last named, and from what came after a retirement to what was before it."""
    one, two = world.publish("one"), world.publish("two")
    at = world.flip(API, None, world.flip(API, one, None), kind="retire")
    assert SnapshotDigest.parse(world.pointers.rollback_target(API).target) == one
    world.flip(API, two, at)
    assert SnapshotDigest.parse(world.pointers.rollback_target(API).target) == one
    assert world.rollback(API).pointers[0].snapshot == str(one)
    with pytest.raises(NoRollbackTarget):
        world.pointers.rollback_target(API)


def test_clearing_ends_mark_and_hold_and_nothing_else(world: LedgerWorld) -> None:
    """Forward again after a rollback: the one mark goes, others stay, and so does a hold that was not named."""
    one, two, three = (world.publish(name) for name in ("one", "two", "three"))
    world.flip(API, three, world.flip(API, two, world.flip(API, one, None)))
    world.rollback(API)
    at = world.rollback(API).entry
    with pytest.raises(Held):
        world.flip(API, two, at, clear=(True, False))
    answer = world.one(world.ask_flip(API, two, at, clear=(True, True)))
    (leaf,) = world.verify(answer.proof)
    assert (leaf.snapshot, leaf.bad, leaf.held) == (two, (three,), None)
    assert answer.pointers[0].status == "unmarked"


# --- the log's own key -----------------------------------------------------------------------------------------------------


def test_policy_names_the_key_that_signs_the_log(world: LedgerWorld) -> None:
    """Else every auditor finds the log wrong from that entry on, and no one can take it back."""
    strange = world_policy()
    strange["log_keys"] = [key_of("elsewhere").verifier.encode()]
    with pytest.raises(MalformedDocument, match="named as the log"):
        LedgerWorld(policy=strange)
    twin = type(key_of(ORIGIN))(ORIGIN, bytes(32)).verifier.encode()
    with pytest.raises(MalformedDocument, match="key that signs"):
        LedgerWorld(policy={**world_policy(), "log_keys": [twin]})
    with pytest.raises(Unsupported, match="log's keys"):
        world.change_policy({**world_policy(version=2), "log_keys": [twin]})
    assert world.change_policy(world_policy(version=2)).type == "policy"
