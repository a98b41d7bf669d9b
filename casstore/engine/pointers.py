"""Submitting to the log: the one way in which pointers, policy, marks and holds change.

Owns the group commit.  A batch of submissions becomes one ledger transaction: each is planned on the state that those before
it lead to, a failed one is rejected alone, and the entries, the log tree, the state, the pointers and their history, and the
memory of what was asked are written together.  Then the log is settled (read back, recorded, signed), shown, and everyone is
answered with proofs of one and the same size.

Invariants:

* a flip happened exactly once or not at all; the retry of a success is that success;
* what is answered is durable, signed and published;
* planning is :mod:`casstore.transitions`, which an auditor runs too; nothing here decides what is allowed.

Source: docs/formats/ledger.md, docs/formats/entry.md
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from casstore.engine.clockguard import ClockGuard
from casstore.engine.gc.lists import NEWEST
from casstore.engine.log import LogService
from casstore.engine.lookup import LedgerLookup, SnapshotContent, completeness_of
from casstore.engine.nodes import append_entry, decode_index, encode_index, node_reader, read_entry, read_size
from casstore.engine.proofs import Prover
from casstore.engine.reading import PointerReader, read_policy, read_snapshot
from casstore.engine.records import PointerRecord, decode_record, derive, read_pointer
from casstore.engine.submissions import (
    Caller,
    Collected,
    Expect,
    Moment,
    Remembered,
    SignedSubmission,
    Submission,
    Unsigned,
    UnsignedFlip,
    UnsignedRollback,
    build_act,
    check_expect,
    decode_remembered,
    fingerprint,
    idempotency_row,
    kind_of,
)
from casstore.engine.targets import PREVIOUS, resolve_target
from casstore.engine.view import PublishedView
from casstore.errors import (
    CasstoreError,
    DamagedObject,
    DigestMismatch,
    IdempotencyKeyReused,
    InvalidInput,
    MalformedDocument,
    OutcomeUnknown,
    PointerNotFound,
    PreconditionFailed,
    SnapshotIncomplete,
    StoreFull,
)
from casstore.formats.acts import AnyArgs, FlipArgs, HoldArgs, MarkArgs, ReleaseArgs, SnapshotArgs
from casstore.formats.canonical import decode_b64
from casstore.formats.entry import Entry, GcBody, decode_entry
from casstore.formats.intent import intent_id, normalise_envelope
from casstore.formats.snapshot import decode_snapshot
from casstore.formats.state import Leaf
from casstore.ids import PointerName, SnapshotDigest
from casstore.limits import GROUP_COMMIT_MAX, POINTERS_MAX
from casstore.merkle import Frontier
from casstore.storage.roles import Ledger, LedgerTransaction, LedgerView, Table
from casstore.transitions.authority import check_unsigned, judge
from casstore.transitions.machine import Machine, Planned, SignedAct
from casstore.transitions.rollback import Skipped as SkippedStep
from casstore.wire import RollbackTarget, RollbackTo, Skipped, Submitted, format_ago

__all__ = [
    "Caller",
    "Expect",
    "PointerService",
    "SignedSubmission",
    "Submission",
    "UnsignedFlip",
    "UnsignedRollback",
]


class _Outcome(NamedTuple):
    """What became of a submission in its transaction."""

    type: str
    pointers: tuple[PointerName, ...]
    entry: int
    """Its own; for one that changed nothing, the entry that had made it so."""
    no_op: bool = False
    replayed: bool = False
    skipped: tuple[SkippedStep, ...] = ()
    seen: int | None = None
    """Size of the log that the signer had verified."""


class _Batch:
    """One transaction's worth: what it writes, and what is to be shown once it is signed."""

    def __init__(self, tx: LedgerTransaction, frontier: Frontier, content: SnapshotContent) -> None:
        self.tx = tx
        self.frontier = frontier
        self.lookup = LedgerLookup(tx, content)
        self.leaves: list[Sequence[Leaf]] = []
        self.records: dict[PointerName, PointerRecord] = {}


class PointerService:
    """Submits acts, and reads what they led to (:attr:`read`).

    Args:
        ledger: the ledger.
        log: signs and publishes.
        guard: stamps entries.
        content: says whether snapshots are whole.
        randomness: returns that many random bytes, for intents of the server's own making.

    Threads: :meth:`submit` belongs to the ledger writer; reads to any thread.
    """

    def __init__(
        self,
        ledger: Ledger,
        log: LogService,
        guard: ClockGuard,
        content: SnapshotContent,
        randomness: Callable[[int], bytes],
    ) -> None:
        self._ledger = ledger
        self._log = log
        self._guard = guard
        self._content = content
        self._randomness = randomness
        self._load()
        self._view = self._open_view()
        self.read = PointerReader(ledger, self._view, guard, content)

    def _load(self) -> None:
        """Take the machine and the log's edge from the ledger, as after the newest commit."""
        with self._ledger.read() as view:
            size = read_size(view)
            self._frontier = Frontier.load(size, node_reader(view))
            self._machine = Machine(self._log.origin)
            if size == 0:
                return
            rows = view.scan(Table.STATE, limit=POINTERS_MAX + 2)
            last = self._last_entry(view, size - 1)
            policies = view.scan(Table.POLICIES, reverse=True, limit=1)
            if not policies:
                raise DamagedObject("the ledger names no policy", object="policy", where="ledger, table policies")
            document = read_policy(view, decode_index(policies[0][0]))
            leaves = [row for _, row in rows]
            self._machine = Machine.from_leaves(leaves, document, size, last.ts, origin=self._log.origin)
            self._log.last_ts = last.ts
        if self._machine.root != last.state:
            raise DamagedObject(
                f"the state in the ledger is not the one that entry {size - 1} names",
                object="state",
                where="ledger, table state",
            )

    def _last_entry(self, view: LedgerView, index: int) -> Entry:
        try:
            return decode_entry(read_entry(view, index))
        except InvalidInput as error:
            raise DamagedObject(
                f"log entry {index} cannot be read: {error.detail}",
                object=f"log entry {index}",
                where="ledger, table entries",
                hint="check the store, and restore the ledger from a backup",
            ) from error

    def _open_view(self) -> PublishedView:
        with self._ledger.read() as view:
            rows = view.scan(Table.POINTERS, limit=POINTERS_MAX + 1)
        records = {
            PointerName.parse(key.decode()): decode_record(row, PointerRecord, f"pointer {key.decode()}")
            for key, row in rows
        }
        return PublishedView(self._log, self._machine.state.leaves(), records, self._machine.size)

    @property
    def last_ts(self) -> int:
        """Time of the newest entry, ms since the epoch."""
        return self._machine.last_ts

    # --- submitting ----------------------------------------------------------------------------------------------------

    def submit(self, batch: Sequence[Submission]) -> list[Submitted | CasstoreError]:
        """Commit a batch as one transaction, sign, publish, and answer each.

        Args:
            batch: at most ``GROUP_COMMIT_MAX``.

        Returns:
            for each its answer, or the error that rejected it; then nothing of it was written.  A ``DamagedObject`` may also
            say that an entry stands and that its proof cannot be made.

        Raises:
            ReadOnly: the log contradicts a signed head: nothing may be written.
            OutcomeUnknown: the commit, or what follows it, failed: some may have happened.  The store is sealed until it is
                reopened; a retry then gets the success that it may have been.
            StoreFull: no space is left; nothing was written.
            DamagedObject: the ledger cannot be read; nothing was written.

        Durability: what is answered as done is durable, and so is the head that covers it.
        Threads: ledger writer.
        """
        assert len(batch) <= GROUP_COMMIT_MAX, "the caller cuts batches"
        self._log.refuse_if_read_only()
        self._log.make_room()
        first = self._frontier.size
        frontier = self._frontier.copy()
        try:
            with self._ledger.write() as tx:
                work = _Batch(tx, frontier, self._content)
                outcomes = [self._submit_one(work, submission) for submission in batch]
        except OutcomeUnknown as error:
            raise self._log.seal(error.detail) from error
        except BaseException:
            # CRASH: the transaction was rolled back, the machine in memory was not.
            self._load()
            raise
        if frontier.size > first:
            self._show(first, frontier, work)
        return self._answer(outcomes)

    def _show(self, first: int, frontier: Frontier, work: _Batch) -> None:
        """Settle what was just committed, and let readers see it."""
        try:
            self._log.last_ts = self._machine.last_ts
            published = self._log.settle(first, frontier.size, frontier.root)
            self._frontier = frontier
            self._view.advance(published, work.leaves, work.records)
        except BaseException as error:
            # CRASH: committed, and not shown.  Whatever the reason, "nothing happened" would be wrong, and memory is ahead of
            # the log's edge: only opening the store again settles it.
            sealed = self._log.seal(f"entries from {first} on are committed but could not be signed and shown: {error}")
            if isinstance(error, CasstoreError):
                raise sealed from error
            raise

    def _submit_one(self, work: _Batch, submission: Submission) -> _Outcome | CasstoreError:
        """Plan one submission and, if it stands, write it."""
        try:
            outcome = self._replay(work.tx, submission)
            if outcome is not None:
                return outcome
            planned, skipped = self._plan(work, submission)
        except (OutcomeUnknown, StoreFull):
            raise
        except PreconditionFailed as error:
            return self._explain(work.tx, error)
        except CasstoreError as error:
            return error
        names = _pointers(planned.args)
        seen = None if planned.intent is None else planned.intent.seen_size
        if planned.no_op:
            return _Outcome(
                planned.type, names, _made_so(work.tx, planned.args), no_op=True, skipped=skipped, seen=seen
            )
        # ORDER: nothing above wrote anything; whatever fails below takes the whole transaction with it.
        self._write(work, submission, planned)
        return _Outcome(planned.type, names, planned.idx, skipped=skipped, seen=seen)

    def _replay(self, tx: LedgerTransaction, submission: Submission) -> _Outcome | None:
        """What the same request led to before, if it was a success."""
        if isinstance(submission, SignedSubmission):
            payload = decode_b64(normalise_envelope(submission.envelope).payload)
            row = tx.get(Table.INTENTS, intent_id(payload))
            return None if row is None else self._recall(tx, decode_index(row))
        if isinstance(submission, Collected):
            return None
        key = idempotency_row(submission.caller)
        row = None if key is None else tx.get(Table.INTENTS, key)
        if row is None:
            return None
        found = decode_remembered(row)
        if found.request != fingerprint(submission):
            raise IdempotencyKeyReused(
                f"the idempotency key was used for another request, which became entry {found.entry}. Nothing changed."
            )
        return self._recall(tx, found.entry)

    def _recall(self, view: LedgerView, index: int) -> _Outcome:
        entry = decode_entry(read_entry(view, index))
        return _Outcome(entry.type, _pointers(entry.intent()[1]), index, replayed=True)

    def _plan(self, work: _Batch, submission: Submission) -> tuple[Planned, tuple[SkippedStep, ...]]:
        ts = self._guard.stamp(self._machine.last_ts)
        skipped: tuple[SkippedStep, ...] = ()
        if isinstance(submission, SignedSubmission):
            act = SignedAct(submission.envelope)
            planned = self._machine.plan(act, idx=work.frontier.size, ts=ts, lookup=work.lookup)
        elif isinstance(submission, Collected):
            planned = self._machine.plan_gc(submission.body, idx=work.frontier.size, ts=ts)
        else:
            target, skipped = self._target(work, submission, ts)
            assert self._machine.policy is not None, "a log begins with a policy"
            moment = Moment(self._log.origin, self._machine.policy, ts, work.frontier.size, work.frontier.root)
            unsigned = build_act(submission, target, moment, self._randomness)
            planned = self._machine.plan(unsigned, idx=work.frontier.size, ts=ts, lookup=work.lookup)
        if planned.snapshot is not None:
            assert isinstance(planned.args, SnapshotArgs), "only a snapshot entry publishes one"
            self._check_document(planned.args)
        if self._log.verifier not in planned.policy.log_keys:
            # Only a genesis comes here: later policies keep the keys of the one before.
            raise MalformedDocument("the policy does not name the key that signs this log")
        return planned, skipped

    def _target(self, work: _Batch, submission: Unsigned, ts: int) -> tuple[SnapshotDigest, tuple[SkippedStep, ...]]:
        leaf, policy = self._machine.state.pointer(submission.pointer), self._machine.policy
        assert policy is not None, "a log begins with a policy"
        # ORDER: the policy before the expectation, as for a signed act: whom it does not know is not told who won.
        check_unsigned(submission.caller.principal, submission.pointer, kind_of(submission), policy)
        if leaf is None and isinstance(submission, UnsignedRollback):
            raise PointerNotFound(f"there is no pointer {submission.pointer}")
        # ORDER: the expectation before the target: a beaten rollback is told who won, not where it would have gone.
        check_expect(submission, read_pointer(work.tx, submission.pointer))
        if isinstance(submission, UnsignedFlip):
            return submission.snapshot, ()
        assert leaf is not None, "checked above"
        found = resolve_target(work.tx, work.lookup, leaf, policy, to=submission.to, ts=ts)
        return found.target, found.skipped

    def _check_document(self, args: SnapshotArgs) -> None:
        """Hold what is published against the stored document, and the document against the store.

        Raises:
            SnapshotNotFound: the document is not in the store.
            DigestMismatch: its size or its parents are not those of the intent.
            SnapshotIncomplete: content is missing.
        """
        # ORDER: the document is durable, and complete, before the entry that publishes it.
        document = self._content.document(args.digest)
        if len(document) != args.size or list(decode_snapshot(document).parents) != args.parents:
            raise DigestMismatch(
                f"the intent describes another document than {args.digest}",
                expected=f"{args.size} bytes and {len(args.parents)} parents",
                found=f"{len(document)} bytes",
            )
        found = self._content.completeness(args.digest)
        if not found.complete:
            raise SnapshotIncomplete(
                f"the snapshot {args.digest.short} needs {found.missing_count} objects that are not in the store. "
                "Nothing changed.",
                hint="push its components first",
                missing=found.missing,
                missing_count=found.missing_count,
            )

    def _write(self, work: _Batch, submission: Submission, planned: Planned) -> None:
        self._machine.apply(planned)
        append_entry(work.tx, work.frontier, planned.data)
        for leaf in planned.leaves:
            work.tx.put(Table.STATE, leaf.key.encode(), leaf.encode())
        work.records.update(derive(work.tx, planned))
        work.leaves.append(planned.leaves)
        if isinstance(submission, Collected):
            work.tx.put(Table.META, NEWEST, encode_index(planned.idx))
        if isinstance(submission, UnsignedFlip | UnsignedRollback):
            key = idempotency_row(submission.caller)
            if key is not None:
                remembered = Remembered(planned.idx, fingerprint(submission))
                work.tx.put(Table.INTENTS, key, msgspec.json.encode(remembered))

    # --- before submitting -----------------------------------------------------------------------------------------------

    def look_ahead(self, submission: SignedSubmission) -> None:
        """Have the content that a signed act needs looked up, so that the writer finds the answer remembered.

        The first flip to a snapshot of a million files then keeps no other flip waiting.  TRUST: nothing is looked up for an
        act that the policy would not allow now: who holds no key makes nobody read.

        Raises:
            SnapshotIncomplete: what is to be published lacks something; the writer need not find that out once more.
            SnapshotNotFound, DigestMismatch, MalformedDocument, DamagedObject: its document cannot be used.

        Threads: any.
        """
        ts = max(self._guard.now_ms(), self._machine.last_ts)
        try:
            args = judge(SignedAct(submission.envelope), self._machine.policy, origin=self._log.origin, ts=ts).args
        except CasstoreError:
            return  # the writer says what is wrong, in its order of checks
        if isinstance(args, FlipArgs):
            for target in {member.to for member in args.members if member.to is not None}:
                completeness_of(self._content, target)
        elif isinstance(args, SnapshotArgs):
            with self._ledger.read() as view:
                published = view.get(Table.SNAPSHOTS, args.digest) is not None
            if not published:
                self._check_document(args)

    # --- answering -----------------------------------------------------------------------------------------------------

    def _explain(self, tx: LedgerTransaction, error: PreconditionFailed) -> PreconditionFailed:
        """The same error with the pointer as it is now, in a sentence for a person."""
        name = PointerName((error.current or {})["pointer"])
        try:
            record = read_pointer(tx, name)
        except DamagedObject:
            return error  # a row that cannot be read takes the sentence, not the batch
        if record is None:
            return PreconditionFailed(
                f"there is no pointer {name}, you expected {error.expected}. Nothing changed.", expected=error.expected
            )
        expected = error.expected or "none"
        wanted = "no such pointer yet" if expected == "none" else expected.split(".")[0]
        if wanted == f"f{record.flip}":
            detail = (
                f"{name} is still at {wanted}, but entry {record.entry} marked, held or released it since you looked."
            )
        else:
            ago = format_ago(self._guard.now_ms() - record.since)
            detail = f"{name} is at f{record.flip} ({record.kind} by {record.by}, {ago}), you expected {wanted}."
        current = msgspec.to_builtins(self.read.answer(name, record))
        return PreconditionFailed(f"{detail} Nothing changed.", expected=expected, current=current)

    def _answer(self, outcomes: Sequence[_Outcome | CasstoreError]) -> list[Submitted | CasstoreError]:
        """Answers with proofs of the size that was just published."""
        rejected = [outcome for outcome in outcomes if isinstance(outcome, CasstoreError)]
        if len(rejected) == len(outcomes):
            return [*rejected]  # nothing to prove: a genesis that was rejected has no checkpoint either
        published = self._log.published()
        with self._ledger.read() as view:
            prover = Prover(view, published)
            return [
                outcome if isinstance(outcome, CasstoreError) else self._answer_one(prover, outcome)
                for outcome in outcomes
            ]

    def _answer_one(self, prover: Prover, outcome: _Outcome) -> Submitted | CasstoreError:
        sight = self._view.look(outcome.pointers, prove=True)
        flips = [record.flip for _, record in sight.records]
        try:
            proof = prover.bundle(sight.proofs, [outcome.entry, *flips], outcome.seen)
        except DamagedObject as error:
            # The act is done; what lies beside it in the ledger is damaged.  The others of the batch have their proofs.
            return DamagedObject(
                f"entry {outcome.entry} stands, but it cannot be proven: {error.detail}",
                object=error.object,
                where=error.where,
                hint=error.hint,
            )
        return Submitted(
            entry=outcome.entry,
            type=outcome.type,
            pointers=[self.read.answer(name, record) for name, record in sight.records],
            replayed=outcome.replayed,
            no_op=outcome.no_op,
            skipped=[Skipped(snapshot=str(s.snapshot), flip=s.flip, why=s.why) for s in outcome.skipped],
            proof=proof,
        )

    # --- rollback targets ------------------------------------------------------------------------------------------------

    def rollback_target(self, name: PointerName, to: RollbackTo = PREVIOUS) -> RollbackTarget:
        """What a rollback would go to now, for the client to sign.

        Raises:
            PointerNotFound: there never was one of that name.
            NoRollbackTarget: nothing qualifies.
            InvalidInput, InvalidDigest: ``to`` says nothing, or several things.
            NotPermitted: the policy has no rule for the pointer.

        Threads: any.
        """
        record, leaf = self._view.leaf(name)
        policy = self._machine.policy
        assert policy is not None, "a log begins with a policy"
        ts = max(self._guard.now_ms(), self._machine.last_ts)
        with self._ledger.read() as view:
            lookup = LedgerLookup(view, self._content, leaf.seq)
            found = resolve_target(view, lookup, leaf, policy, to=to, ts=ts)
        return RollbackTarget(
            pointer=str(name),
            current=self.read.answer(name, record),
            target=str(found.target),
            target_flip=found.flip,
            skipped=[Skipped(snapshot=str(s.snapshot), flip=s.flip, why=s.why) for s in found.skipped],
        )


def _made_so(tx: LedgerTransaction, args: AnyArgs | GcBody) -> int:
    """The entry because of which an act has nothing to do."""
    if isinstance(args, SnapshotArgs):
        return read_snapshot(tx, args.digest).entry
    records = [record for name in _pointers(args) if (record := read_pointer(tx, name)) is not None]
    return max(record.flip if isinstance(args, FlipArgs) else record.entry for record in records)


def _pointers(args: AnyArgs | GcBody) -> tuple[PointerName, ...]:
    if isinstance(args, FlipArgs):
        return tuple(member.pointer for member in args.members)
    if isinstance(args, MarkArgs | HoldArgs | ReleaseArgs):
        return (args.pointer,)
    return ()
