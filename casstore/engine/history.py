"""A pointer's past: its flips newest first, what was live at a time, what it may go back to.

Owns reading the tables ``history`` and ``marks``.  A pointer's flips are numbered without a gap from 1, and both their log
index and their time ascend with the number, so a moment is found by binary search and nothing is scanned.

Must not know: proofs, tokens, HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from casstore.engine.records import FlipRecord, decode_record, history_key, read_status
from casstore.errors import DamagedObject, InvalidInput
from casstore.ids import PointerName, SnapshotDigest
from casstore.limits import LIST_LIMIT_MAX
from casstore.storage.roles import LedgerView, Table
from casstore.transitions.lookup import HistoryRow
from casstore.wire import History, HistoryItem, format_time

_SEQ_AT: Final = -8
_PAGE: Final = 64
HISTORY_EXAMINED_MAX: Final = (
    20_000  # LIMIT: rows one request may look at where a filter is rare; the answer says where to go on
)


class Flip(NamedTuple):
    """A row with its number."""

    seq: int
    row: FlipRecord


class Moment(NamedTuple):
    """What a pointer's history says about one moment."""

    flip: Flip | None
    """The flip that was live; None before the first."""
    next: Flip | None
    """The flip that ended it; None if it is live still."""


def read_flip(view: LedgerView, name: str, seq: int) -> FlipRecord:
    """One flip by its number.

    Raises:
        DamagedObject: it is missing, though later ones are there.
    """
    row = view.get(Table.HISTORY, history_key(name, seq))
    if row is None:
        raise DamagedObject(
            f"flip {seq} of {name} is missing", object=f"history {name}/{seq}", where="ledger, table history"
        )
    return decode_record(row, FlipRecord, f"history {name}/{seq}")


def flips_down(view: LedgerView, name: str, seq: int | None = None) -> Iterator[Flip]:
    """The flips of a pointer, newest first, from number ``seq`` (or the newest) down to 1."""
    prefix = name.encode() + b"\0"
    before = None if seq is None else history_key(name, seq + 1)
    while True:
        rows = view.scan(Table.HISTORY, prefix=prefix, before=before, reverse=True, limit=_PAGE)
        for key, value in rows:
            yield Flip(int.from_bytes(key[_SEQ_AT:], "big"), decode_record(value, FlipRecord, f"history {name}"))
        if len(rows) < _PAGE:
            return
        before = rows[-1][0]


def lookup_rows(view: LedgerView, name: PointerName, seq: int | None = None) -> Iterator[HistoryRow]:
    """The same in the form that the transitions ask for."""
    for _, row in flips_down(view, name, seq):
        yield HistoryRow(row.flip, None if row.to is None else SnapshotDigest.parse(row.to), row.at, row.kind)


def last_seq(view: LedgerView, name: str, newest: int, holds: Callable[[FlipRecord], bool]) -> int:
    """The highest number up to ``newest`` whose flip satisfies ``holds``; 0 if none does.

    Args:
        holds: true up to some flip and false behind it.
    """
    low, high = 0, newest
    while low < high:
        middle = (low + high + 1) // 2
        if holds(read_flip(view, name, middle)):
            low = middle
        else:
            high = middle - 1
    return low


def moment_at_index(view: LedgerView, name: str, newest: int, index: int) -> Moment:
    """What was live once entry ``index`` was in the log."""
    return _moment(view, name, newest, last_seq(view, name, newest, lambda row: row.flip <= index))


def moment_at_time(view: LedgerView, name: str, newest: int, at_ms: int) -> Moment:
    """What was live at a time, ms since the epoch; a flip is live from its own millisecond on."""
    return _moment(view, name, newest, last_seq(view, name, newest, lambda row: row.at <= at_ms))


def _moment(view: LedgerView, name: str, newest: int, seq: int) -> Moment:
    found = Flip(seq, read_flip(view, name, seq)) if seq else None
    after = Flip(seq + 1, read_flip(view, name, seq + 1)) if seq < newest else None
    return Moment(found, after)


class HistoryFilter(NamedTuple):
    """Which flips are asked for.  All bounds are optional.

    ``before`` is a log index (exclusive); ``since`` (inclusive) and ``until`` (exclusive) are ms since the epoch.
    """

    before: int | None = None
    since: int | None = None
    until: int | None = None
    kind: str | None = None
    by: str | None = None

    def takes(self, row: FlipRecord) -> bool:
        """Whether kind and author fit."""
        return (self.kind is None or row.kind == self.kind) and (self.by is None or row.by == self.by)


def read_history(view: LedgerView, name: str, newest: int, wanted: HistoryFilter, limit: int) -> History:
    """The flips that ``wanted`` describes, newest first.

    Args:
        newest: number of the newest flip that may be shown.
        limit: 1 to ``LIST_LIMIT_MAX``.

    Returns:
        at most ``limit`` items; ``next`` is the ``before`` to go on with (``f<index>``), or None at the end.  A page may hold
        fewer items than asked for, and none, before the end: see ``HISTORY_EXAMINED_MAX``.

    Raises:
        InvalidInput: a limit out of range.
    """
    check_limit(limit)
    top = newest
    if wanted.before is not None:
        bound = wanted.before
        top = last_seq(view, name, top, lambda row: row.flip < bound)
    if wanted.until is not None:
        end = wanted.until
        top = last_seq(view, name, top, lambda row: row.at < end)
    items: list[HistoryItem] = []
    if top == 0:
        return History(items=items)
    for examined, (seq, row) in enumerate(flips_down(view, name, top), 1):
        if wanted.since is not None and row.at < wanted.since:
            break
        if wanted.takes(row):
            items.append(history_item(view, name, Flip(seq, row)))
        if (len(items) == limit or examined == HISTORY_EXAMINED_MAX) and seq > 1:
            return History(items=items, next=f"f{row.flip}")
    return History(items=items)


def history_item(view: LedgerView, name: str, flip: Flip) -> HistoryItem:
    """A flip as people and programs read it, with the newest mark on what it led to."""
    seq, row = flip
    return HistoryItem(
        pointer=str(name),
        flip=row.flip,
        seq=seq,
        kind=row.kind,
        from_=row.from_,
        to=row.to,
        at=format_time(row.at),
        by=row.by,
        reason=row.reason,
        status=read_status(view, name, row.to),
    )


def parse_flip(text: str) -> int:
    """``f1043`` → 1043.

    Raises:
        InvalidInput: another spelling.
    """
    digits = text.removeprefix("f")
    if digits == text or not digits.isascii() or not digits.isdigit() or len(digits) > 16 or str(int(digits)) != digits:
        raise InvalidInput(f"{text[:40]!r} is not a flip such as f1043")
    return int(digits)


def check_limit(limit: int) -> None:
    """Accept the length of a page.

    Raises:
        InvalidInput: not between 1 and ``LIST_LIMIT_MAX``.
    """
    if not 1 <= limit <= LIST_LIMIT_MAX:
        raise InvalidInput(f"limit is {limit}; it must be between 1 and {LIST_LIMIT_MAX}")
