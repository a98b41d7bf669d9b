"""How much of what is asked may lie in memory: bodies that wait until someone wants them, and bodies that are read whole.

Without these bounds a thousand strangers who wait for their refusal would each have half a megabyte read, and every holder of
a token could have lists of four megabytes read, slowly, side by side.

Threads: event loop only.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from aiohttp import web

from casstore.errors import Overloaded, RateLimited
from casstore.limits import KIB, MIB
from casstore_server.shares import ANYONE, ASKING, SHARE

BODIES_MAX_BYTES: Final = 64 * MIB  # LIMIT: sixteen of the largest, or many thousands of the usual few KiB
# LIMIT: of bodies that have begun and that nobody has asked for yet, 256 KiB each: what one read of a socket brings.
BODIES_WAITING_MAX: Final = 128
# LIMIT: smaller ones are never refused, so that no sender of packs and lists keeps a flip out; the connections bound them.
SMALL_BODY_BYTES: Final = 8 * KIB
_HELD: Final = web.RequestKey("casstore.held", int)
_WHOSE: Final = web.RequestKey("casstore.whose", str)
_WAITS: Final = web.RequestKey("casstore.waits", bool)


class Bodies:
    """Counts the bytes of bodies for as long as their requests last.

    Args:
        limit: how many at a time.
    """

    def __init__(self, limit: int = BODIES_MAX_BYTES) -> None:
        self._limit = limit
        self._by: Counter[str] = Counter()
        self.held = 0
        self.waiting = 0
        """Bodies that have begun, and that nobody has asked for."""

    def arrive(self, request: web.Request) -> None:
        """A request has begun: read no more of its body than came with the head, until it is wanted.

        Raises:
            Overloaded: too many bodies wait.
        """
        size = request.content_length
        small = size is not None and size <= SMALL_BODY_BYTES
        if request.content.is_eof() or request.transport is None or small:
            return
        if self.waiting >= BODIES_WAITING_MAX:
            raise Overloaded(f"{self.waiting} bodies wait to be read: nothing was done, try again", retry_after_s=1)
        request.transport.pause_reading()
        self.waiting += 1
        request[_WAITS] = True

    def want(self, request: web.Request) -> None:
        """From here on the body is read."""
        self._stop_waiting(request)
        if not request.content.is_eof():
            request.protocol.resume_reading()

    def _stop_waiting(self, request: web.Request) -> None:
        if request.get(_WAITS):
            self.waiting -= 1
            request[_WAITS] = False

    def take(self, request: web.Request, size: int) -> None:
        """Count ``size`` more bytes of a request's body.

        Raises:
            Overloaded: too many are held; the body must not be read further.
            RateLimited: too many of this principal's.
        """
        own, who = request.get(_HELD, 0) + size, ASKING.get() or ANYONE
        if own > SMALL_BODY_BYTES:
            if self.held + size > self._limit:
                raise Overloaded(
                    f"{self.held} bytes of requests are being worked on: nothing was done, try again", retry_after_s=1
                )
            if self._by[who] + size > self._limit * SHARE:
                raise RateLimited(
                    f"{self._by[who]} bytes of this principal's requests are being worked on: nothing was done, try again",
                    retry_after_s=1,
                )
        self.held += size
        self._by[who] += size
        request[_HELD], request[_WHOSE] = own, who

    def give_back(self, request: web.Request) -> None:
        """The request has ended."""
        self._stop_waiting(request)
        held = request.get(_HELD, 0)
        if held:
            self.held -= held
            self._by[request[_WHOSE]] -= held
            if not self._by[request[_WHOSE]]:
                del self._by[request[_WHOSE]]
            request[_HELD] = 0
