"""How a push or pull tells how far it is.

Owns the event that a caller's callback receives and the pace at which it does.  Callbacks run on the event loop's thread
and must return quickly; what they raise ends the operation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

INTERVAL_S: Final = 0.1  # ten a second is as much as an eye takes in


class Phase(Enum):
    """What an operation is busy with; the value is what people see."""

    PUSH = "pushing"
    COMMIT = "proving"
    LIST = "listing"
    PULL = "pulling"
    SYNC = "syncing"
    DONE = "done"


class ProgressEvent(NamedTuple):
    """How far an operation is.  Counts only grow within one operation; totals are None while unknown."""

    phase: Phase
    files: int
    """Files that were read, or written and verified."""
    bytes: int
    """Bytes of content in them."""
    total_files: int | None
    total_bytes: int | None
    transferred_bytes: int
    """Bytes of bodies that went over the network for it, compressed as they are."""


Progress: TypeAlias = Callable[[ProgressEvent], None]


class ProgressMeter:
    """Counts, and calls back at most every ``INTERVAL_S`` seconds and at each change of phase.

    Args:
        callback: whom to tell, or None.
        transferred: gives the bytes that the operation has transferred so far.
    """

    def __init__(self, callback: Progress | None, transferred: Callable[[], int]) -> None:
        self._callback = callback
        self._transferred = transferred
        self._next_s = 0.0
        self._phase = Phase.PUSH
        self.files = 0
        self.bytes = 0
        self.total_files: int | None = None
        self.total_bytes: int | None = None

    def enter(self, phase: Phase) -> None:
        """Begin ``phase``."""
        self._phase = phase
        self._tell()

    def add(self, files: int, count: int) -> None:
        """``files`` more files with ``count`` bytes are done."""
        self.files += files
        self.bytes += count
        if self._callback is not None and time.monotonic() >= self._next_s:
            self._tell()

    def _tell(self) -> None:
        if self._callback is None:
            return
        self._next_s = time.monotonic() + INTERVAL_S
        self._callback(
            ProgressEvent(self._phase, self.files, self.bytes, self.total_files, self.total_bytes, self._transferred())
        )
