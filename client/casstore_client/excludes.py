"""What a push leaves out: patterns from the command line and from ``.casstoreignore``.

Source: docs/operations/excludes.md
"""

from __future__ import annotations

from collections.abc import Sequence


class Patterns:
    """Compiled patterns."""

    text = b""

    def __call__(self, prefix: bytes, names: Sequence[tuple[bytes, bool]]) -> list[bool]:
        return [False] * len(names)


def read_excludes(root_fd: int, patterns: Sequence[str]) -> Patterns | None:
    """Read them."""
    return None
