"""What a check of a store found, bounded.

Owns the collection of findings; what is checked is :mod:`casstore.engine.fsck`'s business (content) and the ledger's.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

from casstore.errors import CasstoreError, DamagedObject
from casstore.wire import Finding, FsckReport

# LIMIT: findings kept; one report is at most some hundred KiB.  A store with more damage than this has one cause.
FINDINGS_MAX: Final = 1000


class Findings:
    """Collects findings and counts what was checked.

    Threads: any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._findings: list[Finding] = []
        self._seen: set[tuple[str, str, str]] = set()
        self._errors = 0
        self._truncated = False
        self._checked: Counter[str] = Counter()

    def count(self, what: str, number: int = 1) -> None:
        """Note that ``number`` more of ``what`` were checked."""
        with self._lock:
            self._checked[what] += number

    def error(self, code: str, object: str, *, where: str, expected: str, found: str, hint: str = "") -> None:
        """Something is wrong."""
        self._add(
            Finding(
                severity="error",
                code=code,
                object=object,
                where=where,
                expected=expected,
                found=found,
                hint=hint,
            )
        )

    def notice(self, code: str, object: str, *, where: str, expected: str, found: str, hint: str = "") -> None:
        """Something is left over; nothing is wrong."""
        self._add(
            Finding(
                severity="notice",
                code=code,
                object=object,
                where=where,
                expected=expected,
                found=found,
                hint=hint,
            )
        )

    def damage(self, error: CasstoreError, *, object: str, where: str = "") -> None:
        """Something is wrong as ``error`` says; ``object`` and ``where`` stand in for what it does not say."""
        if isinstance(error, DamagedObject):
            self.error(
                error.code,
                error.object or object,
                where=error.where or where,
                expected=error.expected or "",
                found=error.found or error.detail,
                hint=error.hint
                or "`casstore scrub` takes it out of use; then push it again, or `casstore repair --from` a copy",
            )
        else:
            expected = error.fields.get("expected") or ""
            self.error(
                error.code, object, where=where, expected=str(expected), found=error.detail, hint=error.hint or ""
            )

    def _add(self, finding: Finding) -> None:
        mark = (finding.code, finding.object, finding.where)
        with self._lock:
            if mark in self._seen:
                return
            self._errors += finding.severity == "error"
            if len(self._findings) >= FINDINGS_MAX:
                self._truncated = True
                return
            self._seen.add(mark)
            self._findings.append(finding)

    def report(self) -> FsckReport:
        """What was found so far; ``ok`` says that nothing is wrong (notices do not count)."""
        with self._lock:
            return FsckReport(
                ok=self._errors == 0,
                checked=dict(self._checked),
                findings=list(self._findings),
                truncated=self._truncated,
            )
