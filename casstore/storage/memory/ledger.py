"""The ledger in memory: each table is a sorted list of keys and a dictionary, copied by the transaction changing it.

Invariants: a view holds the tables as they were when it began, for a committed table is never changed in place; a
transaction's tables replace the committed ones together, or not at all.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

from casstore.errors import StateError
from casstore.storage.roles import Table

KEY_MAX_BYTES: Final = 511


class _Rows:
    """The rows of one table."""

    __slots__ = ("keys", "values")

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.values: dict[bytes, bytes] = {}

    def copy(self) -> Self:
        other = type(self)()
        other.keys = self.keys.copy()
        other.values = self.values.copy()
        return other


class MemoryLedger:
    """Implements :class:`~casstore.storage.roles.Ledger`.

    Threads: any; one write transaction at a time, others are refused.
    """

    def __init__(self) -> None:
        self._writer = threading.Lock()
        self._tables = {table: _Rows() for table in Table}
        self._closed = False

    @contextmanager
    def read(self) -> Iterator[MemoryLedgerView]:
        """See the role."""
        self._check()
        view = MemoryLedgerView(self._tables)
        try:
            yield view
        finally:
            view.end()

    @contextmanager
    def write(self) -> Iterator[MemoryLedgerTransaction]:
        """See the role.

        Raises:
            StateError: another write transaction is open, or the ledger was closed before the block ended.
        """
        if not self._writer.acquire(blocking=False):
            raise StateError("the ledger has one writer, and it is in a transaction")
        try:
            self._check()
            transaction = MemoryLedgerTransaction(dict(self._tables))
            try:
                yield transaction
            finally:
                transaction.end()
            self._check()
            self._tables = transaction.tables
        finally:
            self._writer.release()

    def verify_storage(self) -> None:
        """See the role: there is no storage that could be damaged."""

    def close(self) -> None:
        """See the role."""
        self._closed = True

    def _check(self) -> None:
        if self._closed:
            raise StateError("the ledger is closed")


class MemoryLedgerView:
    """Implements :class:`~casstore.storage.roles.LedgerView`."""

    def __init__(self, tables: dict[Table, _Rows]) -> None:
        self.tables = tables
        self._thread: int | None = threading.get_ident()

    def end(self) -> None:
        """Refuse every later call."""
        self._thread = None

    def get(self, table: Table, key: bytes) -> bytes | None:
        """See the role."""
        return self._rows(table).values.get(key)

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
        """See the role."""
        rows = self._rows(table)
        first = bisect_left(rows.keys, prefix)
        # The keys that begin with the prefix lie together.
        last = bisect_right(rows.keys, prefix, lo=first, key=lambda key: key[: len(prefix)])
        if after is not None:
            first = max(first, bisect_right(rows.keys, after))
        if before is not None:
            last = min(last, bisect_left(rows.keys, before))
        keys = rows.keys[first:last]
        if reverse:
            keys.reverse()
        return [(key, rows.values[key]) for key in keys[: max(limit, 0)]]

    def count(self, table: Table) -> int:
        """See the role."""
        return len(self._rows(table).keys)

    def _rows(self, table: Table) -> _Rows:
        if self._thread is None:
            raise StateError("this view of the ledger has ended")
        if self._thread != threading.get_ident():
            raise StateError("a view of the ledger belongs to the thread that opened it")
        return self.tables[table]


class MemoryLedgerTransaction(MemoryLedgerView):
    """Implements :class:`~casstore.storage.roles.LedgerTransaction`."""

    def __init__(self, tables: dict[Table, _Rows]) -> None:
        super().__init__(tables)
        self._own: set[Table] = set()

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """See the role.

        Raises:
            ValueError: the key is empty or longer than 511 bytes.
        """
        rows = self._writable(table)
        if not 0 < len(key) <= KEY_MAX_BYTES:
            raise ValueError(f"a ledger key has 1 to {KEY_MAX_BYTES} bytes, this has {len(key)}")
        if key not in rows.values:
            insort(rows.keys, bytes(key))
        rows.values[bytes(key)] = bytes(value)

    def delete(self, table: Table, key: bytes) -> None:
        """See the role."""
        rows = self._writable(table)
        if rows.values.pop(key, None) is not None:
            del rows.keys[bisect_left(rows.keys, key)]

    def _writable(self, table: Table) -> _Rows:
        rows = self._rows(table)
        if table not in self._own:
            rows = self.tables[table] = rows.copy()
            self._own.add(table)
        return rows
