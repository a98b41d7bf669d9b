"""The store: every service of the engine, put together over one directory.

Owns composition and the order of opening and closing; nothing else in casstore constructs a service for real use.

Threads: a :class:`Store` works from one thread, or from many under the rule that its methods state: those that say
``Threads: index writer`` or ``Threads: ledger writer`` run in that one thread, everything else anywhere.  Open it after
``fork``, never before.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple, Self

from casstore.clock import Clock, SystemClock
from casstore.engine.affected import AffectedSearch
from casstore.engine.artifacts import ArtifactService
from casstore.engine.blobs import BlobService
from casstore.engine.claims import Claims
from casstore.engine.clockguard import ClockGuard
from casstore.engine.diff import DiffService
from casstore.engine.findings import Findings
from casstore.engine.fsck import fsck_content
from casstore.engine.fsck_ledger import fsck_ledger
from casstore.engine.fsck_storage import verify_storage
from casstore.engine.gc.lists import keep_list, read_list
from casstore.engine.gc.retention import Retention
from casstore.engine.gc.run import GcTimes, Ledgerside, Run, undo
from casstore.engine.gc.sweep import Round
from casstore.engine.gc.work import Work, Writer, write_here
from casstore.engine.holds import Holds
from casstore.engine.log import LogHead, LogService
from casstore.engine.nodes import read_entry
from casstore.engine.packs import PackService
from casstore.engine.pins import PinService
from casstore.engine.pointers import PointerService, Submission
from casstore.engine.presence import Gaps, Presence
from casstore.engine.proofs import LogReader
from casstore.engine.pushes import PushService
from casstore.engine.quarantine import QuarantineService
from casstore.engine.repair import RepairService
from casstore.engine.scrub import Scrubber
from casstore.engine.snapshots import SnapshotService
from casstore.engine.submissions import Collected
from casstore.engine.tokens import TokenService
from casstore.engine.trees import TreeService
from casstore.errors import CasstoreError, DamagedObject, InvalidInput, NotFound, RequestInProgress
from casstore.formats.entry import GcBody, GcCounts
from casstore.formats.pack import ObjectKind
from casstore.ids import BlobDigest, PackId, SnapshotDigest, TreeDigest
from casstore.signing import SignatureType, SigningKey
from casstore.storage.local.files import Files
from casstore.storage.local.heads import Head, SignedHeads
from casstore.storage.local.home import Home
from casstore.storage.roles import ChunkIndex, Copyable, Ledger, LedgerTransaction, LedgerView, PackStore
from casstore.wire import AffectedReport, FsckReport, GcReport, Submitted

LOG_KEY: Final = "log"
"""Name of the log key's file."""
CLOCK_KEY: Final = "clock"
"""Name of the clock key's file."""


class _LocalHeads:
    """The signed heads as the engine wants them."""

    def __init__(self, heads: SignedHeads) -> None:
        self._heads = heads

    def make_room(self) -> None:
        self._heads.make_room()

    def append(self, size: int, root: bytes) -> None:
        self._heads.append(size, root)

    def read_all(self) -> list[LogHead]:
        return [LogHead(head.size, head.root) for head in self._heads.read_all()]

    def compact(self, size: int, root: bytes) -> None:
        self._heads.compact(Head(size, root))


class _GatedLedger:
    """The ledger behind the log's own word on whether anything may be written; implements ``Ledger``."""

    def __init__(self, ledger: Ledger, claims: Claims) -> None:
        self._ledger = ledger
        self._claims = claims
        self.gate: Callable[[], None] = lambda: None

    def read(self) -> AbstractContextManager[LedgerView]:
        return self._ledger.read()

    @contextmanager
    def write(self) -> Iterator[LedgerTransaction]:
        self.gate()
        # ORDER: a scope around the whole transaction: what it relies on stays claimed until it is committed.
        with self._claims.scope(), self._ledger.write() as tx:
            yield tx

    def verify_storage(self) -> None:
        self._ledger.verify_storage()

    def close(self) -> None:
        self._ledger.close()


class Keys(NamedTuple):
    """The server's own keys."""

    log: SigningKey
    clock: SigningKey


class Hands(NamedTuple):
    """Who does the work of a collection: by default the thread that asks for it, without a pause."""

    write_index: Writer = write_here
    write_ledger: Writer = write_here
    pause: Callable[[], None] = lambda: None
    deleted: Callable[[PackId], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Parts:
    """The open storage of one directory."""

    packs: PackStore
    index: ChunkIndex
    ledger: Ledger
    heads: _LocalHeads
    copyables: Mapping[str, Copyable]
    """Ledger and index, by the names of their folders, in the order in which they are copied."""


class Store:
    """An open store.  Build with :meth:`open`, end with :meth:`close`; also a context manager.

    Attributes:
        packs, presence, trees, blobs, snapshots, diff, artifacts, pushes: content.
        quarantine, scrubber, repairs: finding damage, taking it out of use, healing it.
        log: the log's writer: checkpoint, keys, whether writing is allowed.
        log_reader: entries, proofs, tiles.
        pointers: :meth:`~casstore.engine.pointers.PointerService.submit`, rollback targets, and ``pointers.read``.
        tokens: who is asking.
        room: how much space is free, and whether packs are taken.
        pins: what is kept because somebody said so.
        holds: keep deletions off; collection asks it before each.
        home: the directory as such.
        path: of the directory.
    """

    def __init__(
        self, home: Home, parts: Parts, keys: Keys, *, clock: Clock, randomness: Callable[[int], bytes]
    ) -> None:
        self.home = home
        self.path = Path(home.path)
        self.clock = clock
        self.room = home.room
        self._parts = parts
        self._closing = ExitStack()
        self._randomness = randomness
        self._one_run = threading.Lock()
        self._guard = ClockGuard(clock)
        self.holds = Holds(clock)
        self.packs = PackService(parts.packs, parts.index, new_pack_id=lambda: PackId(randomness(PackId.SIZE)))
        self.presence = Presence(self.packs)
        self._ledger = ledger = _GatedLedger(parts.ledger, self.presence.claims)
        self.quarantine = QuarantineService(self.packs, self.presence, clock)
        self.scrubber = Scrubber(self.packs, self.quarantine, clock)
        self.trees = TreeService(self.packs, self.presence)
        self.blobs = BlobService(self.packs)
        self.snapshots = SnapshotService(self.packs, self.presence, self.trees, self.blobs)
        self.diff = DiffService(self.packs, self.trees, self.snapshots)
        self.artifacts = ArtifactService(ledger, clock)
        self.repairs = RepairService(self.packs, self.quarantine, self.artifacts, ledger)
        self.pushes = PushService(self.packs, self.presence, self.artifacts, clock)
        self.pins = PinService(ledger, clock, self.presence.claims, self._demand_whole, randomness)
        self.tokens = TokenService(ledger, clock, randomness)
        self.log = LogService(ledger, parts.heads, keys.log, keys.clock, self._guard)
        self.log_reader = LogReader(ledger, self.log)
        self.pointers = PointerService(ledger, self.log, self._guard, self.snapshots, randomness)
        ledger.gate = self.log.refuse_if_read_only
        # ORDER: the time of the newest entry is known before anything is cosigned.
        self.log.recover()

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        files: Files | None = None,
        randomness: Callable[[int], bytes] = os.urandom,
        reserve_bytes: int | None = None,
    ) -> Self:
        """Open the store in ``directory``.

        What a crash left is healed on the way: unfinished files are removed, and what was committed but not signed is
        signed.  A store whose log contradicts a signed head opens read-only; :attr:`read_only` says why.

        Args:
            directory: made by :func:`casstore.admin.create_store`.
            clock: where time comes from; the machine's by default.
            files: how bytes reach the disk; for fault tests.
            randomness: returns that many random bytes.
            reserve_bytes: disk space that pushes leave free, so that flips and rollbacks find it; None for the default.

        Raises:
            StoreNotFound: no such directory.
            NotInitialised: the directory is not a store, or lacks a part of one.
            StoreBusy: another process has it open.
            StoreTooNew: a newer casstore made it.
            DamagedObject: ledger, index, heads or a key cannot be read.
            OutcomeUnknown: the head of what was committed could not be made durable.
        """
        home = Home.open(directory, files or Files(), reserve_bytes=reserve_bytes)
        with ExitStack() as stack:
            stack.callback(home.close)
            store = cls.assemble(home, stack, clock=clock or SystemClock(), randomness=randomness)
            store._closing = stack.pop_all()
        return store

    @classmethod
    def assemble(cls, home: Home, stack: ExitStack, *, clock: Clock, randomness: Callable[[int], bytes]) -> Self:
        """Open the parts of a store directory and put the services together.

        Args:
            home: the open directory.
            stack: takes the parts, to be closed in reverse.
            clock: where time comes from.
            randomness: returns that many random bytes.

        Raises:
            CasstoreError: as :meth:`open`.
        """
        keys = read_keys(home)
        return cls(home, open_parts(home, stack), keys, clock=clock, randomness=randomness)

    def close(self) -> None:
        """Close everything and release the directory; idempotent.  Nothing may be running in it any more."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- state ---------------------------------------------------------------------------------------------------------

    @cached_property
    def genesis_sha256(self) -> str:
        """SHA-256 of the log's first entry, in hex: what trust files pin."""
        with self._parts.ledger.read() as view:
            return hashlib.sha256(read_entry(view, 0)).hexdigest()

    @property
    def copyables(self) -> Mapping[str, Copyable]:
        """Ledger and index, by the names of their folders; the ledger is to be copied first."""
        return self._parts.copyables

    @property
    def read_only(self) -> str | None:
        """Why nothing may be written to the log, or None."""
        return self.log.read_only

    @property
    def clock_trouble(self) -> str | None:
        """Why the clock is not believed, or None."""
        return self._guard.trouble(self.pointers.last_ts)

    def confirm_clock(self) -> None:
        """Believe the clock as it stands: an operator has looked at it.

        Threads: ledger writer.
        """
        self._guard.confirm(self.pointers.last_ts)
        if self.log.read_only is None:
            self.log.refresh_clock()

    def refresh_clock(self) -> None:
        """Cosign the published checkpoint with the time of now; a server calls this every minute.

        Raises:
            ClockUntrusted: the clock is not believed; the old line stays.
            LogUnavailable: nothing is published.
        """
        self.log.refresh_clock()

    # --- writing, in one thread --------------------------------------------------------------------------------------------

    def submit(self, submission: Submission) -> Submitted:
        """Submit one act and have its answer.

        Raises:
            CasstoreError: what rejected it; see :meth:`casstore.engine.pointers.PointerService.submit`.

        Threads: ledger writer.
        """
        answer = self.pointers.submit([submission])[0]
        if isinstance(answer, CasstoreError):
            raise answer
        return answer

    def publish_snapshot(self, document: bytes, submission: Submission) -> Submitted:
        """Store a snapshot's document, then publish it.

        Raises:
            CasstoreError: what rejected the document or the act.

        Durability: document, its place in the index, and entry are durable, in this order.
        Threads: index writer and ledger writer in one.
        """
        # ORDER: the pack before the index, the index before the entry.
        self.snapshots.put([document])
        return self.submit(submission)

    # --- collecting ----------------------------------------------------------------------------------------------------

    def collect(
        self,
        retention: Retention = Retention(),  # noqa: B008  (immutable)
        times: GcTimes = GcTimes(),  # noqa: B008  (immutable)
        *,
        dry_run: bool = False,
        hands: Hands | None = None,
    ) -> GcReport:
        """Collect what nothing needs, once: see :mod:`casstore.engine.gc`.

        Args:
            retention: what is kept that nothing current needs.
            times: how patient to be.
            dry_run: change nothing; say what would be done, and why.
            hands: who writes, and how fast; by default this thread, at full speed.

        Raises:
            RequestInProgress: a run is under way.
            InvalidInput: times that are not safe.
            CasstoreError: storage failed; what was done stands.

        Threads: with ``hands`` any, without them the one that writes.
        """
        ledgerside = Ledgerside(self._why_not_collect, self._record_collected, self.pins.expire, self.artifacts.expire)
        with self._collecting():
            return Run(self._gc_work(hands), ledgerside, retention, times, dry_run=dry_run).execute()

    def undo_collect(self, *, hands: Hands | None = None) -> int:
        """Make live again all that is condemned; returns how many objects.

        Raises:
            RequestInProgress: a run is under way.

        Threads: as :meth:`collect`.
        """
        with self._collecting():
            return undo(self._gc_work(hands))

    @contextmanager
    def _collecting(self) -> Iterator[None]:
        # LIMIT: two runs would undo each other's marks.
        if not self._one_run.acquire(blocking=False):
            raise RequestInProgress("a collection is running already: wait for it")
        try:
            yield
        finally:
            self._one_run.release()

    def _gc_work(self, hands: Hands | None) -> Work:
        hands = hands or Hands()
        return Work(
            self.packs,
            self.presence,
            self._parts.ledger,
            self.pushes.sessions,
            self.holds,
            self.clock,
            self._randomness,
            hands.write_index,
            hands.write_ledger,
            hands.pause,
            hands.deleted,
        )

    def _why_not_collect(self) -> str | None:
        return self.read_only or self.clock_trouble

    def _record_collected(self, round_: Round) -> int:
        """Put on record what is about to be dropped.

        # ORDER: the list before the entry that names it, the entry before anything is dropped.

        Threads: ledger writer.
        """
        digest = keep_list(self._ledger, round_.heads, self.clock.now_ms())
        counts = GcCounts(bytes=round_.size_bytes, objects=sum(round_.counts.values()))
        return self.submit(Collected(GcBody(counts, digest, "nothing needs it"))).entry

    def dropped(self, digest: BlobDigest) -> list[str]:
        """What a collection dropped by name: the list that an entry of the log names.

        Raises:
            NotFound: it is not kept any more.
            DamagedObject: it cannot be read.

        Threads: any.
        """
        return read_list(self._ledger, digest)

    def _demand_whole(self, kind: str, digest: BlobDigest) -> None:
        """Refuse to pin what is not all there."""
        if kind == "snapshot":
            self.snapshots.require_complete(SnapshotDigest(digest))
            return
        gaps = Gaps()
        if kind == "tree":
            self.trees.gaps(TreeDigest(digest), gaps)
        else:
            self.presence.blobs([digest], gaps, live=False)
        if gaps.count:
            raise gaps.error(f"{kind} {digest}")

    # --- checking ------------------------------------------------------------------------------------------------------

    def affected(
        self,
        objects: Sequence[tuple[ObjectKind | None, bytes]],
        *,
        progress: Callable[[str, int], None] = lambda what, count: None,
    ) -> AffectedReport:
        """What needs any of some objects.  Goes through the whole store.

        Threads: any.
        """
        return AffectedSearch(self.packs, self.artifacts, self._parts.ledger, progress=progress).run(objects)

    def fsck(self, *, full: bool = False, pool: Executor | None = None, width: int = 1) -> FsckReport:
        """Check the whole store.  Changes nothing.

        Args:
            full: hash every byte of content and put every file together.
            pool: threads that help with ``full``.
            width: how many threads work at most.

        Threads: any.
        """
        findings = Findings()
        heads = self._parts.heads.read_all()
        if not verify_storage([self._parts.index, self._parts.ledger], findings):
            return findings.report()
        fsck_ledger(self._parts.ledger, heads, findings, origin=self.log.origin)
        fsck_content(self.packs, self.artifacts, self._parts.ledger, findings, full=full, pool=pool, width=width)
        return findings.report()


def open_parts(home: Home, stack: ExitStack) -> Parts:
    """Open the storage of a directory; ``stack`` closes it.

    Raises:
        CasstoreError: as :meth:`Store.open`.
    """
    packs = home.open_packs()
    stack.callback(packs.close)
    index = home.open_index()
    stack.callback(index.close)
    ledger = home.open_ledger()
    stack.callback(ledger.close)
    heads = home.open_heads()
    stack.callback(heads.close)
    # ORDER: the ledger first: what it names must be in the copy of the index.
    return Parts(packs, index, ledger, _LocalHeads(heads), {"ledger": ledger, "index": index})


def read_keys(home: Home) -> Keys:
    """Read the server's keys.

    Raises:
        DamagedObject: one is missing, or is no key of its kind.
    """
    log, clock = _read_key(home, LOG_KEY), _read_key(home, CLOCK_KEY)
    if log.verifier.type is not SignatureType.ED25519 or clock.verifier.type is not SignatureType.COSIGNATURE:
        raise DamagedObject("a key of the store is of another kind than its name says", object="keys", where=home.path)
    return Keys(log, clock)


def _read_key(home: Home, name: str) -> SigningKey:
    try:
        return SigningKey.parse(home.read_key(name).decode("ascii").strip())
    except (NotFound, UnicodeDecodeError, InvalidInput) as error:
        raise DamagedObject(
            f"the key {name!r} of the store cannot be read", object=f"key {name}", where=home.path
        ) from error
