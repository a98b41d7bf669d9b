"""The signed log's writer: from a committed transaction to a checkpoint that may be shown.

Owns the order of writing.  Must not know what entries mean: they are bytes here.

The order, upheld by :meth:`LogService.settle`:

1. entries, nodes and everything derived from them are committed in one ledger transaction, durable;
2. the new leaves are read back and the root is recomputed from them; a difference seals the store and nothing is signed;
3. ``size root`` is appended to the signed heads, durable: whatever the log may have signed stands there before it is signed;
4. the checkpoint is signed and cosigned with the time;
5. it is published; 6. requests are answered.

A crash between any two of these leaves a log that is longer than its last published checkpoint: opening signs and publishes
what is committed, and a client that asks again gets the answer that it missed.

Source: docs/formats/ledger.md, docs/formats/checkpoint.md, https://c2sp.org/tlog-checkpoint, https://c2sp.org/tlog-cosignature
"""

from __future__ import annotations

from threading import Lock
from typing import Final, NamedTuple, Protocol

from casstore.engine.clockguard import ClockGuard
from casstore.engine.nodes import ENTRIES_SCAN_MAX, NodeReader, node_reader, read_entries, read_size
from casstore.errors import (
    CapacityError,
    CasstoreError,
    DamagedObject,
    LogUnavailable,
    OutcomeUnknown,
    ReadOnly,
    Unavailable,
    VerificationError,
)
from casstore.formats.checkpoint import Checkpoint, encode_checkpoint, open_checkpoint
from casstore.formats.note import cosign, sign_note
from casstore.merkle import EMPTY_ROOT, Frontier, consistency_proof, leaf_hash, root_at, verify_consistency
from casstore.signing import SigningKey, Verifier
from casstore.storage.roles import Ledger, LedgerView

HEADS_KEPT_MAX: Final = (
    10_000  # LIMIT: each is checked at open, a fraction of a millisecond; then the file is compacted
)


class LogHead(NamedTuple):
    """A size of the log and the root that stands for it."""

    size: int
    root: bytes


class Heads(Protocol):
    """The heads that were signed: an append-only list of ``(size, root)`` that outlives the ledger's own storage."""

    def make_room(self) -> None:
        """See to it that the next one will not be refused for want of space.

        Raises:
            StoreFull, Unavailable: it would be; nothing was changed.
        """
        ...

    def append(self, size: int, root: bytes) -> None:
        """Add one.  Durable when this returns."""
        ...

    def read_all(self) -> list[LogHead]:
        """All of them, oldest first."""
        ...

    def compact(self, size: int, root: bytes) -> None:
        """Replace all of them by this one, atomically and durable."""
        ...


class Published(NamedTuple):
    """A checkpoint that may be shown."""

    size: int
    root: bytes
    note: bytes
    """Signed by the log, and cosigned with the time where the clock is believed."""
    cosigned_at_ms: int | None
    """The time that the cosignature states, ms since the epoch."""


class LogService:
    """Signs and publishes what the ledger holds.

    Args:
        ledger: the ledger.
        heads: the signed heads.
        log_key: the log's key; its name is the origin.
        clock_key: the key of the time cosignature.
        guard: the clock.

    Threads: :meth:`settle` and :meth:`recover` belong to the ledger writer; everything else to any thread.
    """

    def __init__(
        self, ledger: Ledger, heads: Heads, log_key: SigningKey, clock_key: SigningKey, guard: ClockGuard
    ) -> None:
        self._ledger = ledger
        self._heads = heads
        self._log_key = log_key
        self._clock_key = clock_key
        self._guard = guard
        self._lock = Lock()
        self._published: Published | None = None
        self._heads_kept = 0
        self._fence: str | None = None
        self._seal: str | None = None
        self.last_ts = 0
        """Time of the newest entry, ms since the epoch; the ledger writer keeps it."""

    # --- what it is ----------------------------------------------------------------------------------------------------

    @property
    def origin(self) -> str:
        """The log's name."""
        return self._log_key.name

    @property
    def verifier(self) -> Verifier:
        """The key that checkpoints verify under."""
        return self._log_key.verifier

    @property
    def clock_verifier(self) -> Verifier:
        """The key that time cosignatures verify under."""
        return self._clock_key.verifier

    @property
    def read_only(self) -> str | None:
        """Why nothing may be written, or None."""
        return self._seal or self._fence

    def refuse_if_read_only(self) -> None:
        """Let a writer pass only where writing is allowed.

        Raises:
            OutcomeUnknown: a commit, or what follows it, failed; the store is sealed until it is reopened.
            ReadOnly: the log contradicts a head that was signed.
        """
        if self._seal is not None:
            raise OutcomeUnknown(self._seal, hint="reopen the store: what was committed is found and signed then")
        if self._fence is not None:
            raise ReadOnly(self._fence, hint="restore the missing entries from a mirror or a backup that is not older")

    def seal(self, why: str) -> OutcomeUnknown:
        """Allow no write from now on, and return the error to raise."""
        if self._seal is None:
            self._seal = why
        return OutcomeUnknown(self._seal, hint="reopen the store: what was committed is found and signed then")

    def published(self) -> Published:
        """The newest checkpoint.

        Raises:
            LogUnavailable: none may be shown, because the log contradicts a head that was signed.
        """
        published = self._published
        if published is None:
            raise LogUnavailable(self.read_only or "the log has no checkpoint yet")
        return published

    @property
    def checkpoint(self) -> bytes:
        """The newest checkpoint as a signed note.

        Raises:
            LogUnavailable: see :meth:`published`.
        """
        return self.published().note

    @property
    def size(self) -> int:
        """How many entries the newest checkpoint covers.

        Raises:
            LogUnavailable: see :meth:`published`.
        """
        return self.published().size

    def checkpoint_age_s(self, now_ms: int) -> float:
        """How old the time on the newest checkpoint is, in seconds; infinite where it has none.

        Args:
            now_ms: now, ms since the epoch.

        Raises:
            LogUnavailable: see :meth:`published`.
        """
        cosigned = self.published().cosigned_at_ms
        return float("inf") if cosigned is None else max(0, now_ms - cosigned) / 1000

    # --- writing -------------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Hold the log against every head that was signed; then sign and publish what is committed.

        A restored backup, or a copy of the machine that went back in time, shows here: it is shorter than a signed head, or
        grew differently.  Then nothing is signed, because a second history under one key is a fork.

        Raises:
            DamagedObject: the log tree lacks nodes.
            OutcomeUnknown: the head could not be made durable.

        Threads: ledger writer.
        """
        heads = self._heads.read_all()
        self._heads_kept = len(heads)
        with self._ledger.read() as view:
            size = read_size(view)
            read = node_reader(view)
            for head_size, head_root in heads:
                self._fence = self._judge_head(head_size, head_root, size, read)
                if self._fence is not None:
                    return
            if size and not heads:
                # CRASH: none leaves this: the first head is on record before the store is one, and a record that a crash
                # tears stands behind whole ones.
                self._fence = (
                    f"the log {self.origin} has {size} entries, but no signed head is on record: the record was emptied, so "
                    "nobody knows what was signed. It can be read, not written"
                )
                return
            highest = max((head_size for head_size, _ in heads), default=0)
            # CRASH: a commit that was never signed is found here.  All that no head covers yet is hashed anew before it is
            # signed over, as it would have been without the crash; at the least the last leaf.
            root = self._read_back(view, min(highest, size - 1), size) if size else EMPTY_ROOT
        if size > highest:
            self._heads_append(size, root)
        if self._heads_kept > 1:
            # A log tree of size n has only one past: the highest head implies all lower ones.
            self._compact(size, root)
        if size:
            self._publish(size, root)

    def _judge_head(self, head_size: int, head_root: bytes, size: int, read: NodeReader) -> str | None:
        if head_size > size:
            return (
                f"the log {self.origin} has {size} entries, but a checkpoint of {head_size} was signed: this is an older copy "
                "of the store. It can be read, not written"
            )
        if root_at(head_size, read) != head_root:
            return (
                f"the log {self.origin} differs from what was signed at size {head_size}: this is another history. "
                "It can be read, not written"
            )
        return None

    def judge_note(self, note: bytes) -> LogHead | None:
        """Hold the log against a checkpoint that someone shows.

        Args:
            note: a signed note.

        Returns:
            the head that this log's key signed and that this log contradicts; None if it continues it.

        Raises:
            VerificationError: not signed by this log's key.
            MalformedDocument, TooLarge: not a checkpoint.

        Threads: any.
        """
        checkpoint = open_checkpoint(note, self.verifier, self.origin).checkpoint
        head = LogHead(checkpoint.size, checkpoint.root)
        with self._ledger.read() as view:
            why = self._judge_head(*head, read_size(view), node_reader(view))
        return None if why is None else head

    def fence_off(self, head: LogHead) -> None:
        """Stop writing: this log's key signed ``head``, and this log contradicts it.

        Whoever holds a later checkpoint than this copy of the store knows may show it (:meth:`judge_note`), and so a store that
        was restored from an old backup together with its record of heads is found out all the same.

        Raises:
            ReadOnly: always; unless a commit made meanwhile shows that nothing is contradicted.

        Durability: the head is on record when this raises, so the store opens read-only from now on.
        Threads: ledger writer.
        """
        with self._ledger.read() as view:
            why = self._judge_head(*head, read_size(view), node_reader(view))
        if why is None:
            return
        if self._fence is None:
            self._heads_append(*head)
            with self._lock:
                self._fence, self._published = why, None
        raise ReadOnly(why)

    def make_room(self) -> None:
        """Before a commit: see to it that the head that will cover it finds its place on the disk.

        Raises:
            StoreFull, Unavailable: it would not; nothing was changed.
            OutcomeUnknown: the record of heads takes no more.

        Threads: ledger writer.
        """
        # ORDER: before the commit.  Afterwards a full disk would leave entries that cannot be signed, and a sealed store.
        self._heads.make_room()

    def settle(self, first: int, end: int, expected: bytes) -> Published:
        """Sign the entries ``[first, end)``, which were just committed.

        Args:
            first: size of the log before.
            end: its size now.
            expected: the root at ``end`` that was computed from what was meant to be written.

        Returns:
            the checkpoint of size ``end``; it is not published yet for readers that look at pointers: the caller does that
            with :meth:`publish`.

        Raises:
            OutcomeUnknown: what was read back differs, or the head could not be made durable; the store is sealed.

        Durability: the head is durable when this returns.
        Threads: ledger writer.
        """
        try:
            with self._ledger.read() as view:
                root = self._read_back(view, first, end)
        except DamagedObject as error:
            raise self.seal(f"what was committed reads back differently: {error.detail}. Nothing was signed") from error
        if root != expected:
            raise self.seal(
                f"what was committed reads back differently: the root at {end} is {root.hex()}, {expected.hex()} was written. "
                "Nothing was signed"
            )
        self._heads_append(end, root)
        return self._sign(end, root)

    def _read_back(self, view: LedgerView, first: int, end: int) -> bytes:
        """Recompute the root at ``end`` from the stored entries, and hold every node that they completed against it."""
        stored = node_reader(view)
        frontier = Frontier.load(first, stored)
        for start in range(first, end, ENTRIES_SCAN_MAX):
            for entry in read_entries(view, start, min(start + ENTRIES_SCAN_MAX, end)):
                for (level, position), value in frontier.append(leaf_hash(entry)):
                    if stored([(level, position)])[0] != value:
                        raise DamagedObject(
                            f"node {position} of level {level} is not the hash of what lies under it",
                            object=f"log node {level}/{position}",
                            where="ledger, table nodes",
                            expected=value.hex(),
                        )
        return frontier.root

    def _heads_append(self, size: int, root: bytes) -> None:
        # ORDER: the head before the signature.  A signature that is not on record could be contradicted after a restore.
        try:
            if self._heads_kept < HEADS_KEPT_MAX or not self._compact(size, root):
                self._heads.append(size, root)
                self._heads_kept += 1
        except CasstoreError as error:
            # CRASH: the entries are committed, so "it failed" would be wrong and "it is done" cannot be proven.
            raise self.seal(f"the signed head of size {size} could not be made durable: {error.detail}") from error

    def _compact(self, size: int, root: bytes) -> bool:
        try:
            self._heads.compact(size, root)
        except (CapacityError, Unavailable):
            return False  # the old heads stand: a full disk does not seal the store, the next head goes behind them
        self._heads_kept = 1
        return True

    def _sign(self, size: int, root: bytes) -> Published:
        text = encode_checkpoint(Checkpoint(self.origin, size, root))
        lines, seconds = [], None
        # TRUST: a time that is not believed is not signed; without the line the checkpoint's age is unknown, which readers
        # treat as old.
        if self._guard.trouble(self.last_ts) is None:
            seconds = self._guard.now_ms() // 1000
            lines.append(cosign(text, self._clock_key, seconds))
        note = sign_note(text, [self._log_key], lines)
        return Published(size, root, note, None if seconds is None else 1000 * seconds)

    def _publish(self, size: int, root: bytes) -> None:
        self.publish(self._sign(size, root))

    def publish(self, published: Published) -> None:
        """Show a checkpoint from now on.

        Threads: ledger writer.
        """
        with self._lock:
            self._published = published

    def refresh_clock(self) -> None:
        """Cosign the published checkpoint with the time of now, so that readers see that the log is alive.

        Raises:
            ClockUntrusted: the clock is not believed; the old line stays.
            LogUnavailable: nothing is published.

        Threads: any.
        """
        published = self.published()
        self._guard.stamp(self.last_ts)
        fresh = self._sign(published.size, published.root)
        with self._lock:
            # A commit may have published a longer log meanwhile; its line is fresher than this one.
            if self._published is published:
                self._published = fresh

    def checkpoint_of(self, size: int) -> bytes:
        """A checkpoint of an earlier size, with the log's signature only.

        It says nothing that the newest one does not imply; who holds only an old one may want proofs that end in it.

        Raises:
            LogUnavailable: nothing is published, or the published log is shorter.
            DamagedObject: what the ledger holds at that size is not the beginning of the published log.
        """
        published = self.published()
        if size == published.size:
            return published.note
        if not 0 < size < published.size:
            raise LogUnavailable(f"the log has {published.size} entries: there is no checkpoint of size {size}")
        with self._ledger.read() as view:
            read = node_reader(view)
            root = root_at(size, read)
            proof = consistency_proof(size, published.size, read)
        # TRUST: nodes come from the disk.  One that rotted since would make this signature a second history at that size,
        # so the published root, which was read back before it was signed, has to continue this one.
        try:
            verify_consistency(size, published.size, root, published.root, proof)
        except VerificationError as error:
            raise DamagedObject(
                f"the log tree at size {size} is not the beginning of the published one: nothing was signed",
                object=f"log tree at size {size}",
                where="ledger, table nodes",
                hint="check the store, and restore the ledger from a backup",
            ) from error
        return sign_note(encode_checkpoint(Checkpoint(self.origin, size, root)), [self._log_key])
