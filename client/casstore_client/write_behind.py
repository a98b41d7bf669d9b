"""Puts on the disk what was written so far, while more is fetched and written.

Owns when a pull syncs before its end.  A sync at the end alone has the disk idle first and everything else idle then; with half of it
on the disk by then, the last sync is short.

# ORDER: this is ahead of the last sync, never instead of it.  But the system reports a failed write once for each descriptor, so
an early sync that failed ends the pull: the last one might not hear of it.

Threads: :meth:`WriteBehind.add` on the loop's thread; one sync at a time on a thread of its own.
"""

from __future__ import annotations

import asyncio
from typing import Final

from casstore.limits import MIB
from casstore_client.system_calls import sync_file_system

STEP_BYTES: Final = 32 * MIB  # less, and the syncs themselves take longer than what they save


class WriteBehind:
    """Syncs a file system every now and then.

    Args:
        fd: anything on it; stays the caller's and must stay open until :meth:`finish`.
        enabled: False does nothing.
    """

    def __init__(self, fd: int, *, enabled: bool) -> None:
        self._fd = fd
        self._enabled = enabled
        self._pending_bytes = 0
        self._running: asyncio.Future[None] | None = None

    def add(self, count: int) -> None:
        """``count`` more bytes were written.

        Raises:
            OSError: what was written before could not be put on the disk.
        """
        self._pending_bytes += count
        if self._running is not None and self._running.done():
            running, self._running = self._running, None
            running.result()
        if self._enabled and self._pending_bytes >= STEP_BYTES and self._running is None:
            self._pending_bytes = 0
            self._running = asyncio.ensure_future(asyncio.to_thread(sync_file_system, self._fd))

    async def finish(self) -> None:
        """Wait for what is under way; nothing uses the descriptor any more after that.

        Raises:
            OSError: what was written could not be put on the disk.
        """
        running, self._running = self._running, None
        if running is not None:
            await running
