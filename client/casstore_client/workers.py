"""Threads for the work that is worth one: reading, hashing, compressing, writing.

Owns how the event loop hands work to threads and how it is sure that they are done.  There are two kinds of work:

* *heavy*: hashing, compressing, reading and writing of many kilobytes at a time.  It holds the interpreter's lock for a few
  microseconds in each millisecond, so a few threads fill the cores.
* *light*: a few microseconds of Python and a few short system calls for each file, and that for thousands of files.  Two
  threads that do so hand the lock back and forth at every call and take two to three times as long as one.  So there is one
  thread for light work, beside the others.

Invariant: when a :class:`Workers` block ends, however it ends, no function that it was given is still running.  So whoever
opened a descriptor around the block may close it, and whoever made a temporary directory may remove it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self, TypeVar, TypeVarTuple, Unpack

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
THREADS_MAX: Final = 8


def default_threads() -> int:
    """One a core for heavy work; at least 2, at most ``THREADS_MAX``."""
    return max(2, min(THREADS_MAX, os.cpu_count() or 2))


class Workers:
    """A pool of threads for one operation, as an asynchronous context manager."""

    def __init__(self, threads: int | None = None) -> None:
        self._heavy = ThreadPoolExecutor(threads or default_threads(), thread_name_prefix="casstore-heavy")
        self._light = ThreadPoolExecutor(1, thread_name_prefix="casstore-light")
        self._loop = asyncio.get_running_loop()

    async def run(self, function: Callable[[Unpack[_Ts]], _T], *args: *_Ts) -> _T:
        """Do heavy work: call ``function`` on one of several threads."""
        return await self._loop.run_in_executor(self._heavy, function, *args)

    async def run_light(self, function: Callable[[Unpack[_Ts]], _T], *args: *_Ts) -> _T:
        """Do light work: call ``function`` on the one thread for it, after what was given to it before."""
        return await self._loop.run_in_executor(self._light, function, *args)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await finish_cleanup(asyncio.to_thread(self._shut_down))

    def _shut_down(self) -> None:
        for pool in (self._light, self._heavy):
            pool.shutdown(wait=True, cancel_futures=True)


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
    """Bytes that may be held at once.  Any task may acquire and release; all on the loop's thread.

    Args:
        total: in bytes; a single claim above it is cut to it.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._freed = asyncio.Event()

    def has(self, count: int) -> bool:
        """Whether ``count`` bytes are free."""
        return self._free >= min(count, self._total)

    async def acquire(self, count: int) -> None:
        """Wait until ``count`` bytes are free and take them."""
        while not self.has(count):
            self._freed.clear()
            await self._freed.wait()
        self._free -= count

    def release(self, count: int) -> None:
        """Give ``count`` bytes back; below zero it takes bytes that are held already, whether they are free or not."""
        self._free += count
        self._freed.set()
