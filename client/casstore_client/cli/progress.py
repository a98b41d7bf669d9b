"""Progress for a person at a terminal; nothing anywhere else.

The SDK calls back at most ten times a second; this draws what it says, on stderr, so that stdout stays data.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from casstore_client.cli.output import Output, human_bytes
from casstore_client.progress_events import Phase, Progress, ProgressEvent

if TYPE_CHECKING:
    from casstore_client.audit_report import AuditProgress


RATE_OVER_S: Final = 5.0  # short enough to follow a change, long enough not to dance


class ProgressLine:
    """One line that is rewritten: phase, files, bytes, rate, and the time that remains where the total is known.

    Args:
        out: says whether anyone looks.
        clock: in seconds.
    """

    def __init__(self, out: Output, clock: Callable[[], float] = time.monotonic) -> None:
        self._shown = out.shows_progress
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._width = 0

    @property
    def callback(self) -> Progress | None:
        """What to hand to an operation: nothing where nobody looks, so that it need not find out what there is to tell."""
        return self.update if self._shown else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()

    def update(self, event: ProgressEvent) -> None:
        """Draw how far the operation is."""
        if not self._shown:
            return
        rate = self._rate(event.bytes)
        line = f"{event.phase.value}: {event.files:,} files, {human_bytes(event.bytes)}, {human_bytes(int(rate))}/s"
        if event.phase in (Phase.PUSH, Phase.PULL) and event.total_bytes and event.total_bytes >= event.bytes:
            line += f", {100 * event.bytes // event.total_bytes} %"
            if rate > 0:
                line += f", {human_seconds((event.total_bytes - event.bytes) / rate)} left"
        self._draw(line)

    def _rate(self, count: int) -> float:
        """Bytes a second over the last few seconds."""
        now_s = self._clock()
        samples = self._samples
        samples.append((now_s, count))
        while len(samples) > 2 and samples[1][0] < now_s - RATE_OVER_S:
            samples.popleft()
        return (count - samples[0][1]) / max(now_s - samples[0][0], 0.001)

    def update_audit(self, event: AuditProgress) -> None:
        """Draw how far an audit is."""
        if self._shown:
            total = "" if event.total is None else f" of {event.total:,}"
            self._draw(f"level {event.level}, {event.name}: {event.done:,}{total}")

    def _draw(self, line: str) -> None:
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()
        self._width = len(line)


def human_seconds(seconds: float) -> str:
    """``8 s``, ``3:05 min``, ``2:07 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"
