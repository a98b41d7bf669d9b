"""How commands speak: stdout is data, stderr is people.

Owns the ``--json`` document, tables, sentences and colours.  Every command ends in exactly one :meth:`Output.emit`: a program
gets one JSON document, a person gets what ``people`` prints.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import click
import msgspec

SCHEMA: Final = 1
"""Version of the ``--json`` documents: raised when a field changes its meaning or goes away."""


class Output(msgspec.Struct, kw_only=True):
    """What the global flags said about speaking.

    Args:
        json: one JSON document on stdout instead of words.
        quiet: no sentences on stderr but errors.
        verbose: more of them.
    """

    json: bool = False
    quiet: bool = False
    verbose: int = 0

    def emit(self, document: Any, people: Callable[[], None]) -> None:
        """Print a command's result.

        Args:
            document: what ``--json`` prints (anything msgspec encodes; an object gets ``"schema"`` added).
            people: prints the same for a person, to stdout.
        """
        if self.json:
            built = msgspec.to_builtins(document, enc_hook=str)  # names are strings of a type of their own
            if isinstance(built, dict):
                built = {"schema": SCHEMA, **built}
            sys.stdout.write(msgspec.json.encode(built).decode() + "\n")
            sys.stdout.flush()
        else:
            people()

    def say(self, sentence: str) -> None:
        """A sentence for a person, on stderr; silent with ``--quiet`` and with ``--json``."""
        if not self.quiet and not self.json:
            tell(sentence, err=True)

    @property
    def shows_progress(self) -> bool:
        """Whether a person watches: progress is for terminals only."""
        return not self.quiet and not self.json and sys.stderr.isatty()


def colours() -> bool:
    """Whether stdout takes colours: a terminal, and ``NO_COLOR`` is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()) -> None:
    """Print aligned columns to stdout.

    Args:
        headers: one per column.
        rows: cells, printed by ``str``.
        right: indexes of the columns that are aligned to the right (numbers).
    """
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(headers), *cells]) for i in range(len(headers))]

    def line(values: Sequence[str]) -> str:
        padded = [v.rjust(w) if i in right else v.ljust(w) for i, (v, w) in enumerate(zip(values, widths, strict=True))]
        return "  ".join(padded).rstrip()

    click.echo(click.style(line(list(headers)), bold=True) if colours() else line(list(headers)))
    for row in cells:
        click.echo(line(row))


def tell(line: str, *, err: bool = False) -> None:
    """Print one line for a person; what others wrote into it (a reason, a label, an error) stays on this line."""
    click.echo(printable(line), err=err)


def printable(text: str) -> str:
    """A text with everything that steers a terminal, or begins a line, shown as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def human_bytes(count: int) -> str:
    """``1536`` → ``1.5 KiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def short(digest: str | None) -> str:
    """A digest for people: its first 12 hex digits."""
    return "-" if digest is None else digest.partition(":")[2][:12] or digest[:12]


def print_path(path: bytes) -> str:
    """A path for a terminal: what is not printable UTF-8 is shown as an escape, so a name can not steer the terminal."""
    return printable(path.decode("utf-8", "backslashreplace"))


def path_fields(path: bytes) -> dict[str, str]:
    """A path for a program: ``path``, or ``path_b64`` where it is not UTF-8."""
    import base64

    try:
        return {"path": path.decode("utf-8")}
    except UnicodeDecodeError:
        return {"path_b64": base64.b64encode(path).decode()}
