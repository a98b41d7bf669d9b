"""How much of what is asked may lie in memory: request bodies that are read whole, all requests together.

Without this bound every connection could have a list of four megabytes of ids read, slowly, side by side.

Threads: event loop only.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from casstore.errors import Overloaded
from casstore.limits import MIB

BODIES_MAX_BYTES: Final = 64 * MIB  # LIMIT: sixteen of the largest, or many thousands of the usual few KiB
_HELD: Final = web.RequestKey("casstore.held", int)


class Bodies:
    """Counts the bytes of bodies for as long as their requests last.

    Args:
        limit: how many at a time.
    """

    def __init__(self, limit: int = BODIES_MAX_BYTES) -> None:
        self._limit = limit
        self.held = 0

    def take(self, request: web.Request, size: int) -> None:
        """Count ``size`` more bytes of a request's body.

        Raises:
            Overloaded: too many are held; the body must not be read further.
        """
        if self.held + size > self._limit:
            raise Overloaded(f"{self.held} bytes of requests are being worked on: nothing was done", retry_after_s=1)
        self.held += size
        request[_HELD] = request.get(_HELD, 0) + size

    def give_back(self, request: web.Request) -> None:
        """The request has ended."""
        self.held -= request.get(_HELD, 0)
        request[_HELD] = 0
