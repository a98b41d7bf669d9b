"""Progress for a person at a terminal; nothing anywhere else.

The SDK calls back at most ten times a second; this draws what it says, on stderr, so that stdout stays data.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from casstore_client.cli.output import Output, human_bytes
from casstore_client.progress_events import ProgressEvent

if TYPE_CHECKING:
    from casstore_client.audit_report import AuditProgress


class ProgressLine:
    """One line that is rewritten: phase, files, bytes, rate, and the time that remains where the total is known."""

    def __init__(self, out: Output) -> None:
        self._shown = out.shows_progress
        self._began = time.monotonic()
        self._width = 0

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
        rate = event.bytes / max(time.monotonic() - self._began, 0.001)
        line = f"{event.phase.value}: {event.files:,} files, {human_bytes(event.bytes)}, {human_bytes(int(rate))}/s"
        if event.total_bytes and rate > 0 and event.total_bytes >= event.bytes:
            left_s = (event.total_bytes - event.bytes) / rate
            line += f", {100 * event.bytes // event.total_bytes} %, {left_s:.0f} s left"
        self._draw(line)

    def update_audit(self, event: AuditProgress) -> None:
        """Draw how far an audit is."""
        if self._shown:
            total = "" if event.total is None else f" of {event.total:,}"
            self._draw(f"level {event.level}, {event.name}: {event.done:,}{total}")

    def _draw(self, line: str) -> None:
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()
        self._width = len(line)
