"""What is needed, and why: where every mark begins.

Owns the list of roots.  Each has its reason, which a dry run shows; nothing else in casstore decides what may be collected.

============ ===============================================================================================================
current      what a pointer names now
last         the last distinct snapshots of a pointer that are not bad, whatever their age
history      what a pointer named within its window
pin          what somebody pinned
pending      the targets of intents that wait
snapshot     published within the window
artifact     pushed within the window
newest       the newest artifacts of a name, whatever their age
push         what pushes that hold a lease have brought (packs, so :mod:`casstore.engine.gc.mark` reads it there)
============ ===============================================================================================================

Reads the ledger in short views, one after the other.  What is committed between two of them was claimed
(:mod:`casstore.engine.claims`), so nobody depends on having seen it here.

Memory: a page of rows, and the digests of one pointer's past.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple

import msgspec

from casstore.engine.artifacts import ArtifactRow, decode_row
from casstore.engine.gc.retention import DAY_MS, Retention
from casstore.engine.history import flips_down
from casstore.engine.pins import decode_pin
from casstore.engine.records import PointerRecord, SnapshotRecord, decode_record, read_status
from casstore.errors import CasstoreError, DamagedObject
from casstore.formats.acts import FlipArgs, SnapshotArgs
from casstore.formats.canonical import decode_b64
from casstore.formats.intent import parse_intent
from casstore.ids import BlobDigest, SnapshotDigest
from casstore.storage.roles import Ledger, Table
from casstore.wire import Envelope

Reason = Literal["current", "last", "history", "pin", "pending", "snapshot", "artifact", "newest", "push"]
STRICT: Final = frozenset[Reason]({"current", "pin", "pending", "artifact", "newest"})
"""Roots that collection itself never lets go of while they are roots: if one is missing, something is wrong with the store."""

_BATCH: Final = 500
_NAMES: Final = b"\0" + b"\xff" * 32  # behind the rows that find a push's artifact; no name begins with 0x00


class Root(NamedTuple):
    """Where a mark begins."""

    kind: Literal["snapshot", "tree", "blob"]
    digest: bytes
    reason: Reason
    owner: str
    """Who needs it: a pointer, an artifact, a pin."""


class Roots:
    """The roots of one store at one time.

    Args:
        ledger: names them.
        retention: how long is long.
        now_ms: wall time.
        pause: called between pages of rows.
    """

    def __init__(self, ledger: Ledger, retention: Retention, now_ms: int, pause: Callable[[], None]) -> None:
        self._ledger = ledger
        self._retention = retention
        self._now_ms = now_ms
        self._pause = pause

    def __iter__(self) -> Iterator[Root]:
        # ORDER: of importance, for a root that several need is told by its first reason.
        for name, record in self._pointers():
            if record.snapshot is not None:
                yield _snapshot(SnapshotDigest.parse(record.snapshot), "current", name)
        yield from self._pins()
        yield from self._pending()
        for name, _ in self._pointers():
            yield from self._past(name)
        yield from self._snapshots()
        yield from self._artifacts()
        yield from self._newest()

    # --- pointers ------------------------------------------------------------------------------------------------------

    def _pointers(self) -> Iterator[tuple[str, PointerRecord]]:
        for key, value in self._rows(Table.POINTERS):
            name = key.decode()
            yield name, decode_record(value, PointerRecord, f"pointer {name}")

    def _past(self, name: str) -> Iterator[Root]:
        """What a pointer has named: the last few that are not bad, and everything in its window."""
        since = self._now_ms - self._retention.history_ms(name)
        kept: set[str] = set()
        seen: set[str] = set()
        found: list[Root] = []
        ended_ms = self._now_ms  # when the pointer left what the row led to
        with self._ledger.read() as view:
            for _, row in flips_down(view, name):
                inside = ended_ms >= since
                ended_ms = row.at
                if not inside and len(kept) >= self._retention.keep_last:
                    break
                if row.to is None:
                    continue
                digest = SnapshotDigest.parse(row.to)
                if len(kept) < self._retention.keep_last and read_status(view, name, row.to) != "bad":
                    if row.to not in kept:
                        found.append(_snapshot(digest, "last", name))
                    kept.add(row.to)
                elif inside and row.to not in seen:
                    found.append(_snapshot(digest, "history", name))
                seen.add(row.to)
        self._pause()
        yield from found

    # --- what somebody said ----------------------------------------------------------------------------------------------

    def _pins(self) -> Iterator[Root]:
        for key, value in self._rows(Table.PINS):
            pin = decode_pin(key, value)
            if pin.until_ms is None or pin.until_ms > self._now_ms:
                yield Root(pin.kind, BlobDigest.parse(pin.digest), "pin", f"{pin.id} of {pin.owner}")

    def _pending(self) -> Iterator[Root]:
        for key, value in self._rows(Table.PENDING):
            for digest in _targets(key, value):
                yield _snapshot(digest, "pending", f"intent {key.hex()}")

    # --- what was published and pushed -------------------------------------------------------------------------------------

    def _snapshots(self) -> Iterator[Root]:
        since = self._now_ms - self._retention.snapshot_days * DAY_MS
        before: bytes | None = None
        while True:
            with self._ledger.read() as view:
                order = view.scan(Table.SNAPSHOT_ORDER, before=before, reverse=True, limit=_BATCH)
                rows = [(digest, view.get(Table.SNAPSHOTS, digest)) for _, digest in order]
            for digest, value in rows:
                record = decode_record(value or b"", SnapshotRecord, f"snapshot {digest.hex()}")
                if record.at < since:
                    return  # the log's time never runs backwards
                yield _snapshot(SnapshotDigest(digest), "snapshot", f"entry {record.entry}")
            if len(order) < _BATCH:
                return
            before = order[-1][0]
            self._pause()

    def is_kept(self, row: ArtifactRow) -> bool:
        """Whether an artifact's age alone keeps it."""
        return row.pushed_at >= self._now_ms - self._retention.artifact_days * DAY_MS

    def _artifacts(self) -> Iterator[Root]:
        for key, value in self._rows(Table.ARTIFACTS):
            row = decode_row(value)
            if self.is_kept(row):
                yield _artifact(key, row, "artifact")

    def newest(self) -> Iterator[bytes]:
        """Keys of the newest artifacts of each name."""
        name = b""
        group: list[bytes] = []
        for key, _ in self._rows(Table.ARTIFACT_NAMES, after=_NAMES):
            if key[:-9] != name:
                yield from group
                name, group = key[:-9], []
            # Numbers ascend; no more than are kept are held.
            group = [*group, key[-8:]][-self._retention.keep_artifacts :] if self._retention.keep_artifacts else []
        yield from group

    def _newest(self) -> Iterator[Root]:
        for key in self.newest():
            with self._ledger.read() as view:
                value = view.get(Table.ARTIFACTS, key)
            if value is not None:
                yield _artifact(key, decode_row(value), "newest")

    def expired(self) -> Iterator[tuple[bytes, ArtifactRow]]:
        """Artifacts that nothing keeps any more, by key."""
        newest = set(self.newest())  # LIMIT: keep_artifacts keys of 8 bytes a name
        for key, value in self._rows(Table.ARTIFACTS):
            row = decode_row(value)
            if not self.is_kept(row) and key not in newest:
                yield key, row

    def _rows(self, table: Table, after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        while True:
            with self._ledger.read() as view:
                rows = view.scan(table, after=after, limit=_BATCH)
            yield from rows
            if len(rows) < _BATCH:
                return
            after = rows[-1][0]
            self._pause()


def _snapshot(digest: SnapshotDigest, reason: Reason, owner: str) -> Root:
    return Root("snapshot", digest, reason, owner)


def _artifact(key: bytes, row: ArtifactRow, reason: Reason) -> Root:
    number = int.from_bytes(key, "big")
    return Root(
        row.kind, BlobDigest.parse(row.digest), reason, f"artifact {number}" + (f" {row.name}" if row.name else "")
    )


def _targets(key: bytes, value: bytes) -> list[SnapshotDigest]:
    """The snapshots that a waiting intent would make current or publish.

    Raises:
        DamagedObject: it cannot be read; then nobody knows what it needs, and nothing may be collected.
    """
    try:
        envelope = msgspec.json.decode(value, type=Envelope)
        _, args = parse_intent(decode_b64(envelope.payload))
    except (msgspec.MsgspecError, UnicodeDecodeError, CasstoreError) as error:
        raise DamagedObject(
            f"the waiting intent {key.hex()} cannot be read, so nobody knows what it needs: {error}",
            object=f"intent {key.hex()}",
            where="ledger, table pending",
        ) from error
    if isinstance(args, FlipArgs):
        return [member.to for member in args.members if member.to is not None]
    return [args.digest] if isinstance(args, SnapshotArgs) else []
