"""What the ledger keeps beside the log so that reading is fast, and how it follows from each entry.

Owns the rows of the tables ``pointers``, ``history``, ``marks``, ``snapshots``, ``snapshot-order``, ``policies`` and the
log's part of ``intents``.  They are **derived**: a pure function of the entries, written in the same transaction, and
recomputed by ``fsck``, which calls :func:`derive` too and compares.

Source: docs/formats/ledger.md
"""

from __future__ import annotations

import struct
from typing import Final, Literal, Protocol, TypeVar

import msgspec

from casstore.engine.nodes import encode_index
from casstore.errors import DamagedObject
from casstore.formats.acts import GenesisArgs, PolicyArgs, SnapshotArgs
from casstore.formats.state import PointerLeaf
from casstore.ids import PointerName, SnapshotDigest
from casstore.storage.roles import Table
from casstore.transitions.effects import FlipChange, Planned

Status = Literal["good", "bad", "unmarked"]
_SEQ: Final = struct.Struct(">Q")


class HoldRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who holds a pointer, since which entry, until when (ms; None: until released)."""

    entry: int
    until: int | None
    by: str
    reason: str


class PreviousRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the pointer named before its newest flip."""

    snapshot: str
    flip: int
    status: Status


class PointerRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pointer as it is now.  ``snapshot`` is None once it is retired; ``entry`` is the last entry that names it."""

    snapshot: str | None
    flip: int
    seq: int
    entry: int
    since: int
    by: str
    reason: str
    kind: str
    status: Status
    previous: PreviousRecord | None
    hold: HoldRecord | None


class FlipRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """One flip of one pointer.  ``at`` in ms."""

    flip: int
    kind: str
    from_: str | None
    to: str | None
    at: int
    by: str
    reason: str


class MarkRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest mark on one snapshot, as one pointer sees it."""

    verdict: Literal["good", "bad"]
    entry: int
    at: int
    by: str


class SnapshotRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a snapshot was first published.  ``size`` is that of its document, in bytes."""

    entry: int
    at: int
    by: str
    size: int


class RowReader(Protocol):
    """Where derived rows are read: a view of the ledger, or the memory of a replay."""

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The row under ``key``, earlier writes included."""
        ...


class Rows(RowReader, Protocol):
    """Where derived rows go: a ledger transaction, or the memory of a replay."""

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Write a row."""
        ...

    def delete(self, table: Table, key: bytes) -> None:
        """Remove a row."""
        ...


_R = TypeVar("_R", PointerRecord, FlipRecord, MarkRecord, SnapshotRecord)


def encode_record(record: msgspec.Struct) -> bytes:
    """A row as JSON, fields in the order of the type, so that equal rows have equal bytes."""
    return msgspec.json.encode(record)


def decode_record(row: bytes, kind: type[_R], where: str) -> _R:
    """Undo :func:`encode_record`.

    Args:
        where: the row, for the error.

    Raises:
        DamagedObject: the row is no such record.
    """
    try:
        return msgspec.json.decode(row, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DamagedObject(f"the row {where} is not readable: {error}", object=where, where="ledger") from error


def pointer_key(name: str) -> bytes:
    """Key of a pointer's record."""
    return name.encode()


def history_key(name: str, seq: int) -> bytes:
    """Key of a pointer's ``seq``-th flip, counted from 1."""
    return name.encode() + b"\0" + _SEQ.pack(seq)


def mark_key(name: str, snapshot: SnapshotDigest) -> bytes:
    """Key of the mark on a snapshot, as a pointer sees it."""
    return name.encode() + b"\0" + snapshot


def derive(rows: Rows, planned: Planned) -> dict[PointerName, PointerRecord]:
    """Write the rows that follow from one entry.

    Args:
        rows: where they go; it holds those of the entries before.
        planned: the entry and what it changes, as the transitions judged it.

    Returns:
        the records of the pointers that the entry names.
    """
    if planned.intent_id is not None:
        rows.put(Table.INTENTS, planned.intent_id, encode_index(planned.idx))
    if isinstance(planned.args, GenesisArgs | PolicyArgs):
        rows.put(Table.POLICIES, encode_index(planned.idx), b"\0")
    if planned.snapshot is not None:
        assert isinstance(planned.args, SnapshotArgs), "only a snapshot entry publishes one"
        snapshot = SnapshotRecord(planned.idx, planned.ts, author_of(planned), planned.args.size)
        rows.put(Table.SNAPSHOTS, planned.snapshot, encode_record(snapshot))
        rows.put(Table.SNAPSHOT_ORDER, encode_index(planned.idx), planned.snapshot)
    for mark in planned.marks:
        key = mark_key(mark.pointer, mark.snapshot)
        if mark.verdict is None:
            rows.delete(Table.MARKS, key)
        else:
            record = MarkRecord(mark.verdict, planned.idx, planned.ts, author_of(planned))
            rows.put(Table.MARKS, key, encode_record(record))
    flips = {flip.pointer: flip for flip in planned.flips}
    changed: dict[PointerName, PointerRecord] = {}
    for leaf in planned.leaves:
        if isinstance(leaf, PointerLeaf):
            name = leaf.pointer
            old = read_pointer(rows, name)
            record_after = _derive_flip(rows, planned, flips[name], old) if name in flips else old
            assert record_after is not None, "only a pointer that exists is marked or held"
            changed[name] = _refresh(rows, planned, leaf, record_after)
            rows.put(Table.POINTERS, pointer_key(name), encode_record(changed[name]))
    return changed


def author_of(planned: Planned) -> str:
    """Who an entry is by, as people read it: its principals, in order."""
    return ", ".join(planned.principals)


def read_pointer(rows: RowReader, name: str) -> PointerRecord | None:
    """A pointer's record, or None."""
    row = rows.get(Table.POINTERS, pointer_key(name))
    return None if row is None else decode_record(row, PointerRecord, f"pointer {name}")


def read_status(rows: RowReader, name: str, snapshot: str | None) -> Status:
    """The newest mark on ``snapshot`` as pointer ``name`` sees it."""
    if snapshot is None:
        return "unmarked"
    row = rows.get(Table.MARKS, mark_key(name, SnapshotDigest.parse(snapshot)))
    return "unmarked" if row is None else decode_record(row, MarkRecord, f"mark of {snapshot} on {name}").verdict


def _derive_flip(rows: Rows, planned: Planned, flip: FlipChange, old: PointerRecord | None) -> PointerRecord:
    by, reason = author_of(planned), planned.why
    to = None if flip.to is None else str(flip.to)
    was = None if flip.from_ is None else str(flip.from_)
    row = FlipRecord(planned.idx, flip.kind, was, to, planned.ts, by, reason)
    rows.put(Table.HISTORY, history_key(flip.pointer, flip.seq), encode_record(row))
    return PointerRecord(
        snapshot=to,
        flip=planned.idx,
        seq=flip.seq,
        entry=planned.idx,
        since=planned.ts,
        by=by,
        reason=reason,
        kind=flip.kind,
        status="unmarked",
        previous=None if old is None or old.snapshot is None else PreviousRecord(old.snapshot, old.flip, "unmarked"),
        hold=None if old is None else old.hold,
    )


def _refresh(rows: Rows, planned: Planned, leaf: PointerLeaf, record: PointerRecord) -> PointerRecord:
    """The record with its marks and its hold as they are after the entry."""
    hold = None
    if leaf.held is not None:
        hold = record.hold
        if hold is None or hold.entry != leaf.held.idx:
            hold = HoldRecord(leaf.held.idx, leaf.held.until, author_of(planned), planned.why)
    previous = record.previous
    if previous is not None:
        previous = msgspec.structs.replace(previous, status=read_status(rows, leaf.pointer, previous.snapshot))
    status = read_status(rows, leaf.pointer, record.snapshot)
    return msgspec.structs.replace(record, entry=planned.idx, status=status, previous=previous, hold=hold)
