"""The disk, looked at every few seconds: for ``/readyz``, for the metrics, and for one line in the log when it fills up.

Who pushes is refused by the store itself, which asks the file system each time; this is only what people see of it.
"""

from __future__ import annotations

import asyncio
import math

import structlog

from casstore.errors import CasstoreError
from casstore.storage.local.diskroom import DiskRoom, DiskState


class Disk:
    """The newest look at the disk.

    Args:
        room: of the store.
        log: where a change is told.

    Threads: event loop only; the look itself runs in a thread, for a sick file system may keep it.
    """

    def __init__(self, room: DiskRoom, log: structlog.typing.FilteringBoundLogger) -> None:
        self._room = room
        self._log = log
        self._told: str | None = None
        self.state: DiskState | None = None
        """None until the first look, and when the file system cannot be asked."""

    @property
    def trouble(self) -> str | None:
        """Why pushes are refused, or None."""
        return None if self.state is None else self.state.trouble

    @property
    def gauges(self) -> tuple[float, float, float]:
        """Free bytes, free files (infinite where they are not counted), and the reserve in bytes; NaN if unknown."""
        if self.state is None:
            return math.nan, math.nan, math.nan
        files = math.inf if self.state.free_files is None else self.state.free_files
        return self.state.free_bytes, files, self.state.reserve_bytes

    async def look(self) -> None:
        """Look once, and say what has changed."""
        try:
            self.state = await asyncio.to_thread(self._room.look)
        except CasstoreError as error:
            self.state = None
            self._tell("unknown", "the disk cannot be asked how full it is", error=error.detail)
            return
        # Once a change, not once a request: the number in the sentence changes all the time.
        if self.state.trouble is not None:
            self._tell("full", "the disk is full: pushes are refused", why=self.state.trouble)
        elif self._told is not None:
            self._told = None
            self._log.info("the disk has room again: pushes are taken", free_bytes=self.state.free_bytes)

    def _tell(self, what: str, event: str, **fields: str) -> None:
        if self._told != what:
            self._told = what
            self._log.error(event, **fields)

    async def watch(self, interval_s: float) -> None:
        """Look every ``interval_s`` seconds; runs for as long as the server does."""
        while True:
            await asyncio.sleep(interval_s)
            await self.look()
