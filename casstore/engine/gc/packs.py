"""Packs after a sweep: empty ones are retired and deleted, those with little in them rewritten, small ones merged.

Owns the life of a pack behind its last use::

    used → no row points to it → retired (its file stays for readers) → deleted

What is copied is copied verbatim, and verified frame by frame: a damaged object does not move, it is quarantined where it lies.

CRASH, border by border, for the rewriting of one pack: while the new pack is being written, a file in ``tmp/`` that opening removes;
named, but not in the index: an orphan, taken in after grace, whose objects all lie elsewhere, so it is retired next; moved, old pack
not retired: no row points to the old one, the next run retires it; retired, not deleted: the next run deletes it; deleted, row
not forgotten: deleting again is harmless.  At no border is an object without a place that the index names.

Threads: the run's own; what changes the index or removes a file goes through ``work.write_index``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from casstore.engine.gc.state import ORPHANS_MAX, GcState
from casstore.engine.gc.work import Work
from casstore.engine.ingest import PackReader
from casstore.engine.pack_life import delete_retired, retire_pack
from casstore.engine.packs import READ_RUN_BYTES, format_object, format_where, open_at
from casstore.engine.quarantine import READ_TRIES
from casstore.errors import DamagedObject, InvalidInput, PackNotFound
from casstore.formats.pack import ObjectKind, PackEncoder, PackRow, decode_frame
from casstore.ids import PackId
from casstore.limits import KIB, MIB
from casstore.storage.roles import FrameRow, Location, Move, PackRecord, PackUsage, PackWriter

SPARSE_PERCENT: Final = 60
SPARSE_MIN_BYTES: Final = 256 * KIB  # what a rewriting must give back; footers alone make a small pack look sparse
SMALL_BYTES: Final = 4 * MIB
SMALL_MAX: Final = 16  # so many small packs stay as they are
TARGET_BYTES: Final = 32 * MIB
_LIST: Final = 1000
_SHOWN_MAX: Final = 20
_READ_BYTES: Final = MIB


class PackTimes(NamedTuple):
    """How long things wait, in ms."""

    reader_grace_ms: int
    """From retiring a pack to deleting it: who was told where something lies may still read there."""
    orphan_grace_ms: int
    """From first seeing a pack that the index does not know: longer than a lease, so no push is about to record it."""


class PackKeeper:
    """What one run does to packs.

    Args:
        work: the store.
        known: the packs that were known when the mark began; no others are touched.
        spared: packs that pushes still hold; None: unknown, so none is touched.
        times: see :class:`PackTimes`.
        rewrite_max_bytes: how much is read for rewriting.
    """

    def __init__(
        self,
        work: Work,
        known: frozenset[PackId],
        spared: frozenset[PackId] | None,
        times: PackTimes,
        *,
        rewrite_max_bytes: int,
    ) -> None:
        self._work = work
        self._packs = work.packs
        self._index = work.packs.index
        self._known = known
        self._spared = spared
        self._times = times
        self._budget = rewrite_max_bytes
        self._usage: dict[PackId, PackUsage] = {}
        self.rewritten = 0
        self.merged = 0
        self.written = 0
        self.rewritten_bytes = 0
        self.damaged: list[str] = []
        self.retired = 0
        self.deleted = 0
        self.freed_bytes = 0
        self.orphans = 0

    def _touchable(self, usage: Mapping[PackId, PackUsage]) -> dict[PackId, PackUsage]:
        if self._spared is None:
            return {}
        return {pack: use for pack, use in usage.items() if pack in self._known and pack not in self._spared}

    # --- rewriting -----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Find out what of each pack is used: once a run, for it goes through the whole index."""
        self._usage = self._touchable(self._index.usage())

    def rewrite(self) -> None:
        """Copy what is used out of sparse packs, and out of small ones where there are many."""
        usage = self._usage
        sizes = {record.pack: record.size_bytes for record in self._records() if record.pack in usage}
        # A pack in which something is quarantined is left alone: it may yet be healed from its bytes.
        used = {
            pack: use.live_bytes + use.condemned_bytes
            for pack, use in usage.items()
            if use.rows and not use.quarantined_bytes and pack in sizes
        }
        sparse = [
            pack
            for pack in used
            if used[pack] * 100 < sizes[pack] * SPARSE_PERCENT and sizes[pack] - used[pack] >= SPARSE_MIN_BYTES
        ]
        small = [pack for pack in used if sizes[pack] < SMALL_BYTES and pack not in set(sparse)]
        if len(small) <= SMALL_MAX:
            small = []
        # ORDER: the emptiest first, for they give back most for each byte that is read.
        sparse.sort(key=lambda pack: used[pack] / sizes[pack])
        chosen: list[PackId] = []
        for pack in (*sparse, *small):
            if used[pack] > self._budget:
                break
            self._budget -= used[pack]
            chosen.append(pack)
        moved = self._copy(chosen)
        self.rewritten = len(moved.intersection(sparse))
        self.merged = len(moved.intersection(small))
        if moved:
            self.look()

    def _copy(self, packs: Sequence[PackId]) -> set[PackId]:
        """Copy what is used in some packs into new ones; returns the packs that could be read."""
        moved: set[PackId] = set()
        with _Copy(self._work) as copy:
            for pack in packs:
                try:
                    rows = self._packs.read_footer(pack).rows
                except (PackNotFound, DamagedObject) as error:
                    self._report(f"pack {pack}: {error.detail}")
                    continue
                for row, location, frame in self._used(pack, rows):
                    copy.add(row, location, frame)
                moved.add(pack)
            copy.finish()
        self.written += copy.packs
        self.rewritten_bytes += copy.bytes
        return moved

    def _used(self, pack: PackId, rows: Sequence[PackRow]) -> Iterator[tuple[PackRow, Location, memoryview]]:
        """The frames of a pack that the index leads to, each verified."""
        places: dict[Location, PackRow] = {}
        for kind in ObjectKind:
            of_kind = [row for row in rows if row.kind is kind]
            for row, at in zip(of_kind, self._index.locate(kind, [row.id for row in of_kind]), strict=True):
                if at is not None and at.pack == pack and at.offset == row.offset:
                    places[at] = row
        run: list[Location] = []
        for at in sorted(places, key=lambda at: at.offset):
            if run and at.offset + at.stored_length - run[0].offset > READ_RUN_BYTES:
                yield from self._read(run, places)
                run = []
            run.append(at)
        if run:
            yield from self._read(run, places)

    def _read(
        self, run: Sequence[Location], places: Mapping[Location, PackRow]
    ) -> Iterator[tuple[PackRow, Location, memoryview]]:
        first, last = run[0], run[-1]
        try:
            whole = self._packs.store.read(first.pack, first.offset, last.offset + last.stored_length - first.offset)
        except DamagedObject:
            whole = None  # one bad sector: the others are read one by one
        for at in run:
            row = places[at]
            start = at.offset - first.offset
            frame = None if whole is None else memoryview(whole)[start : start + at.stored_length]
            found = self._verified(row, at, frame)
            if found is not None:
                yield row, at, found
        self._work.pause()

    def _verified(self, row: PackRow, at: Location, frame: memoryview | None) -> memoryview | None:
        """A frame that is right; one that is wrong each time that it is read is taken out of use.

        TRUST: a damaged object must not get a new place: whoever looks for its bytes would look at a copy.
        """
        for tries_left in reversed(range(READ_TRIES)):
            try:
                if frame is None:
                    frame = memoryview(self._packs.store.read(at.pack, at.offset, at.stored_length))
                with self._packs.rooms.hold(row.kind, at.plain_length):
                    open_at(row.kind, row.id, at, frame)
                return frame
            except DamagedObject as error:
                frame = None
                if not tries_left:
                    self._work.write_index(self._quarantine, row, at, error.detail)
        return None

    def _quarantine(self, row: PackRow, at: Location, reason: str) -> None:
        self._work.presence.forget()
        if self._index.quarantine(row.kind, row.id, at, at_ms=self._work.clock.now_ms(), reason=reason):
            self._report(f"{format_object(row.kind, row.id)} at {format_where(at)}: {reason}")
        self._work.presence.forget()

    def _report(self, text: str) -> None:
        if len(self.damaged) < _SHOWN_MAX:
            self.damaged.append(text)

    # --- retiring, deleting --------------------------------------------------------------------------------------------

    def retire(self) -> None:
        """Retire packs to which no row points."""
        for pack, use in self._usage.items():
            if not use.rows:
                try:
                    self.retired += self._work.write_index(self._retire, pack)
                except DamagedObject as error:
                    # Nobody can say what it holds: it stays.
                    self._report(f"pack {pack}: {error.detail}")
                self._work.pause()

    def _retire(self, pack: PackId) -> bool:
        # ORDER: on this thread a push notes its packs, takes one up again, and learns where its layouts lie.
        if self._work.sessions.brings(pack):
            return False
        # ORDER: looked at once more here: what was condemned, or in quarantine, may have been revived while its row was counted.
        return retire_pack(self._packs, pack, at_ms=self._work.clock.now_ms())

    def delete(self) -> int:
        """Delete retired packs whose readers have had time to go on; returns how many wait.

        Raises:
            DeletionHeld: the store is being copied.
        """
        waiting = 0
        after: PackId | None = None
        while rows := self._index.retired(after=after, limit=_LIST):
            after = rows[-1][0].pack
            for record, at_ms in rows:
                if at_ms + self._times.reader_grace_ms > self._work.clock.now_ms():
                    waiting += 1
                elif self._work.write_index(self._delete, record.pack):
                    self.deleted += 1
                    self.freed_bytes += record.size_bytes
                    self._work.deleted(record.pack)
                self._work.pause()
        return waiting

    def _delete(self, pack: PackId) -> bool:
        with self._work.holds.deleting():
            return delete_retired(self._packs, pack)

    # --- orphans -------------------------------------------------------------------------------------------------------

    def adopt(self, state: GcState) -> None:
        """Take in packs that the index does not know, once no push can be about to record them.

        A push that was cut short left them, or an older index was put back.  What they hold and the index lacks becomes live; the
        next mark says whether anything needs it.  Layouts are left out: nobody proved them.
        """
        now = self._work.clock.now_ms()
        seen: dict[str, int] = {}
        for pack in self._unknown():
            self.orphans += 1
            since = state.orphans.get(pack.hex(), now)
            if since + self._times.orphan_grace_ms <= now and self._adopt(pack):
                continue
            if len(seen) < ORPHANS_MAX:
                seen[pack.hex()] = since
        state.orphans = seen

    def _unknown(self) -> Iterator[PackId]:
        after: PackId | None = None
        while names := self._packs.store.list(after=after, limit=_LIST):
            after = names[-1]
            for pack in names:
                if self._index.pack(pack) is None and not self._index.is_retired(pack):
                    yield pack
            self._work.pause()

    def _adopt(self, pack: PackId) -> bool:
        """Verify a pack from its first byte to its last, and record it; a damaged one stays where it is."""
        reader = PackReader(pack, self._packs.rooms, kinds=frozenset(ObjectKind))
        try:
            size = self._packs.store.size(pack)
            for offset in range(0, size, _READ_BYTES):
                reader.feed(self._packs.store.read(pack, offset, min(_READ_BYTES, size - offset)))
                self._work.pause()
            summary = reader.finish()
        except (InvalidInput, DamagedObject, PackNotFound) as error:
            self._report(f"pack {pack}, which the index does not know: {error.detail}")
            return False
        finally:
            reader.close()
        rows = [
            FrameRow(row.kind, row.id, row.offset, row.stored_length, row.plain_length)
            for row in summary.rows
            if row.kind is not ObjectKind.LAYOUT
        ]
        self._work.write_index(self._index.add_pack, PackRecord(pack, summary.size, len(summary.rows)), rows)
        return True

    def _records(self) -> Iterator[PackRecord]:
        after: PackId | None = None
        while records := self._index.packs(after=after, limit=_LIST):
            yield from records
            after = records[-1].pack


class _Copy:
    """New packs, written one after the other; the index learns of each when it is durable."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._writer: PackWriter | None = None
        self._encoder: PackEncoder | None = None
        self._moves: list[Move] = []
        self.packs = 0
        self.bytes = 0

    def __enter__(self) -> _Copy:
        return self

    def __exit__(self, *_: object) -> None:
        # CRASH: what was not finished lies in tmp/, and nothing refers to it.
        if self._writer is not None:
            self._writer.abort()

    def add(self, row: PackRow, location: Location, data: memoryview) -> None:
        """Append one verified frame."""
        frame = decode_frame(data, location.offset)
        encoder, writer = self._open(len(frame.stored))
        at = encoder.size
        copied = encoder.add(frame.kind, frame.id, frame.codec, frame.stored, frame.plain_length)
        writer.write(copied)
        new = Location(encoder.pack, at, len(copied), frame.plain_length)
        self._moves.append(Move(row.kind, row.id, location, new))
        if encoder.size >= TARGET_BYTES:
            self.finish()

    def _open(self, stored_length: int) -> tuple[PackEncoder, PackWriter]:
        if self._encoder is not None and not self._encoder.fits(stored_length):
            self.finish()
        if self._encoder is None or self._writer is None:
            pack = PackId(self._work.randomness(PackId.SIZE))
            self._encoder = PackEncoder(pack)
            self._writer = self._work.packs.store.create(pack)
            self._writer.write(self._encoder.header())
        return self._encoder, self._writer

    def finish(self) -> None:
        """Make the pack durable, then let the index lead to it."""
        encoder, writer, moves = self._encoder, self._writer, self._moves
        if encoder is None or writer is None:
            return
        writer.write(encoder.finish())
        writer.commit()
        self._encoder, self._writer, self._moves = None, None, []
        # ORDER: the pack before the index; all that it took over in one transaction.
        self._work.write_index(self._work.packs.index.move, PackRecord(encoder.pack, encoder.size, len(moves)), moves)
        self.packs += 1
        self.bytes += encoder.size
