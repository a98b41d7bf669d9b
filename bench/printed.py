"""What scenarios print, kept beside the results of the peers' bench, so that the document can show it."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path

from bench import machine
from bench.corpora import bench_dir


@contextmanager
def kept_text(name: str, command: str) -> Iterator[None]:
    """Keep what is printed inside of the block, with the command, the day and the machine; nothing is kept of a failure."""
    seen = io.StringIO()
    outer = sys.stdout

    class _Both(io.TextIOBase):
        def write(self, text: str, /) -> int:
            seen.write(text)
            return outer.write(text)

        def flush(self) -> None:
            outer.flush()

    with redirect_stdout(_Both()):
        yield
    head = f"$ {command}\n{datetime.now(UTC):%Y-%m-%d}, {machine.describe()}, {machine.load():.1f} processes waiting\n"
    _file(name).write_text(head + seen.getvalue())


def kept_texts(names: Sequence[str]) -> dict[str, str]:
    """What each scenario printed when it last ran to its end."""
    return {name: _file(name).read_text() for name in names if _file(name).exists()}


def _file(name: str) -> Path:
    return bench_dir() / f"printed-{name}.txt"
