"""Keeps several threads reading while the results come out in tree order.

Owns the line between the walk and the assembler: batches and windows are started in tree order, as the byte budget allows,
and handed over in the same order.  The windows of one large file follow each other; everything else runs side by side.

# ORDER: bytes are claimed from the budget in the order in which they are handed over.  So whatever is at the head of the line
has its claim already, and the line always moves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Final, Protocol, TypeAlias

from casstore_client.source import WINDOW_BYTES, Batch, FileReader, Found, Item, StreamReader, Window, gather_batches
from casstore_client.workers import Budget, Workers

READS_AHEAD: Final = 12

Result: TypeAlias = list[Item] | Window


class SpawnResult(Protocol):
    """Starts a task whose failure ends the whole operation."""

    def __call__(self, work: Coroutine[Any, Any, Result], /) -> asyncio.Task[Result]: ...


class ReadingLine:
    """Reads a walk; iterate over it for ``(batch, result)`` while :meth:`run` runs as a task.

    Args:
        walk: what to read; what is known already passes through.
        reader: how.
        workers: on which threads.
        budget: each batch claims its bytes before it is read; whoever takes the results gives them back.
        spawn: starts a task.
    """

    def __init__(
        self, walk: Iterator[Found], reader: FileReader, workers: Workers, budget: Budget, spawn: SpawnResult
    ) -> None:
        self._batches = gather_batches(walk)
        self._reader = reader
        self._workers = workers
        self._budget = budget
        self._spawn = spawn
        self._line: asyncio.Queue[tuple[Batch, asyncio.Task[Result] | Result] | None] = asyncio.Queue(READS_AHEAD)
        self._open: set[StreamReader] = set()

    async def run(self) -> None:
        """Read all of the walk.

        Raises:
            SourceChanged, InvalidInput: as walking and reading do.
        """
        while (batch := await self._workers.run_light(next, self._batches, None)) is not None:
            if batch.is_large:
                await self._read_large(batch)
            elif not batch.files:
                await self._line.put((batch, list(batch.items)))
            else:
                await self._budget.acquire(batch.bytes)
                await self._line.put((batch, self._spawn(self._read_batch(batch))))
        await self._line.put(None)

    async def __aiter__(self) -> AsyncIterator[tuple[Batch, Result]]:
        while (entry := await self._line.get()) is not None:
            batch, task = entry
            yield batch, (await task if isinstance(task, asyncio.Task) else task)

    def close(self) -> None:
        """Close every file that is still open.  Only once no thread reads any more."""
        self._batches.close()
        for stream in self._open:
            stream.close()

    async def _read_batch(self, batch: Batch) -> Result:
        run = self._workers.run_light if batch.is_light else self._workers.run
        return await run(self._reader.read_batch, batch)

    async def _read_large(self, batch: Batch) -> None:
        stream = self._reader.open_large(batch)
        self._open.add(stream)
        previous: asyncio.Task[Result] | None = None
        for start in range(0, batch.bytes, WINDOW_BYTES):
            await self._budget.acquire(min(WINDOW_BYTES, batch.bytes - start))
            previous = self._spawn(self._read_window(stream, previous))
            await self._line.put((batch, previous))

    async def _read_window(self, stream: StreamReader, previous: asyncio.Task[Result] | None) -> Result:
        if previous is not None:
            await previous
        window = await self._workers.run(stream.read_window)
        if window.digest is not None:
            stream.close()
            self._open.discard(stream)
        return window
