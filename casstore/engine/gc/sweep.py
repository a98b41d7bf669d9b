"""Condemn, revive, drop: what the index goes through after a mark.

Owns the rules of grace.  An object that the mark did not reach is condemned, with the time; one that it reached is revived.  Dropped
is only what *this* mark did not reach either, if it began at least a grace after the object was condemned.

Invariants:

* what leads to something is condemned, and dropped, before it: document, root, layout, page, chunk.  So whatever a crash leaves,
  a layout that is there has its chunks;
* an object in a pack that became known after the mark began is not condemned: the mark may not have seen who needs it;
* nothing is dropped while somebody relies on it (:mod:`casstore.engine.claims`) or the store is being copied
  (:mod:`casstore.engine.holds`).

Threads: the run's own; every change goes through ``work.write_index``, in batches of ``BATCH`` rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from casstore.engine.claims import Claim
from casstore.engine.gc.mark import Mark
from casstore.engine.gc.reached import Reached
from casstore.engine.gc.work import BATCH, Blocked, Work
from casstore.engine.proving import page_proof_key, tree_proof_key
from casstore.errors import CasstoreError
from casstore.formats.pack import ObjectKind
from casstore.ids import BlobDigest, PackId, SnapshotDigest, TreeDigest
from casstore.storage.roles import CondemnedRow

ORDER: Final = (ObjectKind.DOCUMENT, ObjectKind.ROOT, ObjectKind.LAYOUT, ObjectKind.PAGE, ObjectKind.CHUNK)
"""Each leads to those behind it."""
HEADS_MAX: Final = 1000  # LIMIT: what one log entry names; a run writes as many entries as it needs
_CLAIM_ROUNDS_MAX: Final = 100
_BEFORE: Final = bytes(32)


class MarkTime(NamedTuple):
    """Which mark, and when it began, ms since the epoch."""

    number: int
    began_ms: int


class Round(NamedTuple):
    """What one log entry is about."""

    counts: Counter[str]
    size_bytes: int
    heads: list[str]
    """Snapshots, trees and blobs, one a line."""
    end: tuple[ObjectKind, bytes] | None
    """The last row of it; None: the last of all."""


class Sweep:
    """The changes of one run.

    Args:
        work: the store.
        mark: the walk, for claims that come up meanwhile.
        reached: what it met.
        when: its number and time.
        known: the packs that were known when it began.
        grace_ms: how long what is condemned stays.
    """

    def __init__(
        self, work: Work, mark: Mark, reached: Reached, when: MarkTime, *, known: frozenset[PackId], grace_ms: int
    ) -> None:
        self._work = work
        self._index = work.packs.index
        self._mark = mark
        self._reached = reached
        self._when = when
        self._known = known
        self._grace_ms = grace_ms
        self._walked: dict[Claim, tuple[int, bool]] = {}
        self.revived = 0
        self.condemned: Counter[str] = Counter()
        self.condemned_bytes = 0
        self.dropped: Counter[str] = Counter()
        self.dropped_bytes = 0

    # --- revive, condemn -----------------------------------------------------------------------------------------------

    def revive(self) -> None:
        """Make live what the mark reached."""
        batch: list[CondemnedRow] = []
        for row in self.rows():
            if self._reached.has(row.kind, row.id):
                batch.append(row)
                if len(batch) == BATCH:
                    self._revive(batch)
                    batch = []
        self._revive(batch)

    def _revive(self, rows: Sequence[CondemnedRow]) -> None:
        if not rows:
            return
        wanted = [(kind, [row.id for row in rows if row.kind is kind]) for kind in ORDER]
        absent = self._work.write_index(self._index.revive, wanted)
        if absent:
            # Some were taken out of use since they were read; the others are revived one by one.
            gone = set(absent)
            kept = [(kind, [id for id in ids if (kind, id) not in gone]) for kind, ids in wanted]
            self._work.write_index(self._index.revive, kept)
        self.revived += len(rows) - len(absent)
        self._work.pause()

    def condemn(self, *, dry_run: bool) -> None:
        """Condemn what is live, was there when the mark began, and was not reached."""
        for kind in ORDER:
            after = b""
            while rows := self._index.objects(kind, after=after, limit=BATCH):
                after = rows[-1][0]
                unreached = [
                    (id, at.stored_length)
                    for id, at in rows
                    if at.pack in self._known and not self._reached.has(kind, id)
                ]
                if unreached:
                    ids = [id for id, _ in unreached]
                    count = len(ids) if dry_run else self._work.write_index(self._condemn, kind, ids)
                    self.condemned[kind.name.lower()] += count
                    self.condemned_bytes += sum(size for _, size in unreached)
                self._work.pause()

    def _condemn(self, kind: ObjectKind, ids: Sequence[bytes]) -> int:
        # ORDER: the time is read where the transaction runs: grace counts from the moment from which it is missing.
        self._work.presence.forget_live()
        count = self._index.condemn(kind, ids, at_ms=self._work.clock.now_ms(), mark=self._when.number)
        self._work.presence.forget_live()
        return count

    # --- drop ----------------------------------------------------------------------------------------------------------

    def rows(self, after: tuple[ObjectKind, bytes] | None = None) -> Iterator[CondemnedRow]:
        """Condemned objects, those that lead to others first, behind ``after``."""
        kinds = ORDER if after is None else ORDER[ORDER.index(after[0]) :]
        for kind in kinds:
            at = after if after is not None and after[0] is kind else (kind, _BEFORE)
            while True:
                rows = [row for row in self._index.condemned(after=at, limit=BATCH) if row.kind is kind]
                yield from rows
                if not rows:
                    break
                at = (kind, rows[-1].id)
                self._work.pause()

    def _is_due(self, row: CondemnedRow) -> bool:
        """The rule of grace."""
        return (
            row.mark < self._when.number
            and row.at_ms + self._grace_ms <= self._when.began_ms
            and not self._reached.has(row.kind, row.id)
        )

    def waiting(self) -> tuple[int, int | None]:
        """How many condemned objects wait, and when the first of them may be dropped, ms since the epoch."""
        count, first = 0, None
        for row in self.rows():
            count += 1
            due = row.at_ms + self._grace_ms
            first = due if first is None else min(first, due)
        return count, first

    def plan(self, after: tuple[ObjectKind, bytes] | None) -> Round | None:
        """What the next log entry is about: due rows behind ``after``; None if there are none."""
        counts: Counter[str] = Counter()
        heads: list[str] = []
        size = 0
        for row in self.rows(after):
            if not self._is_due(row):
                continue
            counts[row.kind.name.lower()] += 1
            size += row.location.stored_length
            head = self._head(row)
            if head is not None:
                heads.append(head)
                if len(heads) == HEADS_MAX:
                    return Round(counts, size, heads, (row.kind, row.id))
        return Round(counts, size, heads, None) if counts else None

    def _head(self, row: CondemnedRow) -> str | None:
        if row.kind is ObjectKind.DOCUMENT:
            return f"snapshot {SnapshotDigest(row.id)}"
        if row.kind is ObjectKind.ROOT:
            return f"tree {TreeDigest(row.id)}"
        if row.kind is ObjectKind.LAYOUT and not self._work.packs.available(ObjectKind.PAGE, [row.id])[0]:
            return f"blob {BlobDigest(row.id)}"
        return None

    def drop(self, after: tuple[ObjectKind, bytes] | None, round_: Round) -> None:
        """Drop the rows of a round that is on record.

        Raises:
            Blocked: something holds, or too much was claimed; what was dropped stays dropped.
        """
        batch: list[CondemnedRow] = []
        for row in self.rows(after):
            if self._is_due(row):
                batch.append(row)
                if len(batch) == BATCH:
                    self._drop(batch)
                    batch = []
            if round_.end == (row.kind, row.id):
                break
        if batch:
            self._drop(batch)

    def _drop(self, rows: Sequence[CondemnedRow]) -> None:
        keys = self._memo_keys(rows)
        for _ in range(_CLAIM_ROUNDS_MAX):
            done = self._work.write_index(self._drop_unclaimed, rows, keys)
            if not isinstance(done, _New):
                break
            for claim, number in done.claims:
                self._walked[claim] = (number, self._mark.take_claim(claim))
        else:
            raise Blocked("what is about to be dropped is claimed anew all the time")
        for row in done:
            self.dropped[row.kind.name.lower()] += 1
            self.dropped_bytes += row.location.stored_length
        self._work.pause()

    def _drop_unclaimed(
        self, rows: Sequence[CondemnedRow], keys: dict[tuple[ObjectKind, bytes], bytes]
    ) -> list[CondemnedRow] | _New:
        """One drop transaction, or the claims that have to be walked before it.

        Threads: index writer.
        """
        # ORDER: the hold, then the claims, then memory, then the rows, then memory again; see casstore.engine.claims.
        with self._work.holds.deleting(), self._work.presence.claims.frozen() as claims:
            if claims is None:
                raise Blocked("more was claimed during the run than can be remembered")
            new = [(claim, number) for claim, number in claims.items() if not self._is_walked(claim, number)]
            if new:
                return _New(new)
            due = [row for row in rows if not self._reached.has(row.kind, row.id)]
            self._work.presence.forget()
            try:
                self._index.drop(due)
            finally:
                self._work.presence.forget()
        # What a push revived or stored anew since the rows were read stays.
        done = [row for row in due if not self._work.packs.available(row.kind, [row.id])[0]]
        # ORDER: the rows, then the memo, on one thread.  CRASH: in between a proof is remembered of what is gone; it stays true.
        gone = [keys[key] for row in done if (key := (row.kind, row.id)) in keys]
        if gone:
            self._index.memo_drop(gone)
        return done

    def _is_walked(self, claim: Claim, number: int) -> bool:
        """Whether all that a claim reaches is among what was met.  One that lacked something may have it by now."""
        seen, whole = self._walked.get(claim, (-1, False))
        return whole or seen == number

    def _memo_keys(self, rows: Sequence[CondemnedRow]) -> dict[tuple[ObjectKind, bytes], bytes]:
        """What the memo remembers of objects that are about to go; layouts have to be read for it."""
        keys: dict[tuple[ObjectKind, bytes], bytes] = {}
        for row in rows:
            if row.kind is ObjectKind.ROOT:
                keys[row.kind, row.id] = tree_proof_key(TreeDigest(row.id))
            elif row.kind is ObjectKind.LAYOUT:
                try:
                    data = next(self._work.packs.read_located(row.kind, [(row.id, row.location)]))
                except CasstoreError:
                    continue  # what cannot be read is not proven by it either
                keys[row.kind, row.id] = page_proof_key(row.id, data)
        return keys


class _New(NamedTuple):
    """Claims that nobody has walked yet."""

    claims: list[tuple[Claim, int]]
