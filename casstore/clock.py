"""Time, as something that is handed in.

Owns the one way in which the rest of the code learns what time it is.  Tests hand in :class:`ManualClock`; nothing else
in casstore calls :mod:`time` for a time that it stores, signs or compares.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall time, and a time that no one can set."""

    def now_ms(self) -> int:
        """Wall time, milliseconds since 1970-01-01 UTC."""
        ...

    def boottime_ms(self) -> int:
        """Milliseconds since boot, suspend included; never set, never backwards."""
        ...

    def boot(self) -> str:
        """Which boot that is: times of two boots can not be compared."""
        ...


class SystemClock:
    """The machine's clock (``CLOCK_REALTIME`` and ``CLOCK_BOOTTIME``)."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def boottime_ms(self) -> int:
        # CLOCK_BOOTTIME is Linux's; elsewhere the monotonic clock is the nearest thing.
        return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1_000_000

    def boot(self) -> str:
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                return file.read().strip()
        except OSError:
            return ""


class ManualClock:
    """A clock that moves when told to, for tests.

    Args:
        now_ms: where wall time starts.
    """

    def __init__(self, now_ms: int = 1_785_888_000_000) -> None:
        self._now_ms = now_ms
        self._boottime_ms = 1_000_000

    def now_ms(self) -> int:
        return self._now_ms

    def boottime_ms(self) -> int:
        return self._boottime_ms

    def boot(self) -> str:
        return "manual"

    def advance(self, ms: int) -> None:
        """Let ``ms`` milliseconds pass on both clocks."""
        self._now_ms += ms
        self._boottime_ms += ms

    def jump(self, ms: int) -> None:
        """Set the wall clock by ``ms`` without time passing."""
        self._now_ms += ms
