"""What the transitions ask about the log so far, answered from the ledger.

Owns nothing: it reads the derived tables (:mod:`casstore.engine.records`), the log tree, and asks the content's side whether
a snapshot is whole.  Inside a write transaction it sees the entries of the same batch that come before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from casstore.engine.history import lookup_rows
from casstore.engine.nodes import node_reader
from casstore.engine.records import MarkRecord, decode_record, mark_key
from casstore.engine.snapshots import Completeness
from casstore.errors import DamagedObject, MalformedDocument, SnapshotNotFound
from casstore.formats.acts import Verdict
from casstore.ids import PointerName, SnapshotDigest
from casstore.merkle import root_at
from casstore.storage.roles import LedgerView, Table
from casstore.transitions.lookup import HistoryRow


class SnapshotContent(Protocol):
    """What the ledger's side asks of the content's side (:class:`casstore.engine.snapshots.SnapshotService` answers)."""

    def document(self, digest: SnapshotDigest) -> bytes:
        """The document, verified.

        Raises:
            SnapshotNotFound: it is not in the store.
            DamagedObject: it is, and cannot be read.
        """
        ...

    def completeness(self, digest: SnapshotDigest) -> Completeness:
        """What the snapshot needs and the store lacks.

        Raises:
            SnapshotNotFound: the document itself.
            MalformedDocument, DamagedObject: an object that it needs cannot be used.
        """
        ...


def completeness_of(content: SnapshotContent, snapshot: SnapshotDigest) -> Completeness:
    """What a snapshot lacks; one that cannot be read lacks itself."""
    try:
        return content.completeness(snapshot)
    except (SnapshotNotFound, MalformedDocument, DamagedObject):
        return Completeness([str(snapshot)], 1, 0)


class LedgerLookup:
    """Implements :class:`casstore.transitions.lookup.Lookup` over one view of the ledger.

    Args:
        view: a read view or the transaction that will hold the next entry.
        content: says whether snapshots are whole.
        newest: where given, flips with a higher number are not there yet (a reader that shows only what is published).

    Threads: those of the view.
    """

    def __init__(self, view: LedgerView, content: SnapshotContent, newest: int | None = None) -> None:
        self._view = view
        self._content = content
        self._newest = newest
        self._read_nodes = node_reader(view)

    def history(self, pointer: PointerName) -> Iterator[HistoryRow]:
        """See the protocol."""
        return lookup_rows(self._view, pointer, self._newest)

    def marks(self, pointer: PointerName, snapshot: SnapshotDigest) -> Verdict | None:
        """See the protocol."""
        row = self._view.get(Table.MARKS, mark_key(pointer, snapshot))
        return None if row is None else decode_record(row, MarkRecord, f"mark of {snapshot} on {pointer}").verdict

    def snapshot_published(self, digest: SnapshotDigest) -> bool:
        """See the protocol."""
        return self._view.get(Table.SNAPSHOTS, digest) is not None

    def is_complete(self, snapshot: SnapshotDigest) -> bool | None:
        """See the protocol."""
        return completeness_of(self._content, snapshot).complete

    def missing(self, snapshot: SnapshotDigest) -> tuple[list[str], int]:
        """See the protocol."""
        found = completeness_of(self._content, snapshot)
        return found.missing, found.missing_count

    def root_at(self, size: int) -> bytes:
        """See the protocol."""
        return root_at(size, self._read_nodes)
