"""How much of what is answered may lie in memory, waiting for readers that are slow, or have stopped.

Without this bound anyone could ask for the largest answer a thousand times and read none of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from casstore.errors import Overloaded
from casstore.limits import KIB, MIB

# LIMIT: a hundred pulls that begin at once need some 30 MiB.
ANSWERS_MAX_BYTES: Final = 64 * MIB
COUNTED_MIN_BYTES: Final = 64 * KIB  # what the sockets of a connection buffer anyway


class Answers:
    """Counts the bytes of large answers that are being sent.

    Args:
        limit: how many at a time; one answer alone may be larger.

    Threads: event loop only.
    """

    def __init__(self, limit: int = ANSWERS_MAX_BYTES) -> None:
        self._limit = limit
        self._held = 0

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Count ``size`` bytes for as long as the block lasts; small ones are not counted.

        Raises:
            Overloaded: too many are being sent.
        """
        self.demand_room(size)
        counted = size if size > COUNTED_MIN_BYTES else 0
        self._held += counted
        try:
            yield
        finally:
            self._held -= counted

    def demand_room(self, size: int) -> None:
        """Refuse an answer for which there is no room.

        Raises:
            Overloaded: too many bytes are being sent.
        """
        if size > COUNTED_MIN_BYTES and self._held and self._held + size > self._limit:
            raise Overloaded(f"{self._held} bytes of answers wait for their readers: try again", retry_after_s=1)
