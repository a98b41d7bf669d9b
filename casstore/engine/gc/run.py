"""One run of collection, from the clock to the report.

Owns the order, which is what makes it safe::

    clock → number of the mark, durable → watch claims → known packs → what pushes hold → roots → walk
    → revive → condemn → (entry in the log → artifacts' rows → drop)* → rewrite → retire → delete → adopt

A run may end at any point (:class:`~casstore.engine.gc.work.Interrupted`, a crash, a failed write): what it did stands, and the next
run begins with a mark of its own.

Threads: one run at a time; reads on the caller's thread, writes through ``work``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from casstore.engine.gc.mark import Mark
from casstore.engine.gc.packs import PackKeeper, PackTimes
from casstore.engine.gc.reached import Reached
from casstore.engine.gc.retention import Retention
from casstore.engine.gc.roots import Roots
from casstore.engine.gc.state import GcState, anchor, clock_step, read_state, write_state
from casstore.engine.gc.sweep import MarkTime, Round, Sweep
from casstore.engine.gc.work import BATCH, Blocked, Interrupted, Work
from casstore.errors import DeletionHeld, InvalidInput, StoreFull
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.limits import CLOCK_SKEW_MAX_MS, GIB, PUSH_LEASE_MS
from casstore.storage.roles import PackRecord
from casstore.wire import GcReport, GcRoot, format_time

GRACE_MS: Final = 24 * 60 * 60 * 1000
# A lease, and what a clock may be off by unnoticed, twice: when it was condemned and when the mark began.
GRACE_MIN_MS: Final = PUSH_LEASE_MS + 2 * CLOCK_SKEW_MAX_MS
READER_GRACE_MS: Final = 60 * 60 * 1000
REWRITE_MAX_BYTES: Final = GIB  # of one run: what a disk does in the background without anyone noticing
_REMOVED_SHOWN_MAX: Final = 100
_PACKS: Final = 1000


class GcTimes(NamedTuple):
    """How patient collection is.

    Attributes:
        grace_ms: how long what is condemned can still be had; at least ``GRACE_MIN_MS``.
        reader_grace_ms: how long the file of a retired pack stays.
        rewrite_max_bytes: how much one run rewrites.
    """

    grace_ms: int = GRACE_MS
    reader_grace_ms: int = READER_GRACE_MS
    rewrite_max_bytes: int = REWRITE_MAX_BYTES

    def check(self) -> None:
        """Refuse what is not safe.

        Raises:
            InvalidInput: a grace that a push could outlive.
        """
        if self.grace_ms < GRACE_MIN_MS:
            raise InvalidInput(
                f"a grace of {self.grace_ms // 1000} s is shorter than the {GRACE_MIN_MS // 1000} s for which a push may rely "
                "on what it was told"
            )


class Ledgerside(NamedTuple):
    """What a run needs of the ledger's writers.

    Attributes:
        refusal: why nothing may be removed now (the log is read-only, the clock is not believed), or None.
        record: puts a round on record in the log; returns the entry's index.  Runs on the ledger writer.
        expire_pins: removes pins whose time is over.  Runs on the ledger writer.
        expire_artifacts: removes artifacts' rows by key; returns how many.  Runs on the ledger writer.
    """

    refusal: Callable[[], str | None]
    record: Callable[[Round], int]
    expire_pins: Callable[[], int]
    expire_artifacts: Callable[[list[bytes]], int]


class Run:
    """One run.

    Args:
        work: the store.
        ledgerside: what is written there.
        retention: what is kept.
        times: how patient to be.
        dry_run: change nothing.
    """

    def __init__(
        self, work: Work, ledgerside: Ledgerside, retention: Retention, times: GcTimes, *, dry_run: bool
    ) -> None:
        times.check()
        self._work = work
        self._ledgerside = ledgerside
        self._retention = retention
        self._times = times
        self._dry_run = dry_run
        self._blocked: list[str] = []
        self._entries: list[int] = []
        self._removed: list[str] = []
        self._expired = 0
        self._packs_waiting = 0
        self._planned: list[Round] = []
        self._waiting: tuple[int, int | None] = (0, None)

    def execute(self) -> GcReport:
        """Do it.

        Raises:
            CasstoreError: the index or the ledger cannot be read or written; what was done stands.
        """
        began = time.monotonic()
        index = self._work.packs.index
        refusal = None if self._dry_run else self._ledgerside.refusal()
        if refusal is not None:
            self._blocked.append(f"nothing was changed: {refusal}")
        writing = not self._dry_run and refusal is None
        state = read_state(index)
        # ORDER: the time before the clock is looked at: one that is set in between makes nothing due.
        began_ms = self._work.clock.now_ms()
        if writing:
            self._begin(state)
        with self._work.presence.claims.watch():
            # ORDER: the packs before the pushes: one that is recorded in between is spared as unknown.
            known = frozenset(record.pack for record in self._known())
            brought = self._work.sessions.brought()
            when = MarkTime(state.mark + (0 if writing else 1), began_ms)
            mark = self._new_mark(state)
            sweep = Sweep(self._work, mark, self._reached, when, known=known, grace_ms=self._times.grace_ms)
            keeper = PackKeeper(
                self._work,
                known,
                brought,
                PackTimes(self._times.reader_grace_ms, self._times.grace_ms),
                rewrite_max_bytes=self._times.rewrite_max_bytes,
            )
            try:
                if refusal is None:
                    self._mark(mark, brought, when)
                    self._sweep(mark, sweep, brought, state, writing=writing)
                if writing:
                    self._keep(keeper, state, complete=mark.complete)
            except Interrupted:
                self._blocked.append("the run was stopped; the next one goes on")
        if writing:
            state.newest_ms = max(state.newest_ms, self._work.clock.now_ms())
            self._work.write_index(write_state, index, state)
        return self._report(mark, sweep, keeper, when, time.monotonic() - began)

    # --- the steps -----------------------------------------------------------------------------------------------------

    def _begin(self, state: GcState) -> None:
        clock, index = self._work.clock, self._work.packs.index
        step = clock_step(state, clock)
        if step is not None:
            self._blocked.append(f"the clock was set by {step // 1000} s: grace begins anew")
            self._work.write_index(index.restart_grace, clock.now_ms())
            state.orphans = {}  # they have their grace again, too: a commit may be about to record one
        if step is not None or state.wall_ms is None or state.boot != clock.boot():
            anchor(state, clock)
        self._work.write_ledger(self._ledgerside.expire_pins)
        # ORDER: the number is durable before the mark reads its first root, so no two marks have one.
        state.mark += 1
        self._work.write_index(write_state, index, state)

    def _known(self) -> list[PackRecord]:
        found: list[PackRecord] = []
        after: PackId | None = None
        while records := self._work.packs.index.packs(after=after, limit=_PACKS):
            found += records
            after = records[-1].pack
        return found

    def _new_mark(self, state: GcState) -> Mark:
        chunks = self._work.packs.index.count(ObjectKind.CHUNK)
        self._reached = Reached(chunks, self._work.randomness(32))
        return Mark(self._work.packs, self._reached, swept=state.swept, pause=self._work.pause)

    def _mark(self, mark: Mark, brought: frozenset[PackId] | None, when: MarkTime) -> None:
        mark.take_packs(brought or ())
        self._roots = Roots(self._work.ledger, self._retention, when.began_ms, self._work.pause)
        mark.take(self._roots)

    def _sweep(
        self, mark: Mark, sweep: Sweep, brought: frozenset[PackId] | None, state: GcState, *, writing: bool
    ) -> None:
        if writing:
            sweep.revive()
        if not mark.complete:
            self._blocked.append(
                "nothing was condemned or dropped, and no pack retired: some of what is needed is missing or damaged, and what it leads "
                "to is unknown"
            )
        elif brought is None:
            self._blocked.append(
                "nothing was condemned or dropped: pushes under way brought more than can be remembered"
            )
        else:
            sweep.condemn(dry_run=not writing)
            try:
                self._drop(sweep, state, writing=writing)
            except (Blocked, DeletionHeld) as error:
                self._blocked.append(str(error))
        self._waiting = sweep.waiting()

    def _drop(self, sweep: Sweep, state: GcState, *, writing: bool) -> None:
        after: tuple[ObjectKind, bytes] | None = None
        while (round_ := sweep.plan(after)) is not None:
            self._removed += round_.heads[: _REMOVED_SHOWN_MAX - len(self._removed)]
            if not writing:
                self._planned.append(round_._replace(heads=[]))
            else:
                self._drop_round(sweep, state, after, round_)
            if round_.end is None:
                return
            after = round_.end

    def _drop_round(self, sweep: Sweep, state: GcState, after: tuple[ObjectKind, bytes] | None, round_: Round) -> None:
        with self._work.holds.deleting():
            pass  # a copy is being made: nothing is even announced
        if not state.swept:
            state.swept = True
            self._work.write_index(write_state, self._work.packs.index, state)
        # ORDER: backwards along the order of durability: the log says it, the artifacts' rows go, then the index's.
        # CRASH: an entry without its drop: the next run drops it, and says so once more.
        self._entries.append(self._work.write_ledger(self._ledgerside.record, round_))
        self._expire_artifacts(set(round_.heads))
        sweep.drop(after, round_)

    def _expire_artifacts(self, heads: set[str]) -> None:
        """Forget the artifacts whose trees and blobs are about to go: nobody finds what is not there."""
        batch: list[bytes] = []
        for key, row in self._roots.expired():
            if f"{row.kind} {row.digest}" in heads:
                batch.append(key)
                if len(batch) == BATCH:
                    self._expired += self._work.write_ledger(self._ledgerside.expire_artifacts, batch)
                    batch = []
        if batch:
            self._expired += self._work.write_ledger(self._ledgerside.expire_artifacts, batch)

    def _keep(self, keeper: PackKeeper, state: GcState, *, complete: bool) -> None:
        # ORDER: what the index lacks may lie in a pack to which no row points: the layouts that a rebuilt index could not prove for
        # want of a chunk, those of a pack that an older index does not know.  No such pack goes while something is missing.
        if complete:
            keeper.look()
            try:
                keeper.rewrite()
            except StoreFull as error:
                # What follows gives space back, and needs next to none.
                self._blocked.append(f"no pack was rewritten: {error.detail}")
            keeper.retire()
        try:
            self._packs_waiting = keeper.delete()
        except DeletionHeld as error:
            self._blocked.append(error.detail)
        keeper.adopt(state)

    # --- the report ----------------------------------------------------------------------------------------------------

    def _report(self, mark: Mark, sweep: Sweep, keeper: PackKeeper, when: MarkTime, seconds: float) -> GcReport:
        dropped, dropped_bytes = sweep.dropped, sweep.dropped_bytes
        for round_ in self._planned:
            dropped = dropped + round_.counts
            dropped_bytes += round_.size_bytes
        waiting, first = self._waiting
        return GcReport(
            dry_run=self._dry_run,
            mark=when.number,
            began_at=format_time(when.began_ms),
            seconds=round(seconds, 3),
            roots={reason: count for reason, count in mark.roots.items() if count},
            kept=[
                GcRoot(reason=root.reason, kind=root.kind, digest=f"blake3:{root.digest.hex()}", owner=root.owner)
                for root in mark.kept
                if self._dry_run
            ],
            gone=mark.gone,
            gaps=mark.gaps,
            revived=sweep.revived,
            condemned=dict(sweep.condemned),
            condemned_bytes=sweep.condemned_bytes,
            waiting=waiting,
            waiting_until=None if first is None else format_time(first),
            dropped=dict(dropped),
            dropped_bytes=dropped_bytes,
            removed=self._removed,
            artifacts_expired=self._expired,
            entries=self._entries,
            packs_rewritten=keeper.rewritten,
            packs_merged=keeper.merged,
            packs_written=keeper.written,
            rewritten_bytes=keeper.rewritten_bytes,
            damaged=keeper.damaged,
            packs_retired=keeper.retired,
            packs_waiting=self._packs_waiting,
            packs_deleted=keeper.deleted,
            freed_bytes=keeper.freed_bytes,
            orphans=keeper.orphans,
            blocked=self._blocked,
        )


def undo(work: Work) -> int:
    """Make live again all that is condemned; returns how many objects.

    The next run condemns again what nothing needs: pin it, or change the retention, first.
    """
    revived = 0
    while rows := work.packs.index.condemned(limit=BATCH):
        wanted = [(kind, [row.id for row in rows if row.kind is kind]) for kind in ObjectKind]
        absent = work.write_index(work.packs.index.revive, wanted)
        if absent:
            continue  # some changed since they were read
        revived += len(rows)
        work.pause()
    return revived
