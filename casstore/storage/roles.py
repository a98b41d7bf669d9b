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

from contextlib import AbstractContextManager
from enum import Enum
from typing import Protocol

from casstore.ids import PackId
from casstore.storage.index_role import (
    ChunkIndex,
    CondemnedRow,
    FileProof,
    FrameRow,
    Location,
    Move,
    PackRecord,
    PackUsage,
    QuarantinedRow,
)

__all__ = [
    "ChunkIndex",
    "CondemnedRow",
    "FileProof",
    "FrameRow",
    "Ledger",
    "LedgerTransaction",
    "LedgerView",
    "Location",
    "Move",
    "PackRecord",
    "PackStore",
    "PackUsage",
    "PackWriter",
    "QuarantinedRow",
    "Table",
]


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
