"""Pointers as they are read: one, many, their past, what they may go back to.

Owns the answers of the reading routes.  Changes nothing.

Invariant: an answer with a proof is of one size throughout, and never shows a flip that no published checkpoint covers.

Source: docs/formats/ledger.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from casstore.engine.clockguard import ClockGuard
from casstore.engine.history import (
    Flip,
    HistoryFilter,
    Moment,
    check_limit,
    flips_down,
    history_item,
    moment_at_index,
    moment_at_time,
    parse_flip,
    read_history,
)
from casstore.engine.lookup import SnapshotContent, completeness_of
from casstore.engine.nodes import decode_index, encode_index, read_entry
from casstore.engine.proofs import Prover
from casstore.engine.records import PointerRecord, SnapshotRecord, decode_record, read_status
from casstore.engine.view import PublishedView, Sight
from casstore.errors import DamagedObject, EntryNotFound, InvalidInput, SnapshotNotFound
from casstore.formats.acts import FlipArgs, GenesisArgs, PolicyArgs
from casstore.formats.entry import decode_entry
from casstore.formats.snapshot import decode_snapshot
from casstore.ids import PointerName, SnapshotDigest
from casstore.storage.roles import Ledger, LedgerView, Table
from casstore.wire import (
    History,
    HoldInfo,
    Label,
    Pointer,
    PointerList,
    PolicyAnswer,
    Previous,
    ProofBundle,
    RollbackCandidate,
    RollbackCandidates,
    SnapshotInfo,
    SnapshotList,
    StateProof,
    Submitted,
    WasLive,
    format_time,
    parse_time,
)

CANDIDATES_MAX: Final = 20  # LIMIT: each is held against the store's content; nobody reads further at 2 AM
CANDIDATE_FLIPS_MAX: Final = 1000  # LIMIT: flips that are looked through for them
RESOLVE_MAX: Final = 20  # LIMIT: a shortened digest that means more than this is too short


class PointerReader:
    """Answers about pointers and published snapshots.

    Args:
        ledger: history and entries.
        view: the pointers as published.
        guard: the clock, to judge whether a hold is over.
        content: the snapshots' documents and what they need.

    Threads: any.
    """

    def __init__(self, ledger: Ledger, view: PublishedView, guard: ClockGuard, content: SnapshotContent) -> None:
        self._ledger = ledger
        self._view = view
        self._guard = guard
        self._content = content

    # --- now -----------------------------------------------------------------------------------------------------------

    def pointer(self, name: PointerName, *, proof: bool = False, since: int | None = None) -> Pointer:
        """A pointer as it is now.

        Args:
            proof: with the checkpoint, the state proof and the flip's entry.
            since: a size that the asker has verified; the proof shows that the log continues it.

        Raises:
            PointerNotFound: there never was one of that name.
            LogUnavailable: a proof was asked for and nothing is published.
        """
        record, sight = self._view.one(name, prove=proof)
        return self.answer(name, record, self._prove(sight, since=since) if proof else None)

    def list(self, prefix: str = "", after: str = "", limit: int = 100) -> PointerList:
        """Pointers whose name begins with ``prefix``, ascending, behind ``after``; retired ones too.

        Raises:
            InvalidInput: a limit out of range.
        """
        check_limit(limit)
        names = self._view.names(prefix, after, limit + 1)
        records = self._view.look(names[:limit], prove=False).records
        return PointerList(
            pointers=[self.answer(name, record) for name, record in records],
            next=str(names[limit - 1]) if len(names) > limit else None,
        )

    def answer(self, name: PointerName, record: PointerRecord, proof: ProofBundle | None = None) -> Pointer:
        """A record as it travels."""
        hold, previous = record.hold, record.previous
        if hold is not None and hold.until is not None and hold.until <= self._guard.now_ms():
            hold = None
        return Pointer(
            pointer=str(name),
            snapshot=record.snapshot,
            flip=record.flip,
            seq=record.seq,
            entry=record.entry,
            since=format_time(record.since),
            by=record.by,
            reason=record.reason,
            kind=record.kind,
            status=record.status,
            previous=None
            if previous is None
            else Previous(snapshot=previous.snapshot, flip=previous.flip, status=previous.status),
            hold=None
            if hold is None
            else HoldInfo(
                entry=hold.entry,
                until=None if hold.until is None else format_time(hold.until),
                by=hold.by,
                reason=hold.reason,
            ),
            proof=proof,
        )

    def _prove(self, sight: Sight, entries: Sequence[int] | None = None, since: int | None = None) -> ProofBundle:
        assert sight.published is not None, "proofs were asked for"
        flips = [record.flip for _, record in sight.records] if entries is None else entries
        with self._ledger.read() as view:
            return Prover(view, sight.published).bundle(sight.proofs, flips, since)

    # --- the past ------------------------------------------------------------------------------------------------------

    def history(self, name: PointerName, wanted: HistoryFilter = HistoryFilter(), limit: int = 100) -> History:  # noqa: B008
        """A pointer's flips, newest first.

        Raises:
            PointerNotFound: there never was one of that name.
            InvalidInput: a limit out of range.
        """
        record, _ = self._view.one(name)
        with self._ledger.read() as view:
            return read_history(view, name, record.seq, wanted, limit)

    def at(self, name: PointerName, asked: str, *, proof: bool = False, since: int | None = None) -> WasLive:
        """What was live at a time or at a log index.

        Args:
            asked: RFC 3339, or ``fN``: once entry N was in the log.
            proof: with the flip, and with the flip that ended it or, for what is live still, the state proof of now.
            since: a size that the asker has verified; the proof shows that the log continues it.

        Raises:
            PointerNotFound: there never was one of that name.
            EntryNotFound: the log has no such entry yet.
            InvalidInput: neither a time nor a flip, or a time that has not come.
            LogUnavailable: a proof was asked for and nothing is published.
        """
        record, sight = self._view.one(name, prove=proof)
        with self._ledger.read() as view:
            moment = self._moment(view, name, record.seq, asked)
            bundle = None
            if proof:
                assert sight.published is not None
                named = [flip.row.flip for flip in (moment.flip, moment.next) if flip is not None]
                state: list[StateProof] = sight.proofs if moment.next is None else sight.proofs[-1:]
                bundle = Prover(view, sight.published).bundle(state, named, since)
            return _was_live(view, name, asked, moment, bundle)

    def _moment(self, view: LedgerView, name: PointerName, newest: int, asked: str) -> Moment:
        if asked.startswith("f"):
            index = parse_flip(asked)
            if index >= self._view.size:
                raise EntryNotFound(f"the published log has no entry {index}")
            return moment_at_index(view, name, newest, index)
        at_ms = parse_time(asked)
        if at_ms > self._guard.now_ms():
            raise InvalidInput(f"{asked} has not come yet: nobody knows what will be live then")
        return moment_at_time(view, name, newest, at_ms)

    def flip(self, index: int, *, proof: bool = True) -> Submitted:
        """The flip at a log index: the pointers that it changed, as they are now, and the proof of the entry.

        Raises:
            EntryNotFound: no such entry, or it is not a flip.
            LogUnavailable: a proof was asked for and nothing is published.
        """
        names = self._members(index)
        sight = self._view.look(names, prove=proof)
        return Submitted(
            entry=index,
            type="flip",
            pointers=[self.answer(name, record) for name, record in sight.records],
            proof=self._prove(sight, [index]) if proof else None,
        )

    def _members(self, index: int) -> Sequence[PointerName]:
        if not 0 <= index < self._view.size:
            raise EntryNotFound(f"the published log has no entry {index}")
        with self._ledger.read() as view:
            entry = decode_entry(read_entry(view, index))
        if entry.type != "flip":
            raise EntryNotFound(f"entry {index} is a {entry.type}, not a flip")
        args = entry.intent()[1]
        assert isinstance(args, FlipArgs)
        return [member.pointer for member in args.members]

    # --- back ----------------------------------------------------------------------------------------------------------

    def candidates(self, name: PointerName) -> RollbackCandidates:
        """What the pointer may go back to: the distinct snapshots that it named, newest first, without the current one.

        At most ``CANDIDATES_MAX``, out of the newest ``CANDIDATE_FLIPS_MAX`` flips.

        Raises:
            PointerNotFound: there never was one of that name.
        """
        record, _ = self._view.one(name)
        found: dict[str, Flip] = {}
        with self._ledger.read() as view:
            for flip in flips_down(view, name, record.seq):
                to = flip.row.to
                if to is not None and to != record.snapshot:
                    found.setdefault(to, flip)
                if len(found) == CANDIDATES_MAX or record.seq - flip.seq >= CANDIDATE_FLIPS_MAX:
                    break
            marks = {to: read_status(view, name, to) for to in found}
        # ORDER: the view is closed before content is looked at; that takes as long as the snapshots are large.
        return RollbackCandidates(
            pointer=str(name), candidates=[self._candidate(to, flip, marks[to]) for to, flip in found.items()]
        )

    def _candidate(self, to: str, flip: Flip, status: str) -> RollbackCandidate:
        found = completeness_of(self._content, SnapshotDigest.parse(to))
        return RollbackCandidate(
            snapshot=to,
            flip=flip.row.flip,
            seq=flip.seq,
            since=format_time(flip.row.at),
            status=status,
            complete=found.complete,
            size_bytes=found.size_bytes,
        )

    # --- snapshots and policy --------------------------------------------------------------------------------------------

    def snapshots(self, after: str = "", limit: int = 100) -> SnapshotList:
        """Published snapshots, newest first.

        Args:
            after: the ``next`` of the page before.
            limit: 1 to ``LIST_LIMIT_MAX``.

        Raises:
            InvalidInput: a limit out of range, or an ``after`` that no page gave.
        """
        check_limit(limit)
        end = min(parse_flip(after), self._view.size) if after else self._view.size
        with self._ledger.read() as view:
            rows = view.scan(Table.SNAPSHOT_ORDER, before=encode_index(end), reverse=True, limit=limit + 1)
            digests = [SnapshotDigest(digest) for _, digest in rows[:limit]]
            found = [(digest, read_snapshot(view, digest)) for digest in digests]
        infos = [self._info(digest, record) for digest, record in found]
        return SnapshotList(snapshots=infos, next=f"f{decode_index(rows[limit - 1][0])}" if len(rows) > limit else None)

    def _info(self, digest: SnapshotDigest, record: SnapshotRecord) -> SnapshotInfo:
        try:
            document = decode_snapshot(self._content.document(digest))
            labels, components = [Label(k, v) for k, v in document.labels], len(document.components)
        except (SnapshotNotFound, DamagedObject):
            labels, components = [], 0  # the log says that it was published; `fsck` says that it is gone
        return SnapshotInfo(
            digest=str(digest),
            entry=record.entry,
            published_at=format_time(record.at),
            by=record.by,
            labels=labels,
            components=components,
            size_bytes=record.size,
        )

    def resolve(self, digits: str) -> Sequence[SnapshotDigest]:
        """Published snapshots whose digest begins with these hex digits, at most ``RESOLVE_MAX``.

        Raises:
            InvalidInput: not 4 to 64 lower-case hex digits.
        """
        if not 4 <= len(digits) <= 64 or not set(digits) <= set("0123456789abcdef"):
            raise InvalidInput(f"{digits[:100]!r} is not a shortened digest: 4 to 64 lower-case hex digits")
        whole = bytes.fromhex(digits[: len(digits) // 2 * 2])
        found: list[SnapshotDigest] = []
        after: bytes | None = None
        with self._ledger.read() as view:
            while len(found) < RESOLVE_MAX:
                rows = view.scan(Table.SNAPSHOTS, prefix=whole, after=after, limit=RESOLVE_MAX)
                found += [SnapshotDigest(key) for key, _ in rows if key.hex().startswith(digits)]
                if len(rows) < RESOLVE_MAX:
                    break
                after = rows[-1][0]
        return found[:RESOLVE_MAX]

    def policy(self) -> PolicyAnswer:
        """The policy in force."""
        leaf = self._view.policy()
        with self._ledger.read() as view:
            return PolicyAnswer(version=leaf.version, entry=leaf.idx, policy=read_policy(view, leaf.idx))


def read_policy(view: LedgerView, index: int) -> dict[str, Any]:
    """The policy that entry ``index`` carries.

    Raises:
        EntryNotFound: there is no such entry, or it carries none.
    """
    args = decode_entry(read_entry(view, index)).intent()[1]
    if not isinstance(args, GenesisArgs | PolicyArgs):
        raise EntryNotFound(f"entry {index} carries no policy")
    return args.policy


def read_snapshot(view: LedgerView, digest: SnapshotDigest) -> SnapshotRecord:
    """When a snapshot was published.

    Raises:
        DamagedObject: it was, but its row is missing.
    """
    row = view.get(Table.SNAPSHOTS, digest)
    if row is None:
        raise DamagedObject(f"the row of {digest} is missing", object=str(digest), where="ledger, table snapshots")
    return decode_record(row, SnapshotRecord, f"snapshot {digest}")


def _was_live(view: LedgerView, name: PointerName, asked: str, moment: Moment, proof: ProofBundle | None) -> WasLive:
    flip, after = moment
    return WasLive(
        pointer=str(name),
        asked=asked,
        snapshot=None if flip is None else flip.row.to,
        flip=None if flip is None else history_item(view, name, flip),
        valid_from=None if flip is None else format_time(flip.row.at),
        valid_until=None if after is None else format_time(after.row.at),
        proof=proof,
    )
