"""The index role: where each object lies, and what of it is out of use.

One of the three roles of :mod:`casstore.storage.roles`, which others import these names from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from casstore.formats.pack import ObjectKind
from casstore.ids import PackId


class Location(NamedTuple):
    """Where a frame lies."""

    pack: PackId
    offset: int
    stored_length: int
    """Of the whole frame, header included, in bytes."""
    plain_length: int


class FrameRow(NamedTuple):
    """What the index records about one frame of a new pack."""

    kind: ObjectKind
    id: bytes
    offset: int
    stored_length: int
    """Of the whole frame, header included, in bytes."""
    plain_length: int


class PackRecord(NamedTuple):
    """What the index knows about a pack."""

    pack: PackId
    size_bytes: int
    frames: int


class CondemnedRow(NamedTuple):
    """An object that a mark did not reach.  It can be read; whoever asks what is missing is told that it is."""

    kind: ObjectKind
    id: bytes
    location: Location
    at_ms: int
    """When it was condemned, on the clock of whoever condemned it."""
    mark: int
    """The number of the mark that did not reach it."""


class QuarantinedRow(NamedTuple):
    """An object whose stored bytes are damaged.  It is missing for everyone until it is stored again."""

    kind: ObjectKind
    id: bytes
    location: Location
    at_ms: int
    reason: str


class Move(NamedTuple):
    """A frame that was copied into a new pack."""

    kind: ObjectKind
    id: bytes
    old: Location
    new: Location


class FileProof(NamedTuple):
    """Says that some files reassemble: all of one large file, or those that lie side by side in one chunk."""

    chunk: bytes
    """The chunk, or the file's first one: with it the proof is forgotten."""
    key: bytes
    """32 bytes that stand for the files and for where their bytes lie."""


class PackUsage(NamedTuple):
    """What of a pack rows point to, frame headers included, in bytes; the rest of it is dead."""

    live_bytes: int
    condemned_bytes: int
    quarantined_bytes: int
    rows: int
    """Of all three kinds: while there is one, the pack is needed."""


class ChunkIndex(Protocol):
    """Object id → location, and the memo of what was proven.  Can always be rebuilt from the packs.

    An object is in one of three states: *live*; *condemned* (nothing that a mark looked at needs it: still readable, but
    missing for pushes, so that what is about to be deleted is never promised to anyone); *quarantined* (its bytes are
    damaged: neither readable nor present).  Whatever stores it anew makes it live again, at the new place.
    """

    @property
    def losses(self) -> int:
        """Counts the transactions, since the index was opened, after which something is no longer live that was.

        Whoever was told that something is present may go on believing it while this number stays the same.
        """
        ...

    def has(self, kind: ObjectKind, ids: Sequence[bytes]) -> list[bool]:
        """For each 32-byte id whether it is live, looked up in one read transaction."""
        ...

    def locate(self, kind: ObjectKind, ids: Sequence[bytes], *, live: bool = False) -> list[Location | None]:
        """For each 32-byte id where it lies, looked up in one read transaction.

        Args:
            live: condemned objects count as absent.
        """
        ...

    def add_pack(self, pack: PackRecord, frames: Sequence[FrameRow]) -> None:
        """Record a committed pack and its frames in one transaction.

        An id that is live keeps its first location; one that is condemned or quarantined becomes live where this pack has
        it.  Recording a pack twice is not an error and changes nothing.

        Durability: durable when this returns.

        Raises:
            OutcomeUnknown: the commit failed; the index is sealed.
            StoreFull: no space is left; nothing was recorded.
        """
        ...

    def add_frames(self, pack: PackId, frames: Sequence[FrameRow]) -> None:
        """Record more frames of a known pack, such as layouts that were proven since; otherwise as :meth:`add_pack`.

        Raises:
            PackNotFound: the pack is not known.
            OutcomeUnknown: the commit failed; the index is sealed.
            StoreFull: no space is left; nothing was recorded.
        """
        ...

    def pack(self, pack: PackId) -> PackRecord | None:
        """What is known about one pack."""
        ...

    def packs(self, *, after: PackId | None = None, limit: int) -> list[PackRecord]:
        """Known packs, ascending by name, at most ``limit``, beginning behind ``after``."""
        ...

    def objects(self, kind: ObjectKind, *, after: bytes = b"", limit: int) -> list[tuple[bytes, Location]]:
        """Live objects of a kind, ascending by id, at most ``limit``, beginning behind ``after``."""
        ...

    def count(self, kind: ObjectKind) -> int:
        """How many objects of a kind are live."""
        ...

    def memo_has(self, keys: Sequence[bytes]) -> list[bool]:
        """For each 32-byte key whether :meth:`memo_add` recorded it."""
        ...

    def memo_add(self, keys: Sequence[bytes]) -> None:
        """Remember that something was proven.  Durable when this returns."""
        ...

    def memo_drop(self, keys: Sequence[bytes]) -> None:
        """Forget that something was proven.  Durable when this returns."""
        ...

    def files_have(self, proofs: Sequence[FileProof]) -> list[bool]:
        """For each proof whether :meth:`files_add` recorded it."""
        ...

    def files_add(self, proofs: Sequence[FileProof]) -> None:
        """Remember that files were proven, as long as their chunk is known.  Durable when this returns."""
        ...

    def remember(
        self,
        packs: Sequence[tuple[PackRecord, Sequence[FrameRow]]] = (),
        *,
        memo: Sequence[bytes] = (),
        files: Sequence[FileProof] = (),
    ) -> None:
        """What :meth:`add_pack`, :meth:`memo_add` and :meth:`files_add` do, in one transaction: all of it or nothing.

        Durability: durable when this returns.  Where there is nothing to write, nothing is.

        Raises:
            OutcomeUnknown, StoreFull: as :meth:`add_pack`.
        """
        ...

    # --- collection.  Everything below that writes is one transaction, durable when it returns, and raises OutcomeUnknown
    # --- or StoreFull as add_pack does.

    def condemn(self, kind: ObjectKind, ids: Sequence[bytes], *, at_ms: int, mark: int) -> int:
        """Condemn those of ``ids`` that are live; returns how many."""
        ...

    def revive(self, wanted: Iterable[tuple[ObjectKind, Sequence[bytes]]]) -> list[tuple[ObjectKind, bytes]]:
        """Make everything in ``wanted`` live, or say what is neither live nor condemned: then nothing is changed.

        Args:
            wanted: drawn inside the transaction.

        Returns:
            What is absent; empty on success.
        """
        ...

    def condemned(self, *, after: tuple[ObjectKind, bytes] | None = None, limit: int) -> list[CondemnedRow]:
        """Condemned objects, ascending by kind and id, at most ``limit``, beginning behind ``after``."""
        ...

    def drop(self, rows: Sequence[CondemnedRow]) -> int:
        """Forget those of ``rows`` that are still condemned exactly so, and which files of theirs were proven; returns
        how many."""
        ...

    def restart_grace(self, at_ms: int) -> None:
        """Let every condemned object count as condemned at ``at_ms``: the clock can not be believed."""
        ...

    def quarantine(self, kind: ObjectKind, id: bytes, location: Location, *, at_ms: int, reason: str) -> bool:
        """Take an object out of use whose bytes at ``location`` are damaged.

        Returns:
            False, and nothing is changed, if it does not lie there any more.
        """
        ...

    def release(self, kind: ObjectKind, id: bytes) -> bool:
        """Undo a quarantine; returns False if it is not in quarantine (it was stored anew, say)."""
        ...

    def quarantined(self, *, after: tuple[ObjectKind, bytes] | None = None, limit: int) -> list[QuarantinedRow]:
        """Quarantined objects, ascending by kind and id, at most ``limit``, beginning behind ``after``."""
        ...

    def find_quarantined(self, kind: ObjectKind, ids: Sequence[bytes]) -> list[QuarantinedRow | None]:
        """For each 32-byte id its row, if the object is in quarantine; looked up in one read transaction."""
        ...

    def forget_quarantined(self, rows: Sequence[QuarantinedRow]) -> int:
        """Forget those of ``rows`` that are still in quarantine exactly so; returns how many."""
        ...

    def move(self, pack: PackRecord, moves: Sequence[Move]) -> int:
        """Record a committed pack, and let the objects that still lie at their old places lie in it.

        A condemned object stays condemned, with its time.  Returns how many moved.
        """
        ...

    def usage(self) -> Mapping[PackId, PackUsage]:
        """What rows point to, by known pack; a pack without any is listed too.  Goes through the whole index in short
        read transactions: what changes meanwhile may be seen or not."""
        ...

    def retire_pack(self, pack: PackId, *, at_ms: int) -> None:
        """Note that a pack to which no row points is to be deleted; it is not listed by :meth:`packs` any more.

        The caller has seen that no row points to it, in this very turn of the index writer: :meth:`usage` alone does not say so, for
        what is revived or released while it counts may be missed.
        """
        ...

    def retired(self, *, after: PackId | None = None, limit: int) -> list[tuple[PackRecord, int]]:
        """Packs that are to be deleted, with the time given to :meth:`retire_pack`, ascending by name, at most ``limit``,
        beginning behind ``after``."""
        ...

    def is_retired(self, pack: PackId) -> bool:
        """Whether a pack waits for its deletion."""
        ...

    def forget_pack(self, pack: PackId) -> None:
        """Forget a retired pack: its file is gone."""
        ...

    def read_note(self, name: str) -> bytes | None:
        """A small record that a long-running job keeps here, such as how far it came."""
        ...

    def write_note(self, name: str, value: bytes | None) -> None:
        """Keep a small record (≤ 64 KiB); None removes it."""
        ...

    def verify_storage(self) -> None:
        """Hold what the rows lie in against itself, as far as this can be told without knowing what they mean.

        Raises:
            DamagedObject: it is damaged; nothing that is read from it can be relied on.
            Unavailable: it cannot be read.
        """
        ...

    def close(self) -> None:
        """Close the index; idempotent."""
        ...
