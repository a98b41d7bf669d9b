"""A crowd: thousands of connections at once from one process, each of which says what became of it.

Run as a program, so that its descriptors and its processor time are not the server's::

    python -m tests.support.crowd HOST PORT CONNECTIONS ROUNDS TOKEN

prints one JSON object: how many answers of each status, connections that were reset, requests that hung, answers without
``Retry-After`` where one belongs, and the slowest answer of ``/livez`` meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

PATIENCE_S = 60.0
RETRY_STATUSES = (429, 503)
PATHS = ("/v1/pointers", "/v1/artifacts", "/log/checkpoint", "/v1/log/entries", "/v1/config", "/readyz")


@dataclass
class Outcome:
    """What became of the crowd."""

    statuses: Counter[int] = field(default_factory=Counter)
    reset: int = 0
    hung: int = 0
    without_retry_after: int = 0
    livez_asked: int = 0
    livez_slowest_s: float = 0.0
    held_at_once: int = 0


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, token: str
) -> tuple[int, dict[str, str]]:
    """One request on an open connection; its answer is read whole."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
    if "content-length" in headers:
        await reader.readexactly(int(headers["content-length"]))
    else:
        while (size := int((await reader.readline()).strip(), 16)) >= 0:
            await reader.readexactly(size + 2)
            if not size:
                break
    return int(head[0].split()[1]), headers


class Crowd:
    """So many connections that stay open together, and ask at once, ``rounds`` times.

    Args:
        host, port: the server.
        connections: how many.
        rounds: requests on each.
        token: a bearer token.
    """

    def __init__(self, host: str, port: int, connections: int, rounds: int, token: str) -> None:
        self.host, self.port, self.token = host, port, token
        self.connections, self.rounds = connections, rounds
        self.outcome = Outcome()
        self.arrived = 0
        self.all_there = asyncio.Event()

    async def member(self, number: int) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                try:
                    reader, writer = await asyncio.open_connection(self.host, self.port)
                finally:
                    self.arrived += 1
                    if self.arrived == self.connections:
                        self.all_there.set()
                await self.all_there.wait()
                for turn in range(self.rounds):
                    status, headers = await ask(reader, writer, PATHS[(number + turn) % len(PATHS)], self.token)
                    self.outcome.statuses[status] += 1
                    if status in RETRY_STATUSES and not headers.get("retry-after", "").isdecimal():
                        self.outcome.without_retry_after += 1
                    if headers.get("connection") == "close":
                        return
        except TimeoutError:
            self.outcome.hung += 1
        except (ConnectionError, asyncio.IncompleteReadError):
            self.outcome.reset += 1
        finally:
            if writer is not None:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    async def look(self) -> None:
        """Ask ``/livez`` all the time, as a supervisor would, each time on a connection of its own."""
        while True:
            began = time.monotonic()
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                status, _ = await ask(reader, writer, "/livez", self.token)
                assert status == 200
                self.outcome.livez_asked += 1
                self.outcome.livez_slowest_s = max(self.outcome.livez_slowest_s, time.monotonic() - began)
                writer.close()
            await asyncio.sleep(0.1)

    async def run(self) -> Outcome:
        looking = asyncio.create_task(self.look())
        await asyncio.gather(*(self.member(number) for number in range(self.connections)))
        looking.cancel()
        return self.outcome


def main() -> None:
    """See the module."""
    host, port, connections, rounds, token = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    outcome = asyncio.run(Crowd(host, int(port), int(connections), int(rounds), token).run())
    print(json.dumps(vars(outcome)))


if __name__ == "__main__":
    main()
