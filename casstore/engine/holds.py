"""Holds on deletion: whoever copies the store asks that nothing be removed meanwhile.

Owns the list of holds and the one question that collection asks before it removes something.  Knows nothing of what is
removed, nor of why.

Invariants: while a hold is alive, no deletion begins; :meth:`Holds.hold` returns only when no deletion is under way.  A
hold that is not renewed ends by itself, so that a backup which hangs on a dead disk does not stop collection for ever;
its owner finds out at the next :meth:`Hold.renew`, which is then too late and says so.

A hold lives in memory: whoever held it ended with the process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from casstore.clock import Clock
from casstore.errors import DeletionHeld, LeaseLost

# LIMIT: how long a holder may go without a sign of life; a pack is copied in far less.
HOLD_MS: Final = 15 * 60 * 1000


class Hold:
    """A hold that is alive until its block ends or its time is over."""

    def __init__(self, holds: Holds, reason: str) -> None:
        self._holds = holds
        self.reason = reason
        """Who holds, in words, for whoever waits."""

    def renew(self) -> None:
        """Say that the holder is alive; to be called before each step that relies on the hold.

        Raises:
            LeaseLost: its time was over before: something may have been removed.
        """
        self._holds.renew(self)


class Holds:
    """The holds on one store.

    Args:
        clock: tells how long ago a holder was heard of.

    Threads: any.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._ends: dict[Hold, int] = {}
        self._deleting = 0

    @contextmanager
    def hold(self, reason: str) -> Iterator[Hold]:
        """Keep deletions off for the length of a block; waits for those that are under way.

        Args:
            reason: such as ``backup to /backup/casstore``.
        """
        hold = Hold(self, reason)
        with self._changed:
            # ORDER: the hold stands before the wait, so that no new deletion begins meanwhile.
            self._ends[hold] = self._clock.boottime_ms() + HOLD_MS
            self._changed.wait_for(lambda: not self._deleting)
        try:
            yield hold
        finally:
            with self._changed:
                self._ends.pop(hold, None)
                self._changed.notify_all()

    def renew(self, hold: Hold) -> None:
        """See :meth:`Hold.renew`."""
        with self._changed:
            now = self._clock.boottime_ms()
            end = self._ends.get(hold)
            if end is None or end < now:
                raise LeaseLost(f"{hold.reason} took too long over one step, and lost its hold: begin again")
            self._ends[hold] = now + HOLD_MS

    def holders(self) -> list[str]:
        """Who holds now, in words."""
        with self._changed:
            return self._alive()

    @contextmanager
    def deleting(self) -> Iterator[None]:
        """The block removes something.  Collection does each of its removals in such a block, and keeps it short.

        Raises:
            DeletionHeld: not now; try again later.
        """
        with self._changed:
            if holders := self._alive():
                raise DeletionHeld(
                    f"nothing is removed while {holders[0]} goes on",
                    hint="collection goes on by itself once it has ended",
                    holders=holders,
                )
            self._deleting += 1
        try:
            yield
        finally:
            with self._changed:
                self._deleting -= 1
                self._changed.notify_all()

    def _alive(self) -> list[str]:
        now = self._clock.boottime_ms()
        return sorted(hold.reason for hold, end in self._ends.items() if end >= now)
