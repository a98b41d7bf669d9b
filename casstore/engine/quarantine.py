"""Damaged objects: how one is told from a disk that hesitated, and how it is taken out of use.

Owns the way into quarantine and out of it.  A quarantined object is *missing*: readers are told what is wrong with it, and the
next push that has it is asked for it, which heals it (:meth:`casstore.storage.roles.ChunkIndex.add_pack`).

Invariants:

* Nothing is taken out of use on the word of one read: an error that a cable or a full controller caused once is gone the second
  time, and the object stays.
* TRUST: nothing is taken out of use on anyone's word at all.  Whoever reports damage, a client too, only says where to look.
* ORDER: who remembers that something is present forgets it before it is taken out, and once more after.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, Literal, NamedTuple

from casstore.clock import Clock
from casstore.engine.packs import PackService, format_object, open_at
from casstore.engine.presence import Presence
from casstore.engine.room import ROOM_PATIENCE_S
from casstore.errors import DamagedObject, NotFound, PackNotFound
from casstore.formats.pack import ObjectKind
from casstore.storage.roles import Location, QuarantinedRow

# Reads that must agree before an object counts as damaged.
READ_TRIES: Final = 3
READ_PAUSE_S: Final = 0.05
NO_PACK: Final = "no such pack"
# LIMIT: objects that wait to be looked at; a store with more damage than this is found by a scrub, not by its readers.
SUSPECTS_MAX: Final = 4096
# LIMIT: rows that are looked through at a time.
_BATCH: Final = 1000

Verdict = Literal["sound", "quarantined", "missing"]


class Damage(NamedTuple):
    """An object whose bytes were wrong each time they were read."""

    kind: ObjectKind
    id: bytes
    location: Location
    reason: str


class QuarantineService:
    """Tells damage from hesitation, and takes damaged objects out of use.

    Args:
        packs: where objects are read.
        presence: what remembers that something is present.
        clock: says when.
        pause: waits between two reads.

    Threads: any, where nothing else is said.
    """

    def __init__(
        self, packs: PackService, presence: Presence, clock: Clock, *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._packs = packs
        self._presence = presence
        self._clock = clock
        self._pause = pause
        self._lock = threading.Lock()
        self._suspects: OrderedDict[tuple[ObjectKind, bytes], None] = OrderedDict()
        self.noticed: Callable[[], None] = lambda: None
        """Called when there is something to look at; from any thread."""
        self.found = 0
        """How many objects were taken out of use since the store was opened."""
        self._before = self.count()  # a handful of rows, or a store that has lost a disk
        packs.on_damage = self.suspect

    # --- who is suspected --------------------------------------------------------------------------------------------

    def suspect(self, kind: ObjectKind, id: bytes) -> None:
        """Note that a read found an object damaged; what is to be done about it is decided by :meth:`inspect`."""
        with self._lock:
            if len(self._suspects) >= SUSPECTS_MAX:
                return
            self._suspects[kind, bytes(id)] = None
        self.noticed()

    def take_suspects(self, limit: int) -> list[tuple[ObjectKind, bytes]]:
        """Up to ``limit`` of the objects that were suspected, longest first; they are not suspected any more."""
        with self._lock:
            return [self._suspects.popitem(last=False)[0] for _ in range(min(limit, len(self._suspects)))]

    def inspect(self, kind: ObjectKind, id: bytes, place: Location | None = None) -> Damage | None:
        """Read an object until it is right, at most ``READ_TRIES`` times.

        Args:
            kind: of the object.
            id: of the object.
            place: look there only; by default wherever the index says, which may change meanwhile.

        Returns:
            None if it is right, or is not there (any more).

        Raises:
            Overloaded, Unavailable: it cannot be looked at now; nothing is known.
        """
        damage: Damage | None = None
        for attempt in range(READ_TRIES):
            if attempt:
                self._pause(READ_PAUSE_S)
            location = self._packs.index.locate(kind, [id])[0]
            if location is None or (place is not None and location != place):
                return None
            reason = self.read_wrong(kind, id, location)
            if reason is None:
                return None
            damage = Damage(kind, id, location, reason)
            if reason == NO_PACK:
                break  # a name that is not there does not come back in an instant
        return damage

    def read_wrong(self, kind: ObjectKind, id: bytes, location: Location) -> str | None:
        """What is wrong with what lies at a place, or None if it is the object.  Past every cache of ours."""
        try:
            data = self._packs.store.read(location.pack, location.offset, location.stored_length)
            with self._packs.rooms.hold(kind, location.plain_length, wait_s=ROOM_PATIENCE_S):
                open_at(kind, id, location, data)
        except PackNotFound:
            return NO_PACK
        except DamagedObject as error:
            return error.found or error.detail
        return None

    def judge(self, kind: ObjectKind | None, id: bytes) -> tuple[list[Damage], Verdict]:
        """Look at an object that someone reported.

        Args:
            kind: None looks at every kind of that id.
            id: of the object.

        Returns:
            What is to be given to :meth:`take_out`, and what is known already.
        """
        index = self._packs.index
        kinds = list(ObjectKind) if kind is None else [kind]
        there = [one for one in kinds if index.locate(one, [id])[0] is not None]
        damages = [damage for one in there if (damage := self.inspect(one, id)) is not None]
        if damages or any(self._packs.find_quarantined(one, id) for one in kinds):
            return damages, "quarantined"
        return [], "sound" if there else "missing"

    # --- in and out --------------------------------------------------------------------------------------------------

    def take_out(self, damages: Sequence[Damage]) -> list[Damage]:
        """Take damaged objects out of use; returns those that still lay where they were damaged.

        Durability: each is durable when this returns.  CRASH: those that were not reached are found again.
        Threads: index writer.

        Raises:
            StoreFull, OutcomeUnknown: as the index says.
        """
        if not damages:
            return []
        done: list[Damage] = []
        self._presence.forget()
        try:
            for damage in damages:
                kind, id, location, reason = damage
                at_ms = self._clock.now_ms()
                if self._packs.index.quarantine(kind, id, location, at_ms=at_ms, reason=reason):
                    self._packs.forget(kind, id)
                    done.append(damage)
        finally:
            self.found += len(done)
            self._presence.forget()
        return done

    def release(self, kind: ObjectKind, id: bytes) -> None:
        """Undo a quarantine, if the object reads right again.

        Threads: index writer.

        Raises:
            NotFound: it is not in quarantine.
            DamagedObject: its bytes are still wrong.
            StoreFull, OutcomeUnknown: as the index says.
        """
        row = self._packs.find_quarantined(kind, id)
        if row is None:
            raise NotFound(f"{format_object(kind, id)} is not in quarantine")
        # TRUST: what is released is promised to pushes as present: nobody's word is taken for it, an operator's neither.
        if (wrong := self.read_wrong(kind, id, row.location)) is not None:
            raise DamagedObject(
                f"{format_object(kind, id)} stays in quarantine: it still reads wrong ({wrong})",
                hint="push what needs it again, or `casstore repair --from` a copy",
                object=format_object(kind, id),
                where=f"pack {row.location.pack} offset {row.location.offset}",
                found=wrong,
            )
        self._packs.index.release(kind, id)

    def sound_again(self) -> Iterator[tuple[ObjectKind, bytes]]:
        """Quarantined objects that read right now: a cable was plugged in again, a disk mounted."""
        for row in quarantined_rows(self._packs):
            if self.read_wrong(row.kind, row.id, row.location) is None:
                yield row.kind, row.id

    def release_sound(self, objects: Sequence[tuple[ObjectKind, bytes]]) -> int:
        """Release what :meth:`sound_again` gave, each looked at once more; returns how many were.

        Threads: index writer.
        """
        count = 0
        for kind, id in objects:
            with suppress(NotFound, DamagedObject):
                self.release(kind, id)
                count += 1
        return count

    def count(self) -> int:
        """How many objects are in quarantine."""
        return sum(1 for _ in quarantined_rows(self._packs))

    def left(self, count: int) -> int:
        """How many objects have left quarantine since the store was opened, now that ``count`` are in it."""
        return max(0, self._before + self.found - count)


def quarantined_rows(packs: PackService) -> Iterator[QuarantinedRow]:
    """All quarantined objects, by kind and id."""
    after: tuple[ObjectKind, bytes] | None = None
    while rows := packs.index.quarantined(after=after, limit=_BATCH):
        yield from rows
        after = rows[-1].kind, rows[-1].id
