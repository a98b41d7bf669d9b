"""Which published snapshots must be there: those that no collection can have taken.

Owns the rule by which ``fsck`` and ``repair`` tell what was collected from what was lost.
"""

from __future__ import annotations

from casstore.engine.gc.lists import newest_collection
from casstore.engine.records import PointerRecord, SnapshotRecord, decode_record
from casstore.ids import SnapshotDigest
from casstore.limits import POINTERS_MAX
from casstore.storage.roles import LedgerView, Table


class NeededSnapshots:
    """Says of a snapshot whether it must be there.  Pointers are read once, when the first question comes."""

    def __init__(self) -> None:
        self._named: frozenset[bytes] | None = None

    def has(self, view: LedgerView, digest: bytes) -> bool:
        """Whether a snapshot is published, and a pointer names it, or no collection came after it."""
        row = view.get(Table.SNAPSHOTS, digest)
        if row is None:
            return False
        collected = newest_collection(view)
        if collected is None or digest in self._current(view):
            return True
        return decode_record(row, SnapshotRecord, f"snapshot {digest.hex()}").entry > collected

    def _current(self, view: LedgerView) -> frozenset[bytes]:
        """What pointers name now."""
        if self._named is None:
            rows = view.scan(Table.POINTERS, limit=POINTERS_MAX + 1)
            records = [decode_record(row, PointerRecord, f"pointer {key.decode()}") for key, row in rows]
            self._named = frozenset(SnapshotDigest.parse(r.snapshot) for r in records if r.snapshot is not None)
        return self._named
