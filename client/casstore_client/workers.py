"""Threads for the work that is worth one: reading, hashing, compressing, writing.

Owns how the event loop hands work to threads and how it is sure that they are done.  Hashing, compressing and system calls
release the interpreter's lock, so a few threads fill the cores; the loop itself only decides what is next.

Invariant: when a :class:`Workers` block ends, however it ends, no function that it was given is still running.  So whoever
opened a descriptor around the block may close it, and whoever made a temporary directory may remove it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, Self, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
THREADS_MAX: Final = 8


def default_threads() -> int:
    """One a core and one more, which waits for the disk; at least 3, at most ``THREADS_MAX``."""
    return max(3, min(THREADS_MAX, (os.cpu_count() or 2) + 1))


class Workers:
    """A pool of threads for one operation, as an asynchronous context manager."""

    def __init__(self, threads: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(threads or default_threads(), thread_name_prefix="casstore")
        self._loop = asyncio.get_running_loop()

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call ``function`` on a thread; takes positional arguments only."""
        assert not kwargs, "positional arguments only"
        return await self._loop.run_in_executor(self._pool, function, *args)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await finish_cleanup(asyncio.to_thread(self._pool.shutdown, True, cancel_futures=True))


async def finish_cleanup(cleanup: Awaitable[None]) -> None:
    """Wait for ``cleanup`` to its end even if the waiting task is cancelled meanwhile; the cancellation then goes on."""
    task = asyncio.ensure_future(cleanup)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


def first_fault(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that brought a group of tasks down: the first that is not itself a group."""
    fault: BaseException = group
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    return fault


class Budget:
    """Bytes that may be held at once.  One task acquires, any may release; all on the loop's thread.

    Args:
        total: in bytes; a single claim above it is cut to it.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._freed = asyncio.Event()

    async def acquire(self, count: int) -> None:
        """Wait until ``count`` bytes are free and take them."""
        while self._free < min(count, self._total):
            self._freed.clear()
            await self._freed.wait()
        self._free -= count

    def release(self, count: int) -> None:
        """Give ``count`` bytes back."""
        self._free += count
        self._freed.set()
