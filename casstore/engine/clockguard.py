"""The clock that stamps the log, and when it may not be believed.

Owns the decision whether wall time may be written into an entry or a cosignature.  One jump to 2099 that is logged would
expire every intent for ever, because the log's time never runs backwards: so a clock that jumped is refused, and the store
only reads until a person has looked.

Invariants: what :meth:`ClockGuard.stamp` returns never decreases; nothing is stamped while wall time is further from the
progress of the boot clock, or further behind the log's last entry, than ``CLOCK_SKEW_MAX_MS``.
"""

from __future__ import annotations

from casstore.clock import Clock
from casstore.errors import ClockUntrusted
from casstore.limits import CLOCK_SKEW_MAX_MS
from casstore.wire import format_time


class ClockGuard:
    """Wall time, held against the boot clock and against the last entry.

    Args:
        clock: where time comes from.

    Threads: any; :meth:`confirm` belongs to the ledger writer.
    """

    # KNOWN HOLE: the boot clock begins anew at boot, so a jump forward while the machine was off is not seen at open.  It
    # cannot be told from a store that simply was not opened for a year.

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Both offsets in one number: wall − boot stays the same as long as nobody sets the wall clock.
        self._offset_ms = clock.now_ms() - clock.boottime_ms()
        self._confirmed_lag_ms = 0

    def now_ms(self) -> int:
        """Wall time as it is, believed or not; for people's eyes and for judging expiry in readers."""
        return self._clock.now_ms()

    def trouble(self, last_ts: int) -> str | None:
        """Why the clock is not to be believed, or None.

        Args:
            last_ts: time of the newest entry, ms since the epoch.
        """
        now = self._clock.now_ms()
        jump = now - self._clock.boottime_ms() - self._offset_ms
        if abs(jump) > CLOCK_SKEW_MAX_MS:
            way = "forward" if jump > 0 else "back"
            return f"the wall clock jumped {way} by {abs(jump) // 1000} s while the machine ran; it now says {format_time(now)}"
        behind = last_ts - now
        if behind > self._confirmed_lag_ms + CLOCK_SKEW_MAX_MS:
            return (
                f"the wall clock says {format_time(now)}, {behind // 1000} s before the newest entry of the log "
                f"({format_time(last_ts)})"
            )
        return None

    def stamp(self, last_ts: int) -> int:
        """The time for the next entry: ``max(now, last_ts)``, ms since the epoch.

        Raises:
            ClockUntrusted: see :meth:`trouble`.
        """
        why = self.trouble(last_ts)
        if why is not None:
            raise ClockUntrusted(
                f"{why}. Nothing is written until an operator confirms the clock.",
                hint="set the clock right and restart, or, if it is right as it is, start once with `casstore serve --confirm-clock`",
            )
        return max(self._clock.now_ms(), last_ts)

    def confirm(self, last_ts: int) -> None:
        """Believe the clock as it stands now: an operator has looked.

        Args:
            last_ts: time of the newest entry, ms since the epoch; being behind it by today's amount is accepted from now on.
        """
        now = self._clock.now_ms()
        self._offset_ms = now - self._clock.boottime_ms()
        self._confirmed_lag_ms = max(0, last_ts - now)
