"""What judging an act needs to know beyond the state: the pointers' history, the marks, the log's earlier roots.

Owns the :class:`Lookup` protocol.  The server answers it from the ledger transaction that will hold the new entry, the
auditor from what it has replayed (:class:`MemoryLookup`).

Invariant: everything but :meth:`Lookup.is_complete` is a pure function of the entries before the one that is judged, so
server and auditor come to the same verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from casstore.formats.acts import Verdict
from casstore.ids import IntentId, PointerName, SnapshotDigest

if TYPE_CHECKING:
    from casstore.transitions.effects import Planned


class HistoryRow(NamedTuple):
    """One flip of one pointer."""

    flip: int
    """Log index."""
    to: SnapshotDigest | None
    """None: the pointer was retired."""
    ts: int
    """The entry's time, in ms."""
    kind: str


class Lookup(Protocol):
    """What :meth:`Machine.plan <casstore.transitions.machine.Machine.plan>` asks about the log so far."""

    def history(self, pointer: PointerName) -> Iterator[HistoryRow]:
        """The pointer's flips, newest first, the current one included."""
        ...

    def marks(self, pointer: PointerName, snapshot: SnapshotDigest) -> Verdict | None:
        """The newest verdict on a snapshot on a pointer: what the :class:`~casstore.transitions.effects.MarkChange`\\ s
        of the entries so far amount to."""
        ...

    def snapshot_published(self, digest: SnapshotDigest) -> bool:
        """Whether a ``snapshot`` entry names it."""
        ...

    def is_complete(self, snapshot: SnapshotDigest) -> bool | None:
        """Whether all of its content is in the store; None where that cannot be known (replay of an old entry)."""
        ...

    def missing(self, snapshot: SnapshotDigest) -> tuple[list[str], int]:
        """Up to 20 missing digests and how many there are; asked only after :meth:`is_complete` said False."""
        ...

    def root_at(self, size: int) -> bytes:
        """The root of the log tree over the first ``size`` entries; ``size`` is at most the log's."""
        ...


class MemoryLookup:
    """The lookup of one who replays a log: fed with every entry in order, held in memory.

    Memory: about 200 bytes a flip.

    Args:
        root_at: the root of the log tree over the first so many entries.
    """

    def __init__(self, root_at: Callable[[int], bytes]) -> None:
        self._root_at = root_at
        self._history: dict[str, list[HistoryRow]] = {}
        self._marks: dict[tuple[str, bytes], Verdict] = {}
        self._published: set[bytes] = set()
        self._intents: set[bytes] = set()

    def history(self, pointer: PointerName) -> Iterator[HistoryRow]:
        return reversed(self._history.get(pointer, []))

    def marks(self, pointer: PointerName, snapshot: SnapshotDigest) -> Verdict | None:
        return self._marks.get((pointer, snapshot))

    def snapshot_published(self, digest: SnapshotDigest) -> bool:
        return digest in self._published

    def is_complete(self, snapshot: SnapshotDigest) -> bool | None:
        return None

    def missing(self, snapshot: SnapshotDigest) -> tuple[list[str], int]:
        return [], 0

    def root_at(self, size: int) -> bytes:
        return self._root_at(size)

    def intent_used(self, intent: IntentId) -> bool:
        """Whether an earlier entry carries the same payload."""
        return intent in self._intents

    def record(self, planned: Planned) -> None:
        """Take in what an entry changed."""
        if planned.intent_id is not None:
            self._intents.add(planned.intent_id)
        for flip in planned.flips:
            row = HistoryRow(planned.idx, flip.to, planned.ts, flip.kind)
            self._history.setdefault(flip.pointer, []).append(row)
        for mark in planned.marks:
            if mark.verdict is None:
                self._marks.pop((mark.pointer, mark.snapshot), None)
            else:
                self._marks[mark.pointer, mark.snapshot] = mark.verdict
        if planned.snapshot is not None:
            self._published.add(planned.snapshot)
