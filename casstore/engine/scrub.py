"""Scrub: read everything that the index names, hash it again, and take out of use what is wrong.

Owns one pass over all packs, in the order of their names, which is the order in which they lie in their folders: each pack is read
from its header to its footer in runs of a few MiB.  A pass goes in steps, each bounded in bytes; how far it came is kept in the
index, so that a pass outlives the process.  How fast it goes, and when, is decided by whoever calls :meth:`Scrubber.step`.

What is looked at: every frame of every known pack, header and footer too.  A damaged frame that the index names is read again, and
quarantined if it stays wrong; one that nothing names any more is reported and harms nobody.  Where a pack's footer or header is
damaged the pack's frames cannot be believed to be listed, so whatever the index names in that pack is looked up and read.
Whether the index names places that no footer lists is ``fsck``'s to say.

CRASH: a step that was not recorded is done again.

Memory: a step's packs' footers, a run for each thread, and ``DAMAGES_MAX`` findings.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

import msgspec

from casstore.clock import Clock
from casstore.engine.packs import READ_RUN_BYTES, PackService, format_object, format_where, open_at
from casstore.engine.proving import run_units
from casstore.engine.quarantine import Damage, QuarantineService
from casstore.engine.room import ROOM_PATIENCE_S
from casstore.errors import DamagedObject, PackNotFound
from casstore.formats.pack import PACK_HEADER_BYTES, ObjectKind, PackEncoder, PackRow
from casstore.ids import PackId
from casstore.limits import MIB
from casstore.storage.roles import Location, PackRecord
from casstore.wire import Finding, ScrubStatus, format_time

NOTE: Final = "scrub"
# LIMIT: of one step: so long does stopping take, and so much is read again after a crash.
STEP_BYTES: Final = 64 * MIB
_STEP_PACKS: Final = 256
# LIMIT: objects that one step takes out of use; a step with more is not recorded as done, and goes on where it was.
DAMAGES_MAX: Final = 1000
_FINDINGS_MAX: Final = 100
_BATCH: Final = 1000
# The progress is written this often: a commit of the index, which pushes wait for.
_NOTE_INTERVAL_MS: Final = 5000
_SLOTS: Final = 256


class _Progress(msgspec.Struct):
    """How far the passes came, as it is kept in the index."""

    number: int = 0
    """Of the pass; 0 before the first."""
    active: bool = False
    after: str = ""
    """Name of the last pack that this pass has verified."""
    began_ms: int = 0
    bytes: int = 0
    frames: int = 0
    damaged: int = 0
    ended_ms: int = 0
    """When the last full pass ended; 0 for never."""
    slots: list[int] = []
    """By the first byte of a pack's name: when packs of that name were verified last."""


class Step(NamedTuple):
    """What one step has found; to be given to :meth:`Scrubber.record`."""

    number: int
    after: PackId | None
    """The last pack that was verified, None for none."""
    ended: bool
    """Whether the pass has come to its end."""
    size_bytes: int
    frames: int
    damages: list[Damage]
    sound: list[tuple[ObjectKind, bytes]]
    """Quarantined objects that read right again."""
    findings: list[Finding]


class _Run(NamedTuple):
    """A unit of work: neighbouring frames of one pack."""

    pack: PackId
    rows: Sequence[PackRow]


class _Sieve:
    """What the threads of one step find."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bytes = 0
        self.frames = 0
        self.wrong: list[tuple[ObjectKind, bytes, Location, str]] = []

    def add(self, size: int, frames: int) -> None:
        with self.lock:
            self.bytes += size
            self.frames += frames

    def add_wrong(self, kind: ObjectKind, id: bytes, place: Location, found: str) -> None:
        with self.lock:
            self.wrong.append((kind, id, place, found))


class Scrubber:
    """The passes of one store.

    Args:
        packs: the store's objects.
        quarantine: takes what is damaged.
        clock: says when.

    Threads: one step at a time; :attr:`status` from any thread.
    """

    def __init__(self, packs: PackService, quarantine: QuarantineService, clock: Clock) -> None:
        self._packs = packs
        self._quarantine = quarantine
        self._clock = clock
        self._progress = self._load()
        self._noted_ms = 0
        self._findings: list[Finding] = []
        self.total_bytes = 0
        """Stored bytes that were verified since the store was opened."""
        self._stop = threading.Event()

    def _load(self) -> _Progress:
        note = self._packs.index.read_note(NOTE)
        try:
            found = msgspec.json.decode(note, type=_Progress) if note else _Progress()
        except msgspec.DecodeError:
            found = _Progress()  # TRUST: the index may be damaged; what was verified is verified once more
        if len(found.slots) != _SLOTS:
            found.slots = [0] * _SLOTS
        return found

    # --- what is known ---------------------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether a pass was begun and has not come to its end."""
        return self._progress.active

    @property
    def number(self) -> int:
        """Of the pass; 0 before the first."""
        return self._progress.number

    def due(self, interval_ms: int) -> bool:
        """Whether a pass is unfinished, or the last one began at least so long ago."""
        progress = self._progress
        return progress.active or self._clock.now_ms() - progress.began_ms >= interval_ms

    @property
    def last_full_pass_ms(self) -> int:
        """When the last full pass ended; 0 for never."""
        return self._progress.ended_ms

    def status(self, *, running: bool, rate_bytes_s: int = 0) -> ScrubStatus:
        """How far the passes came.

        Args:
            running: whether someone is calling :meth:`step`.
            rate_bytes_s: how fast; 0 for as fast as it can.
        """
        progress = self._progress
        total, slots = 0, set[int]()
        for record in _packs_behind(self._packs, None):
            total += record.size_bytes
            slots.add(record.pack[0])
        oldest = min((progress.slots[slot] for slot in slots), default=0)
        return ScrubStatus(
            running=running,
            rate_bytes_s=rate_bytes_s,
            pass_number=progress.number,
            pass_active=progress.active,
            pass_began_at=_time(progress.began_ms),
            verified_bytes=progress.bytes,
            verified_frames=progress.frames,
            total_bytes=total,
            damaged=progress.damaged,
            last_full_pass_at=_time(progress.ended_ms),
            oldest_verified_at=_time(oldest),
            quarantined=self._quarantine.count(),
            findings=list(self._findings),
        )

    # --- a pass ------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the step that is under way as soon as its threads look up; what it did is not recorded."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stop.is_set()

    def begin(self, *, fresh: bool) -> None:
        """Go on with the pass that is unfinished, or begin one.

        Args:
            fresh: begin one in any case.
        """
        progress = self._progress
        if progress.active and not fresh:
            return
        self._findings = []
        self._progress = _Progress(
            number=progress.number + 1,
            active=True,
            began_ms=self._clock.now_ms(),
            ended_ms=progress.ended_ms,
            slots=progress.slots,
        )

    def step(self, *, step_bytes: int = STEP_BYTES, pool: Executor | None = None, width: int = 1) -> Step:
        """Verify the next packs: about ``step_bytes``, at least one pack.

        Args:
            step_bytes: how much.
            pool: threads that help.
            width: how many threads work at most.

        Raises:
            Overloaded, Unavailable: packs cannot be read now; nothing is lost, try again.
        """
        progress = self._progress
        after = PackId.parse(progress.after) if progress.after else None
        sound = list(self._quarantine.sound_again()) if after is None else []
        sieve = _Sieve()
        findings: list[Finding] = []
        records = self._next_packs(after, step_bytes)
        troubled: set[PackId] = set()
        runs = self._runs(records, sieve, troubled, findings)
        run_units(runs, lambda run: self._verify(run, sieve), pool=pool, width=width)
        if self._stop.is_set():
            return Step(progress.number, None, False, 0, 0, [], [], [])
        damages: list[Damage] = []
        if not self._judge(sieve, damages, findings) or (troubled and not self._sweep(troubled, damages)):
            return Step(progress.number, None, False, 0, 0, damages, sound, [])
        last = records[-1].pack if records else None
        ended = not records or not self._packs.index.packs(after=last, limit=1)
        return Step(progress.number, last, ended, sieve.bytes, sieve.frames, damages, sound, findings)

    def _next_packs(self, after: PackId | None, step_bytes: int) -> list[PackRecord]:
        records: list[PackRecord] = []
        size = 0
        for record in self._packs.index.packs(after=after, limit=_STEP_PACKS):
            if records and size + record.size_bytes > step_bytes:
                break
            records.append(record)
            size += record.size_bytes
        return records

    def _runs(
        self, records: Sequence[PackRecord], sieve: _Sieve, troubled: set[PackId], findings: list[Finding]
    ) -> Iterator[_Run]:
        """Check headers and footers, and cut what lies between into runs."""
        for record in records:
            if self._stop.is_set():
                return
            try:
                rows = self._check_ends(record, sieve)
            except (DamagedObject, PackNotFound) as error:
                if self._packs.index.pack(record.pack) is None:
                    continue  # it was collected meanwhile
                troubled.add(record.pack)
                findings.append(_finding(f"pack {record.pack}", error))
                continue
            start = 0
            while start < len(rows):
                stop, span = start, 0
                while stop < len(rows) and (stop == start or span + rows[stop].stored_length <= READ_RUN_BYTES):
                    span += rows[stop].stored_length
                    stop += 1
                yield _Run(record.pack, rows[start:stop])
                start = stop

    def _check_ends(self, record: PackRecord, sieve: _Sieve) -> list[PackRow]:
        """Verify a pack's header and footer, twice before they count as wrong; returns the rows."""
        store, pack = self._packs.store, record.pack
        try:
            return self._read_ends(record, sieve)
        except (DamagedObject, PackNotFound):
            store.size(pack)
            return self._read_ends(record, sieve)

    def _read_ends(self, record: PackRecord, sieve: _Sieve) -> list[PackRow]:
        pack = record.pack
        header = PackEncoder(pack).header()
        found = self._packs.store.read(pack, 0, PACK_HEADER_BYTES)
        if found != header:
            raise DamagedObject(
                f"pack {pack} does not begin with its header",
                object=f"pack {pack}",
                where=f"pack {pack} offset 0",
                expected="the header of this pack",
                found="other bytes",
            )
        summary = self._packs.read_footer(pack)
        if (summary.size, len(summary.rows)) != (record.size_bytes, record.frames):
            raise DamagedObject(
                f"pack {pack} is not the one that was recorded",
                object=f"pack {pack}",
                where=f"pack {pack}",
                expected=f"{record.size_bytes} bytes with {record.frames} frames",
                found=f"{summary.size} bytes with {len(summary.rows)} frames",
            )
        frames = sum(row.stored_length for row in summary.rows)
        sieve.add(summary.size - frames, 0)
        return summary.rows

    def _verify(self, run: _Run, sieve: _Sieve) -> None:
        """Hash a run's frames."""
        if self._stop.is_set():
            return
        pack, rows = run
        first, last = rows[0].offset, rows[-1].offset + rows[-1].stored_length
        whole: memoryview | None = None
        try:
            whole = memoryview(self._packs.store.read(pack, first, last - first))
        except DamagedObject:
            pass  # somewhere in the run: frame by frame shows where
        except PackNotFound:
            return  # collected meanwhile
        for kind, id, offset, stored_length, plain_length, _ in rows:
            place = Location(pack, offset, stored_length, plain_length)
            try:
                if whole is None:
                    frame = memoryview(self._packs.store.read(pack, offset, stored_length))
                else:
                    frame = whole[offset - first : offset - first + stored_length]
                with self._packs.rooms.hold(kind, plain_length, wait_s=ROOM_PATIENCE_S):
                    open_at(kind, id, place, frame)
            except DamagedObject as error:
                sieve.add_wrong(kind, id, place, error.found or error.detail)
            except PackNotFound:
                return
        sieve.add(last - first, len(rows))

    def _judge(self, sieve: _Sieve, damages: list[Damage], findings: list[Finding]) -> bool:
        """Which of the frames that read wrong are damage that concerns someone.

        Returns:
            False if there is more damage than one step takes out of use: what was not looked at is looked at again.
        """
        for kind, id, place, found in sieve.wrong:
            if len(damages) >= DAMAGES_MAX or self._stop.is_set():
                return False
            if self._packs.index.locate(kind, [id])[0] == place:
                if (damage := self._quarantine.inspect(kind, id, place)) is not None:
                    damages.append(damage)
            elif len(findings) < _FINDINGS_MAX:
                row = self._packs.find_quarantined(kind, id)
                if row is None or row.location != place:
                    findings.append(_dead_frame(kind, id, place, found))
        return True

    def _sweep(self, troubled: set[PackId], damages: list[Damage]) -> bool:
        """Read whatever the index names in packs whose ends are damaged.

        Returns:
            As :meth:`_judge`.
        """
        for kind, id, place in self._named():
            if place.pack in troubled and (damage := self._quarantine.inspect(kind, id, place)) is not None:
                damages.append(damage)
            if len(damages) >= DAMAGES_MAX or self._stop.is_set():
                return False
        return True

    def _named(self) -> Iterator[tuple[ObjectKind, bytes, Location]]:
        """Every place that the index names; those of condemned objects too, for a push may revive them."""
        index = self._packs.index
        for kind in ObjectKind:
            after = b""
            while rows := index.objects(kind, after=after, limit=_BATCH):
                after = rows[-1][0]
                yield from ((kind, id, place) for id, place in rows)
        last: tuple[ObjectKind, bytes] | None = None
        while asleep := index.condemned(after=last, limit=_BATCH):
            last = asleep[-1].kind, asleep[-1].id
            yield from ((row.kind, row.id, row.location) for row in asleep)

    # --- what it comes to ----------------------------------------------------------------------------------------------

    def record(self, step: Step) -> list[Damage]:
        """Take out of use what a step found damaged, and remember how far the pass came; returns what was taken out.

        Durability: what was taken out is durable when this returns; the progress is, some seconds later.
        Threads: index writer.

        Raises:
            StoreFull, OutcomeUnknown: as the index says.
        """
        # ORDER: the damage before the progress.  CRASH: in between it is found out of use already.
        done = self._quarantine.take_out(step.damages)
        released = self._quarantine.release_sound(step.sound)
        progress = self._progress
        if step.number != progress.number:
            return done  # another pass was begun meanwhile
        now = self._clock.now_ms()
        self.total_bytes += step.size_bytes
        progress.bytes += step.size_bytes
        progress.frames += step.frames
        progress.damaged += len(done)
        self._keep(step, done)
        if step.after is not None:
            self._mark_slots(step.after, now, ended=step.ended)
            progress.after = str(step.after)
        if step.ended:
            progress.active, progress.after, progress.ended_ms = False, "", now
            self._mark_slots(PackId(b"\xff" * PackId.SIZE), now, ended=True)
        if done or released or step.ended or now - self._noted_ms >= _NOTE_INTERVAL_MS:
            self.save()
        return done

    def save(self) -> None:
        """Write down how far the pass came.

        Threads: index writer.
        """
        self._packs.index.write_note(NOTE, msgspec.json.encode(self._progress))
        self._noted_ms = self._clock.now_ms()

    def _mark_slots(self, after: PackId, now: int, *, ended: bool) -> None:
        first = bytes.fromhex(self._progress.after)[0] if self._progress.after else 0
        for slot in range(first, after[0] + ended):
            self._progress.slots[slot] = now

    def _keep(self, step: Step, done: Sequence[Damage]) -> None:
        found = [_damage_finding(damage) for damage in done]
        room = _FINDINGS_MAX - len(self._findings)
        self._findings = [*self._findings, *[*found, *step.findings][:room]]


def _packs_behind(packs: PackService, after: PackId | None) -> Iterator[PackRecord]:
    while records := packs.index.packs(after=after, limit=_BATCH):
        yield from records
        after = records[-1].pack


def _time(ms: int) -> str | None:
    return format_time(ms) if ms else None


def _finding(name: str, error: DamagedObject | PackNotFound) -> Finding:
    return Finding(
        severity="error",
        code=error.code,
        object=name,
        where=error.fields.get("where") or name,
        expected=error.fields.get("expected") or "a pack with this name",
        found=error.fields.get("found") or error.detail,
        hint="what it held was read object by object and is used as before; a backup of the pack can take its place",
    )


def _damage_finding(damage: Damage) -> Finding:
    return Finding(
        severity="error",
        code=DamagedObject.code,
        object=format_object(damage.kind, damage.id),
        where=format_where(damage.location),
        expected=f"blake3:{damage.id.hex()}",
        found=damage.reason,
        hint="it is in quarantine: push what needs it again, or `casstore repair --from` a copy",
    )


def _dead_frame(kind: ObjectKind, id: bytes, place: Location, found: str) -> Finding:
    return Finding(
        severity="notice",
        code="dead-frame",
        object=format_object(kind, id),
        where=format_where(place),
        expected="nothing: the index does not name this place",
        found=found,
        hint="nobody reads it; it goes with its pack",
    )
