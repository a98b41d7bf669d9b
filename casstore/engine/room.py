"""Room: how much memory large layouts and roots may take, all threads together.

Almost every layout has some tens of KiB and almost every root less.  The format allows both to be far larger, and taken apart
they need many times their size; a few kilobytes of zstd can hold one.  So each large one is taken apart in a room that only so
many fit into, and whoever finds it full is told to come again.

Owns the two rooms of a store.  Knows sizes only.

Threads: any.  ORDER: the room of roots before that of layouts, never the other way, and neither twice: so nobody waits for
himself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from casstore.errors import Overloaded
from casstore.formats.pack import ObjectKind
from casstore.limits import KIB, LAYOUT_SIZE_MAX_BYTES, ROOT_SIZE_MAX_BYTES

# LIMIT: smaller ones are not counted: a few MiB for each thread that has one.
COUNTED_MIN_BYTES: Final = 256 * KIB
ROOM_WAIT_S: Final = 1.0  # taking one apart takes about that long; a proof may take longer, and then waiting is in vain
ROOM_PATIENCE_S: Final = 60.0  # of work that nobody waits for, such as a scrub
_RETRY_AFTER_S: Final = 2
_KINDS: Final = {ObjectKind.ROOT: ROOT_SIZE_MAX_BYTES, ObjectKind.LAYOUT: LAYOUT_SIZE_MAX_BYTES}


def is_counted(kind: ObjectKind, plain_length: int) -> bool:
    """Whether an object needs room."""
    return kind in _KINDS and plain_length >= COUNTED_MIN_BYTES


class Rooms:
    """One room for roots, one for layouts; each takes plain bytes up to one object of the largest size."""

    def __init__(self) -> None:
        self._free = dict(_KINDS)
        self._changed = threading.Condition()

    def take(self, kind: ObjectKind, plain_length: int, *, wait_s: float = ROOM_WAIT_S) -> int:
        """Make room for an object that is about to be read or taken apart.

        Returns:
            what to :meth:`give_back`: 0 for an object that is not counted.

        Raises:
            Overloaded: the room stayed full for ``wait_s``.
        """
        if not is_counted(kind, plain_length):
            return 0
        counted = min(plain_length, _KINDS[kind])
        with self._changed:
            if not self._changed.wait_for(lambda: self._free[kind] >= counted, timeout=wait_s):
                raise Overloaded(
                    f"other large {kind.name.lower()}s are being worked on: nothing was done, try again",
                    retry_after_s=_RETRY_AFTER_S,
                )
            self._free[kind] -= counted
        return counted

    def give_back(self, kind: ObjectKind, counted: int) -> None:
        """Undo :meth:`take`."""
        if counted:
            with self._changed:
                self._free[kind] += counted
                self._changed.notify_all()

    @contextmanager
    def hold(self, kind: ObjectKind, plain_length: int, *, wait_s: float = ROOM_WAIT_S) -> Iterator[None]:
        """:meth:`take` for as long as the block lasts.

        Raises:
            Overloaded: as :meth:`take`.
        """
        counted = self.take(kind, plain_length, wait_s=wait_s)
        try:
            yield
        finally:
            self.give_back(kind, counted)
