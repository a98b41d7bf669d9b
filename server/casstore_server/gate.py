"""Who may stay connected: a bounded number of connections, each of which has to ask for something in time.

Owns every accepted socket from ``accept`` to ``close``, in TLS handshakes too: so its count is that of the descriptors.  The
policy, in this order, when one more client connects:

1. below the limit it is served;
2. at the limit the connection that has been idle for longest gives way, if one has been idle for ``IDLE_MIN_S``;
3. otherwise up to ``spare`` more are accepted, told 503 with ``Retry-After``, and closed (``/livez`` is answered);
4. beyond that it is reset at once: the client sees a broken connection, and nothing here grows.

A connection that has not asked for anything ``first_request_s`` after it was accepted is closed, however many bytes of a head
it has sent.  Between two requests the limit is that of the HTTP server, ``KEEPALIVE_S``.

Must not know what is asked.

Threads: event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from casstore.errors import Overloaded
from casstore_server.fairloop import fair_selector

IDLE_MIN_S: Final = 1.0  # one that was just answered may be about to ask again
ACCEPTS_AT_ONCE_MAX: Final = 64  # then the loop turns once: who is being served does not wait for those who arrive
SWEEP_S: Final = 0.25
YOUNG_S: Final = 0.5  # a connection is looked at first for so long, or until it asks
RETRY_AFTER_MAX_S: Final = 5  # they came in one instant, and are sent away over this many seconds
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close sends a reset and leaves nothing in TIME_WAIT
LIVE: Final = "/livez"
"""Answered whoever waits: it tells a supervisor whether to start the server anew."""

CROWD: Final = "crowd"
"""Refused with 503, because too many are connected."""
RESET: Final = "reset"
"""Refused with a reset, because too many are being refused."""
SILENT: Final = "silent"
"""Closed, because it asked for nothing in time."""
GAVE_WAY: Final = "idle"
"""Closed while idle, to make room for another."""


class Connection(socket.socket):
    """One accepted connection; closing it is how it leaves the gate."""

    gate: Gate | None = None
    since: float = 0.0
    """When it was accepted, or its last request ended: seconds of the loop's clock."""
    crowded: bool = False
    """Whether it came when there was no room."""

    def close(self) -> None:
        """Close it; idempotent."""
        gate, self.gate = self.gate, None
        if gate is not None:
            gate.left(self)
        super().close()


class Listener(socket.socket):
    """A listening socket whose ``accept`` is the gate's."""

    gate: Gate

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that may stay.

        Raises:
            BlockingIOError: none, or enough for one turn of the loop.
        """
        for _ in range(ACCEPTS_AT_ONCE_MAX):
            self.gate.pace()
            plain, address = super().accept()
            connection = Connection(plain.family, plain.type, plain.proto, fileno=plain.detach())
            if self.gate.admit(connection):
                return connection, address
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.close()
        raise BlockingIOError


class Gate:
    """The connections of one server.

    Args:
        limit: how many are served at a time.
        spare: how many more are told to come again.
        first_request_s: how long a connection may take until it has asked for something, in seconds.

    Threads: made and used in the event loop that it serves.
    """

    def __init__(self, *, limit: int, spare: int, first_request_s: float) -> None:
        self.limit = limit
        self._spare = spare
        self._fair = fair_selector()
        self._first_request_s = first_request_s
        self._all: dict[int, Connection] = {}
        # Both in the order of time, so that the oldest are in front.
        self._silent: OrderedDict[int, Connection] = OrderedDict()
        self._idle: OrderedDict[int, Connection] = OrderedDict()
        self._young: deque[Connection] = deque()
        self._accepted_now = 0
        self._refused: Counter[str] = Counter({CROWD: 0, RESET: 0, SILENT: 0, GAVE_WAY: 0})

    # --- what it knows -------------------------------------------------------------------------------------------------

    @property
    def states(self) -> Mapping[str, int]:
        """How many connections are open, by what they do."""
        silent, idle = len(self._silent), len(self._idle)
        return {"silent": silent, "idle": idle, "busy": len(self._all) - silent - idle}

    @property
    def refused(self) -> Mapping[str, int]:
        """How many were refused or closed since the start, by reason."""
        return self._refused

    # --- coming and going ----------------------------------------------------------------------------------------------

    def pace(self) -> None:
        """Let the loop turn after ``ACCEPTS_AT_ONCE_MAX`` connections.

        Raises:
            BlockingIOError: as many have been accepted in this turn.
        """
        if self._accepted_now >= ACCEPTS_AT_ONCE_MAX:
            raise BlockingIOError
        if not self._accepted_now:
            asyncio.get_running_loop().call_soon(self._turned)
        self._accepted_now += 1

    def _turned(self) -> None:
        self._accepted_now = 0

    def admit(self, connection: Connection) -> bool:
        """Take a connection in, or say that it must be reset."""
        if len(self._all) >= self.limit and not self._make_room():
            if len(self._all) >= self.limit + self._spare:
                self._refused[RESET] += 1
                return False
            connection.crowded = True
        connection.gate = self
        connection.since = asyncio.get_running_loop().time()
        self._all[connection.fileno()] = self._silent[connection.fileno()] = connection
        if self._fair is not None:
            self._fair.put_first(connection.fileno())
            self._young.append(connection)
        return True

    def put_first(self, listener: Listener) -> None:
        """Look at those who arrive before those who are there."""
        if self._fair is not None:
            self._fair.put_first(listener.fileno())

    def left(self, connection: Connection) -> None:
        """A connection is being closed."""
        for group in (self._all, self._silent, self._idle):
            group.pop(connection.fileno(), None)

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest."""
        now = asyncio.get_running_loop().time()
        oldest = next(iter(self._idle.values()), None)
        if oldest is None or now - oldest.since < IDLE_MIN_S:
            return False
        self._send_away(oldest, GAVE_WAY)
        return True

    def _send_away(self, connection: Connection, why: str) -> None:
        self._refused[why] += 1
        # It has left when the loop sees that its end has come; from now on it is not counted.
        self.left(connection)
        connection.gate = None
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    async def sweep(self) -> None:
        """Close those who ask for nothing; runs for as long as the server does."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(SWEEP_S, self._first_request_s / 4))
            now = loop.time()
            while self._young and self._young[0].since < now - YOUNG_S:
                self._age(self._young.popleft())
            limit = now - self._first_request_s
            while self._silent and (oldest := next(iter(self._silent.values()))).since < limit:
                self._send_away(oldest, SILENT)

    def _age(self, connection: Connection) -> None:
        """It has been first for long enough: thousands that come together and ask together are no reason to wait for them."""
        if self._fair is not None and self._silent.get(connection.fileno()) is connection:
            self._fair.put_back(connection.fileno())

    # --- requests ------------------------------------------------------------------------------------------------------

    def begin(self, request: web.Request) -> Connection | None:
        """A request has begun on one of the connections; it is given to :meth:`end`."""
        wrapped = None if request.transport is None else request.transport.get_extra_info("socket")
        connection = None if wrapped is None else self._all.get(wrapped.fileno())
        if connection is not None:
            if self._silent.pop(connection.fileno(), None) is not None and self._fair is not None:
                self._fair.put_back(connection.fileno())
            self._idle.pop(connection.fileno(), None)
        return connection

    def end(self, connection: Connection | None) -> None:
        """The request has ended."""
        if connection is not None and connection.gate is self:
            connection.since = asyncio.get_running_loop().time()
            self._idle[connection.fileno()] = connection

    def must_refuse(self, connection: Connection | None) -> bool:
        """Whether a request is to be told that too many are connected; its connection must be closed then."""
        return connection is not None and connection.crowded and len(self._all) > self.limit

    def refuse(self) -> Overloaded:
        """The error for such a request."""
        self._refused[CROWD] += 1
        return Overloaded(
            f"{len(self._all)} clients are connected, {self.limit} are served at a time: nothing was done, try again",
            retry_after_s=random.randint(1, RETRY_AFTER_MAX_S),  # noqa: S311  (spreads load, no secret)
        )


def watching(gate: Gate) -> Middleware:
    """A middleware that tells ``gate`` when requests begin and end; the outermost one."""

    @web.middleware
    async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = gate.begin(request)
        try:
            if connection is not None:
                request[CONNECTION] = connection
            response = await handler(request)
            if connection is not None and connection.crowded:
                response.force_close()
            return response
        finally:
            gate.end(connection)

    return watch


CONNECTION: Final = web.RequestKey("casstore.connection", Connection)


async def open_listeners(gate: Gate, host: str, port: int) -> list[Listener]:
    """Bind every address that ``host`` stands for.

    Raises:
        OSError: one cannot be had; none is bound then.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with contextlib.ExitStack() as stack:
        listeners: list[Listener] = []
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listener = stack.enter_context(Listener(family, kind, protocol))
            listener.gate = gate
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listeners.append(listener)
            gate.put_first(listener)
        stack.pop_all()
    return listeners
