"""What all parts of a run share: the store's services, who writes, and how to go on without being in anyone's way.

Owns the pace: a run works at most half of the time, in pieces of a few milliseconds, so that who pushes waits for one piece at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from casstore.clock import Clock
from casstore.engine.holds import Holds
from casstore.engine.packs import PackService
from casstore.engine.presence import Presence
from casstore.engine.sessions import PushSessions
from casstore.ids import PackId
from casstore.storage.roles import Ledger

T = TypeVar("T")

# LIMIT: rows of one write transaction: some 10 ms of the thread that every push needs.
BATCH: Final = 1000
_PAUSE_MAX_S: Final = 0.05


class Interrupted(Exception):
    """The run is to end here; everything that it did stands."""


class Blocked(Exception):
    """Something may not be done now, for a reason that is no fault."""


class Writer(Protocol):
    """Runs a call on the one thread that may write, and waits for it."""

    def __call__(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Raises: what the call raises."""
        ...


def write_here(call: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """A writer for a store that only this thread has open."""
    return call(*args, **kwargs)


class Pace:
    """Called between two pieces of work.

    Args:
        stop: ends the run.
        rest: seconds of pause for each second of work.
    """

    def __init__(self, stop: threading.Event, *, rest: float = 1.0) -> None:
        self._stop = stop
        self._rest = rest
        self._began = time.monotonic()

    def __call__(self) -> None:
        """Raises: Interrupted."""
        worked = time.monotonic() - self._began
        if self._stop.wait(min(worked * self._rest, _PAUSE_MAX_S)) if self._rest else self._stop.is_set():
            raise Interrupted
        self._began = time.monotonic()


@dataclass(frozen=True, slots=True)
class Work:
    """The parts of a store that a run works on.

    Attributes:
        write_index: runs on the index writer.
        write_ledger: runs on the ledger writer.
        pause: see :class:`Pace`.
        deleted: told each pack whose file is gone.
    """

    packs: PackService
    presence: Presence
    ledger: Ledger
    sessions: PushSessions
    holds: Holds
    clock: Clock
    randomness: Callable[[int], bytes]
    write_index: Writer
    write_ledger: Writer
    pause: Callable[[], None]
    deleted: Callable[[PackId], None]
