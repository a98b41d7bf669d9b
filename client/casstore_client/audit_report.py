"""What an audit says: levels, findings, and the collector that keeps them bounded.

Owns the shape of the report, which is also what ``casstore audit --json`` prints.

Source: docs/operations/audit.md
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec

FINDINGS_MAX: Final = 100  # LIMIT: per level; who has more has one cause, and the first ones show it
AFFECTED_MAX: Final = 5

LEVELS: Final = {
    1: "hashes",
    2: "signature",
    3: "time",
    4: "envelopes",
    5: "state",
    6: "seen",
    7: "content",
}


class Affected(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Somebody who needs what is damaged.  ``path_b64`` replaces ``path`` where it is not UTF-8."""

    snapshot: str
    component: str | None = None
    path: str | None = None
    path_b64: str | None = None


class AuditFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that does not hold."""

    level: int
    code: str
    object: str
    """What is wrong: ``entry 17``, ``chunk blake3:…``."""
    where: str
    """Where it lies: a tile, or a pack and an offset in bytes."""
    expected: str
    found: str
    affects: list[Affected] = []


class AuditLevel(msgspec.Struct, frozen=True, kw_only=True):
    """One level.  ``first_bad_index`` is a log index; None if all is well, or if what is wrong has none."""

    level: int
    name: str
    ok: bool
    checked: int
    """How many were checked: of what says ``detail``."""
    first_bad_index: int | None
    detail: str


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """All levels, and at most ``FINDINGS_MAX`` findings of each; ``truncated`` if there were more."""

    ok: bool
    origin: str
    size: int
    root: str
    """64 hex digits."""
    full: bool
    levels: list[AuditLevel]
    findings: list[AuditFinding]
    truncated: bool


class AuditProgress(NamedTuple):
    """How far an audit is.  Counts grow within a level; the total is None while unknown."""

    level: int
    name: str
    done: int
    total: int | None


Progress: TypeAlias = Callable[[AuditProgress], None]


class Findings:
    """Collects what does not hold.

    Args:
        progress: told how far the audit is, or None.

    Threads: findings may be added on any, one at a time.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._kept: list[AuditFinding] = []
        self._counts: dict[int, int] = {}
        self._first: dict[int, int] = {}

    def add(self, finding: AuditFinding, index: int | None = None) -> None:
        """Take a finding.

        Args:
            finding: what does not hold.
            index: the log index that it is about.
        """
        level = finding.level
        self._counts[level] = self._counts.get(level, 0) + 1
        if self._counts[level] <= FINDINGS_MAX:
            self._kept.append(finding)
        if index is not None:
            self._first[level] = min(index, self._first.get(level, index))

    def count(self, level: int) -> int:
        """How many a level has."""
        return self._counts.get(level, 0)

    def tell(self, level: int, done: int, total: int | None) -> None:
        """Say how far a level is."""
        if self._progress is not None:
            self._progress(AuditProgress(level, LEVELS[level], done, total))

    def level(self, level: int, checked: int, detail: str) -> AuditLevel:
        """Close a level."""
        count = self.count(level)
        return AuditLevel(
            level=level,
            name=LEVELS[level],
            ok=not count,
            checked=checked,
            first_bad_index=self._first.get(level),
            detail=detail if not count else f"{detail}; {count} of what was checked DO NOT HOLD",
        )

    @property
    def kept(self) -> list[AuditFinding]:
        """The findings, by level."""
        return sorted(self._kept, key=lambda finding: finding.level)

    @property
    def truncated(self) -> bool:
        """Whether some were left out."""
        return any(count > FINDINGS_MAX for count in self._counts.values())


def affected(snapshot: str, component: str, paths: Sequence[bytes]) -> list[Affected]:
    """At most ``AFFECTED_MAX`` paths of a component, as a report names them."""
    found = []
    for path in paths[:AFFECTED_MAX]:
        try:
            found.append(Affected(snapshot=snapshot, component=component, path=path.decode("utf-8")))
        except UnicodeDecodeError:
            text = base64.b64encode(path).decode()
            found.append(Affected(snapshot=snapshot, component=component, path_b64=text))
    return found or [Affected(snapshot=snapshot, component=component)]
