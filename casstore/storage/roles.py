"""The three storage roles: what the engine needs of a disk, an object store or a database, and nothing more.

A role is dumb on purpose.  It knows bytes, keys and durability; formats, hashes and meaning belong to the engine above.
Every implementation passes the contract suite in :mod:`casstore.storage.contracts`.

========== ==================================================== ===================================================
role       promise                                              if an attacker owns it
========== ==================================================== ===================================================
PackStore  put-once immutable objects, durable when commit ends can deny, cannot forge: all is re-hashed
ChunkIndex object id → location; rebuildable from the packs     can hide an object; cannot forge
Ledger     one transaction over a few ordered tables            can fork: trusted, tiny, backed up
========== ==================================================== ===================================================

Threads: reads may come from any thread.  Writes to one index or one ledger come from one thread at a time (the server's
bridge sees to it); an implementation may refuse others but need not serialise them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import NamedTuple, Protocol

from casstore.formats.pack import ObjectKind
from casstore.ids import PackId


class PackWriter(Protocol):
    """A pack that is being written; it has no name until :meth:`commit`."""

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            StoreFull: no space is left; the writer must be aborted.
        """
        ...

    def commit(self) -> None:
        """Give the pack its name.

        Durability: when this returns, the bytes and the name survive a power cut.

        Raises:
            Conflict: a pack of that name exists (put-once).
            OutcomeUnknown: fsync or rename failed; the pack may or may not be there.
        """
        ...

    def abort(self) -> None:
        """Drop what was written; harmless after :meth:`commit` and when called twice."""
        ...


class PackStore(Protocol):
    """Put-once immutable objects under random names."""

    def create(self, pack: PackId) -> PackWriter:
        """Begin a pack.  Several writers may be open at once, from several threads.

        Raises:
            Conflict: a pack of that name exists.
        """
        ...

    def read(self, pack: PackId, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes at ``offset``.

        Raises:
            PackNotFound: no such pack.
            DamagedObject: the pack ends before ``offset + length``.
        """
        ...

    def size(self, pack: PackId) -> int:
        """The pack's size in bytes.

        Raises:
            PackNotFound: no such pack.
        """
        ...

    def list(self, *, after: PackId | None = None, limit: int) -> list[PackId]:
        """Names of committed packs, ascending, at most ``limit``, beginning behind ``after``."""
        ...

    def delete(self, pack: PackId) -> None:
        """Remove a pack; removing one that is not there is not an error."""
        ...

    def path(self, pack: PackId) -> str | None:
        """Where the pack lies as a plain file (for ``sendfile``), or None if it is not one.

        Raises:
            PackNotFound: no such pack.
        """
        ...

    def close(self) -> None:
        """Let go of descriptors.  Open writers are aborted."""
        ...


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


class Table(Enum):
    """The ledger's tables.  The value is the name on disk and never changes."""

    META = "meta"
    """Format version, origin and other single values."""
    ENTRIES = "entries"
    """u64be log index → entry bytes."""
    NODES = "nodes"
    """u8 level ‖ u64be position → 32-byte hash of a complete subtree of the log tree."""
    STATE = "state"
    """State leaf key → JCS leaf."""
    INTENTS = "intents"
    """32-byte intent id, or idempotency key of an unsigned request → what it led to."""
    POINTERS = "pointers"
    """Pointer name → its current record (derived from the log)."""
    HISTORY = "history"
    """Pointer name ‖ 0x00 ‖ u64be seq → one flip (derived from the log)."""
    MARKS = "marks"
    """Pointer name ‖ 0x00 ‖ 32-byte snapshot digest → newest mark (derived from the log)."""
    SNAPSHOTS = "snapshots"
    """32-byte snapshot digest → where and when it was published (derived from the log)."""
    SNAPSHOT_ORDER = "snapshot-order"
    """u64be log index → 32-byte digest of the snapshot that this entry published first (derived from the log)."""
    POLICIES = "policies"
    """u64be log index → nothing: which entries carry a policy (derived from the log)."""
    ARTIFACTS = "artifacts"
    """u64be number → artifact record (unlogged)."""
    ARTIFACT_NAMES = "artifact-names"
    """Name ‖ 0x00 ‖ u64be number → nothing (unlogged)."""
    TOKENS = "tokens"
    """Token id → record with the hash of the secret (unlogged)."""
    PINS = "pins"
    """Pin id → record (unlogged)."""
    PENDING = "pending"
    """Intent id → an intent that waits (unlogged)."""
    ALIASES = "aliases"
    """sha256 digest → BLAKE3 digest (unlogged)."""


class LedgerView(Protocol):
    """A consistent read view of the ledger."""

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value under ``key``, or None."""
        ...

    def scan(
        self,
        table: Table,
        *,
        prefix: bytes = b"",
        after: bytes | None = None,
        before: bytes | None = None,
        reverse: bool = False,
        limit: int,
    ) -> list[tuple[bytes, bytes]]:
        """Rows in key order (descending if ``reverse``), at most ``limit``.

        Args:
            prefix: only keys that begin so.
            after: only keys greater than this.
            before: only keys less than this.
        """
        ...

    def count(self, table: Table) -> int:
        """How many rows the table has."""
        ...


class LedgerTransaction(LedgerView, Protocol):
    """A read view that sees its own writes."""

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Write ``value`` under ``key`` (1 to 511 bytes), replacing what was there."""
        ...

    def delete(self, table: Table, key: bytes) -> None:
        """Remove ``key`` if it is there."""
        ...


class Ledger(Protocol):
    """The transactional store of log, pointers and state."""

    def read(self) -> AbstractContextManager[LedgerView]:
        """A read view.  Threads: belongs to the thread that opened it; never held across a slow client."""
        ...

    def write(self) -> AbstractContextManager[LedgerTransaction]:
        """A transaction: committed when the block ends, rolled back when it raises.

        Durability: all of it is durable when the block has ended without an error, or none of it happened.

        Raises:
            OutcomeUnknown: the commit failed; the ledger is sealed and every later call raises the same.
            StoreFull: no space is left; nothing was written.
        """
        ...

    def verify_storage(self) -> None:
        """Hold what the rows lie in against itself, as far as this can be told without knowing what they mean.

        Raises:
            DamagedObject: it is damaged; nothing that is read from it can be relied on.
            Unavailable: it cannot be read.
        """
        ...

    def close(self) -> None:
        """Close the ledger; idempotent."""
        ...


class Copyable(Protocol):
    """An index or a ledger that can be copied as one file while it is in use; those that lie on a disk are."""

    def copy_to(self, descriptor: int) -> None:
        """Write a consistent copy, that of one moment, to an open, empty file; the caller makes it durable.

        Raises:
            StoreFull, Unavailable: it cannot be written.
            DamagedObject: what is copied cannot be read.
        """
        ...
