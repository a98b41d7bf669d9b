"""A TCP relay between a client and a server that breaks connections on command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Meddler:
    """Relays to a server; cuts a connection once it has carried certain bytes.

    Args:
        url: the server.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self.url = ""
        self.cut_after: list[tuple[bytes, int]] = []
        """(needle, n): the next connection on which the client sends ``needle`` is cut ``n`` bytes of it later."""
        self.cut_answer_after: list[tuple[bytes, int]] = []
        """(needle, n): the same for what the server sends in answer to ``needle``."""
        self.cuts = 0
        self._serving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Meddler]:
        """Listen on a free loopback port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            while self._serving:
                await asyncio.wait(self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        limits: dict[str, int] = {}
        tasks = [
            asyncio.create_task(self._relay(reader, up_writer, limits, "ask")),
            asyncio.create_task(self._relay(up_reader, writer, limits, "answer")),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for end in (writer, up_writer):
            end.transport.abort()
            with suppress(OSError):
                await end.wait_closed()

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: dict[str, int], way: str
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if way == "ask":
                    self._look(data, limits)
                if way in limits:
                    data = data[: limits[way]]
                    limits[way] -= len(data)
                writer.write(data)
                await writer.drain()
                if limits.get(way) == 0:
                    self.cuts += 1
                    return

    def _look(self, data: bytes, limits: dict[str, int]) -> None:
        for way, orders in (("ask", self.cut_after), ("answer", self.cut_answer_after)):
            for order in orders:
                if order[0] in data:
                    orders.remove(order)
                    limits[way] = order[1]
                    return
