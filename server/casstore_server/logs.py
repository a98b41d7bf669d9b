"""Structured logs: one JSON object a line on stderr, written by a thread of its own.

A pipe whose reader has stopped would block a write to stderr, and with it the event loop and every deploy behind it.  So
lines go through a bounded queue; when it is full they are dropped and counted, and the next line that gets through says
how many were lost.
"""

from __future__ import annotations

import errno
import json
import logging
import queue
import threading
from typing import Final, TextIO

import structlog
from aiohttp.http_exceptions import HttpProcessingError

LINES_WAITING_MAX: Final = 10_000
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class LineWriter:
    """Writes lines to a stream from its own thread.

    Args:
        stream: where to, such as ``sys.stderr``.

    Threads: :meth:`msg` may be called from any and never blocks.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="casstore-logs", daemon=True)
        self._thread.start()

    def msg(self, line: str) -> None:
        """Queue one line; the method that structlog calls."""
        # LIMIT: memory for lines that no one reads.
        if self._lines.qsize() >= LINES_WAITING_MAX:
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            self._lines.put(json.dumps({"event": "log lines lost", "lost": lost, "level": "warning"}))
        self._lines.put(line)

    debug = info = warning = error = critical = exception = log = msg

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued and end the thread, waiting at most ``timeout_s`` for a reader that has stopped."""
        self._lines.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except ValueError:
                return  # no one is left to tell: the stream is closed
            except OSError as error:
                if error.errno not in _FULL:
                    return
                self._lost += 1  # the disk that the log goes to is full, and will have space again


def open_log(stream: TextIO) -> tuple[structlog.typing.FilteringBoundLogger, LineWriter]:
    """A logger that writes JSON lines to ``stream``, and its writer, to be closed at the end.

    Nothing global is configured: two servers in one process have two logs.
    """
    writer = LineWriter(stream)
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        writer,
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )
    return logger, writer


class ForwardHandler(logging.Handler):
    """Turns lines of other libraries' loggers into JSON lines.

    Args:
        writer: where they go.
    """

    def __init__(self, writer: LineWriter) -> None:
        super().__init__(logging.WARNING)
        self._writer = writer
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        level, event = record.levelname.lower(), self.format(record)
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            # Port scanners send this all day; it is not our error and needs no traceback.
            level, event = "info", f"not a request: {error.message[:200]!r}"
        self._writer.msg(json.dumps({"event": event, "logger": record.name, "level": level}))
