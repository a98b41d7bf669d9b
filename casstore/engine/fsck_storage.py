"""The first question of fsck: can what index and ledger lie in be read at all?

Asked before anything else, for what the rows say is worth nothing where their storage is damaged; the remedy is another one
than for a damaged row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from casstore.engine.findings import Findings
from casstore.errors import CasstoreError


class Verifiable(Protocol):
    """An index or a ledger."""

    def verify_storage(self) -> None:
        """See :class:`casstore.storage.roles.Ledger`."""
        ...


def verify_storage(parts: Sequence[Verifiable], findings: Findings) -> bool:
    """Check what each part lies in; whether all of it can be relied on."""
    sound = True
    for part in parts:
        try:
            part.verify_storage()
        except CasstoreError as error:
            report_damaged_storage(error, findings)
            sound = False
        else:
            findings.count("environments")
    return sound


def report_damaged_storage(error: CasstoreError, findings: Findings) -> None:
    """Say what was found, and what is to be done."""
    findings.error(
        error.code,
        str(error.fields.get("object") or "store"),
        where=str(error.fields.get("where") or ""),
        expected="pages that agree with each other",
        found=str(error.fields.get("found") or error.detail),
        hint=error.hint or "",
    )
